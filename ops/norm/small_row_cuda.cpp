#include "norma/ops/norm/plans.h"
#include "norma/ops/norm/small_row.h"

namespace norma::norm_cuda {
namespace {

/// Dense rows of whole vectors on 16 bytes.
template <class Rows>
bool is_even(const Rows& t, int64_t cols) {
  return !t || (t.dtype == DType::float32 && t.cols == cols && t.row_stride % kRowVec == 0 &&
                reinterpret_cast<uintptr_t>(t.data) % 16 == 0);
}
bool is_weight(const ConstVec& w, int64_t cols) {
  return !w || (w.dtype == DType::float32 && w.n == cols &&
                reinterpret_cast<uintptr_t>(w.data) % 16 == 0);
}
bool is_one_group(const NormOptions& o, int64_t cols) {
  return (o.group == 0 || o.group == cols) && cols <= kMostRow && cols % kRowVec == 0;
}

}  // namespace

bool suits_row(const NormForwardArgs& k) {
  const NormOptions& o = k.options;
  const int64_t cols = k.x.cols;
  return !only_general_plans && is_one_group(o, cols) && o.variance == Variance::two_pass &&
         o.casting == Casting::wide && o.dropout == 0 && !k.z && !k.row_scale && !k.w2 && !k.y2 &&
         !k.x_hat && static_cast<bool>(k.h) == static_cast<bool>(k.residual) &&
         is_even(k.x, cols) && is_even(k.residual, cols) && is_even(k.h, cols) &&
         is_even(k.y, cols) && is_weight(k.w, cols) && is_weight(k.b, cols);
}

}  // namespace norma::norm_cuda
