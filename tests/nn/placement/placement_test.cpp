#include "norma/nn/placement/placement.h"

#include "nn/tiny_model.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/rms_norm.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

/// Each placement's formula, written out for one sub-layer.
TEST(Placement, EachIsItsFormula) {
  const Tensor x = randn({2, 3, 8});
  const auto n = [](const Tensor& t) { return rms_norm(t); };
  const Sublayer f = [](const Tensor& t) { return silu(t) * 3; };
  const Sublayer both[] = {f, f};
  const auto run = [&](const char* name) {
    const Placement& p = placement(name);
    Parts layer, stack;
    const MakeNorm make = [] { return Norm({.kind = "rms", .dim = 8}); };
    p.prepare(layer, {}, make);
    if (p.prepare_stack) p.prepare_stack(stack, make);
    Residual r = p.begin ? p.begin(x, stack) : Residual{{x}};
    if (p.block)
      p.block(r, both, layer, {});
    else
      for (int i = 0; i < 2; ++i) p.apply(r, f, i, layer, {});
    return (p.final ? p.final(r, stack) : r.main.read()).detach();
  };
  const testing::Closeness few{.relative = 1e-5, .absolute = 1e-5};
  const Tensor pre = x + f(n(x)), pre2 = pre + f(n(pre));
  EXPECT_TRUE(testing::close(run("pre"), n(pre2), few));
  const Tensor post = n(x + f(x));
  EXPECT_TRUE(testing::close(run("post"), n(post + f(post)), few));
  const Tensor sandwich = x + n(f(n(x)));
  EXPECT_TRUE(testing::close(run("sandwich"), n(sandwich + n(f(n(sandwich)))), few));
  EXPECT_TRUE(testing::close(run("parallel"), n(x + f(n(x)) + f(n(x))), few));
  const Tensor first = f(x), second = f(post);
  EXPECT_TRUE(testing::close(run("residual-dual"), n(post + second) + n(x + first + second), few));
}

TEST(Placement, AUsersOwnWorksByName) {
  register_placement("none-at-all",
                     {.prepare = [](Parts&, const LayerInfo&, const MakeNorm&) {},
                      .apply = [](Residual& r, const Sublayer& f, int, const Parts&,
                                  const LayerInfo&) { r.main.add(f(r.main.read())); }});
  Transformer model(tiny("none-at-all"));
  EXPECT_EQ(model(zeros({1, 2}, int32)).shape(), Shape({1, 2, 7}));
  EXPECT_THROW_MSG(register_placement("pre", {}), ValueError,
                   "register_placement: the name must be new, but pre is taken");
}

}  // namespace
}  // namespace norma::nn
