#include "norma/nn/language_model.h"

#include <algorithm>
#include <map>

#include "norma/core/format.h"
#include "norma/core/waiting_launch.h"
#include "norma/nn/init.h"
#include "norma/nn/layer_runs.h"
#include "norma/ops/embedding/embedding.h"
#include "norma/ops/view/view.h"

namespace norma::nn {
namespace {

bool is_mamba(SublayerKind k) {
  return k == SublayerKind::mamba1 || k == SublayerKind::mamba2 || k == SublayerKind::mamba3;
}
bool has_mamba(const std::vector<SublayerKind>& kinds) {
  return std::any_of(kinds.begin(), kinds.end(), is_mamba);
}
bool has_attention(const std::vector<SublayerKind>& kinds) {
  return std::find(kinds.begin(), kinds.end(), SublayerKind::attention) != kinds.end();
}

SublayerKind kind_of(std::string_view name) {
  static const std::map<std::string_view, SublayerKind> kinds{
      {"attention", SublayerKind::attention},
      {"mlp", SublayerKind::mlp},
      {"mamba1", SublayerKind::mamba1},
      {"mamba2", SublayerKind::mamba2},
      {"mamba3", SublayerKind::mamba3}};
  const auto found = kinds.find(name);
  if (found == kinds.end())
    throw ValueError(
        "layers: a layer is transformer, or attention, mlp, mamba1, mamba2, mamba3 joined by +, "
        "but "
        "is {}",
        name);
  return found->second;
}

/// The sub-layers of "attention+mlp".
std::vector<SublayerKind> layer_from_string(std::string_view text) {
  if (text == "transformer") text = "attention+mlp";
  std::vector<SublayerKind> kinds;
  for (std::string_view rest = text; !rest.empty() || kinds.empty();) {
    const size_t plus = std::min(rest.find('+'), rest.size());
    kinds.push_back(kind_of(rest.substr(0, plus)));
    rest.remove_prefix(std::min(plus + 1, rest.size()));
  }
  auto sorted = kinds;
  std::sort(sorted.begin(), sorted.end());
  const bool two_mixers = std::count_if(kinds.begin(), kinds.end(), is_mamba) > 1;
  if (two_mixers || std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end())
    throw ValueError("layers: a layer has one sub-layer of a kind, but is {}", text);
  return kinds;
}

MakeNorm norms_of(const LanguageModelOptions& o) {
  return [spec = NormSpec{.kind = o.norm, .dim = o.d_model, .bias = o.bias}] { return Norm(spec); };
}

/// A stream's rows at these places alone; it keeps its dtype.
void keep_rows(Stream& stream, const Tensor& places) {
  const Autocast scope(float32);
  const auto rows = [&](const Tensor& x) {
    return embedding(places, x.reshape({x.size(0) * x.size(1), x.size(2)}));
  };
  stream.value = rows(stream.value);
  if (stream.pending) stream.pending = rows(*stream.pending);
}

}  // namespace

std::vector<std::vector<SublayerKind>> layers_from_string(std::string_view text, int64_t n_layers) {
  std::vector<std::vector<SublayerKind>> layers;
  if (text == "hybrid") {
    for (int64_t i = 0; i < n_layers; ++i)
      layers.push_back(layer_from_string(i % 4 == 3 ? "transformer" : "mamba2"));
    return layers;
  }
  for (const LayerRun& run : layer_runs("layers", "sub-layers", text, n_layers))
    layers.insert(layers.end(), static_cast<size_t>(run.layers), layer_from_string(run.name));
  return layers;
}

Block::Block(const LanguageModelOptions& o, std::vector<SublayerKind> sublayers, const Placement& p,
             const LayerInfo& layer_info)
    : kinds(std::move(sublayers)), placement(&p), info(layer_info) {
  info.n_sublayers = std::ssize(kinds);
  for (const SublayerKind kind : kinds) switch (kind) {
      case SublayerKind::attention:
        attn.emplace(o);
        break;
      case SublayerKind::mlp:
        mlp.emplace(o);
        break;
      case SublayerKind::mamba1:
        mamba1.emplace(o);
        break;
      case SublayerKind::mamba2:
        mamba2.emplace(o);
        break;
      case SublayerKind::mamba3:
        mamba3.emplace(o);
        break;
    }
  p.prepare(norms, info, norms_of(o));
}

Tensor Block::apply(SublayerKind kind, const Tensor& x, MixerState* state) const {
  switch (kind) {
    case SublayerKind::attention:
      return (*attn)(x, state);
    case SublayerKind::mlp:
      return (*mlp)(x);
    case SublayerKind::mamba1:
      return (*mamba1)(x, state);
    case SublayerKind::mamba2:
      return (*mamba2)(x, state);
    case SublayerKind::mamba3:
      return (*mamba3)(x, state);
  }
  return x;
}

void Block::operator()(Residual& r, std::span<MixerState> states) const {
  std::vector<Sublayer> sublayers;
  for (size_t i = 0; i < kinds.size(); ++i)
    sublayers.emplace_back([this, kind = kinds[i], state = states.empty() ? nullptr : &states[i]](
                               const Tensor& x) { return apply(kind, x, state); });
  if (placement->block) return placement->block(r, sublayers, norms, info);
  for (size_t i = 0; i < sublayers.size(); ++i)
    placement->apply(r, sublayers[i], static_cast<int>(i), norms, info);
}

LanguageModel::LanguageModel(const LanguageModelOptions& o)
    : options(o),
      wte({.rows = o.vocab_size, .width = o.d_model}),
      lm_head({.d_in = o.d_model, .d_out = o.vocab_size, .bias = false}),
      dropout(o.dropout) {
  init_normal(wte.weight, 0, 0.02);
  const auto layers = layers_from_string(o.layers, o.n_layers);
  if (o.positions == Positions::auto_)
    options.positions =
        std::any_of(layers.begin(), layers.end(), has_mamba) ? Positions::none : Positions::learned;
  limited_ = options.positions == Positions::learned ||
             std::any_of(layers.begin(), layers.end(), has_attention);
  if (options.positions == Positions::learned) {
    wpe.emplace(EmbeddingOptions{.rows = o.context, .width = o.d_model});
    init_normal(wpe->weight, 0, 0.02);
  }
  const auto where = placements(o.placement, o.n_layers);
  for (size_t i = 0; i < layers.size(); ++i)
    h.emplace_back(options, layers[i], *where[i], LayerInfo{static_cast<int64_t>(i), o.n_layers});
  if (!h.empty() && h.back().placement->prepare_stack)
    h.back().placement->prepare_stack(norms, norms_of(o));
  if (o.tie)
    lm_head.weight.tie(wte.weight);
  else
    init_inner(lm_head);
}

Tensor LanguageModel::hidden(const Tensor& tokens, int64_t first, DecodingState* state,
                             const std::optional<Tensor>& places) const {
  if (tokens.dim() != 2 || (limited_ && first + tokens.size(1) > options.context))
    throw ShapeError(
        "language_model: tokens must be (batch, length) with a length up to context = {}, but are "
        "{}{}",
        options.context, tokens.shape(), first > 0 ? format(" after {}", first) : "");
  const norma::detail::MayWait for_norms;  // products, of which norms may be a part
  // The stream keeps the dtype in which it begins.
  Tensor x = [&] {
    const Autocast scope(options.wide_stream ? float32 : Autocast::current());
    return wpe ? embedding(tokens, wte.weight, wpe->weight, first) : wte(tokens);
  }();
  x = dropout(x);
  const bool any = !h.empty();
  Residual r =
      any && h.front().placement->begin ? h.front().placement->begin(x, norms) : Residual{{x}};
  for (size_t i = 0; i < h.size(); ++i)
    h[i](r, state ? std::span(state->layers[i]) : std::span<MixerState>());
  if (places) {  // before the last norm, which looks at single rows
    keep_rows(r.main, *places);
    for (Stream& stream : r.more) keep_rows(stream, *places);
  }
  return any && h.back().placement->final ? h.back().placement->final(r, norms) : r.main.read();
}

Tensor LanguageModel::operator()(const Tensor& tokens, const std::optional<Tensor>& places) const {
  return lm_head(hidden(tokens, 0, nullptr, places));
}

Tensor LanguageModel::next(const Tensor& tokens, DecodingState& state) const {
  if (state.layers.empty())
    for (const Block& block : h) state.layers.emplace_back(block.kinds.size());
  const Tensor x = hidden(tokens, state.length, &state);
  state.length += tokens.size(1);
  return lm_head(x.slice(1, x.size(1) - 1, x.size(1)));
}

}  // namespace norma::nn
