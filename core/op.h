#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/autocast.h"
#include "norma/core/autograd.h"
#include "norma/core/fields.h"
#include "norma/core/tensor.h"

namespace norma {

// An op is a struct of static functions, none overloaded, none a template:
//
//   using Options = …                     a flat aggregate with defaults, the last argument below
//   static constexpr std::string_view name
//   static TensorSpec check(args…, o)     throws where arguments do not fit; may return void
//   static R define(args…, o)             the formula, in tensor arithmetic
//   static R forward(Context&, args…, o)  kernels
//   static G backward(Context&, dy…)      the gradients of the arguments, in their order
//   static bool runs_on(Device, DType)    where forward has kernels (default: everywhere)
//   static constexpr CastRule cast_rule   what mixed precision does to the arguments
//   static constexpr uint32_t cast_arguments   to which: bit i stands for argument i (default: all)
//
// define or forward is needed, the rest is optional. Arguments are Tensor, optional<Tensor> and at
// most one vector<Tensor>; R is a Tensor, a vector of them, or a struct of Tensor, optional<Tensor>
// and Constant. Without forward the primitives of define are recorded; with forward but without
// backward the derivative is taken through define. `backward` has a Tensor for the one result, else
// an optional<Tensor> for each, and may return fewer gradients than there are arguments: the last
// ones get none. Whatever backward computes in tensor arithmetic is differentiable again.

class Context;
class OpNode;

/// A result that carries no gradient, in kernel and definition alike (returned statistics).
struct Constant {
  Tensor value;
  Constant() = default;
  Constant(Tensor t) : value(std::move(t)) {}       // NOLINT: converts both ways
  operator const Tensor&() const { return value; }  // NOLINT
};

/// The options of an op of unknown type; converts to the type they were saved as.
class OptionsRef {
 public:
  OptionsRef(const void* options, const void* type) : options_(options), type_(type) {}
  template <class T>
  operator const T&() const {  // NOLINT
    if (type_ != tag<T>()) throw_wrong_type();
    return *static_cast<const T*>(options_);
  }
  template <class T>
  static const void* tag() {
    static constexpr char address = 0;
    return &address;
  }

 private:
  [[noreturn]] static void throw_wrong_type();
  const void* options_;
  const void* type_;
};

/// One application of an op, types erased. An absent tensor is an undefined one.
struct Call {
  std::span<const Tensor* const> inputs;
  const void* options = nullptr;
  std::optional<TensorSpec> output = none;  ///< what check returned
  Node::Gradients outputs = {};             ///< the results, flat
};

/// What the engine knows of an op. One constant a type of op.
struct OpInfo {
  std::string_view name;
  void (*check)(Call&) = nullptr;
  void (*define)(Call&) = nullptr;
  void (*forward)(Context&, Call&) = nullptr;
  Node::Gradients (*backward)(Context&, const Node::Gradients&) = nullptr;
  bool (*runs_on)(Device, DType) = nullptr;
  const void* options_type = nullptr;
  void* (*copy_options)(const void*) = nullptr;  // null where there are none
  void (*free_options)(void*) = nullptr;
  bool (*same_options)(const void*, const void*) = nullptr;
  uint32_t constants = 0;  ///< bit i: result i carries no gradient
  CastRule cast_rule = CastRule::keep;
  uint32_t cast_arguments = ~uint32_t{0};
};

/// Sees every op that runs on its thread while it lives, nested ones included, and every step of a
/// sweep: capture compares what it sees with the first time, the NaN watch looks at the values.
class Observer {
 public:
  Observer();
  virtual ~Observer();
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

  /// An op begins; `current_op()` is still the one around it.
  virtual void applying(const OpInfo& /*op*/) {}
  virtual void applied(const OpInfo& op, const Call& call) = 0;
  virtual void differentiated(const Node& node, const Node::Gradients& gradients) = 0;
  /// A write in place (fill_(value), copy_(source), add_(source), an optimizer's), or values from
  /// the host by a factory: the number, or a hash of them.
  virtual void wrote(std::string_view /*name*/, const Tensor& /*target*/, const Tensor& /*source*/,
                     double /*value*/) {}

  static Observer* current();
  Observer* outer() const { return outer_; }

 private:
  Observer* outer_;
};

/// Tells the observers of such a write; what writes with a kernel of its own calls it.
void notify_write(std::string_view name, const Tensor& target, const Tensor& source = {},
                  double value = 0);

/// Runs an op: the only place for checks, recording, tracing and the NaN watch.
void apply_op(const OpInfo& op, Call& call);
/// The op that this thread runs now, for errors from below; `kNoOp` outside of one.
inline constexpr std::string_view kNoOp = "norma";
std::string_view current_op();

/// What an op's forward and backward know of their call.
class Context {
 public:
  /// Keeps inputs or outputs, with their history, for backward. Anything else is a GraphError: a
  /// copy made inside forward would lose the second derivative silently.
  template <class... T>
  void save(const T&... tensors) {
    if (recording_) (keep(tensors, false), ...);
  }
  /// Keeps what backward may use as a hint but not differentiate (rstd, a mask).
  template <class... T>
  void save_constant(const T&... tensors) {
    if (recording_) (keep(tensors, true), ...);
  }
  /// What was saved, in the order of saving. GraphError where it was changed in place since.
  Tensor saved(int i) const;
  std::optional<Tensor> saved_optional(int i) const;
  /// In backward: whether nobody will look at what was saved as i any more, so that its memory may
  /// be written: the sweep frees the graph and is not recorded, and no one else holds the tensor.
  bool is_last_use(int i) const;
  OptionsRef options() const;
  /// Whether input i wants a gradient.
  bool needs(int i) const;
  /// In forward: whether backward may follow. In backward: whether it is recorded itself.
  bool recording() const { return recording_; }
  std::string_view name() const { return op_.name; }
  /// In backward: what input i looks like, for inputs that want a gradient only.
  const TensorSpec& input(int i) const;
  /// The spec that check returned.
  const TensorSpec& output() const;

 private:
  friend void apply_op(const OpInfo& op, Call& call);
  friend class OpNode;
  struct Kept {
    Tensor tensor;
    uint32_t place;
    bool constant;
  };
  Context(const OpInfo& op, const Call* call, OpNode* node, bool recording)
      : op_(op), call_(call), node_(node), recording_(recording) {}
  /// An absent tensor takes a place and nothing else.
  void keep(const Tensor& tensor, bool constant) {
    if (tensor.defined()) kept_.emplace_back(tensor, places_, constant);
    ++places_;
  }
  void keep(const std::optional<Tensor>& tensor, bool constant) {
    if (tensor)
      keep(*tensor, constant);
    else
      ++places_;
  }
  void keep(const std::vector<Tensor>& tensors, bool constant) {
    for (const Tensor& t : tensors) keep(t, constant);
  }

  const OpInfo& op_;
  const Call* call_;  // in forward
  OpNode* node_;      // in backward
  bool recording_;
  SmallVector<Kept, 8> kept_;
  uint32_t places_ = 0;
};

namespace detail {

template <class... T>
struct Types {};

template <class F>
struct Signature;
template <class R, class... A>
struct Signature<R (*)(A...)> {
  using Result = R;
  using Args = Types<std::remove_cvref_t<A>...>;
};

template <class List>
struct WithoutContext {
  using type = List;
};
template <class... A>
struct WithoutContext<Types<Context, A...>> {
  using type = Types<A...>;
};

template <class Options, class Done, class Rest>
struct WithoutOptions;
template <class Options, class... D>
struct WithoutOptions<Options, Types<D...>, Types<>> {
  using type = Types<D...>;
};
template <class Options, class... D, class A, class... R>
struct WithoutOptions<Options, Types<D...>, Types<A, R...>>
    : WithoutOptions<Options,
                     std::conditional_t<std::is_same_v<A, Options>, Types<D...>, Types<D..., A>>,
                     Types<R...>> {};

struct NoOptions {};
template <class Op>
struct OptionsOf {
  using type = NoOptions;
};
template <class Op>
requires requires { typename Op::Options; }
struct OptionsOf<Op> {
  using type = typename Op::Options;
};

template <class Op>
concept HasForward = requires {
  &Op::forward;
};
template <class Op>
concept HasDefine = requires {
  &Op::define;
};
template <class Op>
concept HasBackward = requires {
  &Op::backward;
};
template <class Op>
concept HasCheck = requires {
  &Op::check;
};
template <class Op>
concept HasRunsOn = requires {
  &Op::runs_on;
};
template <class Op>
concept HasCastRule = requires {
  Op::cast_rule;
};
template <class Op>
concept HasCastArguments = requires {
  Op::cast_arguments;
};
template <class Op>
concept HasName = requires {
  std::string_view(Op::name);
};

template <class Op>
constexpr auto main_function() {
  static_assert(HasForward<Op> || HasDefine<Op>, "an op needs a define or a forward");
  if constexpr (HasForward<Op>)
    return &Op::forward;
  else
    return &Op::define;
}

template <class Op>
struct Traits {
  using Options = typename OptionsOf<Op>::type;
  using Main = Signature<decltype(main_function<Op>())>;
  using Result = typename Main::Result;
  using Args = typename WithoutOptions<Options, Types<>,
                                       typename WithoutContext<typename Main::Args>::type>::type;
  static constexpr bool has_options = !std::is_same_v<Options, NoOptions>;
};

/// The name of a type as the compiler spells it, without its namespaces: an op without a name.
template <class T>
constexpr std::string_view type_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  text = text.substr(text.find("T = ") + 4);
  text = text.substr(0, text.find_first_of(";]"));
  const size_t colon = text.rfind("::");
  return colon == text.npos ? text : text.substr(colon + 2);
}

template <class T>
inline constexpr bool is_tensor_vector = std::is_same_v<T, std::vector<Tensor>>;

/// A tensor of the list as an optional argument. It does not count as a reference: the list's own
/// outlives the call, and two locked instructions an argument are a tenth of a tiny op.
class Lent {
 public:
  explicit Lent(const Tensor& t) {
    if (t.defined()) argument_.emplace(Ref<TensorImpl>::lent(&t.impl()));
  }
  ~Lent() {
    if (argument_) argument_->give_up();
  }
  Lent(const Lent&) = delete;
  Lent& operator=(const Lent&) = delete;
  operator const std::optional<Tensor>&() const { return argument_; }  // NOLINT

 private:
  std::optional<Tensor> argument_;
};

/// Hands out a flat list of tensors as the arguments of an op.
class Reader {
 public:
  Reader(std::span<const Tensor* const> flat, size_t vector_length)
      : flat_(flat), vector_length_(vector_length) {}

  template <class A>
  decltype(auto) read() {
    if constexpr (!is_tensor_vector<A>) {
      return (*flat_[next_++]);
    } else {
      std::vector<Tensor> tensors;
      for (size_t i = 0; i < vector_length_; ++i) tensors.push_back(*flat_[next_++]);
      return tensors;
    }
  }

 private:
  std::span<const Tensor* const> flat_;
  size_t vector_length_, next_ = 0;
};

/// What holds an argument of type A during a call.
template <class A>
struct HeldAs;
template <>
struct HeldAs<Tensor> {
  using type = const Tensor&;
};
template <>
struct HeldAs<std::optional<Tensor>> {
  using type = Lent;
};
template <>
struct HeldAs<std::vector<Tensor>> {
  using type = std::vector<Tensor>;
};

/// f(args…) with the arguments, Tensor, optional<Tensor> or vector<Tensor>, read from `flat`.
template <class... A, class F>
decltype(auto) with_arguments(Types<A...>, std::span<const Tensor* const> flat, const F& f) {
  static_assert((0 + ... + int{is_tensor_vector<A>}) <= 1, "at most one vector of tensors");
  constexpr size_t singles = (size_t{0} + ... + size_t{!is_tensor_vector<A>});
  Reader reader(flat, flat.size() - singles);
  std::tuple<typename HeldAs<A>::type...> arguments{reader.template read<A>()...};
  return std::apply(f, arguments);
}

inline void flatten(Tensor&& t, Node::Gradients& flat) { flat.push_back(std::move(t)); }
inline void flatten(Constant&& t, Node::Gradients& flat) { flat.push_back(std::move(t.value)); }
inline void flatten(std::optional<Tensor>&& t, Node::Gradients& flat) {
  flat.push_back(t ? std::move(*t) : Tensor());
}
inline void flatten(std::vector<Tensor>&& tensors, Node::Gradients& flat) {
  for (Tensor& t : tensors) flat.push_back(std::move(t));
}
template <class R>
requires std::is_aggregate_v<R>
void flatten(R&& result, Node::Gradients& flat) {
  for_each_field(result, [&](auto& field) { flatten(std::move(field), flat); });
}

template <class R>
R unflatten(Node::Gradients&& flat) {
  if constexpr (std::is_same_v<R, Tensor>) {
    return std::move(flat[0]);
  } else if constexpr (is_tensor_vector<R>) {
    return R(flat.begin(), flat.end());
  } else {
    R result;
    size_t i = 0;
    for_each_field(result, [&]<class Field>(Field& field) {
      Tensor& t = flat[i++];
      if constexpr (std::is_same_v<Field, std::optional<Tensor>>) {
        if (t.defined()) field = std::move(t);
      } else {
        field = std::move(t);
      }
    });
    return result;
  }
}

template <class R>
constexpr uint32_t constants_of() {
  uint32_t mask = 0;
  if constexpr (std::is_aggregate_v<R>) {
    uint32_t bit = 1;
    R result;
    for_each_field(result, [&]<class Field>(Field&) {
      if (std::is_same_v<Field, Constant>) mask |= bit;
      bit <<= 1;
    });
  }
  return mask;
}

/// The op's functions with their types erased.
template <class Op>
struct Thunks {
  using Options = typename Traits<Op>::Options;
  using Args = typename Traits<Op>::Args;

  /// f(lead…, args…, options), options left out where the op has none.
  template <class F, class... Lead>
  static decltype(auto) invoke(F f, const Call& call, Lead&... lead) {
    return with_arguments(Args{}, call.inputs, [&](auto&... args) -> decltype(auto) {
      if constexpr (Traits<Op>::has_options)
        return f(lead..., args..., *static_cast<const Options*>(call.options));
      else
        return f(lead..., args...);
    });
  }
  static void check(Call& call) {
    if constexpr (std::is_void_v<decltype(invoke(&Op::check, call))>)
      invoke(&Op::check, call);
    else
      call.output = invoke(&Op::check, call);
  }
  static void define(Call& call) { flatten(invoke(&Op::define, call), call.outputs); }
  static void forward(Context& ctx, Call& call) {
    flatten(invoke(&Op::forward, call, ctx), call.outputs);
  }
  static Node::Gradients backward(Context& ctx, const Node::Gradients& grads) {
    using BackwardArgs =
        typename WithoutContext<typename Signature<decltype(&Op::backward)>::Args>::type;
    SmallVector<const Tensor*, 8> pointers;
    for (const Tensor& t : grads) pointers.push_back(&t);
    Node::Gradients flat;
    with_arguments(BackwardArgs{}, {pointers.data(), arity(BackwardArgs{}, pointers.size())},
                   [&](auto&... dy) { flatten(Op::backward(ctx, dy...), flat); });
    return flat;
  }
  template <class... A>
  static size_t arity(Types<A...>, size_t outputs) {
    return (is_tensor_vector<A> || ...) ? outputs : sizeof...(A);
  }
  static void* copy_options(const void* options) {
    return new (allocate(sizeof(Options))) Options(*static_cast<const Options*>(options));
  }
  static void free_options(void* options) {
    static_cast<Options*>(options)->~Options();
    deallocate(options, sizeof(Options));
  }
  static bool same_options([[maybe_unused]] const void* a, [[maybe_unused]] const void* b) {
    if constexpr (std::equality_comparable<Options>)
      return *static_cast<const Options*>(a) == *static_cast<const Options*>(b);
    else
      return true;
  }
};

template <class Op>
constexpr OpInfo make_op_info() {
  OpInfo info;
  if constexpr (HasName<Op>)
    info.name = Op::name;
  else
    info.name = type_name<Op>();
  if constexpr (HasCheck<Op>) info.check = Thunks<Op>::check;
  if constexpr (HasDefine<Op>) info.define = Thunks<Op>::define;
  if constexpr (HasForward<Op>) info.forward = Thunks<Op>::forward;
  if constexpr (HasBackward<Op>) info.backward = Thunks<Op>::backward;
  if constexpr (HasRunsOn<Op>) info.runs_on = Op::runs_on;
  if constexpr (HasCastRule<Op>) info.cast_rule = Op::cast_rule;
  if constexpr (HasCastArguments<Op>) info.cast_arguments = Op::cast_arguments;
  if constexpr (Traits<Op>::has_options) {
    info.copy_options = Thunks<Op>::copy_options;
    info.free_options = Thunks<Op>::free_options;
    info.same_options = Thunks<Op>::same_options;
  }
  return info;
}

/// Its address is the op's identity.
template <class Op>
const OpInfo& op_info() {
  static const OpInfo info = [] {
    OpInfo made = make_op_info<Op>();
    made.options_type = OptionsRef::tag<typename Traits<Op>::Options>();
    made.constants = constants_of<typename Traits<Op>::Result>();
    return made;
  }();
  return info;
}

inline const Tensor* absent_tensor() {
  static const Tensor undefined;
  return &undefined;
}

template <class Op, class Args>
struct ApplyWith;
template <class Op, class... A>
struct ApplyWith<Op, Types<A...>> {
  using Options = typename Traits<Op>::Options;
  using Result = typename Traits<Op>::Result;

  Result operator()(const A&... args) const { return run(Options{}, args...); }
  Result operator()(const A&... args, const Options& options) const
      requires(Traits<Op>::has_options) {
    return run(options, args...);
  }

 private:
  static Result run(const Options& options, const A&... args) {
    if constexpr ((is_tensor_vector<A> || ...)) {
      SmallVector<const Tensor*, 8> flat;
      (add(args, flat), ...);
      return run_flat({flat.data(), flat.size()}, options);
    } else {
      return run_flat(std::array<const Tensor*, sizeof...(A)>{address(args)...}, options);
    }
  }
  static Result run_flat(std::span<const Tensor* const> flat, const Options& options) {
    Call call{.inputs = flat, .options = &options};
    apply_op(op_info<Op>(), call);
    return unflatten<Result>(std::move(call.outputs));
  }
  static const Tensor* address(const Tensor& t) { return &t; }
  static const Tensor* address(const std::optional<Tensor>& t) { return t ? &*t : absent_tensor(); }
  template <class Single, class Flat>
  static void add(const Single& t, Flat& flat) {
    flat.push_back(address(t));
  }
  template <class Flat>
  static void add(const std::vector<Tensor>& tensors, Flat& flat) {
    for (const Tensor& t : tensors) flat.push_back(&t);
  }
};

template <class Op>
struct Apply : ApplyWith<Op, typename Traits<Op>::Args> {};

}  // namespace detail

/// Applies an op: `apply<RmsNorm>(x, w, {.eps = 1e-6})`, `apply<LayerNorm>(x, none, b)`.
template <class Op>
inline constexpr detail::Apply<Op> apply{};

}  // namespace norma
