// Laws that hold for every member of the family, over pairs of all its features.
#include <cmath>

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "ops/norm/members.h"
#include "testing/compare.h"

namespace norma {
namespace {

using testing::for_each_gradient;
using testing::GradientCase;
using testing::Member;
using testing::NormArguments;
using testing::pairwise_members;

using Maybe = std::optional<Tensor>;

TEST(NormMembers, ThereAreEnoughOfThem) {
  const auto members = pairwise_members();
  EXPECT_GE(members.size(), 15U);  // five activations times three kinds
  EXPECT_LE(members.size(), 80U);
}

TEST(NormMembers, KernelIsItsDefinition) {
  for (const Member& m : pairwise_members())
    for (const Shape& shape : {Shape{0, 9}, Shape{1, 3}, Shape{5, 21}, Shape{2, 3, 1029}}) {
      SCOPED_TRACE(to_string(m) + " " + norma::to_string(shape));
      const NormArguments a(m, shape);
      const NormResult kernel = a.norm(), formula = a.definition();
      // About √D/2 + 8 roundings, the largest |x̂| is √D, w and gate a few.
      const double few = 64 * std::sqrt(static_cast<double>(shape.back())) * unit_roundoff(float64);
      const testing::Closeness within{.relative = few, .absolute = few};
      EXPECT_CLOSE(kernel.y, formula.y, {within});
      EXPECT_EQ(kernel.y2.has_value(), m.second > 0);
      if (kernel.y2) {
        EXPECT_CLOSE(*kernel.y2, *formula.y2, {within});
      }
      EXPECT_EQ(kernel.h.has_value(), formula.h.has_value());
      if (kernel.h) {
        EXPECT_CLOSE(
            *kernel.h, *formula.h,
            {.relative = 4 * unit_roundoff(float64), .absolute = 8 * unit_roundoff(float64)});
      }
      EXPECT_CLOSE(kernel.rstd.value, formula.rstd.value, {.relative = few});
      EXPECT_EQ(kernel.mean.value.defined(), m.options.kind == NormKind::layer);
      if (kernel.mean.value.defined()) {
        EXPECT_CLOSE(kernel.mean.value + kernel.mean_rest.value,
                     formula.mean.value + formula.mean_rest.value, {.absolute = few});
      }
    }
}

TEST(NormMembers, GradientIsTheDerivative) {
  for (const Member& m : pairwise_members()) {
    SCOPED_TRACE(to_string(m));
    const NormArguments a(m, {2, 6});
    EXPECT_OK(gradcheck<Norm>(a.x, a.in.w, a.in.b, a.in.z, a.in.residual, a.in.row_scale, a.in.w2,
                              a.in.b2, a.options));
  }
}

TEST(NormMembers, SecondDerivativeToo) {
  // Where three numbers of a group are all small, differences lose the digits asked for: whichever
  // tests ran before, these are not.
  manual_seed(1);
  for (Member m : pairwise_members()) {
    m.options.saves = NormSaves::input;
    SCOPED_TRACE(to_string(m));
    const NormArguments a(m, {2, 3});
    EXPECT_OK(gradgradcheck<Norm>(a.x, a.in.w, a.in.b, a.in.z, a.in.residual, a.in.row_scale,
                                  a.in.w2, a.in.b2, a.options));
  }
}

TEST(NormMembers, ClosedFormAndKernelAreTheDerivativeOfTheDefinition) {
  for (const Member& m : pairwise_members(11)) {
    SCOPED_TRACE(to_string(m));
    const GradientCase c(NormArguments(m, {3, 33}));
    NormArguments leaves = c.a;
    std::vector<Tensor> inputs{leaves.x = c.a.x.detach().requires_grad_()};
    for (Maybe* t : leaves.optional())
      if (*t) inputs.push_back(*(*t = (*t)->detach().requires_grad_()));
    const NormResult formula = leaves.definition();
    std::vector<Tensor> outputs{formula.y};
    std::vector<Maybe> weights{c.dy};
    if (c.dy2) outputs.push_back(*formula.y2), weights.push_back(c.dy2);
    if (c.dh) outputs.push_back(*formula.h), weights.push_back(c.dh);
    const std::vector<Tensor> derivative = grad(outputs, inputs, weights);
    NormGrads expected;
    size_t next = 0;
    expected.dx = derivative[next++];
    const auto take = [&](Maybe& d, const Maybe& input) {
      if (input) d = derivative[next++];
    };
    take(expected.dw, c.a.in.w), take(expected.db, c.a.in.b), take(expected.dz, c.a.in.z);
    take(expected.dresidual, c.a.in.residual), take(expected.drow_scale, c.a.in.row_scale);
    take(expected.dw2, c.a.in.w2), take(expected.db2, c.a.in.b2);
    // Sums of up to 33 terms, each a product of five or fewer factors of a few units.
    const double few = 4096 * unit_roundoff(float64);
    const auto check = [&](const Tensor& a, const Tensor& e) {
      EXPECT_CLOSE(a, e, {.relative = few, .absolute = few});
    };
    for_each_gradient(c.formula(), expected, check);
    for_each_gradient(c.kernel(), expected, check);
  }
}

template <class T>
class NormMembersTest : public ::testing::Test {};
TYPED_TEST_SUITE(NormMembersTest, testing::FloatingTypes);

TYPED_TEST(NormMembersTest, EveryDtypeIsTheDefinitionInFloat64Rounded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = unit_roundoff(stats_dtype(dtype)), rounding = unit_roundoff(dtype);
  for (const Member& m : pairwise_members())
    for (DType weights : {dtype, dtype == float64 ? float64 : float32}) {
      SCOPED_TRACE(to_string(m) + " weights " + std::string(to_string(weights)));
      const NormArguments a(m, {4, 99}, dtype, weights);
      const NormResult r = a.norm();
      EXPECT_EQ(r.y.dtype(), a.options.out_dtype.value_or(dtype));
      NormArguments of_h = a.to(float64);
      if (r.h) {
        EXPECT_EQ(r.h->dtype(), a.in.residual ? a.in.residual->dtype() : dtype);
        // Three roundings in the statistics' dtype of terms below 32, one of the result.
        EXPECT_CLOSE(*r.h, *of_h.definition().h,
                     {.relative = unit_roundoff(r.h->dtype()), .absolute = 3 * 32 * stats});
        of_h.x = r.h->to(float64);
        of_h.in.residual = of_h.in.row_scale = none;
        of_h.options.dropout = 0;
      }
      // Statistics: √D/2 + 4 roundings. The affine part: three more, on terms up to about 64. With
      // Casting::rounded one more of x̂, which w and gate multiply.
      const double out = unit_roundoff(r.y.dtype());
      const double casting = m.options.casting == Casting::rounded ? 64 * rounding : 0;
      const testing::Closeness within{.relative = out + 16 * stats,
                                      .absolute = 512 * stats + casting + 0x1p-25};
      EXPECT_CLOSE(r.y, of_h.definition().y, {within});
      if (r.y2) {
        EXPECT_CLOSE(*r.y2, *of_h.definition().y2, {within});
      }
    }
}

TYPED_TEST(NormMembersTest, GradientsOfEveryDtypeAreTheFormulaInFloat64Rounded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = unit_roundoff(stats_dtype(dtype)), rounding = unit_roundoff(dtype);
  for (const Member& m : pairwise_members())
    for (DType weights : {dtype, dtype == float64 ? float64 : float32}) {
      SCOPED_TRACE(to_string(m) + " weights " + std::string(to_string(weights)));
      const GradientCase c(NormArguments(m, {4, 99}, dtype, weights));
      // Sums of up to 99 · 4 terms of up to about 256; x̂ once rounded more with Casting::rounded.
      const double casting = m.options.casting == Casting::rounded ? 256 * rounding : 0;
      for_each_gradient(c.kernel(), c.exact(), [&](const Tensor& a, const Tensor& e) {
        EXPECT_CLOSE(a, e,
                     {.relative = unit_roundoff(a.dtype()) + 64 * stats,
                      .absolute = 8192 * stats + casting + 0x1p-25});
      });
    }
}

}  // namespace
}  // namespace norma
