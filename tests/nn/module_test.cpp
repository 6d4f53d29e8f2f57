#include "norma/nn/module.h"

#include "nn/tiny_model.h"
#include "norma/core/random.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

TEST(Module, StateDictGoesRoundAndMistakesChangeNothing) {
  manual_seed(1);
  Transformer a(tiny()), b(tiny());
  std::vector<std::pair<std::string, Tensor>> state;
  for (const NamedTensor& t : state_dict(a)) state.emplace_back(t.name, t.tensor.detach().clone());
  load_state_dict(b, state);
  const Tensor tokens = tensor({1, 2, 3}, int32).reshape({1, 3});
  EXPECT_SAME_BITS(a(tokens).detach(), b(tokens).detach());
  const Tensor before = b.wte.weight.detach().clone();
  state[0].second = ones({7, 8});
  state[1].second = ones({4, 8});
  EXPECT_THROW_MSG(load_state_dict(b, state, "x.safetensors"), IOError,
                   "x.safetensors: wpe.weight is (4, 8), but the model has (5, 8)");
  state.pop_back();
  state[1].second = ones({5, 8});
  EXPECT_THROW_MSG(load_state_dict(b, state, "x.safetensors"), IOError,
                   "x.safetensors: ln_f.weight of shape (8,) must be there, but is not");
  EXPECT_SAME_BITS(b.wte.weight.detach(), before);
}

TEST(Module, FreezingByPattern) {
  Transformer model(tiny());
  const auto named = named_parameters(model);
  EXPECT_EQ(freeze(named, "*ln_*"), 5);
  EXPECT_FALSE(model.h[0].norms["ln_1"].spec.kind.empty());
  EXPECT_TRUE(model.wte.weight.requires_grad());
  EXPECT_EQ(freeze(named, "*ln_*", true), static_cast<int64_t>(named.size()) - 5);
  EXPECT_FALSE(model.wte.weight.requires_grad());
  EXPECT_THROW_MSG(freeze(named, "*batch*"), ValueError,
                   "freeze: the pattern must fit a parameter's name, but *batch* fits none");
  EXPECT_TRUE(matches("h.0.ln_1.weight", "h.*.ln_*.weight"));
  EXPECT_FALSE(matches("h.0.ln_1.weight", "h.*.ln_1"));
}

TEST(Module, TableCountsEachParameterOnce) {
  Transformer model(tiny());
  const std::string table = parameter_table(named_parameters(model));
  EXPECT_THAT(table, ::testing::HasSubstr("wte.weight"));
  EXPECT_THAT(table, ::testing::HasSubstr(std::to_string(count_parameters(model)) + " parameters"));
  EXPECT_EQ(count_parameters(model), 7 * 8 + 5 * 8 + 2 * (8 + 8 + 24 * 8 + 64 + 2 * 8 * 32) + 8);
}

}  // namespace
}  // namespace norma::nn
