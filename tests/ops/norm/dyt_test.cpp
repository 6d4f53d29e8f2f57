#include "norma/ops/norm/dyt.h"

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

struct Arguments {
  Tensor x, alpha;
  Maybe shift = none, w = none, b = none;
  SquashOptions options = {};
};
/// Both functions with and without weights; 32 elements go together, so 33 meets a rest.
std::vector<Arguments> cases(int64_t cols, DType dtype) {
  std::vector<Arguments> all;
  for (SquashFunction f : {SquashFunction::tanh, SquashFunction::erf})
    for (bool affine : {false, true}) {
      const auto random = [&](const Shape& s) { return randn(s, float64).to(dtype); };
      Arguments a{.x = random({3, cols}), .alpha = random({1}), .options = {.function = f}};
      if (f == SquashFunction::erf) a.shift = random({1});
      if (affine) a.w = random({cols}), a.b = random({cols});
      all.push_back(a);
    }
  return all;
}
Maybe wide(const Maybe& t) { return t ? Maybe(t->to(float64)) : none; }

template <class T>
class DytTest : public ::testing::Test {};
TYPED_TEST_SUITE(DytTest, testing::FloatingTypes);

TYPED_TEST(DytTest, KernelIsItsDefinitionInFloat64Rounded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = unit_roundoff(stats_dtype(dtype));
  for (const Arguments& a : cases(33, dtype))
    // Eigen's tanh is good to 4 units, erf to 8; the argument has two roundings of up to about 12.
    EXPECT_CLOSE(apply<Squash>(a.x, a.alpha, a.shift, a.w, a.b, a.options),
                 Squash::define(a.x.to(float64), a.alpha.to(float64), wide(a.shift), wide(a.w),
                                wide(a.b), a.options),
                 {.relative = unit_roundoff(dtype) + 16 * stats, .absolute = 64 * stats});
}
TYPED_TEST(DytTest, GradientKernelIsItsDefinitionInFloat64Rounded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = unit_roundoff(stats_dtype(dtype));
  for (const Arguments& a : cases(33, dtype)) {
    const Tensor dy = randn({3, 33}, float64).to(dtype);
    const auto wants = [&](DType t) {
      const auto where = [&](const Maybe& m) { return m ? std::optional(t) : std::nullopt; };
      return SquashBackwardOptions{.squash = a.options,
                                   .dx = t,
                                   .dalpha = t,
                                   .dshift = where(a.shift),
                                   .dw = where(a.w),
                                   .db = where(a.b)};
    };
    const SquashGrads kernel = apply<SquashBackward>(dy, a.x, a.alpha, a.shift, a.w, wants(dtype));
    const SquashGrads exact =
        SquashBackward::define(dy.to(float64), a.x.to(float64), a.alpha.to(float64), wide(a.shift),
                               wide(a.w), wants(float64));
    const auto check = [&](const Maybe& k, const Maybe& e) {
      ASSERT_EQ(k.has_value(), e.has_value());
      if (!k) return;
      // 99 terms of up to about 100.
      EXPECT_CLOSE(
          *k, *e,
          {.relative = unit_roundoff(dtype) + 16 * stats, .absolute = 4096 * stats + 0x1p-25});
    };
    check(kernel.dx, exact.dx), check(kernel.dalpha, exact.dalpha);
    check(kernel.dshift, exact.dshift), check(kernel.dw, exact.dw), check(kernel.db, exact.db);
  }
}
TEST(Dyt, GradientAndSecondDerivative) {
  for (const Arguments& a : cases(4, float64)) {
    EXPECT_OK(gradcheck<Squash>(a.x, a.alpha, a.shift, a.w, a.b, a.options));
    EXPECT_OK(gradgradcheck<Squash>(a.x, a.alpha, a.shift, a.w, a.b, a.options));
  }
}
TEST(Dyt, IsTanhAndDerfIsErf) {
  const Tensor x = randn({2, 5}, float64), a = full({1}, 0.5, float64),
               s = full({1}, 0.25, float64);
  EXPECT_CLOSE(dyt(x, a), (x * 0.5).tanh(), {.relative = 16 * unit_roundoff(float64)});
  EXPECT_CLOSE(derf(x, a, s), erf(x * 0.5 + 0.25), {.relative = 16 * unit_roundoff(float64)});
}
TEST(Dyt, StridedRowsGiveTheBitsOfDenseOnes) {
  const Tensor x = randn({6, 40}).slice(1, 3, 36), a = full({1}, 0.5);
  EXPECT_SAME_BITS(dyt(x, a), dyt(x.contiguous(), a));
}
TEST(Dyt, MistakesAreNamed) {
  EXPECT_THROW_MSG(dyt(ones({2, 8}), ones({2})), ShapeError,
                   "squash: alpha must be one floating element, but is (2,) of float32");
  EXPECT_THROW_MSG(dyt(ones({2, 8}), ones({1}), ones({4})), ShapeError,
                   "squash: w must be floating and (8,), the last dimension of x (2, 8), but is "
                   "(4,)");
}

}  // namespace
}  // namespace norma
