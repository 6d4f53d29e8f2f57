#include "norma/nn/transformer.h"

#include <cmath>

#include "norma/core/format.h"
#include "norma/nn/init.h"
#include "norma/ops/attention/attention.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/rotary/rotary.h"
#include "norma/ops/view/view.h"

namespace norma::nn {
namespace {

constexpr double kStd = 0.02;

int64_t kv_heads(const TransformerOptions& o) {
  return o.n_kv_heads == 0 ? o.n_heads : o.n_kv_heads;
}
int64_t head_dim_of(const TransformerOptions& o) {
  if (o.n_heads < 1 || o.d_model % o.n_heads != 0)
    throw ValueError("n_heads: must divide d_model = {}, but is {}", o.d_model, o.n_heads);
  if (o.n_heads % kv_heads(o) != 0)
    throw ValueError("n_kv_heads: must divide n_heads = {}, but is {}", o.n_heads, o.n_kv_heads);
  return o.d_model / o.n_heads;
}
int64_t d_ff_of(const TransformerOptions& o) {
  if (o.d_ff > 0) return o.d_ff;
  if (o.mlp == MlpKind::gelu) return 4 * o.d_model;
  return (8 * o.d_model / 3 + 7) / 8 * 8;
}
/// What writes into the residual stream starts smaller, so that the stream's size does not grow
/// with the depth.
void init_output(const Linear& layer, const TransformerOptions& o) {
  const auto writes = static_cast<double>(2 * std::max<int64_t>(1, o.n_layers));
  init_normal(layer.weight, 0, kStd / std::sqrt(writes));
  if (layer.bias.defined()) init_constant(layer.bias, 0);
}
void init_inner(const Linear& layer) {
  init_normal(layer.weight, 0, kStd);
  if (layer.bias.defined()) init_constant(layer.bias, 0);
}
MakeNorm norms_of(const TransformerOptions& o) {
  return [spec = NormSpec{.kind = o.norm, .dim = o.d_model, .bias = o.bias}] { return Norm(spec); };
}

}  // namespace

SelfAttention::SelfAttention(const TransformerOptions& o)
    : n_heads(o.n_heads),
      n_kv_heads(kv_heads(o)),
      head_dim(head_dim_of(o)),
      positions(o.positions),
      c_attn({.d_in = o.d_model, .d_out = (n_heads + 2 * n_kv_heads) * head_dim, .bias = o.bias}),
      c_proj({.d_in = o.d_model, .d_out = o.d_model, .bias = o.bias}),
      dropout(o.dropout) {
  init_inner(c_attn);
  init_output(c_proj, o);
  if (!o.qk_norm) return;
  q_norm.emplace(NormSpec{.kind = o.norm, .dim = head_dim});
  k_norm.emplace(NormSpec{.kind = o.norm, .dim = head_dim});
}

Tensor SelfAttention::operator()(const Tensor& x) const {
  const int64_t batch = x.size(0), length = x.size(1);
  const auto qkv =
      split(c_attn(x), {n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim}, -1);
  const auto heads = [&](const Tensor& t, int64_t n) {
    return t.reshape({batch, length, n, head_dim}).transpose(1, 2);
  };
  Tensor q = heads(qkv[0], n_heads), k = heads(qkv[1], n_kv_heads);
  if (q_norm) q = (*q_norm)(q), k = (*k_norm)(k);
  if (positions == Positions::rotary) q = rotary(q), k = rotary(k);
  const Tensor y = scaled_dot_product_attention(q, k, heads(qkv[2], n_kv_heads));
  return dropout(c_proj(y.transpose(1, 2).reshape({batch, length, n_heads * head_dim})));
}

Mlp::Mlp(const TransformerOptions& o)
    : kind(o.mlp),
      c_fc({.d_in = o.d_model,
            .d_out = d_ff_of(o) * (o.mlp == MlpKind::swiglu ? 2 : 1),
            .bias = o.bias}),
      c_proj({.d_in = d_ff_of(o), .d_out = o.d_model, .bias = o.bias}),
      dropout(o.dropout) {
  init_inner(c_fc);
  init_output(c_proj, o);
}
Tensor Mlp::operator()(const Tensor& x) const {
  const Tensor u = c_fc(x);
  if (kind == MlpKind::gelu) return dropout(c_proj(gelu(u)));
  const auto halves = chunk(u, 2, -1);
  return dropout(c_proj(silu(halves[0]) * halves[1]));
}

Block::Block(const TransformerOptions& o, const Placement& p, const LayerInfo& layer_info)
    : placement(&p), info(layer_info), attn(o), mlp(o) {
  p.prepare(norms, info, norms_of(o));
}
void Block::operator()(Residual& r) const {
  const Sublayer sublayers[] = {[this](const Tensor& x) { return attn(x); },
                                [this](const Tensor& x) { return mlp(x); }};
  if (placement->block) return placement->block(r, sublayers, norms, info);
  for (int i = 0; i < 2; ++i) placement->apply(r, sublayers[i], i, norms, info);
}

Transformer::Transformer(const TransformerOptions& o)
    : options(o),
      wte({.rows = o.vocab_size, .width = o.d_model}),
      lm_head({.d_in = o.d_model, .d_out = o.vocab_size, .bias = false}),
      dropout(o.dropout) {
  init_normal(wte.weight, 0, kStd);
  if (o.positions == Positions::learned) {
    wpe.emplace(EmbeddingOptions{.rows = o.context, .width = o.d_model});
    init_normal(wpe->weight, 0, kStd);
  }
  const auto layers = placements(o.placement, o.n_layers);
  for (int64_t i = 0; i < o.n_layers; ++i)
    h.emplace_back(o, *layers[static_cast<size_t>(i)], LayerInfo{i, o.n_layers});
  if (!h.empty() && h.back().placement->prepare_stack)
    h.back().placement->prepare_stack(norms, norms_of(o));
  if (o.tie)
    lm_head.weight.tie(wte.weight);
  else
    init_inner(lm_head);
}

Tensor Transformer::operator()(const Tensor& tokens) const {
  if (tokens.dim() != 2 || tokens.size(1) > options.context)
    throw ShapeError(
        "transformer: tokens must be (batch, length) with a length up to context = {}, "
        "but are {}",
        options.context, tokens.shape());
  Tensor x = wte(tokens);
  if (wpe) x = x + (*wpe)(arange(tokens.size(1), int64, tokens.device()));
  x = dropout(x);
  if (h.empty()) return lm_head(x);
  const Placement& first = *h.front().placement;
  const Placement& last = *h.back().placement;
  Residual r = first.begin ? first.begin(x, norms) : Residual{{x}};
  for (const Block& block : h) block(r);
  return lm_head(last.final ? last.final(r, norms) : r.main.read());
}

}  // namespace norma::nn
