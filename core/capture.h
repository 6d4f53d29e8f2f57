#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

#include "norma/core/fields.h"
#include "norma/core/tensor.h"

namespace norma {
namespace detail {

/// Sees the parts of arguments and results: tensors, and bytes that are the same where what they
/// stand for is the same.
class PartVisitor {
 public:
  virtual ~PartVisitor() = default;
  virtual void tensor(Tensor& t) = 0;
  virtual void plain(const void* bytes, size_t n) = 0;
  virtual void enter(std::string_view) {}
  virtual void leave() {}

  template <class M>
  void operator()(std::string_view name, M& member);  // for objects with a visit()
};

template <class T>
concept TupleLike = requires {
  std::tuple_size<T>::value;
};
template <class T>
concept Visited = requires(T& object, PartVisitor& v) {
  object.visit(v);
};

/// Shows v the parts of an object in order. With `tensors_only` anything else does not compile.
template <bool tensors_only, class T>
void visit_parts(T& object, PartVisitor& v) {
  const auto number = [&](int64_t n) { v.plain(&n, sizeof n); };
  int64_t index = 0;
  const auto each = [&](auto& part) {
    v.enter(std::to_string(index++));
    visit_parts<tensors_only>(part, v);
    v.leave();
  };
  if constexpr (std::is_base_of_v<Tensor, T>) {
    v.tensor(object);
  } else if constexpr (requires {
                         object.has_value();
                         *object;
                       }) {
    number(object.has_value());
    if (object) visit_parts<tensors_only>(*object, v);
  } else if constexpr (std::is_same_v<T, std::string>) {
    static_assert(!tensors_only, "a captured function returns tensors and structs of them");
    number(static_cast<int64_t>(object.size()));
    v.plain(object.data(), object.size());
  } else if constexpr (requires {
                         object.size();
                         object.begin();
                       } &&
                       !TupleLike<T>) {
    number(static_cast<int64_t>(object.size()));
    for (auto& part : object) each(part);
  } else if constexpr (TupleLike<T>) {
    std::apply([&](auto&... parts) { (each(parts), ...); }, object);
  } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
    static_assert(!tensors_only, "a captured function returns tensors and structs of them");
    v.plain(&object, sizeof object);
  } else if constexpr (Visited<T>) {
    object.visit(v);
  } else {
    static_assert(std::is_aggregate_v<T>,
                  "captured functions take and return tensors, numbers, enums, text, optionals, "
                  "vectors, and structs of these: plain ones or with a visit()");
    for_each_field(object, each);
  }
}

template <class M>
void PartVisitor::operator()(std::string_view name, M& member) {
  enter(name);
  visit_parts<false>(member, *this);
  leave();
}

template <class T>
const void* type_identity() {
  static constexpr char address = 0;
  return &address;
}

/// One call of a captured function: the half of it that knows types.
class CapturedBody {
 public:
  virtual ~CapturedBody() = default;
  virtual void visit_arguments(PartVisitor& v) = 0;
  virtual void run() = 0;  ///< the function on the arguments as they are now; these go
  virtual void visit_result(PartVisitor& v) = 0;
  virtual std::shared_ptr<const void> keep_result() const = 0;
  virtual void restore_result(const void* kept) = 0;
};

/// The half that does not: keys, slots, traces, graphs.
class CaptureEngine {
 public:
  CaptureEngine();
  ~CaptureEngine();
  CaptureEngine(CaptureEngine&&) noexcept;
  CaptureEngine& operator=(CaptureEngine&&) noexcept;
  void call(CapturedBody& body);
  std::string graph_nodes() const;

  struct Entry;  ///< what is known of arguments of one kind

 private:
  std::unordered_map<std::string, std::unique_ptr<Entry>> entries_;
};

struct NoResult {};

template <class F, class R, class... A>
class TypedBody final : public CapturedBody {
 public:
  using Result = std::conditional_t<std::is_void_v<R>, NoResult, std::remove_cvref_t<R>>;

  TypedBody(F& f, const A&... arguments) : f_(f), arguments_(std::in_place, arguments...) {}

  void visit_arguments(PartVisitor& v) override {
    int index = 0;
    const auto each = [&]<class T>(T& argument) {
      const void* type = type_identity<T>();
      v.plain(&type, sizeof type);
      v.enter(std::to_string(index++));
      visit_parts<false>(argument, v);
      v.leave();
    };
    std::apply([&](auto&... arguments) { (each(arguments), ...); }, *arguments_);
  }
  void run() override {
    const auto invoke = [&](auto&... arguments) -> decltype(auto) {
      return std::invoke(f_, std::move(arguments)...);
    };
    if constexpr (std::is_void_v<R>)
      std::apply(invoke, *arguments_), result_.emplace();
    else
      result_.emplace(std::apply(invoke, *arguments_));
    arguments_.reset();
  }
  void visit_result(PartVisitor& v) override { visit_parts<true>(*result_, v); }
  std::shared_ptr<const void> keep_result() const override {
    return std::make_shared<Result>(*result_);
  }
  void restore_result(const void* kept) override {
    result_.emplace(*static_cast<const Result*>(kept));
  }
  Result& result() { return *result_; }

 private:
  F& f_;
  std::optional<std::tuple<A...>> arguments_;
  std::optional<Result> result_;
};

}  // namespace detail

/// A function whose work on a GPU is recorded once and launched as a whole; see capture().
template <class F>
class Captured {
 public:
  explicit Captured(F f) : f_(std::move(f)) {}

  template <class... A>
  auto operator()(const A&... arguments) {
    using R = std::invoke_result_t<F&, Argument<A>...>;
    detail::TypedBody<F, R, Argument<A>...> body(f_, arguments...);
    engine_.call(body);
    if constexpr (!std::is_void_v<R>) return std::move(body.result());
  }

  /// A table of the graphs that were captured so far: how many nodes there are and on the longest
  /// path, and of what. Empty on the CPU.
  std::string graph_nodes() const { return engine_.graph_nodes(); }

 private:
  template <class A>
  using Argument = std::conditional_t<std::is_base_of_v<Tensor, A>, Tensor, A>;
  F f_;
  detail::CaptureEngine engine_;
};

/// A function that runs as f does, but on a GPU as one CUDA graph:
///   auto step = capture([&](const Batch& batch) { …; return loss; });
/// For arguments of a new kind the first call is a plain one, the second is recorded and launched,
/// later ones launch again: no step is done twice. The kind is the arguments' structure, the
/// tensors' shapes, dtypes, devices and requires_grad, every plain number, enum and text by value,
/// and whether recording and autocast are on. Arguments may be tensors, numbers, enums, text,
/// optionals, vectors, plain structs of up to eight of these, and objects that show these by name:
/// template <class V> void visit(V& v) { v("name", member); }. Tensors are copied into fixed
/// places, so that f must not keep one; a model is not passed but captured by reference. The result
/// is tensors or structs of them, given out as copies without history.
///
/// The host's part of f runs in the first two calls alone, so from the second call on these are
/// GraphErrors that name the operation: reading or printing a tensor; leaving a tensor, or a
/// gradient, that was made in the call to outlive it; and a trace that differs from the second
/// call's, in operations, shapes, options, or tensors from outside. On the CPU f runs at every call
/// under the same rules, so that what works there can be captured; on a GPU traces are compared at
/// the second call, and at every one where the environment has NORMA_CHECK_CAPTURE=1.
///
/// Each call takes the next call number of the ambient generator and draws with ordinals from 0: a
/// loop draws the same numbers on any device, but not those of a loop without capture.
template <class F>
Captured<F> capture(F f) {
  return Captured<F>(std::move(f));
}

}  // namespace norma
