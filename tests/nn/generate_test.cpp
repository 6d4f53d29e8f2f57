#include "norma/nn/generate.h"

#include "nn/tiny_model.h"
#include "norma/core/random.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

TEST(Generate, TemperatureZeroIsTheLikeliestAndTopOneToo) {
  manual_seed(2);
  Transformer model(tiny());
  const auto greedy = generate(model, {1, 2}, {.length = 6, .temperature = 0});
  EXPECT_EQ(greedy, generate(model, {1, 2}, {.length = 6, .top_k = 1, .seed = 9}));
  EXPECT_EQ(generate(model, {1}, {.length = 9, .seed = 3}),
            generate(model, {1}, {.length = 9, .seed = 3}));
  EXPECT_THROW_MSG(generate(model, {}), ValueError,
                   "generate: the prompt needs a token or more, but is empty");
}

TEST(Generate, LeavesTheModelInTheModeItFound) {
  Transformer model(tiny());
  eval(model);
  generate(model, {1}, {.length = 2});
  EXPECT_FALSE(model.dropout.training);
  EXPECT_FALSE(model.h[0].attn->dropout.training);
  train(model);
  const auto stop = [](int32_t) { throw ValueError("enough"); };
  EXPECT_THROW(generate(model, {1}, {.length = 2}, stop), ValueError);
  EXPECT_TRUE(model.dropout.training);
  EXPECT_TRUE(model.h[0].attn->dropout.training);
}

}  // namespace
}  // namespace norma::nn
