#include <gmock/gmock.h>

#include <string>
#include <vector>

#include "norma/core/autograd.h"
#include "norma/core/capture.h"
#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/side_stream.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/gelu_mlp.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/exact.h"
#include "testing/on_gpu.h"

namespace norma {
namespace {

using testing::whole, testing::wide;

/// Products of float32 that may be rounded to tf32, on a GPU.
class SmallProduct : public testing::OnGpu<> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    manual_seed(1);
    allow_tf32(true);
  }
  void TearDown() override { allow_tf32(false); }
};

double top(const Tensor& t) { return max(t, {0, 1}).item(); }

struct Size {
  int64_t rows, in, out;
  const char* why;
};
constexpr Size kSizes[] = {{768, 128, 384, "four warps a tile"},
                           {768, 512, 128, "eight warps a tile"},
                           {2048, 64, 512, "two warps a tile"},
                           {32, 16, 32, "one tile, one warp with terms"},
                           {40, 20, 36, "tails of rows, terms and columns"},
                           {768, 128, 65, "odd columns"},
                           {7, 5, 3, "all odd"},
                           {1, 1, 1, "one"},
                           {33, 300, 1, "a column"}};

TEST_F(SmallProduct, OfWholeNumbersIsExact) {
  for (const auto& [rows, in, out, why] : kSizes) {
    SCOPED_TRACE(why);
    const Tensor x = whole({rows, in}), w = whole({out, in}), b = whole({out});
    EXPECT_CLOSE(wide(linear(x, w, b)), linear(wide(x), wide(w), wide(b)), {});
    EXPECT_CLOSE(wide(matmul(x, w.t())), matmul(wide(x), wide(w).t()), {});
    const Tensor dy = whole({rows, out});
    const LinearGrads small = apply<LinearBackward>(dy, x, w, none, {});
    EXPECT_CLOSE(wide(*small.dx), matmul(wide(dy), wide(w)), {});
    EXPECT_CLOSE(wide(*small.dw), matmul(wide(dy).t(), wide(x)), {});
    EXPECT_CLOSE(wide(*small.db), wide(dy).sum(0), {});
    const LinearGrads one = apply<LinearBackward>(dy, x, w, none, {.dx = false});
    EXPECT_SAME_BITS(*one.dw, *small.dw);
    EXPECT_SAME_BITS(*one.db, *small.db);
  }
}

TEST_F(SmallProduct, ReadsAWeightAfterItWasChanged) {
  const Tensor x = ones({768, 128}), w = zeros({128, 128}), bias = zeros({128});
  std::vector<Tensor> ys;
  for (int i = 0; i < 64; ++i) {
    w.fill_(i);
    ys.push_back(linear(x, w, bias));  // the kernel behind the one that writes
    ys.push_back(linear(x, w, bias));
  }
  for (int i = 0; i < 64; ++i)
    for (int j = 0; j < 2; ++j)
      EXPECT_SAME_BITS(ys[static_cast<size_t>(2 * i + j)], full({768, 128}, 128.0 * i));
}

TEST_F(SmallProduct, TakesRowsThatLieApart) {
  const Tensor all = whole({64, 3, 36}), x = all.select(1, 1), w = whole({40, 36});
  EXPECT_CLOSE(wide(linear(x, w)), linear(wide(x), wide(w)), {});
  const Tensor shifted = whole({64, 37}).slice(1, 1, 37);  // aligned to 4 bytes
  EXPECT_CLOSE(wide(linear(shifted, w)), linear(wide(shifted), wide(w)), {});
}

TEST_F(SmallProduct, RoundsItsFactorsToNearest) {
  const Tensor x = randn({96, 128}), w = randn({64, 128});
  // Each factor is off by 2⁻¹¹ of itself at most, each of 128 sums by 2⁻²⁴ of what is there.
  const double factor = 2 * std::ldexp(1, -11) + 128 * std::ldexp(1, -24);
  const double size = top(linear(wide(x).abs(), wide(w).abs()));
  EXPECT_CLOSE(linear(x, w), linear(wide(x), wide(w)), {.relative = 0, .absolute = factor * size});
}

constexpr Size kMlps[] = {{768, 128, 512, "a share of the hidden columns for each of four blocks"},
                          {100, 64, 256, "fewer, and rows that do not fill the last"},
                          {48, 32, 64, "two launches"},
                          {48, 32, 65, "odd hidden columns: two launches"}};

TEST_F(SmallProduct, GeluIsItsDefinitionRounded) {
  for (const auto& [rows, d, d_ff, why] : kMlps) {
    SCOPED_TRACE(why);
    const Tensor x = whole({rows, d}).requires_grad_(), dy = whole({rows, d});
    // u is exact; a and its slope, below 2 for each of |u| ≤ 80, are rounded to tf32.
    const Tensor w_in = (whole({d_ff, d}) * 0.0625).detach().requires_grad_();
    const Tensor b_in = whole({d_ff}).requires_grad_();
    const Tensor w_out = whole({d, d_ff}).requires_grad_(), b_out = whole({d}).requires_grad_();
    const std::vector<Tensor> inputs{x, w_in, b_in, w_out, b_out};
    const Tensor y = gelu_mlp(x, w_in, b_in, w_out, b_out);
    const auto grads = grad({y}, inputs, {dy});
    std::vector<Tensor> w;
    for (const Tensor& t : inputs) w.push_back(wide(t).detach().requires_grad_());
    const Tensor expected = GeluMlp::define(w[0], w[1], w[2], w[3], w[4]);
    const auto expected_grads = grad({expected}, w, {wide(dy)});
    const double off = std::ldexp(1.2, -11);  // of a factor, with float32's roundings
    const Tensor a = gelu_tanh(linear(w[0], w[1], w[2]).detach()).abs();
    EXPECT_CLOSE(y, expected,
                 {.relative = 0, .absolute = off * top(matmul(a, wide(w_out).t().abs()))});
    // dy w_out is exact, so du is off by float32's roundings alone, dw_out by a's.
    const double dw_out = off * top(matmul(wide(dy).t().abs(), a));
    EXPECT_CLOSE(grads[3], expected_grads[3], {.relative = 0, .absolute = dw_out});
    EXPECT_SAME_BITS(wide(grads[4]), expected_grads[4]);
    const Tensor du = matmul(wide(dy).abs(), wide(w_out).abs()) * 1.2;  // of GELU's slope
    EXPECT_CLOSE(grads[0], expected_grads[0],
                 {.relative = 0, .absolute = off * top(matmul(du, wide(w_in).abs()))});
    EXPECT_CLOSE(grads[1], expected_grads[1],
                 {.relative = 0, .absolute = off * top(matmul(du.t(), wide(x).abs()))});
    EXPECT_CLOSE(grads[2], expected_grads[2],
                 {.relative = 0, .absolute = off * top(du.sum(0).unsqueeze(0))});
  }
}

TEST_F(SmallProduct, AnMlpIsOneLaunchWithClustersAndTheSameBitsEachTime) {
  const Tensor x = randn({768, 128}).requires_grad_(), dy = randn({768, 128});
  const std::vector<Tensor> w{randn({512, 128}).requires_grad_(), randn({512}).requires_grad_(),
                              randn({128, 512}).requires_grad_(), randn({128}).requires_grad_()};
  const auto gradients = [&] {
    const Tensor y = gelu_mlp(x, w[0], w[1], w[2], w[3]);
    auto all = grad({y}, {x, w[0], w[1], w[2], w[3]}, {dy});
    all.push_back(y.detach());
    return all;
  };
  const auto expected = gradients();
  auto step = capture(gradients);
  for (int i = 0; i < 20; ++i) {
    const auto got = step();
    for (size_t t = 0; t < got.size(); ++t) EXPECT_SAME_BITS(got[t], expected[t]);
  }
  if constexpr (kBuiltWithCuda) {
    if (!detail::cuda_is_hopper(cuda)) return;
    EXPECT_THAT(step.graph_nodes(), ::testing::HasSubstr("matmul_small_rows_kernel"));
  }
}

TEST_F(SmallProduct, AWeightsGradientIsABranchOfTheGraph) {
  const Tensor x = randn({64, 32}).requires_grad_(), w = randn({64, 32}).requires_grad_();
  const Tensor b = randn({64}).requires_grad_(), dy = randn({64, 64});
  const auto gradients = [&] { return grad({tanh(linear(tanh(x), w, b))}, {x, w, b}, {dy}); };
  const auto expected = [&] {
    const detail::OneStream plain;
    return gradients();
  }();
  auto step = capture(gradients);
  for (int i = 0; i < 3; ++i) {
    const auto got = step();
    for (size_t t = 0; t < got.size(); ++t) EXPECT_SAME_BITS(got[t], expected[t]);
  }
  const std::string nodes = step.graph_nodes();
  EXPECT_THAT(nodes, ::testing::HasSubstr("3  norma::(anonymous namespace)::matmul_small_kernel"));
  const size_t longest = nodes.find("nodes, ") + 7;
  EXPECT_EQ(std::stoi(nodes.substr(longest)) + 1, std::stoi(nodes)) << nodes;
}

}  // namespace
}  // namespace norma
