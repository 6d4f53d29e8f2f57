// Second and third derivatives, and Jacobian products, of every member of the family.
#include <cmath>
#include <tuple>

#include "norma/core/autograd.h"
#include "norma/ops/derivative/derivative.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/products.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/norm/second_derivative.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "ops/norm/members.h"
#include "ops/norm/pretended.h"
#include "testing/compare.h"

namespace norma {
namespace {

using testing::NormArguments;
using testing::pairwise_members;
using Maybe = std::optional<Tensor>;

// Sums of a few dozen terms, each a product of six or fewer factors of a few units.
constexpr double kRoundoffs = 16384 * unit_roundoff(float64);
constexpr testing::Closeness kClose{.relative = kRoundoffs, .absolute = kRoundoffs};

/// The arguments of NormSecond for each plain kind, with and without weights, shared or not.
struct SecondCase {
  std::string name;
  NormOptions options;
  bool w;
  int64_t weight;
};
std::vector<SecondCase> second_cases(NormKind kind, int64_t cols, int64_t group) {
  std::vector<SecondCase> cases;
  for (int64_t g : {int64_t{0}, group})
    for (bool zero_centered : {false, true}) {
      const NormOptions o{.kind = kind, .eps = 1e-3, .group = g, .zero_centered = zero_centered};
      const std::string name =
          format("kind {} group {} zero-centered {}", static_cast<int>(kind), g, zero_centered);
      cases.push_back({name, o, true, cols});
      if (g) cases.push_back({name + " shared", o, true, g});
      if (!zero_centered) cases.push_back({name + " no w", o, false, cols});
    }
  return cases;
}

class NormSecondKind : public ::testing::TestWithParam<NormKind> {};
INSTANTIATE_TEST_SUITE_P(All, NormSecondKind,
                         ::testing::Values(NormKind::rms, NormKind::layer, NormKind::l2),
                         [](const auto& kind) {
                           return std::to_string(static_cast<int>(kind.param));
                         });
TEST_P(NormSecondKind, ClosedFormAndKernelAreTheDerivativeOfTheGradient) {
  for (const SecondCase& c : second_cases(GetParam(), 33, 11))
    for (int absent = 0; absent < 4; ++absent) {
      if (!c.w && absent > 0) continue;
      SCOPED_TRACE(c.name + format(" without cotangent {}", absent));
      const auto leaf = [](const Shape& s) { return randn(s, float64).requires_grad_(); };
      const Tensor dy = leaf({3, 33}), h = leaf({3, 33});
      const Maybe w = c.w ? Maybe(leaf({c.weight})) : none;
      const Maybe b = c.w ? Maybe(zeros({c.weight}, float64)) : none;
      const Maybe v = absent == 1 ? none : Maybe(randn({3, 33}, float64));
      const Maybe vw = !c.w || absent == 2 ? none : Maybe(randn({c.weight}, float64));
      const Maybe vb = !c.w || absent == 3 ? none : Maybe(randn({c.weight}, float64));
      const auto wanted = c.w ? std::optional(float64) : std::nullopt;
      const NormGrads g =
          NormBackward::define(dy, none, none, h, none, none, none, none, w, b, none, none, none,
                               zeros({3, c.options.group ? 3 : 1}, float64),
                               {.norm = c.options, .dx = float64, .dw = wanted, .db = wanted});
      std::vector<Tensor> outputs, inputs{dy, h};
      std::vector<Maybe> cotangents;
      if (v) outputs.push_back(*g.dx), cotangents.push_back(v);
      if (vw) outputs.push_back(*g.dw), cotangents.push_back(vw);
      if (vb) outputs.push_back(*g.db), cotangents.push_back(vb);
      if (w) inputs.push_back(*w);
      const auto expected = grad(outputs, inputs, cotangents);

      const NoGrad plain;
      const NormResult s = fused_norm(h, {.w = w}, c.options);
      const auto of = [](const Tensor& t) { return t.defined() ? Maybe(t) : none; };
      const NormSecondOptions wants{.norm = c.options, .dy = float64, .h = float64, .w = wanted};
      const auto check = [&](const NormSecondGrads& actual) {
        EXPECT_CLOSE(*actual.dy, expected[0], {kClose});
        EXPECT_CLOSE(*actual.h, expected[1], {kClose});
        if (w) {
          EXPECT_CLOSE(*actual.w, expected[2], {kClose});
        }
      };
      const auto mean = of(s.mean.value), rest = of(s.mean_rest.value);
      check(NormSecond::define(dy, h, w, mean, rest, s.rstd, v, vw, vb, wants));
      check(apply<NormSecond>(dy, h, w, mean, rest, s.rstd, v, vw, vb, wants));
    }
}

TEST(NormSecond, ThirdDerivativeIsThatOfItsDefinition) {
  for (NormKind kind : {NormKind::rms, NormKind::layer, NormKind::l2}) {
    const Tensor x = randn({2, 4}, float64), w = randn({4}, float64), v = randn({2, 4}, float64);
    const NormOptions o{.kind = kind, .eps = 1e-2};
    const TensorFunction gradient = [&](const std::vector<Tensor>& in) {
      const Tensor y = fused_norm(in[0], {.w = in[1]}, o).y;
      return grad({y}, {in[0], in[1]}, {in[2]}, {.create_graph = true});
    };
    EXPECT_OK(gradgradcheck(gradient, {x, w, v}));
  }
}

TEST(NormSecond, GradientPenaltyOfHalfTypesIsItsFloat64Rounded) {
  for (DType dtype : {float32, bfloat16, float16}) {
    SCOPED_TRACE(to_string(dtype));
    const Tensor x = randn({4, 64}).to(dtype), w = randn({64}).to(dtype),
                 dy = randn({4, 64}).to(dtype);
    const auto penalty = [&](DType t) {
      const Tensor leaf = x.to(t).detach().requires_grad_();
      const Tensor dx =
          grad({layer_norm(leaf, w.to(t))}, {leaf}, {dy.to(t)}, {.create_graph = true})[0];
      // A cotangent that both runs share: the norm of dx itself would be rounded differently.
      return grad({dx}, {leaf}, {dy.to(t)})[0];
    };
    const double stats = unit_roundoff(float32);
    EXPECT_CLOSE(penalty(dtype), penalty(float64),
                 {.relative = unit_roundoff(dtype) + 64 * stats, .absolute = 1024 * stats});
  }
}

struct RowsCols {
  int64_t rows, cols;
};
using DTypeAndSize = std::tuple<DType, RowsCols>;
std::string name_of(const ::testing::TestParamInfo<DTypeAndSize>& info) {
  const auto& [dtype, size] = info.param;
  return format("{}_{}_by_{}", dtype, size.rows, size.cols);
}
using SecondOf = ::testing::TestWithParam<DTypeAndSize>;
/// Every size that the kernels hold whole rows of, and their neighbours, so many rows that each
/// block has several. A dtype and a size a test: under compute-sanitizer they run beside each
/// other.
TEST_P(SecondOf, NormIsItsDefinitionInFloat64Rounded) {
  const auto& [dtype, size] = GetParam();
  const testing::Pretended few(3);
  const int64_t rows = default_device().is_cpu() ? (size.rows + 3) / 4 : size.rows;
  for (NormKind kind : {NormKind::rms, NormKind::layer, NormKind::l2})
    for (int weights = 0; weights < 3; ++weights) {  // none; w; w, zero-centred, with vw and vb
      SCOPED_TRACE(format("kind {} weights {}", static_cast<int>(kind), weights));
      const auto random = [&, t = dtype](const Shape& s) { return randn(s).to(t); };
      const Tensor dy = random({rows, size.cols}), v = random(dy.shape());
      const Tensor h = random(dy.shape());
      const Maybe w = weights > 0 ? Maybe(random({size.cols})) : none;
      const Maybe vw = weights > 1 ? Maybe(random({size.cols})) : none;
      const Maybe vb = weights > 1 ? Maybe(random({size.cols})) : none;
      const NormOptions o{.kind = kind, .eps = 1e-3, .zero_centered = weights > 1};
      const NoGrad plain;
      const auto run = [&](DType t, bool define) {
        const auto in = [&](const Maybe& m) { return m ? Maybe(m->to(t)) : none; };
        const auto of = [](const Tensor& m) { return m.defined() ? Maybe(m) : none; };
        const NormResult s = fused_norm(h.to(t), {.w = in(w)}, o);
        const NormSecondOptions wants{
            .norm = o, .dy = t, .h = t, .w = w ? std::optional(t) : std::nullopt};
        const Maybe mean = of(s.mean.value), rest = of(s.mean_rest.value);
        return define ? NormSecond::define(dy.to(t), h.to(t), in(w), mean, rest, s.rstd, v.to(t),
                                           in(vw), in(vb), wants)
                      : apply<NormSecond>(dy.to(t), h.to(t), in(w), mean, rest, s.rstd, v.to(t),
                                          in(vw), in(vb), wants);
      };
      const NormSecondGrads kernel = run(dtype, false), exact = run(float64, true);
      const double stats = unit_roundoff(float32), u = unit_roundoff(dtype);
      EXPECT_CLOSE(*kernel.dy, *exact.dy, {.relative = u + 64 * stats, .absolute = 1024 * stats});
      EXPECT_CLOSE(*kernel.h, *exact.h, {.relative = u + 64 * stats, .absolute = 4096 * stats});
      if (!w) continue;
      const double terms = static_cast<double>(dy.size(0));
      EXPECT_CLOSE(*kernel.w, *exact.w,
                   {.relative = u + 64 * stats, .absolute = 64 * stats * std::sqrt(terms)});
    }
}
INSTANTIATE_TEST_SUITE_P(
    All, SecondOf,
    ::testing::Combine(::testing::Values(float32, bfloat16, float16),
                       ::testing::Values(RowsCols{300, 64}, RowsCols{40, 1000}, RowsCols{40, 1001},
                                         RowsCols{20, 2048}, RowsCols{20, 2056}, RowsCols{10, 8192},
                                         RowsCols{8, 8200}, RowsCols{6, 16384}, RowsCols{4, 70000},
                                         RowsCols{4, 131072})),
    name_of);

/// Its rstd is below the least normal number of float32, so that the kernel forms it anew.
TEST(NormSecond, OfAHugeRow) {
  for (int64_t cols : {64, 16384})
    for (DType dtype : {float32, bfloat16}) {
      const Tensor rows = tensor({1, 0x1p125, 1, 1}).reshape({4, 1});
      const Tensor h = (randn({4, cols}) * rows).to(dtype), dy = randn({4, cols}).to(dtype);
      const Tensor w = randn({cols}).to(dtype), vw = randn({cols}).to(dtype);
      const NoGrad plain;
      const auto of_dy = [&](DType t) {
        const NormOptions o{.kind = NormKind::l2};
        const NormResult s = fused_norm(h.to(t), {.w = w.to(t)}, o);
        return *apply<NormSecond>(dy.to(t), h.to(t), w.to(t), none, none, s.rstd, none, vw.to(t),
                                  none, NormSecondOptions{.norm = o, .dy = t})
                    .dy;
      };
      EXPECT_CLOSE(of_dy(dtype), of_dy(float64),
                   {.relative = unit_roundoff(dtype) + 64 * unit_roundoff(float32),
                    .absolute = 64 * unit_roundoff(float32)});
    }
}

TEST(NormSecond, OfAFloat32StreamGoesToBothPartsOfTheSum) {
  const Tensor x = randn({3, 8}).to(bfloat16).requires_grad_(), r = randn({3, 8}).requires_grad_(),
               dy = randn({3, 8}).to(bfloat16);
  const auto d = grad({add_rms_norm(x, r).y}, {x, r}, {dy}, {.create_graph = true});
  EXPECT_EQ(d[1].dtype(), float32);
  const Tensor v = randn({3, 8});
  const auto second = grad({d[1]}, {x, r}, {v});
  EXPECT_EQ(second[1].dtype(), float32);
  EXPECT_SAME_BITS(second[1].to(bfloat16), second[0]);
}

TEST(NormJvp, IsTheJacobianTimesTheTangents) {
  for (const testing::Member& m : pairwise_members()) {
    SCOPED_TRACE(to_string(m));
    const NormArguments a(m, {2, 6});
    // The tangents of all inputs at once, by the derivative of f along them.
    NormArguments leaves = a, dots = a;
    std::vector<Tensor> inputs{leaves.x = a.x.detach().requires_grad_()}, directions;
    directions.push_back(dots.x = randn({2, 6}, float64));
    auto in = leaves.optional(), dot = dots.optional();
    for (size_t i = 0; i < in.size(); ++i)
      if (*in[i]) {
        inputs.push_back(*(*in[i] = (*in[i])->detach().requires_grad_()));
        directions.push_back(*(*dot[i] = randn((*in[i])->shape(), float64)));
      }
    const NormTangents t = norm_jvp(a.x, dots.x, a.in, dots.in, a.options);
    const NormResult r = leaves.definition();
    const auto expect = [&](const Tensor& y, const Tensor& y_dot) {
      const Tensor v = randn(y.shape(), float64);
      const auto g = grad({y}, inputs, {v}, {.retain_graph = true});
      double sum = 0;
      for (size_t i = 0; i < g.size(); ++i)
        if (g[i].defined()) sum += (g[i] * directions[i]).sum().item();
      EXPECT_NEAR((v * y_dot).sum().item(), sum, 1e-10);
    };
    expect(r.y, t.y);
    if (r.y2) expect(*r.y2, *t.y2);
    if (r.h) expect(*r.h, *t.h);
  }
}

TEST(NormVjp, IsWhatBackwardComputes) {
  for (const testing::Member& m : pairwise_members()) {
    SCOPED_TRACE(to_string(m));
    NormArguments a(m, {3, 12});
    a.options.saves = NormSaves::input;
    const Tensor v = randn({3, 12}, float64);
    const NormGrads g = norm_vjp(a.x, v, a.in, a.options);
    std::vector<Tensor> inputs{a.x.requires_grad_()};
    std::vector<Tensor> expected{*g.dx};
    const auto add = [&](const Maybe& t, const Maybe& d) {
      if (t) inputs.push_back(t->requires_grad_()), expected.push_back(*d);
    };
    add(a.in.w, g.dw), add(a.in.b, g.db), add(a.in.z, g.dz), add(a.in.residual, g.dresidual);
    add(a.in.row_scale, g.drow_scale);
    const auto actual = grad({a.norm().y}, inputs, {v});
    for (size_t i = 0; i < inputs.size(); ++i) EXPECT_CLOSE(expected[i], actual[i], {kClose});
  }
}

TEST(NormJvp, JacobianOfAPlainNormIsSymmetric) {
  const Tensor x = randn({1, 16}, float64), a = randn({1, 16}, float64),
               b = randn({1, 16}, float64);
  for (NormKind kind : {NormKind::rms, NormKind::layer, NormKind::l2}) {
    const NormOptions o{.kind = kind};
    const double left = (a * norm_jvp(x, b, {}, {}, o).y).sum().item();
    const double right = (b * norm_jvp(x, a, {}, {}, o).y).sum().item();
    EXPECT_NEAR(left, right, 1e-13);
    EXPECT_CLOSE(*norm_vjp(x, a, {}, o).dx, norm_jvp(x, a, {}, {}, o).y, {kClose});
  }
}
TEST(NormJvp, MistakesAreNamed) {
  const Tensor x = ones({2, 8});
  EXPECT_THROW_MSG(norm_jvp(x, ones({2, 4})), ShapeError,
                   "norm_jvp: the tangent of x must be like it, (2, 8), but is (2, 4)");
  EXPECT_THROW_MSG(norm_jvp(x, x, {}, {.w = ones({8})}), ValueError,
                   "norm_jvp: a tangent of w needs w itself");
  EXPECT_THROW_MSG(norm_vjp(x, ones({2, 4})), ShapeError,
                   "norm_vjp: v must be like y, (2, 8), but is (2, 4)");
}

}  // namespace
}  // namespace norma
