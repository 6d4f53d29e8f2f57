#include "norma/ops/matmul/small_plan.h"

#include <gtest/gtest.h>

#include <vector>

namespace norma {
namespace {

struct Company {
  std::vector<SmallSize> products;
  const char* why;
};
const Company kCompanies[] = {
    {{{768, 384, 128}}, "queries, keys and values"},
    {{{768, 128, 512}}, "the way back from a hidden layer"},
    {{{128, 512, 768}, {768, 512, 128}}, "its gradients"},
    {{{512, 128, 768}, {768, 128, 512}}, "the gradients of the way there"},
    {{{128, 128, 768}, {768, 128, 128}}, "few elements, long sums"},
    {{{65, 128, 768}, {768, 128, 65}}, "odd sizes"},
    {{{4096, 128, 128}}, "more than a wave"},
    {{{1, 1, 1}, {1, 1, 1}}, "one"},
};

TEST(SmallPlan, BlocksHaveEveryTile) {
  for (const auto& [products, why] : kCompanies) {
    SCOPED_TRACE(why);
    const auto shares = plan_small(products);
    for (size_t i = 0; i < products.size(); ++i) {
      const SmallShare& share = shares[i];
      EXPECT_EQ(kSmallWarps % share.tiles(), 0);
      EXPECT_GE(share.blocks(products[i]) * share.tiles() * kSmallTile * kSmallTile,
                products[i].rows * products[i].cols);
      EXPECT_GE(share.col_blocks(products[i]) * share.col_tiles * kSmallTile, products[i].cols);
      EXPECT_EQ(share.blocks(products[i]) % share.col_blocks(products[i]), 0);
    }
  }
}

TEST(SmallPlan, AToyLayersWeightsLeaveRoomForTheOtherProducts) {
  const std::vector<SmallSize> mlp{{128, 512, 768}, {512, 128, 768}}, heads{{384, 128, 768}},
      out{{128, 128, 768}};
  for (const auto& products : {mlp, heads, out}) {
    const auto shares = plan_small(products, kSmallBlocksAside);
    int64_t blocks = 0;
    for (size_t i = 0; i < products.size(); ++i) blocks += shares[i].blocks(products[i]);
    EXPECT_LE(blocks, kSmallBlocksAside);
  }
}

}  // namespace
}  // namespace norma
