#include <gmock/gmock.h>

#include <cmath>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/core/waiting_launch.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/gelu_mlp.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/norm.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/exact.h"
#include "testing/launched.h"
#include "testing/on_gpu.h"

namespace norma {
namespace {

using ::testing::Contains, ::testing::HasSubstr, ::testing::Not;
using testing::whole, testing::wide;

/// Norms in the launch of the product that gives their rows.
class SmallRows : public testing::OnHopper<> {
 protected:
  void SetUp() override {
    OnHopper::SetUp();
    manual_seed(1);
    allow_tf32(true);
  }
  void TearDown() override { allow_tf32(false); }
};

const auto kEnds = Contains(HasSubstr("matmul_small_rows_kernel"));
const auto kNorm = Contains(HasSubstr("norm_forward"));

struct RowsSize {
  int64_t rows, in, out;
  const char* why;
};
constexpr RowsSize kRowsSizes[] = {{768, 128, 128, "two steps a warp"},
                                   {1000, 256, 128, "four, and a last block that is not full"},
                                   {40, 64, 96, "one; lanes without columns"},
                                   {5, 128, 32, "few rows of one tile"}};

TEST_F(SmallRows, AProductEndsInItsNorm) {
  for (const auto& [rows, in, out, why] : kRowsSizes)
    for (const NormKind kind : {NormKind::layer, NormKind::rms, NormKind::l2})
      for (const bool adds : {true, false}) {
        SCOPED_TRACE(why);
        const Tensor x = whole({rows, in}), w = whole({out, in}), bias = whole({out});
        const std::optional<Tensor> residual = adds ? std::optional(randn({rows, out})) : none;
        const NormInputs inputs{.w = randn({out}), .b = randn({out}), .residual = residual};
        const NormResult plain = fused_norm(linear(x, w, bias), inputs, {.kind = kind});
        Tensor product;
        NormResult ends;
        const auto kernels = testing::launched([&] {
          const detail::MayWait scope;
          product = linear(x, w, bias);
          ends = fused_norm(product, inputs, {.kind = kind});
        });
        EXPECT_THAT(kernels, kEnds);
        EXPECT_THAT(kernels, Not(kNorm));
        EXPECT_SAME_BITS(product, linear(x, w, bias));
        if (adds) {
          EXPECT_SAME_BITS(*ends.h, *plain.h);
        }
        // A row's sums have another order: up to 128 terms, twice.
        const double off = 256 * unit_roundoff(float32);
        EXPECT_CLOSE(ends.rstd.value, plain.rstd.value, {.relative = off});
        EXPECT_CLOSE(ends.y, plain.y, {.relative = off, .absolute = off * 8});
      }
}

TEST_F(SmallRows, RowsWhoseSquaresLeaveTheRangeAreScaled) {
  const float far = std::ldexp(1.0f, 40);
  const Tensor x = whole({64, 128}) * far, w = whole({128, 128}) * far;
  const Tensor expected = fused_norm(linear(x, w), {}, {.kind = NormKind::layer}).y;
  const detail::MayWait scope;
  const Tensor y = fused_norm(linear(x, w), {}, {.kind = NormKind::layer}).y;
  const double off = 256 * unit_roundoff(float32);
  EXPECT_CLOSE(y, expected, {.relative = off, .absolute = off * 8});
}

TEST_F(SmallRows, AnMlpEndsInANorm) {
  for (const auto& [rows, d, d_ff, why] :
       {RowsSize{768, 128, 512, "four blocks"}, RowsSize{100, 64, 256, "two, the last not full"}}) {
    SCOPED_TRACE(why);
    const Tensor x = randn({rows, d}), w_in = randn({d_ff, d}), w_out = randn({d, d_ff}),
                 residual = randn({rows, d});
    const NormInputs inputs{.w = randn({d}), .residual = residual};
    const Tensor y = gelu_mlp(x, w_in, none, w_out, none);
    const NormResult plain = fused_norm(y, inputs, {.kind = NormKind::layer});
    NormResult ends;
    const auto kernels = testing::launched([&] {
      const detail::MayWait scope;
      ends = fused_norm(gelu_mlp(x, w_in, none, w_out, none), inputs, {.kind = NormKind::layer});
    });
    if constexpr (kBuiltWithCuda) {
      EXPECT_EQ(kernels.size(), 1);
    }
    EXPECT_SAME_BITS(*ends.h, *plain.h);
    const double off = 256 * unit_roundoff(float32);
    EXPECT_CLOSE(ends.y, plain.y, {.relative = off, .absolute = off * 8});
  }
}

TEST_F(SmallRows, WhoeverReadsTheProductFirstGetsIt) {
  const Tensor x = whole({768, 128}), w = whole({128, 128});
  const Tensor expected = linear(x, w), residual = randn({768, 128});
  const detail::MayWait scope;
  const auto waits = [] { return detail::launch_waits; };
  const Tensor y = linear(x, w);
  EXPECT_TRUE(waits());
  EXPECT_SAME_BITS(y, expected);  // reads it
  EXPECT_FALSE(waits());
  const Tensor z = linear(x, w);
  fused_norm(residual, {.residual = z});  // takes nothing: z is not its x
  EXPECT_FALSE(waits());
  EXPECT_SAME_BITS(z, expected);
  Tensor last;
  {
    const detail::MayWait inner;
    last = linear(x, w);
  }
  EXPECT_TRUE(waits());  // the outer one lives
  EXPECT_SAME_BITS(linear(x, w), expected);
  EXPECT_SAME_BITS(last, expected);
}

TEST_F(SmallRows, NothingOutlivesItsScope) {
  const Tensor x = whole({768, 128}), w = whole({128, 128});
  {
    const detail::MayWait scope;
    linear(x, w);
    EXPECT_TRUE(detail::launch_waits);
  }
  EXPECT_FALSE(detail::launch_waits);
  linear(x, w);
  EXPECT_FALSE(detail::launch_waits);
  try {
    const detail::MayWait scope;
    const Tensor y = linear(x, w);
    linear(y, whole({4, 5}));
    FAIL() << "no error";
  } catch (const ShapeError&) {
    EXPECT_FALSE(detail::launch_waits);
  }
}

}  // namespace
}  // namespace norma
