#pragma once

#include "norma/ops/norm/backward_any.cuh"

namespace norma::norm_cuda {

enum { kVX, kGX, kPX, kVG, kV, kG, kP, kSums };  // the sums of a group; the last three if centred

/// What the sums, now means, give for the elements.
template <class Acc>
struct Second {
  Acc mean[kSums], rstd, vjg;  // vᵀJg / D
  __device__ Second(const Acc (&means)[kSums], Acc r) : rstd(r) {
    for (int s = 0; s < kSums; ++s) mean[s] = means[s];
    vjg = mul(rstd, sub(sub(mean[kVG], mul(mean[kV], mean[kG])), mul(mean[kVX], mean[kGX])));
  }
  /// J times a vector of which e is an element.
  __device__ __forceinline__ Acc through(Acc e, Acc x_hat, int level, int along) const {
    return mul(rstd, fused(-x_hat, mean[along], sub(e, mean[level])));
  }
  __device__ __forceinline__ Acc of_h(Acc x_hat, Acc g, Acc p, Acc jv) const {
    const Acc jg = through(g, x_hat, kG, kGX), jp = through(p, x_hat, kP, kPX);
    const Acc less = fused(mean[kGX], jv, fused(mean[kVX], jg, mul(vjg, x_hat)));
    return fused(-rstd, less, jp);
  }
};

/// A row that is so large or small that its own rstd lost digits is scaled as the forward did it.
template <class Acc>
__device__ __forceinline__ bool has_lost_digits(Acc rstd) {
  constexpr Acc kLeast = std::is_same_v<Acc, double> ? Acc(0x1p-1022) : Acc(0x1p-126f);
  return !(rstd >= kLeast && rstd <= largest<Acc>());
}

/// A call whose rows are of T and of one group runs by whole rows, each tensor read once; or it
/// says that it does not fit.
template <class T>
bool second_by_rows(const Cuda& on, const NormSecondArgs& k, NormBackwardArgs& as_backward,
                    WeightSums<float>& sums);

}  // namespace norma::norm_cuda
