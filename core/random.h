#pragma once

#include <cstdint>
#include <string_view>
#include <thread>

#include "norma/core/device.h"
#include "norma/core/dtype.h"
#include "norma/core/philox.h"
#include "norma/core/shape.h"

namespace norma {

class Tensor;

struct GeneratorState {
  uint64_t key = 0;
  uint32_t call = 0, ordinal = 0, calls = 0;
  bool operator==(const GeneratorState&) const = default;
};

/// Hands out keys. Outside captured calls `call` is 0 and the ordinal runs on; each captured call
/// takes the next call number, with ordinals from 0. One thread at a time may use it.
class Generator {
 public:
  Generator(uint64_t seed, std::string_view name);
  RandomKey next();
  /// Takes the next call number, with ordinals from 0. Keys hold it, or with `word` the place where
  /// the caller writes it.
  void begin_call(const uint32_t* word = nullptr);
  void end_call();
  /// Whether next() may be called here: the ambient generator belongs to one thread.
  bool is_ours() const {
    return owner_ == std::thread::id() || owner_ == std::this_thread::get_id();
  }
  const GeneratorState& state() const { return state_; }
  void set_state(const GeneratorState& state) { state_ = state; }

 private:
  GeneratorState state_;
  friend Generator& ambient_generator();
  friend void manual_seed(uint64_t seed);
  uint32_t outer_ordinal_ = 0;
  const uint32_t* call_word_ = nullptr;
  std::thread::id owner_;  // of the ambient generator; no thread: any may draw
};

/// What factories and ops draw from. It belongs to the thread that first asked for it or last
/// seeded it: next() throws GraphError on another one, whose draws would come in no fixed order.
Generator& ambient_generator();
void manual_seed(uint64_t seed);

// Fills n elements. The same bits for any thread count, processor and device: only operations that
// IEEE 754 rounds correctly, in a fixed order. T: float, double, BFloat16 or Float16.
/// Uniform in [0, 1): multiples of 2⁻²⁴, for double of 2⁻⁵³ from two words. Half types are rounded
/// from float's numbers, to what lies below 1.
template <class T>
void fill_uniform(RandomKey key, T* out, int64_t n);
/// Standard normals by Box and Muller's transform: float's error is below 4 units of roundoff of
/// the radius; half types are rounded from float's numbers. |float| ≤ 6.77, |double| ≤ 8.58.
template <class T>
void fill_normal(RandomKey key, T* out, int64_t n);
/// 1 where the float uniform of the same key and element is below p, else 0. ValueError where p is
/// no probability.
void fill_bernoulli(RandomKey key, double p, uint8_t* out, int64_t n);
/// Integers in [low, high): low + ⌊w·(high − low)/2⁶⁴⌋ for w of two words, so that no value's
/// probability is off by more than 2⁻⁶⁴. Integer arithmetic: the same numbers on every device.
void fill_integers(RandomKey key, int64_t low, int64_t high, int64_t* out, int64_t n);
void fill_integers(RandomKey key, int64_t low, int64_t high, int32_t* out, int64_t n);

// Factories that take the ambient generator's next key.
/// Standard normals of a floating dtype; half types are rounded from the float32 ones.
Tensor randn(const Shape& shape, DType dtype = float32, Device device = default_device());
Tensor randn_like(const Tensor& t);
/// Uniform in [0, 1) of a floating dtype; half types are rounded from float32, but stay below 1.
Tensor rand(const Shape& shape, DType dtype = float32, Device device = default_device());
Tensor rand_like(const Tensor& t);
/// Integers in [low, high), int32 or int64. ValueError where no integer lies there or one does
/// not fit the dtype.
Tensor randint(int64_t low, int64_t high, const Shape& shape, DType dtype = int64,
               Device device = default_device());

}  // namespace norma
