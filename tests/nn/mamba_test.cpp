#include "norma/nn/mamba.h"

#include <cmath>

#include "norma/core/autograd.h"
#include "norma/core/op.h"
#include "norma/core/random.h"
#include "norma/nn/language_model.h"
#include "norma/nn/optimizer.h"
#include "norma/ops/conv1d/conv1d.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma::nn {
namespace {

LanguageModelOptions tiny(const std::string& layers, int64_t n_layers = 2) {
  return {.vocab_size = 7,
          .context = 24,
          .n_layers = n_layers,
          .n_heads = 2,
          .d_model = 8,
          .layers = layers,
          .mamba = {.d_state = 4, .head_dim = 4, .n_groups = 2}};
}

std::vector<std::string> names_of(LanguageModel& model) {
  std::vector<std::string> names;
  for (const NamedTensor& t : named_parameters(model)) names.push_back(t.name);
  return names;
}

TEST(Mamba, ParametersHaveTheReferencesNamesAndShapes) {
  LanguageModel model(tiny("mamba1:1,mamba2:1"));
  EXPECT_THAT(names_of(model),
              ::testing::ElementsAre(
                  "wte.weight", "h.0.ln_1.weight", "h.0.mixer.A_log", "h.0.mixer.D",
                  "h.0.mixer.in_proj.weight", "h.0.mixer.conv1d.weight", "h.0.mixer.conv1d.bias",
                  "h.0.mixer.x_proj.weight", "h.0.mixer.dt_proj.weight", "h.0.mixer.dt_proj.bias",
                  "h.0.mixer.out_proj.weight", "h.1.ln_1.weight", "h.1.mixer.dt_bias",
                  "h.1.mixer.A_log", "h.1.mixer.D", "h.1.mixer.in_proj.weight",
                  "h.1.mixer.conv1d.weight", "h.1.mixer.conv1d.bias", "h.1.mixer.norm.weight",
                  "h.1.mixer.out_proj.weight", "ln_f.weight"));
  EXPECT_EQ(model.h[0].mamba1->conv1d.weight.shape(), (Shape{16, 1, 4}));
  EXPECT_EQ(model.h[0].mamba1->a_log.shape(), (Shape{16, 4}));
  EXPECT_EQ(model.h[1].mamba2->in_proj.weight.shape(), (Shape{2 * 16 + 2 * 2 * 4 + 4, 8}));
}

TEST(Mamba, StartsAsThePapersHaveIt) {
  manual_seed(3);
  LanguageModelOptions o = tiny("mamba1:1,mamba2:1");
  o.mamba.d_state = 16;
  LanguageModel model(o);
  const Mamba1& first = *model.h[0].mamba1;
  const auto rates = first.a_log.to_vector<double>();
  for (size_t n = 0; n < 16; ++n) EXPECT_NEAR(rates[n], std::log(static_cast<double>(n + 1)), 1e-6);
  const Mamba2& second = *model.h[1].mamba2;
  for (double v : second.a_log.to_vector<double>()) {
    EXPECT_GE(v, 0);
    EXPECT_LE(v, std::log(16.0) + 1e-6);
  }
  for (const Parameter* bias : {&first.dt_proj->bias, &second.dt_bias})
    for (double v : bias->to_vector<double>()) {
      const double dt = std::log1p(std::exp(v));
      EXPECT_GE(dt, 0.999e-3);
      EXPECT_LE(dt, 0.1001);
    }
}

TEST(Mamba, DynamicsDoNotDecay) {
  LanguageModel model(tiny("mamba1:1,mamba2:1"));
  const auto groups = decay_groups(named_parameters(model), 0.1, true);
  for (const NamedTensor& p : groups[1].parameters)
    EXPECT_TRUE(matches(p.name, "*A_log") || matches(p.name, "*.D") || matches(p.name, "*dt_bias"))
        << p.name;
  EXPECT_EQ(groups[1].parameters.size(), 5u);
}

/// The whole model in float64 against differences; the parameters are moved away from their
/// starts, where gradients of some vanish.
TEST(Mamba, GradientOfTheWholeModelIsTheDerivative) {
  const Tensor tokens = tensor({1, 2, 3, 4, 0, 6, 5, 1, 2, 3}, int32).reshape({2, 5});
  const Tensor targets = tensor({2, 3, 4, 5, 1, -1, 1, 2, 3, -1}, int32).reshape({2, 5});
  for (const char* layers : {"mamba1", "mamba2", "mamba3", "hybrid", "mamba2+mlp:1,attention:1"}) {
    SCOPED_TRACE(layers);
    LanguageModelOptions o = tiny(layers, std::string_view(layers) == "hybrid" ? 4 : 2);
    if (std::string_view(layers) == "mamba3") o.mamba.norm = "rms";
    if (std::string_view(layers) == "mamba2") o.mamba.gate = GateOrder::norm_then_gate;
    if (std::string_view(layers) == "hybrid") o.mamba.norm = "layer";
    LanguageModel model(o);
    to(model, float64);
    const auto named = named_parameters(model);
    const auto loss = [&] { return cross_entropy(model(tokens), targets, {.ignore_index = -1}); };
    {
      const NoGrad plain;
      for (const auto& p : named) p.tensor.add_(randn_like(p.tensor) * 0.2);
    }
    loss().backward();
    const NoGrad plain;
    for (const auto& p : named) {
      SCOPED_TRACE(p.name);
      ASSERT_TRUE(p.tensor.has_grad());
      const Tensor direction = randn_like(p.tensor);
      const double slope = (p.tensor.grad() * direction).sum().item(), h = 1e-6;
      const Tensor start = p.tensor.clone();
      p.tensor.copy_(start + direction * h);
      const double upper = loss().item();
      p.tensor.copy_(start - direction * h);
      const double lower = loss().item();
      p.tensor.copy_(start);
      EXPECT_NEAR((upper - lower) / (2 * h), slope, 1e-7 * (1 + std::abs(slope)));
    }
  }
}

/// Output and every gradient of a block of width 8 against PyTorch's.
template <class Block>
void expect_golden(const std::string& name, const MambaOptions& mamba) {
  SCOPED_TRACE(name);
  const testing::Golden g = testing::golden("nn/mamba");
  const auto at = [&](const std::string& what) { return g[name + "." + what]; };
  Block block({.n_layers = 1, .d_model = 8, .mamba = mamba});
  to(block, float64);
  const auto named = named_parameters(block);
  for (const NamedTensor& p : named) {
    const NoGrad plain;
    ASSERT_EQ(p.tensor.shape(), at(p.name).shape()) << p.name;
    p.tensor.copy_(at(p.name));
  }
  const Tensor u = at("u").requires_grad_(), y = block(u);
  y.backward(at("dy"));
  // Thirteen steps of a recurrence, each a few roundings of sums of at most 40 products.
  const double few = 8192 * unit_roundoff(float64);
  EXPECT_CLOSE(y.detach(), at("y"), {.relative = few, .absolute = few});
  EXPECT_CLOSE(u.grad(), at("du"), {.relative = few, .absolute = few});
  for (const NamedTensor& p : named) {
    SCOPED_TRACE(p.name);
    EXPECT_CLOSE(p.tensor.grad(), at("d." + p.name), {.relative = few, .absolute = few});
  }
}

TEST(Mamba, BlocksAgreeWithPyTorch) {
  const auto two = [](int64_t groups, int64_t head_dim) {
    return MambaOptions{.d_state = 3, .head_dim = head_dim, .n_groups = groups};
  };
  expect_golden<Mamba1>("mamba1", {.d_state = 3});
  expect_golden<Mamba2>("mamba2", two(1, 4));
  MambaOptions first = two(2, 4), layer = two(2, 4);
  first.gate = GateOrder::norm_then_gate;
  layer.norm = "layer";
  expect_golden<Mamba2>("mamba2_first", first);
  expect_golden<Mamba2>("mamba2_groups", two(8, 2));
  expect_golden<Mamba2>("mamba2_layer", layer);
  const auto three = [](int64_t groups, double turning, const std::string& norm) {
    return MambaOptions{
        .d_state = 6, .head_dim = 4, .n_groups = groups, .norm = norm, .rope_fraction = turning};
  };
  expect_golden<Mamba3>("mamba3", three(1, 0.5, "auto"));
  expect_golden<Mamba3>("mamba3_groups", three(2, 1, "none"));
  expect_golden<Mamba3>("mamba3_norm", three(4, 1, "rms"));
}

TEST(Mamba, ThirdHasTheReferencesNamesAndStarts) {
  LanguageModelOptions o = tiny("mamba3", 1);
  o.mamba.norm = "rms";
  LanguageModel model(o);
  EXPECT_THAT(names_of(model),
              ::testing::ElementsAre("wte.weight", "h.0.ln_1.weight", "h.0.mixer.dt_bias",
                                     "h.0.mixer.B_bias", "h.0.mixer.C_bias", "h.0.mixer.D",
                                     "h.0.mixer.in_proj.weight", "h.0.mixer.B_norm.weight",
                                     "h.0.mixer.C_norm.weight", "h.0.mixer.norm.weight",
                                     "h.0.mixer.out_proj.weight", "ln_f.weight"));
  const Mamba3& block = *model.h[0].mamba3;
  EXPECT_EQ(block.in_proj.weight.shape(), (Shape{2 * 16 + 2 * 2 * 4 + 3 * 4 + 1, 8}));
  EXPECT_EQ(block.b_bias.shape(), (Shape{4, 1, 4}));
  EXPECT_EQ(block.norm.group, 4);  // a head
  for (double v : block.c_bias.to_vector<double>()) EXPECT_EQ(v, 1);
}

/// The recurrence stays float32 there, so only the projections round.
TEST(Mamba, ThirdUnderAutocastStaysNear) {
  const Mamba3 block({.n_layers = 1, .d_model = 32, .mamba = {.d_state = 16, .head_dim = 16}});
  const Tensor u = randn({2, 70, 32});
  const NoGrad plain;
  const Tensor exact = block(u);
  const Autocast half(bfloat16);
  const Tensor y = block(u);
  EXPECT_EQ(y.dtype(), bfloat16);
  EXPECT_LT(((y.to(float32) - exact).norm() / exact.norm()).item(), 0.02);
}

/// A step so small that it is 0 in float32 leaves state and gradients finite.
TEST(Mamba, ThirdStandsStepsThatUnderflow) {
  Mamba3 block({.n_layers = 1, .d_model = 8, .mamba = {.d_state = 4, .head_dim = 4}});
  {
    const NoGrad plain;
    block.dt_bias.fill_(-200);
  }
  const Tensor u = randn({2, 5, 8}).requires_grad_(), y = block(u);
  y.sum().backward();
  EXPECT_TRUE(std::isfinite(y.abs().max().item()));
  for (const NamedTensor& p : named_parameters(block))
    EXPECT_TRUE(std::isfinite(p.tensor.grad().abs().max().item())) << p.name;
}

TEST(Decoding, TokenByTokenEqualsTheWholeSequence) {
  const Tensor tokens = randint(0, 7, {2, 19}, int32);
  for (const char* layers : {"transformer", "mamba1", "mamba2", "mamba3", "hybrid"})
    for (int64_t prefill : {1, 6}) {
      SCOPED_TRACE(layers);
      LanguageModelOptions o = tiny(layers, 4);
      if (prefill == 6) o.positions = Positions::rotary;
      LanguageModel model(o);
      to(model, float64);
      const NoGrad plain;
      const Tensor whole = model(tokens);
      DecodingState state;
      for (int64_t t = 0; t < 19; t = t == 0 ? prefill : t + 1) {
        const int64_t last = t == 0 ? prefill : t + 1;
        const Tensor y = model.next(tokens.slice(1, t, last), state);
        EXPECT_CLOSE(y, whole.slice(1, last - 1, last), {.relative = 1e-10, .absolute = 1e-12});
      }
    }
}

TEST(Decoding, MambaHasNoLimitAndConstantMemory) {
  LanguageModel model(tiny("mamba2"));
  EXPECT_FALSE(model.has_limit());
  const NoGrad plain;
  DecodingState state;
  for (int i = 0; i < 40; ++i) model.next(tensor({1}, int32).reshape({1, 1}), state);
  EXPECT_EQ(state.length, 40);
  EXPECT_EQ(state.layers[0][0].ssm.shape(), (Shape{1, 4, 4, 4}));
  EXPECT_EQ(model(zeros({1, 40}, int32)).shape(), (Shape{1, 40, 7}));
}

TEST(Layers, AreNamedInRuns) {
  using enum SublayerKind;
  const auto layers = layers_from_string("mamba2:2,attention+mlp:1", 3);
  EXPECT_EQ(layers[1], std::vector{mamba2});
  EXPECT_EQ(layers[2], (std::vector{attention, mlp}));
  EXPECT_THROW_MSG(
      layers_from_string("mamba4", 1), ValueError,
      "layers: a layer is transformer, or attention, mlp, mamba1, mamba2, mamba3 joined "
      "by +, but is mamba4");
  EXPECT_THROW_MSG(layers_from_string("mamba1+mamba3", 1), ValueError,
                   "layers: a layer has one sub-layer of a kind, but is mamba1+mamba3");
  EXPECT_THROW_MSG(layers_from_string("mlp+mlp", 1), ValueError,
                   "layers: a layer has one sub-layer of a kind, but is mlp+mlp");
  EXPECT_THROW_MSG(layers_from_string("mamba2:2", 3), ValueError,
                   "layers: the runs of mamba2:2 must add up to n_layers = 3, but do not");
  EXPECT_THROW_MSG(layers_from_string("mamba2:x", 3), ValueError,
                   "layers: a run must be sub-layers:layers, but is mamba2:x");
}

class CountJoining final : public Observer {
 public:
  void applied(const OpInfo& op, const Call&) override { count += op.name == "concat"; }
  void differentiated(const Node&, const Node::Gradients&) override {}
  int count = 0;
};

TEST(Mamba, GradientsOfAProjectionsPartsLieSideBySide) {
  const int of_x_proj = default_device().is_cuda() ? 0 : 2;  // one a layer, where a linear is dense
  for (const auto& [layers, joined] : {std::pair{"mamba1", of_x_proj}, {"mamba2", 0}}) {
    LanguageModelOptions o = tiny(layers);
    o.d_model = 64, o.mamba.head_dim = 64, o.mamba.d_state = 64;  // as the GPU's kernels want them
    LanguageModel model(o);
    const Tensor tokens = randint(0, 7, {2, 9}, int64);
    const Tensor loss = cross_entropy(model(tokens), tokens);
    CountJoining joining;
    loss.backward();
    EXPECT_EQ(joining.count, joined) << layers;
  }
}

/// Wide rows that are no multiple of a sector, 2 · 256 + 2 · 64 + 4 in bfloat16, are apart on a
/// GPU.
TEST(Mamba, PartsOfRowsThatAreApartLieSideBySide) {
  LanguageModelOptions o = tiny("mamba2");
  o.d_model = 128, o.mamba.head_dim = 64, o.mamba.d_state = 64;
  LanguageModel model(o);
  const Tensor tokens = randint(0, 7, {2, 9}, int64);
  const Autocast half(bfloat16);
  const Tensor loss = cross_entropy(model(tokens), tokens);
  CountJoining joining;
  loss.backward();
  EXPECT_EQ(joining.count, 0);
}

/// A part that two ops read gets a gradient of each, and every sweep has its own.
TEST(Mamba, GradientsOfPartsAddAndDoNotMix) {
  const Tensor x = randn({2, 5, 7}).requires_grad_(), w = randn({3, 2});
  const auto parts = split(x, {3, 1, 3}, -1);
  const auto conv = [&](const Tensor& t) { return causal_conv1d(t, w).y; };
  const Tensor y = conv(parts[0]) * conv(parts[0]) + conv(parts[2]) + parts[1];
  const Tensor dy = randn(y.shape());
  const Tensor first = grad({y}, {x}, {dy}, {.retain_graph = true})[0];
  const Tensor second = grad({y}, {x}, {2 * dy}, {.retain_graph = true})[0];
  const Tensor recorded = grad({y}, {x}, {dy}, {.create_graph = true})[0];

  const Tensor dense = x.detach().requires_grad_();
  const auto copy = [&](int64_t from, int64_t to) { return dense.slice(2, from, to).clone(); };
  const Tensor a = copy(0, 3);
  const Tensor wanted = grad({conv(a) * conv(a) + conv(copy(4, 7)) + copy(3, 4)}, {dense}, {dy})[0];
  EXPECT_CLOSE(first, wanted, {.relative = 1e-5, .absolute = 1e-5});
  EXPECT_CLOSE(second, 2 * wanted, {.relative = 1e-5, .absolute = 1e-5});
  EXPECT_CLOSE(recorded, wanted, {.relative = 1e-5, .absolute = 1e-5});
}

TEST(Mamba, MistakesAreNamed) {
  LanguageModelOptions o = tiny("mamba2");
  o.mamba.head_dim = 5;
  EXPECT_THROW_MSG(LanguageModel{o}, ValueError,
                   "head_dim: must divide expand · d_model = 16, but is 5");
  o.mamba.head_dim = 4, o.mamba.n_groups = 3;
  EXPECT_THROW_MSG(LanguageModel{o}, ValueError, "n_groups: must divide the 4 heads, but is 3");
  o.mamba.n_groups = 1, o.mamba.norm = "batch";
  EXPECT_THROW_MSG(LanguageModel{o}, ValueError,
                   "mamba.norm: must be one of auto, layer, none, rms, but is batch");
  o = tiny("mamba3"), o.mamba.rope_fraction = 0.25;
  EXPECT_THROW_MSG(LanguageModel{o}, ValueError,
                   "rope_fraction: must let a pair of the 4 states turn, but is 0.25");
  o.mamba.rope_fraction = 1.5;
  EXPECT_THROW_MSG(LanguageModel{o}, ValueError,
                   "rope_fraction: must be above 0 and at most 1, but is 1.5");
}

}  // namespace
}  // namespace norma::nn
