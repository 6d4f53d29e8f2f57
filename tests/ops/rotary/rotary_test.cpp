#include "norma/ops/rotary/rotary.h"

#include <cmath>

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

const RotaryOptions kOptions[] = {
    {}, {.pairs = RotaryPairs::neighbours}, {.base = 100, .offset = 5}, {.inverse = true}};

template <class T>
class RotaryTest : public ::testing::Test {};
TYPED_TEST_SUITE(RotaryTest, testing::FloatingTypes);

TYPED_TEST(RotaryTest, KernelIsItsDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double bound = 4 * unit_roundoff(stats_dtype(dtype));
  for (const RotaryOptions& o : kOptions)
    for (const Shape& shape : {Shape{3, 4}, Shape{2, 3, 7, 6}, Shape{0, 5, 2}, Shape{1, 2}}) {
      const Tensor x = randn(shape, float64).to(dtype);
      EXPECT_CLOSE(rotary(x, o), Rotary::define(x.to(float64), o),
                   {.relative = unit_roundoff(dtype), .absolute = 4 * bound + 0x1p-25});
    }
}

TEST(Rotary, GradientIsTheDerivative) {
  for (const RotaryOptions& o : kOptions) {
    EXPECT_OK(gradcheck<Rotary>(randn({2, 3, 4}, float64), o));
    EXPECT_OK(gradgradcheck<Rotary>(randn({2, 3, 4}, float64), o));
  }
}

TEST(Rotary, ProductsDependOnTheDistanceAlone) {
  const Tensor q = randn({1, 8}, float64), k = randn({1, 8}, float64);
  const auto dot = [&](int64_t at_q, int64_t at_k) {
    return (rotary(q, {.offset = at_q}) * rotary(k, {.offset = at_k})).sum();
  };
  EXPECT_CLOSE(dot(9, 4), dot(105, 100), {.absolute = 1e-13});
}

TEST(Rotary, OppositeAnglesCancelAndPositionZeroIsIdentity) {
  const Tensor x = randn({5, 6}, float64);
  EXPECT_CLOSE(rotary(rotary(x), {.inverse = true}), x, {.absolute = 1e-15});
  EXPECT_SAME_BITS(rotary(x).slice(0, 0, 1), x.slice(0, 0, 1));
}

TEST(Rotary, HeadsAreReadWhereTheyLie) {
  const Tensor x = randn({2, 5, 3, 4}), heads = x.transpose(1, 2);
  EXPECT_SAME_BITS(rotary(heads), rotary(heads.contiguous()));
}

TEST(Rotary, OddSizesAreNamed) {
  EXPECT_THROW_MSG(rotary(ones({2, 3})), ShapeError,
                   "rotary: x must be (…, T, D) with an even D, but is (2, 3)");
}

}  // namespace
}  // namespace norma
