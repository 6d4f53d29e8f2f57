#include "norma/ops/attention/attention.h"

#include <cmath>
#include <limits>
#include <utility>

#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/ops/attention/kernels.h"
#include "norma/ops/attention/path.h"
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

AttentionSettings settings(const Tensor& q, const AttentionOptions& o) {
  return {.causal = o.causal, .scale = scale_of(q, o), .p = o.p, .key = o.key};
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

/// x ⊙ m; linear in x, so that it is its own derivative.
struct AttentionDropout {
  using Options = AttentionOptions;
  static constexpr std::string_view name = "attention_dropout";
  static Tensor forward(Context&, const Tensor& x, const Options& o) {
    const Tensor u = detail::dense(x);
    Tensor y = empty_like(u);
    dispatch(
        x.device(),
        AttentionDropoutArgs{
            .settings = {.causal = o.causal, .scale = 1, .p = o.p, .key = o.key}, .x = u, .y = y});
    return y;
  }
  static Tensor backward(Context& ctx, const Tensor& dy) {
    return apply<AttentionDropout>(dy, ctx.options());
  }
};
Tensor dropped(const Tensor& p, const AttentionOptions& o) {
  return o.p == 0 ? p : apply<AttentionDropout>(p, o);
}

Tensor with_dense_rows(const Tensor& t) { return t.strides()[3] == 1 ? t : detail::dense(t); }

/// Uninitialized (B, H, T, D) that lies in memory as (B, T, H, D).
Tensor by_rows(const Tensor& like) {
  const Shape& s = like.shape();
  const Tensor t = empty({s[0], s[2], s[1], s[3]}, like.dtype(), like.device());
  return detail::raw_view(t, s, {s[1] * s[2] * s[3], s[3], s[1] * s[3], 1}, 0);
}
/// The three, uninitialized, in one piece of memory (B, T, H + 2 H_kv, D) where their lengths are
/// one: as a layer's product holds q, k and v, so that its gradient is there without a copy.
AttentionGrads side_by_side(const Tensor& q, const Tensor& k, const Tensor& v) {
  if (q.size(2) != k.size(2)) return {by_rows(q), by_rows(k), by_rows(v)};
  const int64_t heads = q.size(1), shared = k.size(1), dim = q.size(3), length = q.size(2);
  const int64_t all = heads + 2 * shared;
  const Tensor whole = empty({q.size(0), length, all, dim}, q.dtype(), q.device());
  const auto part = [&](const Tensor& like, int64_t first) {
    return detail::raw_view(whole, like.shape(), {length * all * dim, dim, all * dim, 1},
                            first * dim);
  };
  return {part(q, 0), part(k, heads), part(v, heads + shared)};
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
  if (!(o.p >= 0 && o.p < 1))
    throw ValueError("{}: p must be from 0 to below 1, but is {}", name, o.p);
}

AttentionResult Attention::define(const Tensor& q, const Tensor& k, const Tensor& v,
                                  const Options& o) {
  const DType dtype = stats_dtype(q.dtype());
  const Tensor s = scores(q.to(dtype), for_each_query_head(k.to(dtype), q.size(1)), o);
  const Tensor y = matmul(dropped(softmax(s, -1), o), for_each_query_head(v.to(dtype), q.size(1)));
  return {y.to(q.dtype()), logsumexp(s, -1)};
}

AttentionResult Attention::forward(Context& ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                                   const Options& o) {
  const Tensor queries = with_dense_rows(q), keys = with_dense_rows(k), values = with_dense_rows(v);
  AttentionResult result{
      by_rows(q), empty({q.size(0), q.size(1), q.size(2)}, stats_dtype(q.dtype()), q.device())};
  dispatch(q.device(), AttentionForwardArgs{.settings = settings(q, o),
                                            .q = queries,
                                            .k = keys,
                                            .v = values,
                                            .y = result.y,
                                            .lse = result.lse.value});
  ctx.save(q, k, v, result.y);
  ctx.save_constant(result.lse.value);
  return result;
}
AttentionGrads Attention::backward(Context& ctx, const std::optional<Tensor>& dy,
                                   const std::optional<Tensor>&) {
  return apply<AttentionBackward>(*dy, ctx.saved(0), ctx.saved(1), ctx.saved(2), ctx.saved(3),
                                  ctx.saved(4), {ctx.options(), true});
}

AttentionGrads AttentionBackward::define(const Tensor& dy_, const Tensor& q_, const Tensor& k_,
                                         const Tensor& v_, const Tensor&, const Tensor&,
                                         const Options& o) {
  const DType dtype = stats_dtype(q_.dtype());
  const Tensor dy = dy_.to(dtype), q = q_.to(dtype);
  const Tensor k = for_each_query_head(k_.to(dtype), q.size(1));
  const Tensor v = for_each_query_head(v_.to(dtype), q.size(1));
  const Tensor p = softmax(scores(q, k, o), -1), dp = dropped(matmul(dy, v.t()), o);
  const Tensor ds = p * (dp - (p * dp).sum(-1, keepdim)) * scale_of(q, o);
  return {matmul(ds, k).to(q_.dtype()),
          over_sharing_heads(matmul(ds.t(), q), k_.size(1)).to(k_.dtype()),
          over_sharing_heads(matmul(dropped(p, o).t(), dy), v_.size(1)).to(v_.dtype())};
}

AttentionGrads AttentionBackward::forward(Context&, const Tensor& dy, const Tensor& q,
                                          const Tensor& k, const Tensor& v, const Tensor& y,
                                          const Tensor& lse, const Options& o) {
  const auto [dq, dk, dv] = side_by_side(q, k, v);
  const Tensor delta = empty_like(lse);
  const Tensor d = with_dense_rows(dy), queries = with_dense_rows(q), keys = with_dense_rows(k),
               values = with_dense_rows(v), out = with_dense_rows(y);
  const bool settled = o.saved && detail::running_sweeps() > 0 && queries.is_same(q) &&
                       keys.is_same(k) && values.is_same(v) && out.is_same(y);
  dispatch(q.device(), AttentionBackwardArgs{.settings = settings(q, o),
                                             .dy = d,
                                             .q = queries,
                                             .k = keys,
                                             .v = values,
                                             .y = out,
                                             .lse = lse,
                                             .delta = delta,
                                             .dq = dq,
                                             .dk = dk,
                                             .dv = dv,
                                             .settled = settled});
  return {dq, dk, dv};
}

bool& attention::only_portable() {
  static thread_local constinit bool only = false;
  return only;
}
PortableAttention::PortableAttention() : before_(std::exchange(attention::only_portable(), true)) {}
PortableAttention::~PortableAttention() { attention::only_portable() = before_; }

Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const AttentionOptions& options) {
  AttentionOptions o = options;
  if (o.p > 0) o.key = ambient_generator().next();
  return apply<Attention>(q, k, v, o).y;
}

}  // namespace norma
