#include "norma/core/op.h"

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/derivative/gradcheck.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

struct Cube {
  static Tensor define(const Tensor& x) { return x * x * x; }
};
/// Fast forward, derivative through the definition.
struct FastCube {
  static constexpr std::string_view name = "fast_cube";
  static Tensor define(const Tensor& x) { return x * x * x; }
  static Tensor forward(Context&, const Tensor& x) { return x * x * x; }
};
struct Scaled {
  struct Options {
    double factor = 2;
    bool operator==(const Options&) const = default;
  };
  static Tensor forward(Context&, const Tensor& x, const Options& o) { return x * o.factor; }
  static Tensor backward(Context& ctx, const Tensor& dy) {
    const Options& o = ctx.options();
    return dy * o.factor;
  }
};

TEST(Op, DefinitionAloneIsEnough) {
  EXPECT_OK(gradcheck<Cube>(randn({3}, float64)));
  EXPECT_OK(gradgradcheck<Cube>(randn({3}, float64)));
}
TEST(Op, ForwardWithoutBackwardDifferentiatesTheDefinition) {
  EXPECT_OK(gradcheck<FastCube>(randn({3}, float64)));
  EXPECT_OK(gradgradcheck<FastCube>(randn({3}, float64)));
  const Tensor x = tensor({2}, float64).requires_grad_();
  Tensor y = apply<FastCube>(x).sum();
  for (double expected : {12.0, 12.0, 6.0}) {
    y = grad({y}, {x}, {}, {.create_graph = true})[0].sum();
    EXPECT_DOUBLE_EQ(y.item(), expected);
  }
}
TEST(Op, OptionsReachForwardAndBackward) {
  const Tensor x = ones({2}).requires_grad_();
  apply<Scaled>(x, {.factor = 5}).sum().backward();
  EXPECT_SAME_BITS(x.grad(), full({2}, 5));
  EXPECT_SAME_BITS(apply<Scaled>(x).detach(), full({2}, 2));
}

struct WithStatistics {
  struct Result {
    Tensor y;
    Constant mean;
  };
  static Result define(const Tensor& x) { return {x * x, x.mean()}; }
};
TEST(Op, ConstantResultsCarryNoGradient) {
  const Tensor x = ones({2}).requires_grad_();
  const auto r = apply<WithStatistics>(x);
  EXPECT_TRUE(r.y.requires_grad());
  EXPECT_FALSE(r.mean.value.requires_grad());
}

struct Mixed {
  static Tensor define(const Tensor& x, const std::optional<Tensor>& bias,
                       const std::vector<Tensor>& more) {
    Tensor y = bias ? x + *bias : x;
    for (const Tensor& t : more) y = y * t;
    return y;
  }
};
TEST(Op, OptionalAndVectorArguments) {
  const Tensor x = randn({3}, float64), b = randn({3}, float64);
  EXPECT_OK(gradcheck<Mixed>(x, std::optional<Tensor>(b), std::vector<Tensor>{x, b}));
  EXPECT_OK(gradcheck<Mixed>(x, none, std::vector<Tensor>{}));
  EXPECT_SAME_BITS(apply<Mixed>(x, none, std::vector<Tensor>{b}), x * b);
}

struct SavesACopy {
  static constexpr std::string_view name = "saves_a_copy";
  static Tensor forward(Context& ctx, const Tensor& x) {
    ctx.save(x.clone());
    return x * 2;
  }
  static Tensor backward(Context&, const Tensor& dy) { return dy * 2; }
};
struct SavesHistoryAsConstant {
  static constexpr std::string_view name = "saves_history";
  static Tensor forward(Context& ctx, const Tensor& x) {
    ctx.save_constant(x);
    return x * 2;
  }
  static Tensor backward(Context&, const Tensor& dy) { return dy * 2; }
};
struct ReadsAmiss {
  static constexpr std::string_view name = "reads_amiss";
  static Tensor forward(Context& ctx, const Tensor& x) {
    ctx.save(x);
    return x * 2;
  }
  static Tensor backward(Context& ctx, const Tensor& dy) { return dy * ctx.saved(1); }
};
TEST(Op, MisuseOfTheContextIsNamed) {
  const Tensor x = ones({2}).requires_grad_();
  EXPECT_THROW_MSG(apply<SavesACopy>(x), GraphError,
                   "saves_a_copy: save() takes inputs and outputs, but a tensor of shape (2,) is "
                   "neither; a value that is not differentiated goes through save_constant()");
  EXPECT_THROW_MSG(apply<SavesHistoryAsConstant>(x), GraphError,
                   "saves_history: save_constant takes tensors without history; save() it instead");
  EXPECT_THROW_MSG(apply<ReadsAmiss>(x).sum().backward(), GraphError,
                   "reads_amiss: saved(1) must be below 1, the number of tensors saved");
}

struct Float64Only {
  static constexpr std::string_view name = "float64_only";
  static Tensor define(const Tensor& x) { return x + 1; }
  static Tensor forward(Context&, const Tensor& x) { return x + 1; }
  static bool runs_on(Device, DType dtype) { return dtype == float64; }
};
TEST(Op, SlowPathIsSaidOnce) {
  ::testing::internal::CaptureStderr();
  apply<Float64Only>(ones({2}));
  apply<Float64Only>(ones({2}));
  apply<Float64Only>(ones({2}, float64));
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "norma: float64_only has no kernel for float32 on " + to_string(default_device()) +
                "; its definition runs instead\n");
}

}  // namespace
}  // namespace norma
