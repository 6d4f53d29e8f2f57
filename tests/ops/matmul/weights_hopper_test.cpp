#include "norma/ops/matmul/weights_hopper.h"

#include <gmock/gmock.h>

#include <array>

#include "norma/core/autograd.h"
#include "norma/core/cuda/launches.h"
#include "norma/core/dispatch.h"
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

using testing::eighths;
using testing::wide;

class WeightsProduct : public testing::OnHopper<::testing::TestWithParam<DType>> {
 protected:
  void SetUp() override {
    OnHopper::SetUp();
    manual_seed(1);
  }
};

struct WeightSize {
  int64_t rows, out, in;
  const char* why;
};
constexpr WeightSize kWeightSizes[] = {
    {4096, 384, 256, "one tile, whose sum all blocks share"},
    {16384, 384, 1536, "the right factor longer"},
    {16384, 1536, 384, "the left factor longer: turned"},
    {5000, 376, 504, "tails of rows and of both factors' columns"},
    {5000, 2296, 760, "as many tiles as fit"}};

struct Product {
  Tensor dy, x, turned, dw;
  Product(const WeightSize& s, DType dtype)
      : dy(eighths({s.rows, s.out}, dtype)),
        x(eighths({s.rows, s.in}, dtype)),
        turned(dy.t()),
        dw(empty({s.out, s.in}, float32, cuda)) {}
  MatmulArgs args() { return {.a = turned, .b = x, .bias = {}, .c = dw}; }
  void check() const { EXPECT_SAME_BITS(dw, matmul(wide(dy).t(), wide(x)).to(float32)); }
};

TEST_P(WeightsProduct, IsTheExactSum) {
  if constexpr (kBuiltWithCuda)
    for (const WeightSize& size : kWeightSizes) {
      SCOPED_TRACE(size.why);
      Product p(size, GetParam());
      const std::array one{p.args()};
      ASSERT_TRUE(multiply_weights(cuda_stream(p.x.device()), one));
      p.check();
    }
}
TEST_P(WeightsProduct, TwoInOneLaunchAreTheSame) {
  if constexpr (kBuiltWithCuda) {
    Product first(kWeightSizes[1], GetParam()), second(kWeightSizes[2], GetParam());
    const std::array both{first.args(), second.args()};
    ASSERT_TRUE(multiply_weights(cuda_stream(first.x.device()), both));
    first.check(), second.check();
  }
}

TEST_P(WeightsProduct, GivesAnMlpItsWeightsGradients) {
  if constexpr (kBuiltWithCuda) {
    const DType dtype = GetParam();
    const Tensor x = eighths({4096, 384}, dtype).requires_grad_(), dy = eighths({4096, 384}, dtype);
    const std::vector<Tensor> weights{eighths({1536, 384}, dtype).to(float32).requires_grad_(),
                                      eighths({384, 1536}, dtype).to(float32).requires_grad_()};
    std::vector<Tensor> inputs = weights;
    inputs.push_back(x);
    const Tensor y = gelu_mlp(x, weights[0], none, weights[1], none);
    const detail::LaunchListener listener;
    const auto got = grad({y}, inputs, {dy});
    EXPECT_THAT(listener.kernels(),
                ::testing::Contains(::testing::HasSubstr("matmul_weights_hopper_kernel")));
    // The layers one by one: their products differ in the order of sums alone.
    const Tensor u = linear(x.detach(), weights[0].detach()), a = gelu_tanh(u);
    const Tensor du = apply<GeluTanhBackward>(matmul(dy, weights[1].detach().to(dtype)), u);
    const Tensor dw_in = matmul(wide(du).t(), wide(x.detach())),
                 dw_out = matmul(wide(dy).t(), wide(a));
    // a and du are rounded to the dtype once more or once less: 4096 terms of size 1 and 20.
    const double round = unit_roundoff(dtype), terms = 64;  // √4096
    EXPECT_CLOSE(got[0], dw_in,
                 {.absolute = 8 * terms * max(du.abs().to(float64), {0, 1}).item() * round});
    EXPECT_CLOSE(got[1], dw_out,
                 {.absolute = 8 * terms * max(a.abs().to(float64), {0, 1}).item() * round});
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, WeightsProduct, ::testing::Values(bfloat16, float16),
                         [](const auto& p) { return std::string(to_string(p.param)); });

}  // namespace
}  // namespace norma
