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
  bool operator==(const RandomKey&) const = default;
};

/// Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405).
constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t{0xD2511F53} * c[0], q = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(q >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(q),
         static_cast<uint32_t>(p >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p)};
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
  return c;
}

/// The four words of elements 4·group … 4·group + 3.
constexpr std::array<uint32_t, 4> random_words(const RandomKey& key, uint64_t group) {
  return philox(
      {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), key.ordinal, key.call},
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
/// takes the next call number, with ordinals from 0. Belongs to the thread that made it.
class Generator {
 public:
  Generator(uint64_t seed, std::string_view name);
  RandomKey next();  ///< throws GraphError on another thread than the owner
  void begin_call();
  void end_call();
  const GeneratorState& state() const { return state_; }
  void set_state(const GeneratorState& state) { state_ = state; }

 private:
  GeneratorState state_;
  uint32_t outer_ordinal_ = 0;
  std::thread::id owner_ = std::this_thread::get_id();
};

Generator& ambient_generator();
void manual_seed(uint64_t seed);

// Fills n elements; the same bits for any thread count.
void fill_uniform(RandomKey key, float* out, int64_t n);   ///< [0, 1), 24 bits
void fill_uniform(RandomKey key, double* out, int64_t n);  ///< [0, 1), 53 bits of two words
void fill_normal(RandomKey key, float* out, int64_t n);    ///< Box–Muller on pairs, no libm
void fill_normal(RandomKey key, double* out, int64_t n);
void fill_bernoulli(RandomKey key, double p, uint8_t* out, int64_t n);  ///< 1 with probability p
/// Integers in [low, high): low + ⌊w·(high − low)/2⁶⁴⌋ for w of two words, so that no value's
/// probability is off by more than 2⁻⁶⁴. Integer arithmetic: the same numbers on every device.
void fill_integers(RandomKey key, int64_t low, int64_t high, int64_t* out, int64_t n);
void fill_integers(RandomKey key, int64_t low, int64_t high, int32_t* out, int64_t n);

// Factories that take the ambient generator's next key.
/// Standard normals of a floating dtype; half types are rounded from the float32 ones.
Tensor randn(const Shape& shape, DType dtype = float32, Device device = cpu);
Tensor randn_like(const Tensor& t);
/// Uniform in [0, 1) of a floating dtype; half types are rounded from float32, but stay below 1.
Tensor rand(const Shape& shape, DType dtype = float32, Device device = cpu);
Tensor rand_like(const Tensor& t);
/// Integers in [low, high), int32 or int64. ValueError where no integer lies there or one does
/// not fit the dtype.
Tensor randint(int64_t low, int64_t high, const Shape& shape, DType dtype = int64,
               Device device = cpu);

}  // namespace norma
