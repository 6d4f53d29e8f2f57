#pragma once

#include <array>
#include <cstdint>

namespace norma {

// What kernels draw by. Generators, which hand out the keys, are random.h's.

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

}  // namespace norma
