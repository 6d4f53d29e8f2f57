#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <thread>

#include "norma/core/device.h"
#include "norma/core/dtype.h"
#include "norma/core/shape.h"

namespace norma {

class Tensor;

/// Names one stream of random numbers; an op that draws takes it as an option, so that its
/// definition, kernel, recompute and derivatives draw alike.
struct RandomKey {
  uint64_t key = 0;
  uint32_t call = 0;
  uint32_t ordinal = 0;
  /// In a captured call (core/capture.h) the place that holds `call`, on the capture's device: what
  /// is replayed must not hold the number itself. A kernel that uses `call` by itself or often
  /// begins with `key = key.resolved()`; random_words and uniform_at do it for themselves.
  const uint32_t* call_word = nullptr;

  constexpr RandomKey resolved() const { return {key, call_word ? *call_word : call, ordinal}; }
  bool operator==(const RandomKey&) const = default;
};

/// Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405): ten rounds, whose keys grow
/// by these steps.
inline constexpr uint32_t kPhiloxStep0 = 0x9E3779B9, kPhiloxStep1 = 0xBB67AE85;

constexpr std::array<uint32_t, 4> philox_round(const std::array<uint32_t, 4>& c, uint32_t k0,
                                               uint32_t k1) {
  const uint64_t p = uint64_t{0xD2511F53} * c[0], q = uint64_t{0xCD9E8D57} * c[2];
  return {static_cast<uint32_t>(q >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(q),
          static_cast<uint32_t>(p >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p)};
}

constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    counter = philox_round(counter, k0, k1);
    k0 += kPhiloxStep0, k1 += kPhiloxStep1;
  }
  return counter;
}

/// The four words of elements 4·group … 4·group + 3.
constexpr std::array<uint32_t, 4> random_words(const RandomKey& key, uint64_t group) {
  const uint32_t call = key.call_word ? *key.call_word : key.call;
  return philox(
      {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), key.ordinal, call},
      key.key);
}

/// What fill_uniform gives element `element`: a multiple of 2⁻²⁴ in [0, 1).
constexpr float uniform_at(const RandomKey& key, int64_t element) {
  const auto e = static_cast<uint64_t>(element);
  return static_cast<float>(random_words(key, e / 4)[e % 4] >> 8) * 0x1p-24f;
}

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
