#include "norma/nn/optimizer.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "testing/compare.h"
#include "testing/on_gpu.h"

namespace norma::nn {
namespace {

TEST(Optimizer, ParameterThatIsNotDenseIsNamed) {
  // Its gradient is dense: element by element the two are in different orders.
  const Tensor p = arange(6, float32).reshape({2, 3}).t().requires_grad_();
  EXPECT_THROW_MSG(Sgd({{{{"p", p}}, 0}}), ShapeError,
                   "optimizer: p must be dense, but has shape (3, 2) and strides (1, 3); make it a "
                   "parameter of its values' .contiguous()");
}

TEST(AdamW, FollowsItsFormula) {
  const Tensor p = tensor({1, -2}, float64).requires_grad_();
  AdamW adam({{{{"p", p}}, 0.1}}, {.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8});
  double m[2] = {}, v[2] = {}, x[2] = {1, -2};
  for (int t = 1; t <= 3; ++t) {
    adam.zero_grad();
    (p * p * p).sum().backward();
    adam.step(0.05);
    for (int i = 0; i < 2; ++i) {
      const double g = 3 * x[i] * x[i];
      m[i] = 0.9 * m[i] + 0.1 * g, v[i] = 0.99 * v[i] + 0.01 * g * g;
      const double mh = m[i] / (1 - std::pow(0.9, t)), vh = v[i] / (1 - std::pow(0.99, t));
      x[i] = x[i] * (1 - 0.05 * 0.1) - 0.05 * mh / (std::sqrt(vh) + 1e-8);
    }
    EXPECT_CLOSE(p.detach(), tensor({x[0], x[1]}, float64), {.relative = 1e-13});
  }
}

TEST(Sgd, MomentumAndNesterovFollowTheirFormula) {
  for (bool nesterov : {false, true}) {
    const Tensor p = tensor({2}, float64).requires_grad_();
    Sgd sgd({{{{"p", p}}, 0}}, {.momentum = 0.5, .nesterov = nesterov});
    double x = 2, b = 0;
    for (int t = 0; t < 3; ++t) {
      sgd.zero_grad();
      (p * p).sum().backward();
      sgd.step(0.1);
      const double g = 2 * x;
      b = 0.5 * b + g;
      x -= 0.1 * (nesterov ? g + 0.5 * b : b);
      EXPECT_CLOSE(p.detach(), tensor({x}, float64), {.relative = 1e-14});
    }
  }
}

class OptimizerOnGpu : public testing::OnGpu<> {};

TEST_F(OptimizerOnGpu, TheNextProductReadsTheNewWeights) {
  allow_tf32(true);  // small products read weights early
  const Tensor x = ones({768, 128}), w = zeros({128, 128}).requires_grad_();
  Sgd sgd({{{{"w", w}}, 0}}, {});
  std::vector<Tensor> ys;
  for (int i = 0; i < 64; ++i) {
    ys.push_back(linear(x, w.detach()));
    w.set_grad(ones({128, 128}));
    sgd.step(1);
  }
  for (int i = 0; i < 64; ++i)
    EXPECT_SAME_BITS(ys[static_cast<size_t>(i)], full({768, 128}, -128.0 * i));
  allow_tf32(false);
}

TEST(Optimizer, SettingsThatCannotBeAreNamed) {
  const Tensor p = zeros({1}).requires_grad_();
  const std::vector<ParameterGroup> groups{{{{"p", p}}, 0}};
  EXPECT_THROW_MSG(AdamW(groups, {.lr = -1}), ValueError,
                   "AdamW: lr must be at least 0, but is -1");
  EXPECT_THROW_MSG(AdamW(groups, {.beta1 = 1}), ValueError,
                   "AdamW: beta1 must be in [0, 1), but is 1");
  EXPECT_THROW_MSG(AdamW(groups, {.beta2 = -0.5}), ValueError,
                   "AdamW: beta2 must be in [0, 1), but is -0.5");
  EXPECT_THROW_MSG(AdamW(groups, {.eps = 0}), ValueError, "AdamW: eps must be above 0, but is 0");
  EXPECT_THROW_MSG(Sgd(groups, {.momentum = 1}), ValueError,
                   "Sgd: momentum must be in [0, 1), but is 1");
  EXPECT_THROW_MSG(Sgd(groups, {.nesterov = true}), ValueError,
                   "Sgd: momentum must be above 0 for Nesterov, but is 0");
}

TEST(ClipGradNorm, ScalesToTheLimitAndReportsTheNormBefore) {
  const Tensor a = zeros({2}).requires_grad_(), b = zeros({1}).requires_grad_();
  a.set_grad(tensor({3, 0}));
  b.set_grad(tensor({4}));
  EXPECT_EQ(clip_grad_norm({a, b}, 10).item(), 5);
  EXPECT_SAME_BITS(a.grad(), tensor({3, 0}));
  EXPECT_EQ(clip_grad_norm({a, b}, 1).item(), 5);
  EXPECT_CLOSE(a.grad(), tensor({0.6, 0}), {.relative = 1e-6});
  EXPECT_CLOSE(b.grad(), tensor({0.8}), {.relative = 1e-6});
}

TEST(Schedule, RisesThenFallsToItsEnd) {
  const Schedule s{.lr = 1, .min_lr = 0.1, .warmup = 9, .steps = 109};
  EXPECT_DOUBLE_EQ(s.at(0), 0.1);
  EXPECT_DOUBLE_EQ(s.at(8), 0.9);
  EXPECT_DOUBLE_EQ(s.at(9), 1);
  EXPECT_DOUBLE_EQ(s.at(59), 0.55);
  EXPECT_DOUBLE_EQ(s.at(108), 0.1 + 0.45 * (1 + std::cos(0.99 * std::numbers::pi)));
  EXPECT_DOUBLE_EQ((Schedule{.kind = ScheduleKind::linear, .lr = 1, .min_lr = 0, .steps = 4}.at(3)),
                   0.25);
}

}  // namespace
}  // namespace norma::nn
