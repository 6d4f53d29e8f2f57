#pragma once

#include <array>
#include <cstdint>

#include "norma/core/random.h"
#include "norma/nn/data/dataset.h"

namespace norma::nn {

/// The random numbers of one row: a function of seed, part, step and row alone, so that a row is
/// the same whatever was drawn before it.
class Draws {
 public:
  Draws(Part part, uint64_t seed, int64_t step, int64_t row)
      : key_{.key = Generator(seed, part == Part::train ? "data.train" : "data.validation")
                        .state()
                        .key,
             .call = static_cast<uint32_t>(static_cast<uint64_t>(step) >> 32),
             .ordinal = static_cast<uint32_t>(step)},
        row_(static_cast<uint64_t>(row) << 32) {}

  uint64_t bits() {
    if (drawn_ % 2 == 0) words_ = random_words(key_, row_ + drawn_ / 2);
    const size_t half = 2 * (drawn_++ % 2);
    return uint64_t{words_[half]} << 32 | words_[half + 1];
  }
  /// In [0, 1), 53 bits.
  double uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  /// A whole number in 0 … n − 1; some come oftener than others by at most n / 2⁵³.
  int64_t below(int64_t n) {
    return static_cast<int64_t>(uniform() * static_cast<double>(n));  // < n: n ≤ 2⁵³ is exact
  }

 private:
  RandomKey key_;
  uint64_t row_, drawn_ = 0;
  std::array<uint32_t, 4> words_{};
};

}  // namespace norma::nn
