#include <gmock/gmock.h>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/launched.h"
#include "testing/on_gpu.h"

namespace norma {
namespace {

using ::testing::Contains, ::testing::HasSubstr;

/// Products of half types into columns whose number is odd, and back from them.
class OddProducts : public testing::OnHopper<> {
 protected:
  void SetUp() override {
    OnHopper::SetUp();
    manual_seed(1);
  }
};

/// Whole numbers, so small that their products are exact in half types too.
Tensor of_three(const Shape& shape, DType dtype) { return randint(-1, 2, shape, int32).to(dtype); }

struct OddSize {
  int64_t rows, in, out;
  const char* why;
};
constexpr OddSize kOddSizes[] = {{16384, 384, 65, "characters"},
                                 {4099, 384, 65, "a last block that is not full"},
                                 {8192, 200, 123, "a tail of terms; two panels back"},
                                 {8192, 128, 33, "few columns both ways"}};

TEST_F(OddProducts, OfWholeNumbersAreExact) {
  for (const DType dtype : {bfloat16, float16})
    for (const auto& [rows, in, out, why] : kOddSizes) {
      SCOPED_TRACE(why);
      const Tensor x = of_three({rows, in}, dtype), w = of_three({out, in}, dtype);
      Tensor y;
      const auto there = testing::launched([&] { y = linear(x, w); });
      EXPECT_THAT(there, Contains(HasSubstr("matmul_odd_hopper_kernel")));
      EXPECT_SAME_BITS(y, matmul(x.to(float32), w.to(float32).t()).to(dtype));
      y.copy_(of_three({rows, out}, dtype));  // a gradient whose rows lie apart
      LinearGrads grads;
      const auto back =
          testing::launched([&] { grads = apply<LinearBackward>(y, x, w, none, {}); });
      const Tensor dy = y.to(float32);
      if (in == 384 || in <= 128) {
        EXPECT_THAT(back, Contains(HasSubstr("matmul_odd_hopper_kernel")));
      }
      EXPECT_SAME_BITS(*grads.dx, matmul(dy, w.to(float32)).to(dtype));
      EXPECT_CLOSE(grads.dw->to(float32), matmul(dy.t(), x.to(float32)),
                   {.relative = unit_roundoff(dtype)});
    }
}

TEST_F(OddProducts, TheLossWritesItsGradientWhereTheLogitsWere) {
  const Tensor x = randn({8192, 384}).to(bfloat16), w = (randn({65, 384}) * 0.1).to(bfloat16);
  const Tensor targets = randint(0, 65, {8192}, int32);
  const auto gradient = [&](const Tensor& logits_of) {
    const Tensor v = x.clone().requires_grad_();
    cross_entropy(logits_of.defined() ? linear(v, w).clone() : linear(v, w), targets).backward();
    return v.grad();
  };
  EXPECT_CLOSE(gradient({}), gradient(x),
               {.relative = 2 * unit_roundoff(bfloat16), .absolute = 1e-7});
}

}  // namespace
}  // namespace norma
