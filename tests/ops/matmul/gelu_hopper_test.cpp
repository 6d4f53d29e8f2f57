#include "norma/core/dispatch.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/kernels.h"
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

class GeluProduct : public testing::OnGpu<::testing::TestWithParam<DType>> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    manual_seed(1);
  }
};

struct Size {
  int64_t rows, depth, cols;
  const char* why;
};
constexpr Size kSizes[] = {{1024, 64, 128, "one panel, one tile a block"},
                           {2048, 384, 1536, "every panel, few rows: columns shared by blocks"},
                           {17000, 384, 512, "a warpgroup's turns, more blocks than at once"},
                           {1100, 200, 392, "tails of rows, terms and columns"}};

TEST_P(GeluProduct, IsItsDefinitionRounded) {
  const DType dtype = GetParam();
  // Sums are exact. GELU's exponent, below 2⁷ where its result is not 0, is off by 2⁻²³ of itself.
  // The definition in float64 has 1 + tanh, off by 2⁻⁵³, times |x| below 2⁷.
  const testing::Closeness once{
      .relative = unit_roundoff(dtype) + std::ldexp(1, -15),
      .absolute = dtype == float16 ? std::ldexp(1, -24) : std::ldexp(1, -46)};
  for (const auto& [rows, depth, cols, why] : kSizes) {
    SCOPED_TRACE(why);
    const Tensor x = eighths({rows, depth}, dtype), w = eighths({cols, depth}, dtype);
    const Tensor bias = eighths({cols}, dtype);
    Tensor u = empty({rows, cols}, dtype, cuda), a = empty({rows, cols}, dtype, cuda);
    const Tensor wt = w.t();
    dispatch(
        x.device(),
        MatmulArgs{
            .a = x, .b = wt, .bias = bias, .c = a, .epilogue = MatmulEpilogue::gelu, .pre = u});
    const Tensor exact = linear(wide(x), wide(w), wide(bias));
    EXPECT_CLOSE(u, exact, {.relative = unit_roundoff(dtype)});
    EXPECT_TRUE(testing::close(a, gelu_tanh(exact), once));

    const Tensor v = eighths({depth, cols}, dtype);
    Tensor du = empty({rows, cols}, dtype, cuda);
    dispatch(x.device(), MatmulArgs{.a = x,
                                    .b = v,
                                    .bias = {},
                                    .c = du,
                                    .epilogue = MatmulEpilogue::gelu_backward,
                                    .pre = u});
    // The slope nearly cancels at its zero, around -0.75: terms of size 1 each.
    const Tensor sums = matmul(wide(x), wide(v));
    const double most = max(sums.abs(), {0, 1}).item();
    EXPECT_CLOSE(du, apply<GeluTanhBackward>(sums, wide(u)),
                 {.relative = unit_roundoff(dtype),
                  .absolute = most * std::ldexp(1, -20) + std::ldexp(1, -24)});
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GeluProduct, ::testing::Values(bfloat16, float16),
                         [](const auto& p) { return std::string(to_string(p.param)); });

}  // namespace
}  // namespace norma
