#include "norma/nn/attention.h"

#include "norma/core/format.h"
#include "norma/nn/init.h"
#include "norma/ops/attention/attention.h"
#include "norma/ops/rotary/rotary.h"
#include "norma/ops/view/view.h"

namespace norma::nn {
namespace {

int64_t kv_heads(const LanguageModelOptions& o) {
  return o.n_kv_heads == 0 ? o.n_heads : o.n_kv_heads;
}
int64_t head_dim_of(const LanguageModelOptions& o) {
  if (o.n_heads < 1 || o.d_model % o.n_heads != 0)
    throw ValueError("n_heads: must divide d_model = {}, but is {}", o.d_model, o.n_heads);
  if (o.n_heads % kv_heads(o) != 0)
    throw ValueError("n_kv_heads: must divide n_heads = {}, but is {}", o.n_heads, o.n_kv_heads);
  return o.d_model / o.n_heads;
}

/// Writes t behind the rows in use and returns all of them; room for `capacity` is made at once.
Tensor append(Tensor& cache, const Tensor& t, int64_t used, int64_t capacity) {
  if (!cache.defined())
    cache = empty({t.size(0), t.size(1), capacity, t.size(3)}, t.dtype(), t.device());
  const int64_t length = used + t.size(2);
  cache.slice(2, used, length).copy_(t);
  return cache.slice(2, 0, length);
}

}  // namespace

SelfAttention::SelfAttention(const LanguageModelOptions& o)
    : n_heads(o.n_heads),
      n_kv_heads(kv_heads(o)),
      head_dim(head_dim_of(o)),
      context(o.context),
      rotates(o.positions == Positions::rotary),
      c_attn({.d_in = o.d_model, .d_out = (n_heads + 2 * n_kv_heads) * head_dim, .bias = o.bias}),
      c_proj({.d_in = o.d_model, .d_out = o.d_model, .bias = o.bias}),
      dropout(o.dropout) {
  init_inner(c_attn);
  init_output(c_proj, 2 * std::max<int64_t>(1, o.n_layers));
  if (!o.qk_norm) return;
  q_norm.emplace(NormSpec{.kind = o.norm, .dim = head_dim});
  k_norm.emplace(NormSpec{.kind = o.norm, .dim = head_dim});
}

Tensor SelfAttention::operator()(const Tensor& x, MixerState* state) const {
  const int64_t batch = x.size(0), length = x.size(1), before = state ? state->length : 0;
  if (state && before + length > context)
    throw ShapeError("attention: a state holds up to context = {} tokens, but these are {} and {}",
                     context, before, length);
  const auto qkv =
      split(c_attn(x), {n_heads * head_dim, n_kv_heads * head_dim, n_kv_heads * head_dim}, -1);
  const auto heads = [&](const Tensor& t, int64_t n) {
    return t.reshape({batch, length, n, head_dim}).transpose(1, 2);
  };
  Tensor q = heads(qkv[0], n_heads), k = heads(qkv[1], n_kv_heads), v = heads(qkv[2], n_kv_heads);
  if (q_norm) q = (*q_norm)(q), k = (*k_norm)(k);
  if (rotates) q = rotary(q, {.offset = before}), k = rotary(k, {.offset = before});
  if (state) {
    k = append(state->keys, k, before, context), v = append(state->values, v, before, context);
    state->length += length;
  }
  const Tensor y = scaled_dot_product_attention(q, k, v, {.p = dropout.training ? dropout.p : 0});
  return dropout(c_proj(y.transpose(1, 2).reshape({batch, length, n_heads * head_dim})));
}

}  // namespace norma::nn
