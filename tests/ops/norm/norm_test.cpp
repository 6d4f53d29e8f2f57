#include "norma/ops/norm/norm.h"

#include <cmath>

#include "norma/core/cache.h"
#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma {
namespace {

using testing::kInf;
using testing::kNan;

/// One member of the family, with its optional arguments.
struct SimpleMember {
  NormOptions options;
  bool weight, bias, residual;
};

std::vector<SimpleMember> all_members() {
  std::vector<SimpleMember> members;
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (GateOrder gate :
         {GateOrder::no_gate, GateOrder::norm_then_gate, GateOrder::gate_then_norm})
      for (int64_t group : {0, 3})
        for (bool zero_centered : {false, true})
          for (Variance variance : {Variance::two_pass, Variance::welford})
            for (int optional = 0; optional < 8; ++optional) {
              const bool weight = optional & 1, bias = optional & 2, residual = optional & 4;
              if (kind == NormKind::rms && variance == Variance::welford) continue;
              if (zero_centered && !weight) continue;
              members.push_back({{.kind = kind,
                                  .gate = gate,
                                  .eps = 1e-3,
                                  .group = group,
                                  .zero_centered = zero_centered,
                                  .variance = variance},
                                 weight,
                                 bias,
                                 residual});
            }
  return members;
}

std::string to_string(const SimpleMember& m) {
  return format("{} gate {} group {} zero-centered {} variance {} weight {} bias {} residual {}",
                m.options.kind == NormKind::rms ? "rms" : "layer", static_cast<int>(m.options.gate),
                m.options.group, m.options.zero_centered, static_cast<int>(m.options.variance),
                m.weight, m.bias, m.residual);
}

struct Arguments {
  Tensor x;
  std::optional<Tensor> w, b, z, residual;

  Arguments(const SimpleMember& m, const Shape& shape, DType dtype = float64) {
    const int64_t cols = shape.back();
    x = randn(shape, float64).to(dtype);
    if (m.weight) w = randn({cols}, float64).to(dtype);
    if (m.bias) b = randn({cols}, float64).to(dtype);
    if (m.options.gate != GateOrder::no_gate) z = randn(shape, float64).to(dtype);
    if (m.residual) residual = randn(shape, float64).to(dtype);
  }
  Arguments wide() const {
    Arguments a = *this;
    a.x = x.to(float64);
    for (std::optional<Tensor>* t : {&a.w, &a.b, &a.z, &a.residual})
      if (*t) *t = (*t)->to(float64);
    return a;
  }
  NormResult norm(const NormOptions& o) const {
    return apply<Norm>(x, w, b, z, residual, none, none, none, o);
  }
  NormResult definition(const NormOptions& o) const {
    return Norm::define(x, w, b, z, residual, none, none, none, o);
  }
};

TEST(Norm, KernelIsItsDefinitionForEveryMember) {
  for (const SimpleMember& m : all_members())
    for (const Shape& shape : {Shape{0, 9}, Shape{1, 3}, Shape{5, 21}, Shape{2, 3, 1029}}) {
      SCOPED_TRACE(to_string(m) + " " + norma::to_string(shape));
      const Arguments a(m, shape);
      const NormResult kernel = a.norm(m.options), formula = a.definition(m.options);
      // About √D/2 + 8 roundings, the largest |x̂| is √D, w and gate a few.
      const double few = 64 * std::sqrt(static_cast<double>(shape.back())) * unit_roundoff(float64);
      EXPECT_CLOSE(kernel.y, formula.y, {.relative = few, .absolute = few});
      EXPECT_CLOSE(kernel.rstd.value, formula.rstd.value, {.relative = few});
      EXPECT_EQ(kernel.h.has_value(), m.residual);
      if (m.residual) {
        EXPECT_SAME_BITS(*kernel.h, *formula.h);
      }
      EXPECT_EQ(kernel.mean.value.defined(), m.options.kind == NormKind::layer);
      if (kernel.mean.value.defined()) {
        EXPECT_CLOSE(kernel.mean.value, formula.mean.value, {.absolute = few});
      }
    }
}

TEST(Norm, GradientIsTheDerivativeForEveryMember) {
  for (const SimpleMember& m : all_members()) {
    SCOPED_TRACE(to_string(m));
    const Arguments a(m, {2, 6});
    EXPECT_OK(gradcheck<Norm>(a.x, a.w, a.b, a.z, a.residual, none, none, none, m.options));
  }
}

TEST(Norm, SecondDerivativeToo) {
  for (const SimpleMember& m : all_members()) {
    if (m.options.variance == Variance::welford) continue;  // the definition is the same
    SCOPED_TRACE(to_string(m));
    const auto check = [&] {
      const Arguments a(m, {2, 3});
      return gradgradcheck<Norm>(a.x, a.w, a.b, a.z, a.residual, none, none, none, m.options);
    };
    // Three numbers that nearly agree make a norm so steep that differences lose their digits. A
    // formula that is wrong is wrong for the next ones too.
    const GradcheckReport first = check();
    EXPECT_OK(first ? first : check());
  }
}

TEST(Norm, StreamThatPassesIsXAndHasItsGradientAdded) {
  for (SimpleMember m : all_members()) {
    if (m.options.variance == Variance::welford || m.residual) continue;
    SCOPED_TRACE(to_string(m));
    m.options.passes_x = true;
    const Arguments a(m, {2, 6});
    EXPECT_SAME_BITS(*a.norm(m.options).h, a.x);
    EXPECT_OK(gradcheck<Norm>(a.x, a.w, a.b, a.z, none, none, none, none, m.options));
    EXPECT_OK(gradgradcheck<Norm>(a.x, a.w, a.b, a.z, none, none, none, none, m.options));
  }
}

TEST(NormBackward, ClosedFormAndKernelAreTheDerivativeOfTheDefinition) {
  for (const SimpleMember& m : all_members()) {
    SCOPED_TRACE(to_string(m));
    const Arguments a(m, {3, 33});
    const NormOptions& o = m.options;
    std::vector<Tensor> inputs{a.x.detach().requires_grad_()};
    const auto variable = [&](const std::optional<Tensor>& t) -> std::optional<Tensor> {
      if (!t) return none;
      inputs.push_back(t->detach().requires_grad_());
      return inputs.back();
    };
    const auto w = variable(a.w), b = variable(a.b), z = variable(a.z), r = variable(a.residual);
    const NormResult formula = Norm::define(inputs[0], w, b, z, r, none, none, none, o);
    const Tensor dy = randn({3, 33}, float64), dh = randn({3, 33}, float64);
    std::vector<Tensor> outputs{formula.y};
    std::vector<std::optional<Tensor>> weights{dy};
    if (r) outputs.push_back(*formula.h), weights.push_back(dh);
    const std::vector<Tensor> expected = grad(outputs, inputs, weights);

    const NoGrad plain;
    const NormResult s = a.norm(o);
    const Tensor h = r ? *s.h : a.x;
    const auto of = [](const Tensor& t) { return t.defined() ? std::optional(t) : none; };
    const auto mean = of(s.mean.value), rest = of(s.mean_rest.value);
    const auto wanted = [](const auto& t) { return t ? std::optional(float64) : std::nullopt; };
    const NormBackwardOptions wants{
        .norm = o, .dx = float64, .dw = wanted(w), .db = wanted(b), .dz = wanted(z)};
    const auto more = r ? std::optional(dh) : none;
    const double few = 4096 * unit_roundoff(float64);
    const auto check = [&](const NormGrads& g) {
      size_t i = 0;
      EXPECT_CLOSE(*g.dx, expected[i++], {.relative = few, .absolute = few});
      if (w) {
        EXPECT_CLOSE(*g.dw, expected[i++], {.relative = few, .absolute = few});
      }
      if (b) {
        EXPECT_CLOSE(*g.db, expected[i++], {.relative = few, .absolute = few});
      }
      if (z) {
        EXPECT_CLOSE(*g.dz, expected[i++], {.relative = few, .absolute = few});
      }
    };
    check(NormBackward::define(dy, none, more, h, none, none, a.z, none, a.w, a.b, none, mean, rest,
                               s.rstd, wants));
    check(apply<NormBackward>(dy, none, more, h, none, none, a.z, none, a.w, a.b, none, mean, rest,
                              s.rstd, wants));
  }
}

template <class T>
class NormTest : public ::testing::Test {};
TYPED_TEST_SUITE(NormTest, testing::FloatingTypes);

TYPED_TEST(NormTest, EveryDtypeIsTheDefinitionInFloat64Rounded) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double stats = unit_roundoff(stats_dtype(dtype)), rounding = unit_roundoff(dtype);
  for (const SimpleMember& m : all_members()) {
    if (m.residual) continue;  // its sum is rounded first: compared below
    SCOPED_TRACE(to_string(m));
    const Arguments a(m, {4, 99}, dtype);
    // Statistics: √D/2 + 4 roundings. The affine part: three more, on terms up to about 64.
    EXPECT_CLOSE(a.norm(m.options).y, a.wide().definition(m.options).y,
                 {.relative = rounding + 16 * stats, .absolute = 512 * stats + 0x1p-25});
  }
}

TYPED_TEST(NormTest, ResidualIsRoundedBeforeItIsNormalized) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const Tensor x = randn({3, 40}, float64).to(dtype), r = randn({3, 40}, float64).to(dtype);
  const Added both = add_rms_norm(x, r);
  EXPECT_SAME_BITS(both.h, x + r);
  EXPECT_SAME_BITS(both.y, rms_norm(both.h));
}

TYPED_TEST(NormTest, WeightsMayHaveTheirOwnDtype) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const Tensor x = randn({3, 40}, float64).to(dtype), w = randn({40}).to(bfloat16);
  const Tensor y = layer_norm(x, w.to(float32), none), same = layer_norm(x, w, none);
  EXPECT_SAME_BITS(y, same);
  const Tensor leaf = w.detach().requires_grad_();
  layer_norm(x, leaf).backward(randn({3, 40}, float64).to(dtype));
  EXPECT_EQ(leaf.grad().dtype(), bfloat16);
}

TEST(RmsNorm, PowerOfTwoScaleCancelsToTheBit) {
  const Tensor x = randn({3, 65}), w = randn({65});
  EXPECT_SAME_BITS(rms_norm(x * 8, w, {.eps = 0}), rms_norm(x, w, {.eps = 0}));
}
TEST(RmsNorm, GradientIsOrthogonalToX) {
  const Tensor x = randn({5, 64}, float64).requires_grad_(), w = randn({64}, float64);
  rms_norm(x, w, {.eps = 0}).backward(randn({5, 64}, float64));
  EXPECT_CLOSE((x.detach() * x.grad()).sum(-1), zeros({5}, float64),
               {.absolute = 64 * 16 * unit_roundoff(float64)});
}
TEST(RmsNorm, QuotedGradientIsWrongAndOursIsNot) {
  // x = (1, 2), w = (1, 3), dy = (1, 0): the formula often quoted gives dx_1 = −0.759.
  const Tensor x = tensor({1, 2}, float64).requires_grad_(), w = tensor({1, 3}, float64);
  rms_norm(x, w, {.eps = 0}).backward(tensor({1, 0}, float64));
  const double r = std::sqrt(2 / 5.0);
  EXPECT_CLOSE(x.grad(), tensor({r * 0.8, -r * 0.4}, float64), {.relative = 1e-15});
}
TEST(LayerNorm, ShiftAndScaleCancel) {
  const Tensor x = randn({3, 65}, float64);
  const Tensor y = layer_norm(x, none, none, {.eps = 0});
  EXPECT_CLOSE(layer_norm(x * 3 + 7, none, none, {.eps = 0}), y,
               {.relative = 1e-13, .absolute = 1e-14});
  EXPECT_SAME_BITS(layer_norm(x * 4, none, none, {.eps = 0}), y);
}
TEST(LayerNorm, GradientSumsToZero) {
  const Tensor x = randn({5, 64}, float64).requires_grad_(), w = randn({64}, float64);
  layer_norm(x, w).backward(randn({5, 64}, float64));
  EXPECT_CLOSE(x.grad().sum(-1), zeros({5}, float64), {.absolute = 1024 * unit_roundoff(float64)});
}
TEST(LayerNorm, StatisticsStayExactUnderALargeMean) {
  // float32 at 1e4: E[x²] − E[x]² would keep no digit of a variance of 1.
  const Tensor noise = randn({4, 4096}, float64), x = (noise + 1e4).to(float32);
  const Tensor exact = layer_norm(x.to(float64));
  for (Variance variance : {Variance::two_pass, Variance::welford}) {
    // A mean that is off by one rounding shifts every x̂ by that much; Welford's rounds at each of
    // its 128 steps a lane, of which most cancel.
    const double roundings = variance == Variance::welford ? 8 : 2;
    EXPECT_CLOSE(layer_norm(x, none, none, {.variance = variance}), exact,
                 {.relative = 64 * unit_roundoff(float32),
                  .absolute = roundings * 1e4 * unit_roundoff(float32)});
  }
}
TEST(GatedNorm, BothOrdersAreWhatTheyAreCalled) {
  const Tensor x = randn({3, 16}, float64), z = randn({3, 16}, float64), w = randn({16}, float64);
  const double few = 64 * unit_roundoff(float64);
  EXPECT_CLOSE(gated_norm(x, z, w, none, {.order = GateOrder::norm_then_gate, .eps = 1e-5}),
               rms_norm(x, w, {.eps = 1e-5}) * silu(z), {.relative = few, .absolute = few});
  EXPECT_CLOSE(gated_norm(x, z, w, none, {.order = GateOrder::gate_then_norm, .eps = 1e-5}),
               rms_norm(x * silu(z), w, {.eps = 1e-5}), {.relative = few, .absolute = few});
}
TEST(Norm, GroupsAreNormsOfTheirOwn) {
  const Tensor x = randn({4, 24});
  EXPECT_SAME_BITS(rms_norm(x, none, {.group = 8}),
                   rms_norm(x.reshape({4, 3, 8})).reshape({4, 24}));
}

TEST(Norm, RowIgnoresItsNeighboursAndTheThreads) {
  const int before = num_threads();
  for (const SimpleMember& m : all_members()) {
    SCOPED_TRACE(to_string(m));
    const Arguments a(m, {67, 99}, float32);
    const auto row = [](const std::optional<Tensor>& t) {
      return t ? std::optional(t->slice(0, 40, 41).clone()) : none;
    };
    set_num_threads(1);
    const Tensor y = a.norm(m.options).y;
    EXPECT_SAME_BITS(
        apply<Norm>(*row(a.x), a.w, a.b, row(a.z), row(a.residual), none, none, none, m.options).y,
        y.slice(0, 40, 41));
    set_num_threads(3);
    EXPECT_SAME_BITS(a.norm(m.options).y, y);
  }
  set_num_threads(before);
}
TEST(Norm, GradientOfARowIgnoresItsNeighbours) {
  // 67 rows: several at a time, and some left over.
  const Tensor w = randn({99}), b = randn({99}), x = randn({67, 99}).requires_grad_(),
               dy = randn({67, 99});
  const Tensor dx = grad({layer_norm(x, w, b)}, {x}, {dy})[0];
  for (int64_t i : {0, 40, 66}) {
    const Tensor row = x.detach().slice(0, i, i + 1).clone().requires_grad_();
    EXPECT_SAME_BITS(grad({layer_norm(row, w, b)}, {row}, {dy.slice(0, i, i + 1)})[0],
                     dx.slice(0, i, i + 1));
  }
}
TEST(Norm, RowsBeyondTheCachesHaveTheBitsOfOthers) {
  const int64_t cols = 1024, rows = detail::last_cache_bytes() / (cols * 4) + 7;
  const Tensor w = randn({cols}), b = randn({cols}), x = randn({rows, cols}).requires_grad_();
  const Tensor y = layer_norm(x, w, b);
  const Tensor dx = grad({y}, {x}, {x.detach()})[0];
  for (int64_t i : {int64_t{0}, rows / 2, rows - 1}) {
    const Tensor row = x.detach().slice(0, i, i + 1).clone().requires_grad_();
    const Tensor same = layer_norm(row, w, b);
    EXPECT_SAME_BITS(same.detach(), y.detach().slice(0, i, i + 1));
    EXPECT_SAME_BITS(grad({same}, {row}, {row.detach()})[0], dx.slice(0, i, i + 1));
  }
}
TEST(Norm, GradientsHaveTheSameBitsOnAnyThreadCount) {
  const int before = num_threads();
  const Tensor x = randn({700, 130}).requires_grad_(), w = randn({130}).requires_grad_(),
               b = randn({130}).requires_grad_(), dy = randn({700, 130});
  std::vector<Tensor> first;
  for (int threads : {1, 2, 5}) {
    set_num_threads(threads);
    const std::vector<Tensor> g = grad({layer_norm(x, w, b)}, {x, w, b}, {dy});
    if (first.empty()) first = g;
    for (size_t i = 0; i < g.size(); ++i) EXPECT_SAME_BITS(g[i], first[i]);
  }
  set_num_threads(before);
}

TEST(Norm, StridedRowsGiveTheBitsOfDenseOnes) {
  const Tensor wide = randn({6, 40}), x = wide.slice(1, 4, 36), w = randn({32});
  EXPECT_SAME_BITS(rms_norm(x, w), rms_norm(x.contiguous(), w));
  const Tensor columns = randn({32, 6}).t();
  EXPECT_SAME_BITS(rms_norm(columns, w), rms_norm(columns.contiguous(), w));
  const Tensor leaf = wide.detach().requires_grad_();
  rms_norm(leaf.slice(1, 4, 36), w).backward(x);
  EXPECT_SAME_BITS(leaf.grad().slice(1, 0, 4), zeros({6, 4}));
}

TEST(Norm, NanAndInfStayInTheirRow) {
  Tensor x = randn({3, 40});
  const Tensor clean = layer_norm(x);
  x.slice(0, 1, 2).slice(1, 7, 8).fill_(kNan);
  Tensor y = layer_norm(x);
  EXPECT_SAME_BITS(y.slice(0, 0, 1), clean.slice(0, 0, 1));
  EXPECT_SAME_BITS(y.slice(0, 2, 3), clean.slice(0, 2, 3));
  EXPECT_CLOSE(y.slice(0, 1, 2), full({1, 40}, kNan), {});
  x.slice(0, 1, 2).slice(1, 7, 8).fill_(kInf);
  y = rms_norm(x);
  EXPECT_TRUE(std::isnan(y.select(0, 1).select(0, 7).item()));
  EXPECT_EQ(y.select(0, 1).select(0, 8).item(), 0);
}
TEST(Norm, ZeroRowStaysFinite) {
  const Tensor x = zeros({2, 8}).requires_grad_();
  for (bool layer : {false, true}) {
    const Tensor y = layer ? layer_norm(x) : rms_norm(x);
    EXPECT_SAME_BITS(y.detach(), zeros({2, 8}));
    const Tensor dx = grad({y}, {x}, {randn({2, 8})})[0];
    for (double v : dx.to_vector<double>()) EXPECT_TRUE(std::isfinite(v));
  }
}
TEST(LayerNorm, OneElementRowIsItsBias) {
  EXPECT_SAME_BITS(layer_norm(randn({3, 1}), ones({1}), full({1}, 2)), full({3, 1}, 2));
}
TEST(Norm, NoRowsGiveZeroWeightGradients) {
  const Tensor w = ones({8}).requires_grad_();
  rms_norm(zeros({0, 8}), w).sum().backward();
  EXPECT_SAME_BITS(w.grad(), zeros({8}));
}
TEST(Norm, OnlyTheNewResidualUsedStillHasAGradient) {
  const Tensor x = randn({2, 4}).requires_grad_(), r = randn({2, 4}).requires_grad_();
  add_rms_norm(x, r).h.backward(ones({2, 4}));
  EXPECT_SAME_BITS(x.grad(), ones({2, 4}));
  EXPECT_SAME_BITS(r.grad(), ones({2, 4}));
}

TEST(Norm, AgreesWithPyTorch) {
  const testing::Golden g = testing::golden("ops/norm/norm");
  const double few = 512 * unit_roundoff(float64);
  for (const char* name : {"layer", "rms", "norm_then_gate", "gate_then_norm"}) {
    SCOPED_TRACE(name);
    const auto at = [&](const char* what) { return g[std::string(name) + "." + what]; };
    const bool gated =
        std::string_view(name).ends_with("gate") || std::string_view(name).starts_with("gate");
    NormOptions o{.eps = 1e-5};
    if (std::string_view(name) == "layer") o.kind = NormKind::layer;
    if (std::string_view(name) == "norm_then_gate") o.gate = GateOrder::norm_then_gate;
    if (std::string_view(name) == "gate_then_norm") o.gate = GateOrder::gate_then_norm;
    const Tensor x = at("x").requires_grad_(), w = at("w").requires_grad_();
    std::vector<Tensor> inputs{x, w};
    std::vector<const char*> names{"dx", "dw"};
    std::optional<Tensor> b, z;
    if (o.kind == NormKind::layer)
      b = at("b").requires_grad_(), inputs.push_back(*b), names.push_back("db");
    if (gated) z = at("z").requires_grad_(), inputs.push_back(*z), names.push_back("dz");
    const Tensor y = fused_norm(x, {.w = w, .b = b, .z = z}, o).y;
    EXPECT_CLOSE(y.detach(), at("y"), {.relative = few, .absolute = few});
    const auto grads = grad({y}, inputs, {at("dy")});
    for (size_t i = 0; i < grads.size(); ++i)
      EXPECT_CLOSE(grads[i], at(names[i]), {.relative = few, .absolute = few});
  }
}

TEST(Norm, MistakesAreNamed) {
  EXPECT_THROW_MSG(rms_norm(ones({2, 8}), ones({4})), ShapeError,
                   "norm: w must be (8,), the last dimension of x (2, 8), but is (4,)");
  EXPECT_THROW_MSG(rms_norm(ones({2, 8}, int64)), DTypeError,
                   "norm: x must be floating, but is int64; convert it with .to(float32)");
  EXPECT_THROW_MSG(rms_norm(ones({2, 8}), none, {.group = 3}), ValueError,
                   "norm: group must divide the last dimension of x (2, 8), but is 3");
  EXPECT_THROW_MSG(rms_norm(ones({2, 0})), ShapeError,
                   "norm: x needs a last dimension of 1 or more, but is (2, 0)");
  EXPECT_THROW_MSG(gated_norm(ones({2, 8}), ones({2, 4})), ShapeError,
                   "norm: z must be like x, (2, 8) of float32, but is (2, 4) of float32");
  EXPECT_THROW_MSG(fused_norm(ones({2, 8}), {.z = ones({2, 8})}), ValueError,
                   "norm: a gate z needs an order, and an order a gate");
}

}  // namespace
}  // namespace norma
