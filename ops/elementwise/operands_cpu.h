#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <type_traits>

#include "norma/core/dtype.h"
#include "norma/core/strided.h"
#include "norma/core/view.h"

namespace norma::detail {

/// What a T is computed in: float for the half types, 64 bits for integers and bool.
template <class T>
using compute_t =
    std::conditional_t<is_floating(dtype_of<T>),
                       std::conditional_t<std::is_same_v<T, double>, double, float>, int64_t>;

inline constexpr int64_t kChunk = 512;  // elements: three float buffers stay in the first cache

/// n values of one operand as the kernels want them: `step` is 1, or 0 for one repeated value.
template <class Acc>
struct Operands {
  const Acc* data;
  int64_t step;
};

/// Elements first … first + n − 1 of a row that begins at `row`, converted into `buffer` where they
/// are not already dense Accs.
template <class Acc, class T>
Operands<Acc> load(const T* row, int64_t stride, int64_t first, int64_t n, Acc* buffer) {
  const T* source = row + first * stride;
  if constexpr (std::is_same_v<T, Acc>) {
    if (stride == 1) return {source, 1};
  }
  if (stride == 0) {
    buffer[0] = static_cast<Acc>(*source);
    return {buffer, 0};
  }
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<Acc>(source[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<Acc>(source[i * stride]);
  }
  return {buffer, 1};
}

/// Calls body(offsets, first, n) on several threads for chunks of at most kChunk elements of a row.
template <int N, class Body>
void for_chunks(const StridedLoop<N>& loop, const Body& body) {
  for_pieces(loop, [&](const auto& offsets, int64_t first, int64_t n) {
    for (int64_t c = 0; c < n; c += kChunk) body(offsets, first + c, std::min(kChunk, n - c));
  });
}

/// Runs compute(Acc* out) and puts its n results where they belong.
template <class Acc, class T, class F>
void store(T* target, int64_t n, const F& compute) {
  if constexpr (std::is_same_v<T, Acc>) {
    compute(target);
  } else {
    Acc buffer[kChunk];
    compute(buffer);
    for (int64_t i = 0; i < n; ++i) target[i] = static_cast<T>(buffer[i]);
  }
}

}  // namespace norma::detail
