// A whole model and whole trajectories beside PyTorch's, in float64.
#include "testing/golden.h"

#include "norma/core/autograd.h"
#include "norma/nn/optimizer.h"
#include "norma/nn/transformer.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

TransformerOptions small() {
  return {.vocab_size = 7, .context = 6, .n_layers = 2, .n_heads = 3, .d_model = 12, .d_ff = 16};
}

/// Logits, loss and the gradient of every parameter are PyTorch's.
void expect_like_pytorch(const std::string& name, const TransformerOptions& options) {
  const testing::Golden g = testing::golden("nn/transformer");
  const auto at = [&](const std::string& what) { return g[name + "." + what]; };
  Transformer model(options);
  to(model, float64);
  std::vector<std::pair<std::string, Tensor>> weights;
  for (const NamedTensor& p : named_parameters(model))
    weights.emplace_back(p.name, at("model." + p.name));
  load_state_dict(model, weights);
  // Numbers of order 1 pass through two layers of sums of at most 32 products: some 200 roundings
  // one after another, by which neither side is exact. A wrong formula is off by far more.
  const double rounding = 256 * unit_roundoff(float64);
  const Tensor logits = model(at("tokens"));
  EXPECT_CLOSE(logits.detach(), at("logits"), {.relative = rounding, .absolute = rounding});
  const Tensor loss = cross_entropy(logits, at("targets"), {.ignore_index = -1});
  EXPECT_CLOSE(loss.detach(), at("loss"), {.relative = rounding});
  loss.backward();
  for (const NamedTensor& p : named_parameters(model)) {
    SCOPED_TRACE(p.name);
    EXPECT_CLOSE(p.tensor.grad(), at("grad." + p.name),
                 {.relative = rounding, .absolute = rounding});
  }
}

TEST(GoldenTransformer, LayerNormGeluLearnedPositionsBiasesTied) {
  TransformerOptions o = small();
  o.norm = "layer", o.bias = true;
  expect_like_pytorch("layer_gelu", o);
}
TEST(GoldenTransformer, RmsNormSwigluRotaryGroupedQueriesQkNormUntied) {
  TransformerOptions o = small();
  o.norm = "rms", o.mlp = MlpKind::swiglu, o.positions = Positions::rotary;
  o.n_kv_heads = 1, o.qk_norm = true, o.tie = false;
  expect_like_pytorch("rms_swiglu", o);
}

/// Twelve steps with given gradients and learning rates.
template <class O, class Options>
void expect_trajectory(const std::string& name, double weight_decay, const Options& options) {
  SCOPED_TRACE(name);
  const testing::Golden g = testing::golden("nn/optimizer");
  const Parameter p(g["start"].clone());
  O optimizer({{{{"p", p}}, weight_decay}}, options);
  const Tensor grads = g["grads"], expected = g[name];
  const auto lr = g["lr"].to_vector<double>();
  for (int64_t step = 0; step < grads.size(0); ++step) {
    SCOPED_TRACE(step);
    p.set_grad(grads.select(0, step).clone());
    optimizer.step(lr[static_cast<size_t>(step)]);
    // A step rounds the parameter (of order 1, or of 1e3 where gradients are 1e4) a few times.
    EXPECT_CLOSE(
        p.detach(), expected.select(0, step),
        {.relative = 64 * unit_roundoff(float64), .absolute = 64 * unit_roundoff(float64)});
  }
}

TEST(GoldenOptimizer, AdamwWalksAsPytorchs) {
  expect_trajectory<AdamW>("adamw", 0.1, AdamwOptions{.beta1 = 0.9, .beta2 = 0.99});
  expect_trajectory<AdamW>("adamw_large_eps", 0,
                           AdamwOptions{.beta1 = 0.8, .beta2 = 0.999, .eps = 1e-3});
}
TEST(GoldenOptimizer, SgdWalksAsPytorchsWithDecayDecoupled) {
  expect_trajectory<Sgd>("sgd", 0.1, SgdOptions{});
  expect_trajectory<Sgd>("momentum", 0, SgdOptions{.momentum = 0.9});
  expect_trajectory<Sgd>("nesterov", 0.1, SgdOptions{.momentum = 0.9, .nesterov = true});
}

}  // namespace
}  // namespace norma::nn
