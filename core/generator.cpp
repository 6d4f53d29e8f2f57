#include <limits>
#include <string_view>
#include <thread>

#include "norma/core/captured_call.h"
#include "norma/core/error.h"
#include "norma/core/random.h"
#include "norma/core/tensor.h"

namespace norma {

Generator::Generator(uint64_t seed, std::string_view name) {
  uint64_t hash = seed ^ 0xCBF29CE484222325u;  // FNV-1a of the name, mixed by Philox
  for (char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  const auto w =
      philox({static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0}, hash);
  state_.key = uint64_t{w[0]} << 32 | w[1];
}

RandomKey Generator::next() {
  if (!is_ours())
    throw GraphError(
        "random: the ambient generator belongs to the thread that first used or last seeded it, "
        "but another drew; give that thread a Generator of its own");
  return {state_.key, call_word_ ? 0 : state_.call, state_.ordinal++, call_word_};
}

void Generator::begin_call(const uint32_t* word) {
  call_word_ = word;
  outer_ordinal_ = state_.ordinal;
  state_.call = ++state_.calls;
  state_.ordinal = 0;
}

void Generator::end_call() {
  call_word_ = nullptr;
  state_.call = 0;
  state_.ordinal = outer_ordinal_;
}

Generator& ambient_generator() {
  static Generator generator = [] {
    Generator g(0, "ambient");
    g.owner_ = std::this_thread::get_id();
    return g;
  }();
  return generator;
}

void manual_seed(uint64_t seed) {
  Generator& generator = ambient_generator();
  generator = Generator(seed, "ambient");
  generator.owner_ = std::this_thread::get_id();
}

namespace {

/// A new floating tensor that fill(key, elements, n) has written.
template <class Fill>
Tensor drawn(std::string_view where, const TensorSpec& spec, const Fill& fill) {
  if (!is_floating(spec.dtype))
    throw DTypeError("{}: the dtype must be a floating one, but is {}", where,
                     to_string(spec.dtype));
  detail::require_drawable(where);
  Tensor t = empty(spec.shape, spec.dtype);  // drawn here, then moved: the same bits everywhere
  const RandomKey key = ambient_generator().next();
  visit_floating(spec.dtype, [&]<class T>() { fill(key, static_cast<T*>(t.data()), t.numel()); });
  return t.to(spec.device);
}

}  // namespace

Tensor randn(const Shape& shape, DType dtype, Device device) {
  return drawn("randn", {shape, dtype, device},
               [](RandomKey key, auto* out, int64_t n) { fill_normal(key, out, n); });
}

Tensor randn_like(const Tensor& t) { return randn(t.shape(), t.dtype(), t.device()); }

Tensor rand(const Shape& shape, DType dtype, Device device) {
  return drawn("rand", {shape, dtype, device},
               [](RandomKey key, auto* out, int64_t n) { fill_uniform(key, out, n); });
}

Tensor rand_like(const Tensor& t) { return rand(t.shape(), t.dtype(), t.device()); }

Tensor randint(int64_t low, int64_t high, const Shape& shape, DType dtype, Device device) {
  if (dtype != int32 && dtype != int64)
    throw DTypeError("randint: the dtype must be int32 or int64, but is {}", to_string(dtype));
  if (low >= high)
    throw ValueError("randint: low must be below high, but they are {} and {}", low, high);
  using Int32 = std::numeric_limits<int32_t>;
  if (dtype == int32 && (low < Int32::min() || high - 1 > Int32::max()))
    throw ValueError("randint: int32 does not hold [{}, {}); ask for int64", low, high);
  detail::require_drawable("randint");
  Tensor t = empty(shape, dtype);
  const RandomKey key = ambient_generator().next();
  visit_index(dtype, [&]<class T>() {
    fill_integers(key, low, high, static_cast<T*>(t.data()), t.numel());
  });
  return t.to(device);
}

}  // namespace norma
