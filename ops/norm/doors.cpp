#include "norma/core/random.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/l2_norm.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/norm.h"
#include "norma/ops/norm/rms_norm.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

/// What the options of every door have.
template <class Options>
NormOptions common(NormKind kind, const Options& o) {
  return {.kind = kind,
          .eps = o.eps,
          .group = o.group,
          .zero_centered = o.zero_centered,
          .casting = o.casting,
          .out_dtype = o.out_dtype,
          .saves = o.saves,
          .portable = o.portable,
          .precise = o.precise,
          .probe = o.probe};
}
NormOptions family(const RmsNormOptions& o) { return common(NormKind::rms, o); }
NormOptions family(const LayerNormOptions& o) {
  NormOptions f = common(NormKind::layer, o);
  f.variance = o.variance;
  return f;
}
NormOptions family(const GatedNormOptions& o) {
  NormOptions f = common(o.kind, o);
  f.gate = o.order, f.activation = o.activation, f.beta = o.beta;
  return f;
}

/// NormInputs by reference: copies that only the call sees are a tenth of a tiny norm.
struct Given {
  inline static const Maybe absent;
  const Maybe &w = absent, &b = absent, &z = absent, &residual = absent, &row_scale = absent,
              &w2 = absent, &b2 = absent;
};
NormResult normed(const Tensor& x, const Given& i, const NormOptions& o) {
  return apply<Norm>(x, i.w, i.b, i.z, i.residual, i.row_scale, i.w2, i.b2, o);
}

}  // namespace

NormResult fused_norm(const Tensor& x, const NormInputs& inputs, NormOptions options) {
  if (options.dropout > 0 && options.key == RandomKey{}) options.key = ambient_generator().next();
  return normed(x,
                {.w = inputs.w,
                 .b = inputs.b,
                 .z = inputs.z,
                 .residual = inputs.residual,
                 .row_scale = inputs.row_scale,
                 .w2 = inputs.w2,
                 .b2 = inputs.b2},
                options);
}

Tensor rms_norm(const Tensor& x, const Maybe& w, const RmsNormOptions& o) {
  return normed(x, {.w = w}, family(o)).y;
}
Added add_rms_norm(const Tensor& x, const Tensor& residual, const Maybe& w,
                   const RmsNormOptions& o) {
  const NormResult r = normed(x, {.w = w, .residual = residual}, family(o));
  return {r.y, *r.h};
}
Tensor layer_norm(const Tensor& x, const Maybe& w, const Maybe& b, const LayerNormOptions& o) {
  return normed(x, {.w = w, .b = b}, family(o)).y;
}
Added add_layer_norm(const Tensor& x, const Tensor& residual, const Maybe& w, const Maybe& b,
                     const LayerNormOptions& o) {
  const NormResult r = normed(x, {.w = w, .b = b, .residual = residual}, family(o));
  return {r.y, *r.h};
}
Tensor gated_norm(const Tensor& x, const Tensor& z, const Maybe& w, const Maybe& b,
                  const GatedNormOptions& o) {
  return normed(x, {.w = w, .b = b, .z = z}, family(o)).y;
}
Tensor l2_norm(const Tensor& x, const Maybe& w, const L2NormOptions& o) {
  return normed(x, {.w = w}, {.kind = NormKind::l2, .eps = o.eps, .group = o.group}).y;
}

}  // namespace norma
