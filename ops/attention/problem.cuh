#pragma once

#include <cmath>
#include <cstdint>

#include "norma/core/cuda/launch.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/ops/attention/kernels.h"

namespace norma::attention {

// What every attention kernel for a GPU is told, and what it works out from it.

/// (B, H, length, D) where the last stride is 1.
struct Heads {
  void* data;
  int64_t batch, head, row;  // strides

  template <class Byte>
  explicit Heads(const BasicView<Byte>& view)
      : data(const_cast<void*>(static_cast<const void*>(view.data))),
        batch(view.strides[0]),
        head(view.strides[1]),
        row(view.strides[2]) {}
  template <class T>
  __device__ T* at(int b, int h, int64_t t = 0) const {
    return static_cast<T*>(data) + b * batch + h * head + t * row;
  }
};

/// Whether every row can be read and written 16 bytes at a time.
template <class... Views>
bool have_wide_rows(const Views&... views) {
  const auto has = [](const auto& view) {
    bool wide = reinterpret_cast<uintptr_t>(view.data) % 16 == 0;
    for (int d = 0; d < 3; ++d)
      wide &= view.shape[d] == 1 || view.strides[d] * size_of(view.dtype) % 16 == 0;
    return wide;
  };
  return (has(views) && ...);
}

/// One head's queries, or keys: the rows of one block of threads.
struct Place {
  int batch, head, first;
};

struct Sizes {
  int batches, heads, kv_heads, queries, keys, dim;
  bool causal;

  __host__ __device__ int shared() const { return heads / kv_heads; }
  /// Query t sees keys below t + 1 + shift.
  __host__ __device__ int shift() const { return keys - queries; }
  /// The end of the keys that some query before `end_query` sees.
  __device__ int end_of_keys(int end_query) const {
    return causal ? min(keys, end_query + shift()) : keys;
  }
  /// The first query that sees key `key`.
  __device__ int first_query(int key) const { return causal ? max(0, key - shift()) : 0; }
  /// Row t of head (b, h) among all.
  __device__ int64_t row(int b, int h, int t) const {
    return (int64_t{b} * heads + h) * queries + t;
  }
};

/// AttentionSettings' mask as kernels draw it.
struct DropoutMask {
  RandomKey key;
  uint32_t below;  ///< of random words' upper halves: dropped
  int groups;      ///< of eight keys in a row

  DropoutMask(const AttentionSettings& settings, int64_t keys)
      : key(settings.key),
        below(uint32_t(settings.dropped()) << 16),
        groups(static_cast<int>((keys + 7) / 8)) {}
  __host__ __device__ explicit operator bool() const { return below > 0; }
  /// Bit e: whether key 8 group + e of a row is kept.
  __device__ uint32_t kept(int64_t row, int group) const {
    const auto words = random_words(key, static_cast<uint64_t>(row * groups + group));
    uint32_t bits = 0;
#pragma unroll
    for (int w = 0; w < 4; ++w)
      bits |= uint32_t(words[w] << 16 >= below) << 2 * w | uint32_t(words[w] >= below)
                                                               << (2 * w + 1);
    return bits;
  }
};

template <class T>
inline constexpr bool is_half = sizeof(T) == 2;

inline constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

template <class T>
struct Problem {
  using Acc = stats_t<T>;
  Sizes sizes;
  Acc scale, scale_log2;  ///< scale_log2: with log₂ e, so that probabilities are powers of two
  DropoutMask dropout;
  Acc rescale;  ///< 1 / (1 − p)
  bool wide;    ///< rows are read and written 16 bytes at a time

  Problem(const AttentionSettings& s, const ConstView& q, const ConstView& k, bool wide_rows)
      : sizes{int(q.shape[0]), int(q.shape[1]), int(k.shape[1]), int(q.shape[2]),
              int(k.shape[2]), int(q.shape[3]), s.causal},
        scale(static_cast<Acc>(s.scale)),
        scale_log2(static_cast<Acc>(s.scale * kLog2E)),
        dropout(s, k.shape[2]),
        rescale(static_cast<Acc>(s.rescale())),
        wide(wide_rows) {}
};

template <class T>
struct ForwardProblem : Problem<T> {
  Heads q, k, v, y;
  stats_t<T>* lse;

  explicit ForwardProblem(const AttentionForwardArgs& a)
      : Problem<T>(a.settings, a.q, a.k, have_wide_rows(a.q, a.k, a.v, a.y)),
        q(a.q),
        k(a.k),
        v(a.v),
        y(a.y),
        lse(a.lse.template as<stats_t<T>>()) {}
};

template <class T>
struct BackwardProblem : Problem<T> {
  Heads dy, q, k, v, y, dq, dk, dv;
  const stats_t<T>* lse;
  stats_t<T>* delta;

  explicit BackwardProblem(const AttentionBackwardArgs& a)
      : Problem<T>(a.settings, a.q, a.k,
                   have_wide_rows(a.dy, a.q, a.k, a.v, a.y, a.dq, a.dk, a.dv)),
        dy(a.dy),
        q(a.q),
        k(a.k),
        v(a.v),
        y(a.y),
        dq(a.dq),
        dk(a.dk),
        dv(a.dv),
        lse(a.lse.template as<stats_t<T>>()),
        delta(a.delta.template as<stats_t<T>>()) {}
};

}  // namespace norma::attention
