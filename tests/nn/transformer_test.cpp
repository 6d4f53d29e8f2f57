#include "norma/nn/transformer.h"

#include <cmath>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/nn/generate.h"
#include "norma/nn/optimizer.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

TransformerOptions tiny(const std::string& placement = "pre") {
  return {.vocab_size = 7,
          .context = 5,
          .n_layers = 2,
          .n_heads = 2,
          .d_model = 8,
          .placement = placement};
}
std::vector<std::string> names_of(const std::vector<NamedTensor>& tensors) {
  std::vector<std::string> names;
  for (const NamedTensor& t : tensors) names.push_back(t.name);
  return names;
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
                   "placement: must be one of parallel, post, pre, residual-dual, sandwich, but is "
                   "postt");
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
                   "norm: must be one of layer, none, rms, but is batch");
  Transformer model(tiny());
  EXPECT_THROW_MSG(
      model(zeros({1, 6}, int32)), ShapeError,
      "language_model: tokens must be (batch, length) with a length up to context = 5, but "
      "are (1, 6)");
}

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

class Halving final : public NormModule {
 public:
  Tensor forward(const Tensor& x) const override { return x * 0.5; }
};
TEST(Norm, AUsersOwnWorksByName) {
  register_norm("halving", [](const NormSpec&) { return std::make_unique<Halving>(); });
  const Norm norm({.kind = "halving", .dim = 2});
  Stream stream{ones({2})};
  stream.add(full({2}, 3));
  EXPECT_SAME_BITS(norm(stream), full({2}, 2));
  EXPECT_SAME_BITS(stream.value, full({2}, 4));
}

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

TEST(Optimizer, ParameterThatIsNotDenseIsNamed) {
  // Its gradient is dense: element by element the two are in different orders.
  const Tensor p = arange(6, float32).reshape({2, 3}).t().requires_grad_();
  EXPECT_THROW_MSG(Sgd({{{{"p", p}}, 0}}), ShapeError,
                   "optimizer: p must be dense, but has shape (3, 2) and strides (1, 3); make it a "
                   "parameter of its values' .contiguous()");
}

TEST(AdamW, FollowsItsFormula) {
  const Tensor p = tensor({1, -2}, float64).requires_grad_();
  AdamW adam({{{{"p", p}}, 0.1}}, {.beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8});
  double m[2] = {}, v[2] = {}, x[2] = {1, -2};
  for (int t = 1; t <= 3; ++t) {
    adam.zero_grad();
    (p * p * p).sum().backward();
    adam.step(0.05);
    for (int i = 0; i < 2; ++i) {
      const double g = 3 * x[i] * x[i];
      m[i] = 0.9 * m[i] + 0.1 * g, v[i] = 0.99 * v[i] + 0.01 * g * g;
      const double mh = m[i] / (1 - std::pow(0.9, t)), vh = v[i] / (1 - std::pow(0.99, t));
      x[i] = x[i] * (1 - 0.05 * 0.1) - 0.05 * mh / (std::sqrt(vh) + 1e-8);
    }
    EXPECT_CLOSE(p.detach(), tensor({x[0], x[1]}, float64), {.relative = 1e-13});
  }
}

TEST(Sgd, MomentumAndNesterovFollowTheirFormula) {
  for (bool nesterov : {false, true}) {
    const Tensor p = tensor({2}, float64).requires_grad_();
    Sgd sgd({{{{"p", p}}, 0}}, {.momentum = 0.5, .nesterov = nesterov});
    double x = 2, b = 0;
    for (int t = 0; t < 3; ++t) {
      sgd.zero_grad();
      (p * p).sum().backward();
      sgd.step(0.1);
      const double g = 2 * x;
      b = 0.5 * b + g;
      x -= 0.1 * (nesterov ? g + 0.5 * b : b);
      EXPECT_CLOSE(p.detach(), tensor({x}, float64), {.relative = 1e-14});
    }
  }
}

TEST(ClipGradNorm, ScalesToTheLimitAndReportsTheNormBefore) {
  const Tensor a = zeros({2}).requires_grad_(), b = zeros({1}).requires_grad_();
  a.set_grad(tensor({3, 0}));
  b.set_grad(tensor({4}));
  EXPECT_EQ(clip_grad_norm({a, b}, 10).item(), 5);
  EXPECT_SAME_BITS(a.grad(), tensor({3, 0}));
  EXPECT_EQ(clip_grad_norm({a, b}, 1).item(), 5);
  EXPECT_CLOSE(a.grad(), tensor({0.6, 0}), {.relative = 1e-6});
  EXPECT_CLOSE(b.grad(), tensor({0.8}), {.relative = 1e-6});
}

TEST(Schedule, RisesThenFallsToItsEnd) {
  const Schedule s{.lr = 1, .min_lr = 0.1, .warmup = 9, .steps = 109};
  EXPECT_DOUBLE_EQ(s.at(0), 0.1);
  EXPECT_DOUBLE_EQ(s.at(8), 0.9);
  EXPECT_DOUBLE_EQ(s.at(9), 1);
  EXPECT_DOUBLE_EQ(s.at(59), 0.55);
  EXPECT_NEAR(s.at(108), 0.1, 1e-3);
  EXPECT_DOUBLE_EQ((Schedule{.kind = ScheduleKind::linear, .lr = 1, .min_lr = 0, .steps = 4}.at(3)),
                   0.25);
}

}  // namespace
}  // namespace norma::nn
