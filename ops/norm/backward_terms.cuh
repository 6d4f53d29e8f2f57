#pragma once

#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/plain.cuh"

// Vectors of 16 bytes in the fast backwards of the plain members: how they are read and written,
// and what they become.

namespace norma::norm_cuda {

/// 16 bytes of T on their way between memory and registers, two of 16 bits an instruction.
template <class T>
__device__ __forceinline__ void unpack(const uint4& words, float (&v)[kLaneWidth<T>]) {
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2) {
      const float2 both = unpack_pair<T>(w[i]);
      v[2 * i] = both.x, v[2 * i + 1] = both.y;
    } else {
      v[i] = __uint_as_float(w[i]);
    }
  }
}
template <class T>
__device__ __forceinline__ void unpack(const void* from, float (&v)[kLaneWidth<T>]) {
  unpack<T>(*static_cast<const uint4*>(from), v);
}
template <class T>
__device__ __forceinline__ uint4 packed(const float (&v)[kLaneWidth<T>]) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 2)
      w[i] = pack_pair<T>(v[2 * i], v[2 * i + 1]);
    else
      w[i] = __float_as_uint(v[i]);
  }
  return {w[0], w[1], w[2], w[3]};
}
template <class T>
__device__ __forceinline__ void pack(void* to, const float (&v)[kLaneWidth<T>]) {
  *static_cast<uint4*>(to) = packed<T>(v);
}

/// s(z) and its slope of the activations short enough for a fast kernel.
template <bool kShort, int kWidth>
__device__ __forceinline__ void short_gates_of(GateActivation activation, float beta,
                                               const float (&z)[kWidth],
                                               Gate<float> (&gate)[kWidth]) {
  const auto sigmoid_of = [](float v) { return kShort ? short_sigmoid(v) : sigmoid(v); };
  if (activation == GateActivation::silu) {  // the usual one first
#pragma unroll
    for (int e = 0; e < kWidth; ++e) gate[e] = swish_of(z[e], z[e], sigmoid_of(z[e]));
  } else if (activation == GateActivation::sigmoid) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const float s = sigmoid_of(z[e]);
      gate[e] = {s, mul(s, sub(1.0f, s))};
    }
  } else if (activation == GateActivation::identity) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) gate[e] = {z[e], 1.0f};
  } else {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const float v = mul(beta, z[e]);
      gate[e] = swish_of(z[e], v, sigmoid_of(v));
    }
  }
}

/// A vector of a row: x̂ and g, what they were made of, and what comes of them.
///   kFull  LayerNorm, or a bias's gradient; else neither
template <class T, GateOrder kGate, bool kFull>
struct BackwardTerms {
  static constexpr int kWidth = kLaneWidth<T>;
  static constexpr bool kGateFirst = kGate == GateOrder::gate_then_norm;
  static constexpr bool kGateLast = kGate == GateOrder::norm_then_gate;
  static constexpr bool kGated = kGateFirst || kGateLast;
  float h[kWidth], dy[kWidth];  // as they were read
  float x_hat[kWidth], dn[kWidth], g[kWidth];
  Gate<float> gate[kGated ? kWidth : 1];

  __device__ __forceinline__ void form(const float (&gain)[kWidth], const Stats<float>& s) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const float u = kGateFirst ? mul(h[e], gate[kGated ? e : 0].value) : h[e];
      x_hat[e] = kFull ? s.normalized(u) : mul(u, s.rstd);
      dn[e] = kGateLast ? mul(dy[e], gate[kGated ? e : 0].value) : dy[e];
      g[e] = mul(gain[e], dn[e]);
    }
  }
  /// Adds to Σ g ⊙ x̂, Σ g and the weights' gradients.
  __device__ __forceinline__ void add_to(LaneSum<float>& gx_sum, LaneSum<float>& g_sum,
                                         float (&dw)[kWidth], float (&db)[kWidth]) const {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      gx_sum.product(e, g[e], x_hat[e]);
      dw[e] = fused(dn[e], x_hat[e], dw[e]);
      if constexpr (kFull) {
        g_sum.term(e, g[e]);
        db[e] = add(db[e], dn[e]);
      }
    }
  }
  /// du, and dz where the gate comes first, from the row's means of g ⊙ x̂ and g.
  __device__ __forceinline__ void finish(const Stats<float>& s, float2 mean, float (&du)[kWidth],
                                         float (&dz)[kWidth]) const {
    const float along = mul(s.rstd, mean.x), level = mul(s.rstd, mean.y);
#pragma unroll
    for (int e = 0; e < kWidth; ++e)
      du[e] = fused(-x_hat[e], along, kFull ? fused(g[e], s.rstd, -level) : mul(g[e], s.rstd));
    if constexpr (kGateFirst) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        dz[e] = mul(mul(du[e], h[e]), gate[e].slope);
        du[e] = mul(du[e], gate[e].value);
      }
    }
  }
  /// dz where the gate comes last; an absent b adds no +0 to −0.
  template <class ReadBias>
  __device__ __forceinline__ void finish_gate(const float (&gain)[kWidth], bool has_b,
                                              const ReadBias& read_b, float (&dz)[kWidth]) {
    if (has_b) {
      read_b(dz);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) g[e] = fused(gain[e], x_hat[e], dz[e]);
    } else {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) g[e] = mul(gain[e], x_hat[e]);
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) dz[e] = mul(mul(dy[e], g[e]), gate[e].slope);
  }
};

/// Whether all that a row is read from and written to is in whole vectors on 16 bytes.
template <class T>
bool is_even_all(const NormBackwardArgs& k, int64_t size) {
  const auto even = [&](const auto&... t) { return (is_even<T>(t, size) && ...); };
  return even(k.h, k.dy, k.z, k.dh, k.dx, k.dz, k.dresidual) && on_16_bytes(k.w) &&
         on_16_bytes(k.b);
}

}  // namespace norma::norm_cuda
