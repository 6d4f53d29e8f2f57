#include "norma/nn/mamba.h"

#include <algorithm>
#include <cmath>

#include "norma/core/random.h"
#include "norma/nn/init.h"
#include "norma/ops/conv1d/conv1d.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/scan/scan.h"
#include "norma/ops/ssd/ssd.h"
#include "norma/ops/view/view.h"

namespace norma::nn {
namespace {

int64_t inner_width(const LanguageModelOptions& o) { return o.mamba.expand * o.d_model; }

int64_t heads_of(const LanguageModelOptions& o) {
  const int64_t width = inner_width(o), p = o.mamba.head_dim;
  if (p < 1 || width % p != 0)
    throw ValueError("head_dim: must divide expand · d_model = {}, but is {}", width, p);
  const int64_t heads = width / p;
  if (o.mamba.n_groups < 1 || heads % o.mamba.n_groups != 0)
    throw ValueError("n_groups: must divide the {} heads, but is {}", heads, o.mamba.n_groups);
  return heads;
}

/// The inverse of softplus at Δ drawn log-uniformly, so that Δ starts there where its input is 0.
Parameter drawn_dt_bias(int64_t n, const MambaOptions& o) {
  const double low = std::log(o.dt_min), high = std::log(o.dt_max);
  std::vector<double> bias = rand({n}, float64).to_vector<double>();
  for (double& v : bias) {
    const double dt = std::max(std::exp(low + v * (high - low)), o.dt_floor);
    v = dt + std::log(-std::expm1(-dt));
  }
  return Parameter(from_span(std::span<const double>(bias)).to(float32));
}

/// W_out starts divided by √n_layers: each block writes into the stream once.
void scale_output(const Linear& layer, const LanguageModelOptions& o) {
  const double fan = static_cast<double>(layer.options.d_in);
  const double writes = static_cast<double>(std::max<int64_t>(1, o.n_layers));
  const double bound = 1 / std::sqrt(fan * writes);
  init_uniform(layer.weight, -bound, bound);
}

std::optional<Tensor> given(const Tensor& t) { return t.defined() ? std::optional(t) : none; }

}  // namespace

ShortConv::ShortConv(int64_t channels, int64_t taps) {
  const double bound = 1 / std::sqrt(static_cast<double>(taps));
  weight = Parameter(zeros({channels, 1, taps}));
  bias = Parameter(zeros({channels}));
  init_uniform(weight, -bound, bound);
  init_uniform(bias, -bound, bound);
}
Tensor ShortConv::operator()(const Tensor& x, MixerState* state) const {
  const Conv1dResult r =
      causal_conv1d(x, weight.squeeze(1), {.b = bias, .state = state ? given(state->conv) : none},
                    {.final_state = state != nullptr});
  if (state) state->conv = *r.state;
  return r.y;
}

Mamba1::Mamba1(const LanguageModelOptions& o)
    : d_inner(inner_width(o)),
      d_state(o.mamba.d_state == 0 ? 16 : o.mamba.d_state),
      dt_rank((o.d_model + 15) / 16),
      in_proj({.d_in = o.d_model, .d_out = 2 * d_inner, .bias = false}),
      conv1d(d_inner, o.mamba.d_conv),
      out_proj({.d_in = d_inner, .d_out = o.d_model, .bias = false}) {
  const Tensor rates = linspace(1, static_cast<double>(d_state), d_state).log();
  a_log = Parameter(rates.expand({d_inner, d_state}).clone());
  d = Parameter(ones({d_inner}));
  scale_output(out_proj, o);
  if (o.mamba.selective) {
    x_proj.emplace(LinearOptions{.d_in = d_inner, .d_out = dt_rank + 2 * d_state, .bias = false});
    dt_proj.emplace(LinearOptions{.d_in = dt_rank, .d_out = d_inner});
    dt_proj->bias = drawn_dt_bias(d_inner, o.mamba);
  } else {
    dt_bias = drawn_dt_bias(d_inner, o.mamba);
    b = Parameter(randn({d_state})), c = Parameter(randn({d_state}));
  }
}

Tensor Mamba1::operator()(const Tensor& u, MixerState* state) const {
  const auto xz = chunk(in_proj(u), 2, -1);
  const Tensor x = conv1d(xz[0], state);
  ScanInputs more{.d = d, .z = xz[1], .state = state ? given(state->ssm) : none};
  Tensor dt, bs, cs;
  if (x_proj) {
    const auto parts = split((*x_proj)(x), {dt_rank, d_state, d_state}, -1);
    dt = linear(parts[0], dt_proj->weight), bs = parts[1], cs = parts[2];
    more.dt_bias = dt_proj->bias;
  } else {
    const auto repeated = [&](const Tensor& t) {
      return t.to(x.dtype()).expand({x.size(0), x.size(1), t.size(0)});
    };
    dt = zeros_like(x), bs = repeated(b), cs = repeated(c);
    more.dt_bias = dt_bias;
  }
  const ScanResult r =
      selective_scan(x, dt, a_log, bs, cs, more, {.final_state = state != nullptr, .log_a = true});
  if (state) state->ssm = *r.state, state->length += u.size(1);
  return out_proj(r.y);
}

Mamba2::Mamba2(const LanguageModelOptions& o)
    : options(o.mamba),
      d_inner(inner_width(o)),
      d_state(o.mamba.d_state == 0 ? 128 : o.mamba.d_state),
      n_heads(heads_of(o)),
      in_proj({.d_in = o.d_model,
               .d_out = 2 * d_inner + 2 * o.mamba.n_groups * d_state + n_heads,
               .bias = false}),
      conv1d(d_inner + 2 * o.mamba.n_groups * d_state, o.mamba.d_conv),
      out_proj({.d_in = d_inner, .d_out = o.d_model, .bias = false}) {
  if (options.norm_groups == 0) options.norm_groups = options.n_groups;
  if (options.norm_groups < 1 || d_inner % options.norm_groups != 0)
    throw ValueError("norm_groups: must divide the inner width {}, but is {}", d_inner,
                     options.norm_groups);
  if (options.norm != "rms" && options.norm != "layer" && options.norm != "none")
    throw ValueError("mamba.norm: must be one of layer, none, rms, but is {}", options.norm);
  dt_bias = drawn_dt_bias(n_heads, options);
  a_log = Parameter((rand({n_heads}) * 15 + 1).log());
  d = Parameter(ones({n_heads}));
  if (options.norm != "none") norm_weight = Parameter(ones({d_inner}));
  if (options.norm == "layer") norm_bias = Parameter(zeros({d_inner}));
  scale_output(out_proj, o);
}

Tensor Mamba2::operator()(const Tensor& u, MixerState* state) const {
  const int64_t batch = u.size(0), length = u.size(1), groups = options.n_groups;
  const int64_t shared = groups * d_state;
  const auto parts = split(in_proj(u), {d_inner, d_inner + 2 * shared, n_heads}, -1);
  const auto xbc = split(conv1d(parts[1], state), {d_inner, shared, shared}, -1);
  const Shape per_group{batch, length, groups, d_state};
  const SsdResult r = ssd(xbc[0].reshape({batch, length, n_heads, options.head_dim}), parts[2],
                          a_log, xbc[1].reshape(per_group), xbc[2].reshape(per_group),
                          {.d = d, .dt_bias = dt_bias, .state = state ? given(state->ssm) : none},
                          {.final_state = state != nullptr, .log_a = true});
  if (state) state->ssm = *r.state, state->length += length;
  return out_proj(gated(r.y.reshape({batch, length, d_inner}), parts[0]));
}

Tensor Mamba2::gated(const Tensor& y, const Tensor& z) const {
  if (options.norm == "none") return y * silu(z);
  return gated_norm(y, z, norm_weight, given(norm_bias),
                    {.order = options.gate,
                     .kind = options.norm == "rms" ? NormKind::rms : NormKind::layer,
                     .eps = 1e-5,
                     .group = d_inner / options.norm_groups});
}

}  // namespace norma::nn
