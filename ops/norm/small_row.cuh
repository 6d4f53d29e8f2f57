#pragma once

#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/row.cuh"
#include "norma/ops/norm/small_row.h"

// A row within a warp, a vector of it in each lane: a norm at the end of the product that gives it.

namespace norma::norm_cuda {

static_assert(kMostRow == kRowVec * kWarpSize);
using RowVec = Packed<float, kRowVec>;

/// What a norm does with a row that a warp has just made. Everything else that it reads is asked
/// for by its constructor.
class RowForward {
 public:
  __device__ __forceinline__ RowForward(const NormForwardArgs& k, int row, bool real)
      : k_(k), row_(row), col_(static_cast<int>(threadIdx.x) % kWarpSize * kRowVec) {
    real_ = real && col_ < k.x.cols;
    if (!real_) return;
    if (k.residual) residual_ = load<kRowVec>(k.residual.row<float>(row) + col_);
    if (k.w) gain_ = load<kRowVec>(k.w.as<float>() + col_);
    if (k.b) bias_ = load<kRowVec>(k.b.as<float>() + col_);
  }
  /// All lanes come here.
  __device__ __forceinline__ void finish(RowVec x) {
    const NormOptions& o = k_.options;
    if (real_ && k_.residual) {
#pragma unroll
      for (int e = 0; e < kRowVec; ++e) x[e] = add(x[e], residual_[e]);
      store(k_.h.row<float>(row_) + col_, x);
    }
    const Stats<float> s = statistics_of(x);
    if (!real_) return;
    if (col_ == 0) {
      if (k_.mean) k_.mean.at<float>(row_) = s.mean / s.scale;
      if (k_.mean_rest) k_.mean_rest.at<float>(row_) = s.mean_rest / s.scale;
      k_.rstd.at<float>(row_) = mul(s.rstd, s.scale);
    }
    const Normalize<float> x_hat_of(s);
#pragma unroll
    for (int e = 0; e < kRowVec; ++e) {
      const float gain = !k_.w ? 1.0f : o.zero_centered ? add(gain_[e], 1.0f) : gain_[e];
      const float bias = k_.b ? bias_[e] : 0.0f;
      x[e] = fused(x_hat_of(s.scale == 1 ? x[e] : mul(x[e], s.scale)), gain, bias);
    }
    store(k_.y.row<float>(row_) + col_, x);
  }

 private:
  __device__ __forceinline__ Stats<float> statistics_of(const RowVec& x) const {
    const NormOptions& o = k_.options;
    const bool centred = o.kind == NormKind::layer;
    const float size = o.kind == NormKind::l2 ? 1.0f : static_cast<float>(k_.x.cols);
    const float share = 1 / size;
    Moments<float> m;
    LaneSum<float> sums, squares;
    if (centred) {
#pragma unroll
      for (int e = 0; e < kRowVec; ++e) sums.term(e, real_ ? x[e] : 0.0f);
      m.mean = mean_of(lanes_sum(sums.total(), kWarpSize), size, share);
      sums = {};
    }
#pragma unroll
    for (int e = 0; e < kRowVec; ++e) {
      const float v = real_ ? sub(x[e], m.mean) : 0.0f;
      sums.term(e, v), squares.product(e, v, v);
    }
    m.squares = lanes_sum(squares.total(), kWarpSize);
    if (centred) {
      m.mean_rest = mean_of(lanes_sum(sums.total(), kWarpSize), size, share);
      m.squares = about_mean(m.squares, m.mean_rest, size);
    }
    if (out_of_range(m.squares, o.eps)) return scaled_statistics(x);
    return {m.mean, m.mean_rest, rstd_of(m.squares, size, share, Epsilon<float>(o.eps)), 1.0f};
  }
  /// The long way, for rows whose squares leave float32's range.
  __device__ __noinline__ Stats<float> scaled_statistics(const RowVec& x) const {
    Team<float> team{};
    team.order.n = k_.x.cols, team.block = false;
    return statistics<kRowVec>(team, k_.options, [&](int64_t, int, float(&u)[kRowVec]) {
      for (int e = 0; e < kRowVec; ++e) u[e] = x[e];
    });
  }

  const NormForwardArgs& k_;
  RowVec residual_{}, gain_{}, bias_{};
  int row_, col_;
  bool real_;
};

}  // namespace norma::norm_cuda
