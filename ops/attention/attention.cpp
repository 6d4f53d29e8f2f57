#include "norma/ops/attention/attention.h"

#include <cmath>
#include <limits>

#include "norma/core/dispatch.h"
#include "norma/ops/attention/kernels.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/softmax/softmax.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

double scale_of(const Tensor& q, const AttentionOptions& o) {
  return o.scale != 0 ? o.scale : 1 / std::sqrt(static_cast<double>(q.size(-1)));
}

/// Keys or values with each head repeated for the queries that share it.
Tensor for_each_query_head(const Tensor& t, int64_t heads) {
  const int64_t shared = heads / t.size(1);
  if (shared == 1) return t;
  return t.unsqueeze(2)
      .expand({t.size(0), t.size(1), shared, t.size(2), t.size(3)})
      .reshape({t.size(0), heads, t.size(2), t.size(3)});
}
/// The gradient of that: the sum over the heads that share.
Tensor over_sharing_heads(const Tensor& t, int64_t kv_heads) {
  const int64_t shared = t.size(1) / kv_heads;
  if (shared == 1) return t;
  return t.reshape({t.size(0), kv_heads, shared, t.size(2), t.size(3)}).sum(2);
}

Tensor scores(const Tensor& q, const Tensor& k, const AttentionOptions& o) {
  const Tensor s = matmul(q * scale_of(q, o), k.t());
  if (!o.causal) return s;
  const int64_t queries = s.size(-2), keys = s.size(-1);
  const Tensor row = arange(queries, int64, q.device()).unsqueeze(1) + (keys - queries);
  return where(arange(keys, int64, q.device()) > row, -std::numeric_limits<double>::infinity(), s);
}

/// In a dtype with products and with the last stride 1.
Tensor ready(const Tensor& t) {
  const Tensor u = t.to(stats_dtype(t.dtype()));
  return u.strides()[3] == 1 ? u : detail::dense(u);
}
/// Uninitialized (B, H, T, D) that lies in memory as (B, T, H, D).
Tensor by_rows(const Tensor& like, DType dtype) {
  const Shape& s = like.shape();
  const Tensor t = empty({s[0], s[2], s[1], s[3]}, dtype, like.device());
  return detail::raw_view(t, s, {s[1] * s[2] * s[3], s[3], s[1] * s[3], 1}, 0);
}

}  // namespace

void Attention::check(const Tensor& q, const Tensor& k, const Tensor& v, const Options& o) {
  if (!is_floating(q.dtype()) || k.dtype() != q.dtype() || v.dtype() != q.dtype())
    throw DTypeError("{}: q, k and v must have one floating dtype, but are {}, {} and {}", name,
                     to_string(q.dtype()), to_string(k.dtype()), to_string(v.dtype()));
  const bool fits = q.dim() == 4 && k.dim() == 4 && k.shape() == v.shape() &&
                    q.size(0) == k.size(0) && q.size(3) == k.size(3) && k.size(1) > 0 &&
                    q.size(1) % k.size(1) == 0 && q.size(3) > 0;
  if (!fits)
    throw ShapeError(
        "{}: q must be (B, H, T, D), k and v (B, H_kv, S, D) with H_kv dividing H, but "
        "they are {}, {} and {}",
        name, q.shape(), k.shape(), v.shape());
  if (o.causal && q.size(2) > k.size(2))
    throw ShapeError("{}: causal queries must not outnumber the keys, but q is {} and k {}", name,
                     q.shape(), k.shape());
}

AttentionResult Attention::define(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Options& o) {
  const DType dtype = stats_dtype(q.dtype());
  const Tensor s = scores(q.to(dtype), for_each_query_head(k.to(dtype), q.size(1)), o);
  const Tensor y = matmul(softmax(s, -1), for_each_query_head(v.to(dtype), q.size(1)));
  return {y.to(q.dtype()), logsumexp(s, -1)};
}

AttentionResult Attention::forward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Options& o) {
  const DType dtype = stats_dtype(q.dtype());
  const Tensor y = by_rows(q, dtype),
               lse = empty({q.size(0), q.size(1), q.size(2)}, dtype, q.device());
  const Tensor queries = ready(q), keys = ready(k), values = ready(v);
  dispatch(q.device(), AttentionForwardArgs{.causal = o.causal,
                                            .scale = scale_of(q, o),
                                            .q = queries,
                                            .k = keys,
                                            .v = values,
                                            .y = y,
                                            .lse = lse});
  AttentionResult result{y.to(q.dtype()), lse};
  ctx.save(q, k, v, result.y);
  ctx.save_constant(lse);
  return result;
}
AttentionGrads Attention::backward(Context& ctx, const std::optional<Tensor>& dy,
                                   const std::optional<Tensor>&) {
  return apply<AttentionBackward>(*dy, ctx.saved(0), ctx.saved(1), ctx.saved(2), ctx.saved(3),
                                  ctx.saved(4), ctx.options());
}

AttentionGrads AttentionBackward::define(const Tensor& dy_, const Tensor& q_, const Tensor& k_,
                                         const Tensor& v_, const Tensor&, const Tensor&,
                                         const Options& o) {
  const DType dtype = stats_dtype(q_.dtype());
  const Tensor dy = dy_.to(dtype), q = q_.to(dtype);
  const Tensor k = for_each_query_head(k_.to(dtype), q.size(1));
  const Tensor v = for_each_query_head(v_.to(dtype), q.size(1));
  const Tensor p = softmax(scores(q, k, o), -1), dp = matmul(dy, v.t());
  const Tensor ds = p * (dp - (p * dp).sum(-1, keepdim)) * scale_of(q, o);
  return {matmul(ds, k).to(q_.dtype()),
          over_sharing_heads(matmul(ds.t(), q), k_.size(1)).to(k_.dtype()),
          over_sharing_heads(matmul(p.t(), dy), v_.size(1)).to(v_.dtype())};
}

AttentionGrads AttentionBackward::forward(Context&, const Tensor& dy, const Tensor& q,
                                          const Tensor& k, const Tensor& v, const Tensor& y,
                                          const Tensor& lse, const Options& o) {
  const DType dtype = stats_dtype(q.dtype());
  const Tensor dq = by_rows(q, dtype), dk = by_rows(k, dtype), dv = by_rows(v, dtype);
  const Tensor d = ready(dy), queries = ready(q), keys = ready(k), values = ready(v),
               out = ready(y);
  dispatch(q.device(), AttentionBackwardArgs{.causal = o.causal,
                                             .scale = scale_of(q, o),
                                             .dy = d,
                                             .q = queries,
                                             .k = keys,
                                             .v = values,
                                             .y = out,
                                             .lse = lse,
                                             .dq = dq,
                                             .dk = dk,
                                             .dv = dv});
  return {dq.to(q.dtype()), dk.to(k.dtype()), dv.to(v.dtype())};
}

Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options) {
  return apply<Attention>(q, k, v, options).y;
}

}  // namespace norma
