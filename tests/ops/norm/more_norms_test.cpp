#include "norma/ops/norm/more_norms.h"

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma {
namespace {

TEST(MoreNorms, GradientsFollowFromTheDefinitionAlone) {
  const Tensor x = randn({3, 4, 2}, float64), w = randn({4}, float64), b = randn({4}, float64);
  EXPECT_OK(gradcheck<BatchNorm>(x, w, b, BatchNormOptions{}));
  EXPECT_OK(gradgradcheck<BatchNorm>(x, w, b, BatchNormOptions{.eps = 0.1}));
  EXPECT_OK(gradcheck<GroupNorm>(x, w, b, GroupNormOptions{.groups = 2}));
  EXPECT_OK(gradcheck<InstanceNorm>(x, none, none, BatchNormOptions{.eps = 0.1}));
  EXPECT_OK(gradcheck<WeightNorm>(randn({3, 4}, float64), randn({3}, float64)));
}

TEST(GroupNorm, OneGroupOfAVectorIsLayerNorm) {
  const Tensor x = randn({5, 8}, float64), w = randn({8}, float64), b = randn({8}, float64);
  const double few = 64 * unit_roundoff(float64);
  EXPECT_CLOSE(group_norm(x, w, b), layer_norm(x, w, b), {.relative = few, .absolute = few});
}

TEST(MoreNorms, AgreeWithPyTorch) {
  const testing::Golden g = testing::golden("ops/norm/more_norms");
  const double few = 256 * unit_roundoff(float64);
  const auto expect = [&](const Tensor& y, const char* key) {
    EXPECT_CLOSE(y, g[key], {.relative = few, .absolute = few});
  };
  expect(batch_norm(g["x"], g["w"], g["b"]), "batch");
  expect(group_norm(g["x"], g["w"], g["b"], {.groups = 2}), "group");
  expect(instance_norm(g["x"], g["w"], g["b"]), "instance");
  expect(weight_norm(g["v"], g["g"]), "weight");
}

TEST(MoreNorms, MistakesAreNamed) {
  EXPECT_THROW_MSG(batch_norm(ones({2, 4}), ones({3})), ShapeError,
                   "batch_norm: w and b must be (4,), the channels of x (2, 4), but one is (3,)");
  EXPECT_THROW_MSG(group_norm(ones({2, 4}), none, none, {.groups = 3}), ValueError,
                   "group_norm: groups must divide the channels of x (2, 4), but are 3");
  EXPECT_THROW_MSG(
      weight_norm(ones({2, 4}), ones({4})), ShapeError,
      "weight_norm: v must be (rows, cols) and g (rows,), but they are (2, 4) and (4,)");
}

}  // namespace
}  // namespace norma
