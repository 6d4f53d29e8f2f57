// One norm against its formulas in float64, forward and every gradient: what the peers' grids and
// ours are made of.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "norma/core/device.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/formula.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "ops/norm/members.h"
#include "testing/compare.h"

namespace norma::testing {

enum class Layout {
  dense,
  sliced,
  transposed,
  stepped,
  repeated_gradient,
  transposed_gradient,
  misaligned
};

using Maybe = std::optional<Tensor>;

struct NormCase {
  Member member;
  Shape shape;
  DType dtype = float32, weights = float32;
  Layout layout = Layout::dense;
};
inline std::string to_string(const NormCase& c) {
  return to_string(c.member) + " shape " + norma::to_string(c.shape) + " " +
         std::string(norma::to_string(c.dtype)) + " weights " +
         std::string(norma::to_string(c.weights)) + " layout " +
         format("{}", static_cast<int>(c.layout));
}

/// rows × cols, cut to fewer rows where the float64 formulas would need more than some
/// milliseconds.
inline Shape within_budget(int64_t rows, int64_t cols) {
  const int64_t budget = int64_t{1} << (default_device().is_cpu() ? 16 : 18);
  return {std::min(rows, std::max<int64_t>(budget / cols, 2)), cols};
}

/// t's values as a view of another layout.
inline Tensor laid_out(const Tensor& t, Layout layout) {
  const int64_t cols = t.shape().back(), rows = cols == 0 ? 0 : t.numel() / cols;
  if (layout == Layout::sliced || layout == Layout::misaligned) {
    const int64_t before = layout == Layout::sliced ? 8 : 1;  // one element: no vector fits
    const Tensor wide = zeros({rows, cols + 2 * before}, t.dtype());
    wide.slice(1, before, before + cols).copy_(t.reshape({rows, cols}));
    return wide.slice(1, before, before + cols).reshape(t.shape());
  }
  if (layout == Layout::transposed) return t.transpose(0, 1).contiguous().transpose(0, 1);
  if (layout == Layout::stepped) {  // every third element of every fifth row
    const Tensor wide = zeros({5 * rows, 3 * cols}, t.dtype());
    const Tensor view = wide.slice(0, 0, 5 * rows, 5).slice(1, 0, 3 * cols, 3);
    view.copy_(t.reshape({rows, cols}));
    return view;
  }
  return t;
}

/// Forward and every gradient against the formulas in float64 on the same values.
inline void expect_exact(const NormCase& norm) {
  SCOPED_TRACE(to_string(norm));
  manual_seed(3);
  NormArguments a(norm.member, norm.shape, norm.dtype, norm.weights);
  a.x = laid_out(a.x, norm.layout);
  for (Maybe* t : {&a.in.z, &a.in.residual})
    if (*t) *t = laid_out(**t, norm.layout);
  GradientCase c(a);
  const NormOptions& o = c.a.options;
  const double stats = unit_roundoff(stats_dtype(norm.dtype)), unit = unit_roundoff(norm.dtype);
  const Tensor h = (c.result.h ? *c.result.h : c.a.x).to(float64);
  const Tensor z = c.a.in.z ? c.a.in.z->to(float64) : Tensor();
  const detail::Formula f(h, z, o);
  if (norm.layout == Layout::repeated_gradient) {
    Shape one = c.dy.shape();
    one[0] = 1;
    c.dy = randn(one, float64).to(c.dy.dtype()).expand(c.dy.shape());
  } else {
    c.dy = (c.dy.to(float64) + f.x_hat * 3).to(c.dy.dtype());
  }
  if (norm.layout == Layout::transposed_gradient) c.dy = laid_out(c.dy, Layout::transposed);
  if (norm.layout == Layout::misaligned) c.dy = laid_out(c.dy, Layout::misaligned);

  // Forward: x̂ has some √D/2 + 4 roundings, of which a pairwise sum keeps few; w, b and gate three.
  NormArguments wide = c.a.to(float64);
  wide.x = h, wide.in.residual = wide.in.row_scale = none, wide.options.dropout = 0;
  const NormResult exact = wide.definition();
  const double cast = o.casting == Casting::rounded ? unit : 0;
  const auto largest = [](const Tensor& t) { return t.numel() ? t.abs().max().item() : 0.0; };
  const auto near = [&](const Tensor& actual, const Tensor& expected, double scale) {
    const double tiny = actual.dtype() == float16 ? 0x1p-25 : 0;
    EXPECT_CLOSE(actual, expected,
                 {.relative = unit_roundoff(actual.dtype()) + cast + 8 * stats,
                  .absolute = 16 * stats * scale + cast * scale / 16 + tiny});
  };
  near(c.result.y, exact.y, largest(exact.y) + 1);
  if (exact.y2) near(*c.result.y2, *exact.y2, largest(*exact.y2) + 1);

  // Gradients: dx and dz on the scale of what is cancelled, weights on that of their terms.
  const NormGrads kernel = c.kernel(), formula = c.exact();
  const Tensor dy = c.dy.to(float64);
  const bool gate_last = o.gate == GateOrder::norm_then_gate;
  const Tensor dn = gate_last ? dy * f.gate : dy;
  double g = largest(c.a.in.w ? dn * detail::weight_of(*c.a.in.w, o, float64, h.size(-1)) : dn);
  if (c.dy2) g += largest(*c.dy2) * (largest(*c.a.in.w2) + 1);
  double du = g * largest(f.rstd) + (c.dh ? largest(*c.dh) : 0);
  if (z.defined()) du *= 1 + largest(f.gate);
  const double scale_of_x =
      (c.a.in.row_scale ? largest(*c.a.in.row_scale) : 1) / (1 - o.dropout) * du;
  near(*kernel.dx, *formula.dx, scale_of_x);
  if (kernel.dresidual) near(*kernel.dresidual, *formula.dresidual, du);
  if (kernel.dz)
    near(*kernel.dz, *formula.dz,
         1.1 * (gate_last ? largest(dy) * (largest(exact.y) + 4) : du * largest(h)));
  if (kernel.drow_scale)
    near(*kernel.drow_scale, *formula.drow_scale,
         du * std::sqrt(static_cast<double>(h.size(-1))) * largest(c.a.x) / (1 - o.dropout));
  const auto near_sum = [&](const Maybe& actual, const Maybe& expected, const Tensor& terms) {
    if (!actual) return;
    const Tensor squares = detail::sum_rows(terms.square(), actual->numel(), float64);
    const double size = std::sqrt(largest(squares));
    // n terms: each addition rounds a partial sum that is at most the result where they agree.
    const double n = static_cast<double>(terms.numel() / std::max<int64_t>(1, actual->numel()));
    EXPECT_CLOSE(*actual, *expected,
                 {.relative = unit_roundoff(actual->dtype()) + std::sqrt(n) * stats,
                  .absolute = (16 * stats + cast) * size});
  };
  near_sum(kernel.dw, formula.dw, dn * f.x_hat);
  near_sum(kernel.db, formula.db, dn);
  if (c.dy2) {
    near_sum(kernel.dw2, formula.dw2, c.dy2->to(float64) * f.x_hat);
    near_sum(kernel.db2, formula.db2, c.dy2->to(float64));
  }
}

inline Member plain(NormKind kind, double eps, bool w = true, bool b = false) {
  Member m;
  m.options.kind = kind, m.options.eps = eps, m.w = w, m.b = b;
  return m;
}

}  // namespace norma::testing
