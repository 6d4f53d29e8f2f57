#include "norma/nn/transformer.h"

#include "nn/tiny_model.h"
#include "norma/core/autograd.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/embedding/embedding.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

std::vector<std::string> names_of(const std::vector<NamedTensor>& tensors) {
  std::vector<std::string> names;
  for (const NamedTensor& t : tensors) names.push_back(t.name);
  return names;
}

/// Other tests may have added names of their own.
std::string listed(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

TEST(Transformer, NamesAreThoseOfGpt2) {
  Transformer model({.vocab_size = 7, .context = 5, .n_layers = 1, .n_heads = 2, .d_model = 8});
  EXPECT_THAT(
      names_of(named_parameters(model)),
      ::testing::ElementsAre("wte.weight", "wpe.weight", "h.0.ln_1.weight", "h.0.ln_2.weight",
                             "h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight",
                             "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight", "ln_f.weight"));
}

TEST(Transformer, GradientOfTheWholeModelIsTheDerivative) {
  const Tensor tokens = tensor({1, 2, 3, 4, 0, 6, 5, 1, 2, 3}, int32).reshape({2, 5});
  const Tensor targets = tensor({2, 3, 4, 5, 1, -1, 1, 2, 3, -1}, int32).reshape({2, 5});
  for (const char* placement :
       {"pre", "post", "sandwich", "parallel", "residual-dual", "pre:1,sandwich:1"})
    for (bool modern : {false, true}) {
      SCOPED_TRACE(placement);
      TransformerOptions o = tiny(placement);
      if (modern) {
        o.n_kv_heads = 1, o.mlp = MlpKind::swiglu, o.positions = Positions::rotary;
        o.qk_norm = true, o.tie = false, o.norm = "layer", o.bias = true;
      }
      Transformer model(o);
      to(model, float64);
      const auto named = named_parameters(model);
      const TensorFunction loss_of = [&](const std::vector<Tensor>& values) {
        // The model reads its own handles: give them these values for the call.
        for (size_t i = 0; i < named.size(); ++i) {
          named[i].tensor.impl().storage = values[i].impl().storage;
          named[i].tensor.impl().offset = values[i].impl().offset;
          // One leaf for both handles: it holds what the sweep brings.
          named[i].tensor.impl().node = norma::detail::edge_of(values[i]).node;
          named[i].tensor.impl().requires_grad = values[i].impl().requires_grad;
        }
        return std::vector{cross_entropy(model(tokens), targets)};
      };
      std::vector<Tensor> start;
      // Matrices of size 0.4: at 0.02 a norm's third derivative drowns the difference.
      for (const auto& p : named)
        start.push_back(p.tensor.detach() * (p.tensor.dim() == 2 ? 20 : 1));
      EXPECT_OK(gradcheck(loss_of, start, {.step = 2e-6}));
    }
}

TEST(Transformer, LogitsOfSomePlacesAreThoseOfAll) {
  const Tensor tokens = tensor({1, 2, 3, 4, 0, 6, 5, 1, 2, 3}, int32).reshape({2, 5});
  const Tensor places = tensor({4, 5, 9}, int32), targets = tensor({1, 0, 3}, int32);
  Tensor among_all = full({10}, -1, int32);
  for (int i = 0; i < 3; ++i) {
    const int64_t at = places.slice(0, i, i + 1).to_vector<int64_t>()[0];
    among_all.slice(0, at, at + 1).copy_(targets.slice(0, i, i + 1));
  }
  for (const char* placement : {"pre", "post", "residual-dual"}) {
    SCOPED_TRACE(placement);
    Transformer model(tiny(placement));
    to(model, float64);
    const Tensor all = model(tokens), some = model(tokens, places);
    const auto named = named_parameters(model);
    std::vector<Tensor> leaves;
    for (const NamedTensor& p : named) leaves.push_back(p.tensor);
    // The same sums, of which zeros are left out: products may take them in another order.
    const double few = 64 * unit_roundoff(float64);
    EXPECT_CLOSE(some, embedding(places, all.reshape({10, 7})), {.relative = few, .absolute = few});
    const auto expected = grad({cross_entropy(all.reshape({10, 7}), among_all)}, leaves);
    const auto got = grad({cross_entropy(some, targets)}, leaves);
    for (size_t i = 0; i < leaves.size(); ++i) {
      SCOPED_TRACE(named[i].name);
      EXPECT_CLOSE(got[i], expected[i], {.relative = few, .absolute = few});
    }
  }
}

TEST(Transformer, LaterTokensDoNotChangeEarlierLogits) {
  Transformer model(tiny());
  eval(model);
  const Tensor a = model(tensor({1, 2, 3, 4, 5}, int32).reshape({1, 5}));
  const Tensor b = model(tensor({1, 2, 3, 6, 6}, int32).reshape({1, 5}));
  EXPECT_SAME_BITS(a.detach().slice(1, 0, 3), b.detach().slice(1, 0, 3));
}

TEST(Transformer, TiedWeightIsOneParameterUnderItsFirstName) {
  Transformer model(tiny());
  EXPECT_TRUE(model.lm_head.weight.is_same(model.wte.weight));
  to(model, float64);
  EXPECT_TRUE(model.lm_head.weight.is_same(model.wte.weight));
  EXPECT_EQ(model.wte.weight.dtype(), float64);
}

TEST(Transformer, MistakesAreNamed) {
  TransformerOptions o = tiny("pre:1,postt:1");
  EXPECT_THROW_MSG(Transformer{o}, ValueError,
                   "placement: must be one of " + listed(placement_names()) + ", but is postt");
  o.placement = "pre:3";
  EXPECT_THROW_MSG(Transformer{o}, ValueError,
                   "placement: the runs of pre:3 must add up to n_layers = 2, but do not");
  o.placement = "pre:1,residual-dual:1";
  EXPECT_THROW_MSG(Transformer{o}, ValueError,
                   "placement: all layers must carry the same streams, but those of "
                   "pre:1,residual-dual:1 do not");
  o = tiny();
  o.norm = "batch";
  EXPECT_THROW_MSG(Transformer{o}, ValueError,
                   "norm: must be one of " + listed(norm_kinds()) + ", but is batch");
  Transformer model(tiny());
  EXPECT_THROW_MSG(
      model(zeros({1, 6}, int32)), ShapeError,
      "language_model: tokens must be (batch, length) with a length up to context = 5, but "
      "are (1, 6)");
}

}  // namespace
}  // namespace norma::nn
