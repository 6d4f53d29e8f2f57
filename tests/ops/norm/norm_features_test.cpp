// What each feature of the family promises, one by one.
#include <cmath>
#include <limits>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/dropout/dropout.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/l2_norm.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

constexpr double kUnit = unit_roundoff(float64), kUnit32 = unit_roundoff(float32);
constexpr testing::Closeness kFew{.relative = 256 * kUnit, .absolute = 256 * kUnit};

TEST(NormProbe, SeesWhatTheNormTakesAway) {
  const Tensor x = randn({3, 12}, float64).requires_grad_(), w = randn({12}, float64),
               dy = randn({3, 12}, float64);
  NormProbe probe;
  rms_norm(x, w, {.eps = 1e-3, .group = 6, .probe = &probe}).backward(dy);
  const Tensor u = x.detach().reshape({3, 2, 6}), g = (w * dy).reshape({3, 2, 6});
  const Tensor rstd = rsqrt(u.square().mean(-1) + 1e-3), x_hat = u * rstd.unsqueeze(-1);
  EXPECT_CLOSE(probe.rstd, rstd, {kFew});
  EXPECT_FALSE(probe.mean.defined());
  EXPECT_CLOSE(probe.mean_gx, (g * x_hat).mean(-1), {kFew});
  EXPECT_CLOSE(probe.g_norm, sqrt(g.square().sum(-1)), {kFew});
  EXPECT_CLOSE(probe.du_norm, sqrt(x.grad().reshape({3, 2, 6}).square().sum(-1)), {kFew});
}
TEST(NormProbe, LayerNormTellsItsMean) {
  const Tensor x = randn({3, 12}, float64).requires_grad_();
  NormProbe probe;
  layer_norm(x, none, none, {.probe = &probe}).backward(randn({3, 12}, float64));
  EXPECT_CLOSE(probe.mean, x.detach().mean(-1, keepdim), {kFew});
}

TEST(NormSaves, XHatGivesTheSameGradientsWithoutX) {
  const Tensor w = randn({40}, float64).requires_grad_(), z = randn({5, 40}, float64);
  const Tensor dy = randn({5, 40}, float64);
  for (NormKind kind : {NormKind::rms, NormKind::layer}) {
    const Tensor x = randn({5, 40}, float64).requires_grad_();
    const auto gradients = [&](NormSaves saves) {
      const Tensor y = gated_norm(x, z, w, none, {.kind = kind, .saves = saves});
      return grad({y}, {x, w}, {dy});
    };
    const auto from_h = gradients(NormSaves::input), from_x_hat = gradients(NormSaves::x_hat);
    for (size_t i = 0; i < 2; ++i) EXPECT_CLOSE(from_x_hat[i], from_h[i], {kFew});
  }
}
TEST(NormSaves, AWeightOfZeroStillLearns) {
  const Tensor x = randn({5, 40}).to(bfloat16), dy = randn({5, 40}).to(bfloat16);
  const Tensor w = zeros({40}).requires_grad_();
  rms_norm(x, w, {.saves = NormSaves::x_hat}).backward(dy);
  const Tensor exact = (dy.to(float64) * rms_norm(x.to(float64))).sum(0);
  // Five products of x̂, each rounded to bfloat16, with dy below 4.
  EXPECT_CLOSE(w.grad(), exact, {.absolute = 5 * 16 * unit_roundoff(bfloat16)});
}
TEST(NormSaves, SecondDerivativeNamesTheOptionThatForbidsIt) {
  const Tensor x = randn({2, 8}).requires_grad_();
  const Tensor y = rms_norm(x, none, {.saves = NormSaves::x_hat});
  EXPECT_THROW_MSG(grad({y}, {x}, {ones({2, 8})}, {.create_graph = true}), GraphError,
                   "norm: a second derivative needs h, which saves = x_hat does not keep; use "
                   "saves = input");
}

TEST(NormDropout, MaskIsThatOfTheDropoutOp) {
  const RandomKey key{.key = 3, .call = 0, .ordinal = 5};
  const Tensor x = randn({7, 13}), scale = randn({7});
  const NormResult r = fused_norm(x, {.row_scale = scale}, {.dropout = 0.4, .key = key});
  const Tensor h = apply<Dropout>(x, {.p = 0.4, .key = key}) * scale.unsqueeze(-1);
  EXPECT_SAME_BITS(*r.h, h);
  EXPECT_SAME_BITS(r.y, rms_norm(h));
}
TEST(NormDropout, DrawsAKeyOfItsOwn) {
  const Tensor x = ones({64, 64});
  const NormResult a = fused_norm(x, {}, {.dropout = 0.5}), b = fused_norm(x, {}, {.dropout = 0.5});
  EXPECT_FALSE(testing::same_bits(*a.h, *b.h));
  // 4096 draws: the deviation of their mean is 1/128, of h's twice that.
  EXPECT_NEAR(a.h->mean().item(), 1, 6.0 / 64);
}
TEST(NormDropout, DroppedNanTakesNoPart) {
  const RandomKey key{.key = 3, .call = 0, .ordinal = 5};
  const Tensor kept = apply<Dropout>(ones({1, 64}), {.p = 0.5, .key = key});
  const Tensor x = where(kept <= 0, std::numeric_limits<double>::quiet_NaN(), kept);
  const NormResult r = fused_norm(x, {}, {.dropout = 0.5, .key = key});
  for (double v : r.y.to_vector<double>()) EXPECT_TRUE(std::isfinite(v));
}

TEST(NormResidual, StreamOfFloat32IsNeverRounded) {
  const Tensor x = randn({4, 64}).to(bfloat16).requires_grad_(), w = randn({64});
  const Tensor residual = randn({4, 64}).requires_grad_();
  const Added r = add_rms_norm(x, residual, w);
  EXPECT_EQ(r.y.dtype(), bfloat16);
  EXPECT_EQ(r.h.dtype(), float32);
  EXPECT_SAME_BITS(r.h.detach(), x.detach().to(float32) + residual.detach());
  const Tensor dh = randn({4, 64});
  const auto d = grad({r.h}, {residual, x}, {dh});
  EXPECT_SAME_BITS(d[0], dh);
  const Tensor dy = randn({4, 64}).to(bfloat16);
  const auto both = grad({add_rms_norm(x, residual, w).y}, {residual, x}, {dy});
  EXPECT_EQ(both[0].dtype(), float32);
  EXPECT_SAME_BITS(both[0].to(bfloat16), both[1]);
}
TEST(NormResidual, HMayBeFloat32WithoutAResidual) {
  const Tensor x = randn({4, 64}).to(float16);
  const NormResult r = fused_norm(x, {}, {.h_dtype = float32});
  EXPECT_SAME_BITS(*r.h, x.to(float32));
  EXPECT_SAME_BITS(r.y, rms_norm(x));
}

TEST(NormSecondWeight, IsANormOfItsOwn) {
  const Tensor x = randn({3, 32}), w = randn({32}), b = randn({32}), w2 = randn({32}),
               b2 = randn({32});
  const NormResult r =
      fused_norm(x, {.w = w, .b = b, .w2 = w2, .b2 = b2}, {.kind = NormKind::layer, .eps = 1e-5});
  EXPECT_CLOSE(r.y, layer_norm(x, w, b), {.relative = 16 * kUnit32, .absolute = 64 * kUnit32});
  EXPECT_CLOSE(*r.y2, layer_norm(x, w2, b2), {.relative = 16 * kUnit32, .absolute = 64 * kUnit32});
}
TEST(NormSecondWeight, AloneUsedItHasAllTheGradient) {
  const Tensor x = randn({3, 8}, float64).requires_grad_(),
               w = randn({8}, float64).requires_grad_(), w2 = randn({8}, float64).requires_grad_(),
               dy = randn({3, 8}, float64);
  const Tensor y2 = *fused_norm(x, {.w = w, .w2 = w2}).y2;
  const auto alone = grad({y2}, {x, w2}, {dy}), plain = grad({rms_norm(x, w2)}, {x, w2}, {dy});
  for (size_t i = 0; i < 2; ++i) EXPECT_CLOSE(alone[i], plain[i], {kFew});
}

TEST(NormGroups, ShareAWeightOfOneGroup) {
  const Tensor x = randn({4, 24}, float64), w = randn({8}, float64);
  const Tensor leaf = w.detach().requires_grad_(), dy = randn({4, 24}, float64);
  const Tensor y = rms_norm(x, leaf, {.group = 8});
  EXPECT_CLOSE(y.detach(), rms_norm(x.reshape({4, 3, 8}), w).reshape({4, 24}), {kFew});
  y.backward(dy);
  const Tensor same = w.detach().requires_grad_();
  rms_norm(x.reshape({4, 3, 8}), same).backward(dy.reshape({4, 3, 8}));
  EXPECT_CLOSE(leaf.grad(), same.grad(), {kFew});
}
TEST(NormHeads, QueriesAreNormalizedWhereTheyStandInQkv) {
  // (batch, time, 3, heads, head_dim): q is a strided view of it.
  const Tensor qkv = randn({2, 5, 3, 4, 16}), q = qkv.select(2, 0), w = randn({16});
  EXPECT_SAME_BITS(rms_norm(q, w), rms_norm(q.contiguous(), w));
  EXPECT_SAME_BITS(l2_norm(q, w), l2_norm(q.contiguous(), w));
  const Tensor by_head = randn({4, 16});  // a weight of each head's own
  const Tensor y = rms_norm(q.reshape({2, 5, 64}), by_head.flatten(), {.group = 16});
  EXPECT_CLOSE(y.reshape({2, 5, 4, 16}), rms_norm(q) * by_head,
               {.relative = 4 * kUnit32, .absolute = 1e-30});
}
TEST(L2Norm, RowsHaveLengthOne) {
  const Tensor y = l2_norm(randn({5, 33}, float64), none, {.eps = 0});
  EXPECT_CLOSE(y.square().sum(-1), ones({5}, float64), {.relative = 64 * kUnit});
}

TEST(NormCasting, RoundedIsLlamasReference) {
  const Tensor x = randn({3, 64}).to(bfloat16), w = randn({64}).to(bfloat16);
  const Tensor u = x.to(float32);
  const Tensor x_hat = u * rsqrt(u.square().mean(-1, keepdim) + 1e-6);
  const Tensor y = rms_norm(x, w, {.casting = Casting::rounded});
  // x̂ may round to the other side where it lies between two; then y is one unit off.
  EXPECT_CLOSE(y, (w * x_hat.to(bfloat16)).to(float64), {.relative = 4 * unit_roundoff(bfloat16)});
  int64_t differ = 0;
  const auto a = y.to_vector<float>(), b = (w * x_hat.to(bfloat16)).to_vector<float>();
  for (size_t i = 0; i < a.size(); ++i) differ += a[i] != b[i];
  EXPECT_LE(differ, 3);
}

TEST(NormOut, MayBeWiderOrNarrower) {
  const Tensor x = randn({3, 64}).to(bfloat16);
  EXPECT_SAME_BITS(rms_norm(x, none, {.out_dtype = float32}).to(bfloat16), rms_norm(x));
  const Tensor wide = randn({3, 64});
  EXPECT_SAME_BITS(layer_norm(wide, none, none, {.out_dtype = float16}),
                   layer_norm(wide).to(float16));
}

TEST(NormMean, IsAPairSoThatXHatIsExactAMillionDeviationsAway) {
  for (double mean : {1e3, 1e4, 1e5, 1e6})
    for (int64_t cols : {16, 4096, 65536}) {
      SCOPED_TRACE(format("mean {} cols {}", mean, cols));
      const Tensor x = (randn({2, cols}, float64) + mean).to(float32);
      EXPECT_CLOSE(layer_norm(x), layer_norm(x.to(float64)), {.relative = 1e-6, .absolute = 1e-6});
      const Tensor dy = randn({2, cols});
      const auto dx = [&](DType dtype) {
        const Tensor leaf = x.to(dtype).detach().requires_grad_();
        layer_norm(leaf).backward(dy.to(dtype));
        return leaf.grad();
      };
      EXPECT_CLOSE(dx(float32), dx(float64), {.relative = 4e-6, .absolute = 4e-6});
    }
}

/// float32 rows beyond the range of their squares against float64, which has room for them.
TEST(NormRange, RowsWhoseSquaresOverflowOrVanishAreScaled) {
  for (double size : {3e38, 1e30, 1e20, 1e-18, 1e-20, 1e-25, 1e-30, 1e-37, 1e-40, 1e-44})
    for (int64_t cols : {1, 3, 100, 5000})
      for (double eps : {0.0, 1e-30, 1e-40}) {
        SCOPED_TRACE(format("size {} cols {} eps {}", size, cols, eps));
        const Tensor x = ((rand({3, cols}, float64) - 0.5) * 2 * size).to(float32);
        const Tensor wide = x.to(float64);
        const testing::Closeness within{.relative = 64 * kUnit32, .absolute = 1e-6};
        EXPECT_CLOSE(rms_norm(x, none, {.eps = eps}), rms_norm(wide, none, {.eps = eps}), {within});
        EXPECT_CLOSE(l2_norm(x, none, {.eps = eps}), l2_norm(wide, none, {.eps = eps}), {within});
        if (cols > 1) {
          EXPECT_CLOSE(layer_norm(x, none, none, {.eps = eps}),
                       layer_norm(wide, none, none, {.eps = eps}), {within});
        }
      }
}
TEST(NormRange, WeightGradientsOfSuchRowsAreRightToo) {
  for (double size : {3e38, 1e20, 1e-20, 1e-40}) {
    SCOPED_TRACE(size);
    const Tensor x = (randn({3, 40}, float64) * size * 0.25).to(float32), dy = randn({3, 40});
    const auto dw = [&](DType dtype) {
      const Tensor w = ones({40}, dtype).requires_grad_();
      layer_norm(x.to(dtype), w, none, {.eps = 0}).backward(dy.to(dtype));
      return w.grad();
    };
    EXPECT_CLOSE(dw(float32), dw(float64), {.relative = 64 * kUnit32, .absolute = 64 * kUnit32});
  }
}
TEST(NormRange, InfinityIsNotScaledAway) {
  Tensor x = full({1, 8}, 1e30);
  x.slice(1, 2, 3).fill_(std::numeric_limits<double>::infinity());
  const auto y = rms_norm(x).to_vector<double>();
  EXPECT_TRUE(std::isnan(y[2]));
  EXPECT_EQ(y[3], 0);
}
TEST(NormRange, ZeroAndConstantRowsStayFinite) {
  for (double value : {0.0, 1.0, 1e-40, 3e38}) {
    const Tensor y = layer_norm(full({2, 64}, value), none, none, {.eps = 1e-12});
    EXPECT_SAME_BITS(y, zeros({2, 64}));
  }
}

TEST(NormPrecise, WeightGradientsOfManyRowsLoseNothing) {
  const int64_t rows = 100000;
  const Tensor x = randn({rows, 4}), dy = randn({rows, 4}) + 1.0;
  const auto dw = [&](DType dtype, bool precise) {
    const Tensor w = ones({4}, dtype).requires_grad_(), b = zeros({4}, dtype).requires_grad_();
    return grad({layer_norm(x.to(dtype), w, b, {.precise = precise})}, {w, b}, {dy.to(dtype)});
  };
  const auto exact = dw(float64, false), precise = dw(float32, true), plain = dw(float32, false);
  const Tensor terms = (dy.to(float64) * layer_norm(x.to(float64))).square().sum(0);
  const double bound = 4 * 0x1p-23 * std::sqrt(terms.max().item());
  EXPECT_CLOSE(precise[0], exact[0], {.absolute = bound});
  EXPECT_CLOSE(plain[0], exact[0], {.absolute = 8 * bound});
  // Sums of 100,000 ones and more: half a unit of the sum itself is left.
  EXPECT_CLOSE(precise[1], exact[1], {.relative = 2 * kUnit32, .absolute = bound});
}

TEST(GatedNorm, EveryActivationIsTheOpOfThatName) {
  const Tensor x = randn({3, 16}, float64), z = randn({3, 16}, float64) * 3;
  const auto y = [&](GateActivation a) {
    return gated_norm(x, z, none, none, {.activation = a, .beta = 1.7});
  };
  const Tensor n = rms_norm(x, none, {.eps = 1e-5});
  EXPECT_CLOSE(y(GateActivation::silu), n * silu(z), {kFew});
  EXPECT_CLOSE(y(GateActivation::sigmoid), n * sigmoid(z), {kFew});
  EXPECT_CLOSE(y(GateActivation::swish), n * z * sigmoid(z * 1.7), {kFew});
  EXPECT_CLOSE(y(GateActivation::gelu), n * gelu(z), {kFew});
  EXPECT_CLOSE(y(GateActivation::identity), n * z, {kFew});
}
TEST(GatedNorm, FarGatesAreZeroOrThemselves) {
  const Tensor z = tensor({-100, 100}).reshape({1, 2}), x = tensor({1, 1}).reshape({1, 2});
  EXPECT_SAME_BITS(gated_norm(x, z, none, none, {.eps = 0}), tensor({-0.0, 100}).reshape({1, 2}));
}

TEST(NormFeatures, MistakesAreNamed) {
  const Tensor x = ones({2, 8}), w = ones({8}), z = ones({2, 8});
  EXPECT_THROW_MSG(rms_norm(x, ones({3}), {.group = 4}), ShapeError,
                   "norm: w must be (8,), the last dimension of x (2, 8), or (4,), a group of it, "
                   "but is (3,)");
  EXPECT_THROW_MSG(fused_norm(x, {.w = w, .b = ones({4})}, {.group = 4}), ShapeError,
                   "norm: weights and biases must be of one length, but b is (4,) beside (8,)");
  EXPECT_THROW_MSG(fused_norm(x, {.b2 = w}), ValueError,
                   "norm: b2 needs w2, the weight of the second result");
  EXPECT_THROW_MSG(fused_norm(x, {.z = z, .w2 = w}, {.gate = GateOrder::norm_then_gate}),
                   ValueError, "norm: a second weight needs its gate first, or none");
  EXPECT_THROW_MSG(fused_norm(x, {}, {.dropout = 1}), ValueError,
                   "norm: dropout must be from 0 to below 1, but is 1");
  EXPECT_THROW_MSG(fused_norm(x, {.row_scale = ones({3})}), ShapeError,
                   "norm: row_scale must be floating, one a row of x (2, 8), but is (3,) of "
                   "float32");
  EXPECT_THROW_MSG(rms_norm(x, none, {.out_dtype = int64}), DTypeError,
                   "norm: out_dtype must be floating, but is int64");
  EXPECT_THROW_MSG(fused_norm(x, {}, {.h_dtype = float64}), DTypeError,
                   "norm: h_dtype must be x's, float32, or its statistics', float32, but is "
                   "float64");
  EXPECT_THROW_MSG(
      fused_norm(x, {.z = z}, {.gate = GateOrder::gate_then_norm, .saves = NormSaves::x_hat}),
      ValueError, "norm: saves must be input where the gate comes first, whose gradient needs h");
  EXPECT_THROW_MSG(add_rms_norm(x, ones({2, 8}, float64)), ShapeError,
                   "norm: residual must be like x, (2, 8) of float32, but is (2, 8) of float64");
}

}  // namespace
}  // namespace norma
