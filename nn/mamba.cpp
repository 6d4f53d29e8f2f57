#include "norma/nn/mamba.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "norma/core/autocast.h"
#include "norma/core/random.h"
#include "norma/nn/init.h"
#include "norma/ops/conv1d/conv1d.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"
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

BlockNorm::BlockNorm(const MambaOptions& o, int64_t width, std::string_view own_kind,
                     GateOrder own_gate, int64_t own_groups)
    : kind(o.norm == "auto" ? own_kind : o.norm), gate(o.gate.value_or(own_gate)) {
  const int64_t groups = o.norm_groups == 0 ? own_groups : o.norm_groups;
  if (groups < 1 || width % groups != 0)
    throw ValueError("norm_groups: must divide the inner width {}, but is {}", width, groups);
  if (kind != "rms" && kind != "layer" && kind != "none")
    throw ValueError("mamba.norm: must be one of auto, layer, none, rms, but is {}", kind);
  group = width / groups;
  if (kind != "none") weight = Parameter(ones({width}));
  if (kind == "layer") bias = Parameter(zeros({width}));
}

Tensor BlockNorm::operator()(const Tensor& y, const Tensor& z) const {
  if (kind == "none") return y * silu(z);
  return gated_norm(y, z, weight, given(bias),
                    {.order = gate,
                     .kind = kind == "rms" ? NormKind::rms : NormKind::layer,
                     .eps = 1e-5,
                     .group = group});
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
      norm(o.mamba, d_inner, "rms", GateOrder::gate_then_norm, o.mamba.n_groups),
      out_proj({.d_in = d_inner, .d_out = o.d_model, .bias = false}) {
  dt_bias = drawn_dt_bias(n_heads, options);
  a_log = Parameter((rand({n_heads}) * 15 + 1).log());
  d = Parameter(ones({n_heads}));
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
  return out_proj(norm(r.y.reshape({batch, length, d_inner}), parts[0]));
}

namespace {

/// Neighbours (v₀, v₁) of the first 2 S of N elements, turned by S angles: x (B, T, H, N).
Tensor rotated(const Tensor& x, const Tensor& cosine, const Tensor& sine) {
  const int64_t batch = x.size(0), length = x.size(1), heads = x.size(2), s = cosine.size(-1);
  const auto v = split(x.slice(-1, 0, 2 * s).reshape({batch, length, heads, s, 2}), {1, 1}, -1);
  const Tensor v0 = v[0].squeeze(-1), v1 = v[1].squeeze(-1);
  const Tensor turned = concat(
      {(v0 * cosine - v1 * sine).unsqueeze(-1), (v0 * sine + v1 * cosine).unsqueeze(-1)}, -1);
  return concat({turned.reshape({batch, length, heads, 2 * s}), x.slice(-1, 2 * s, x.size(-1))},
                -1);
}

/// (B, T, G, N), each group's for all of its heads: (B, T, H, N).
Tensor for_heads(const Tensor& x, int64_t heads) {
  const int64_t groups = x.size(2);
  return x.unsqueeze(3)
      .expand({x.size(0), x.size(1), groups, heads / groups, x.size(3)})
      .reshape({x.size(0), x.size(1), heads, x.size(3)});
}

Tensor last_of(const Tensor& x) { return x.slice(1, x.size(1) - 1, x.size(1)).squeeze(1); }

int64_t angles_of(const MambaOptions& o, int64_t d_state) {
  if (o.rope_fraction <= 0 || o.rope_fraction > 1)
    throw ValueError("rope_fraction: must be above 0 and at most 1, but is {}", o.rope_fraction);
  const auto angles = static_cast<int64_t>(static_cast<double>(d_state) * o.rope_fraction) / 2;
  if (angles < 1)
    throw ValueError("rope_fraction: must let a pair of the {} states turn, but is {}", d_state,
                     o.rope_fraction);
  return angles;
}

}  // namespace

Mamba3::Mamba3(const LanguageModelOptions& o)
    : options(o.mamba),
      d_inner(inner_width(o)),
      d_state(o.mamba.d_state == 0 ? 128 : o.mamba.d_state),
      n_heads(heads_of(o)),
      n_angles(angles_of(o.mamba, d_state)),
      in_proj({.d_in = o.d_model,
               .d_out = 2 * d_inner + 2 * o.mamba.n_groups * d_state + 3 * n_heads + n_angles,
               .bias = false}),
      norm(o.mamba, d_inner, "none", GateOrder::norm_then_gate, n_heads),
      out_proj({.d_in = d_inner, .d_out = o.d_model, .bias = false}) {
  dt_bias = drawn_dt_bias(n_heads, options);
  d = Parameter(ones({n_heads}));
  b_bias = Parameter(ones({n_heads, 1, d_state})), c_bias = Parameter(ones({n_heads, 1, d_state}));
  b_norm = Parameter(ones({d_state})), c_norm = Parameter(ones({d_state}));
  scale_output(out_proj, o);
}

Tensor Mamba3::operator()(const Tensor& u, MixerState* state) const {
  const int64_t batch = u.size(0), length = u.size(1), groups = options.n_groups;
  const int64_t shared = groups * d_state;
  const auto parts = split(
      in_proj(u), {d_inner, d_inner, shared, shared, n_heads, n_heads, n_heads, n_angles}, -1);
  const DType wide = u.dtype() == float64 ? float64 : float32;
  Tensor y;
  {
    const Autocast off(float32);
    const auto at = [&](size_t i) { return parts[i].to(wide); };
    const Shape per_group{batch, length, groups, d_state};
    y = recurrence(at(1).reshape({batch, length, n_heads, options.head_dim}),
                   rms_norm(at(2).reshape(per_group), b_norm, {.eps = 1e-5}),
                   rms_norm(at(3).reshape(per_group), c_norm, {.eps = 1e-5}),
                   softplus(at(4) + dt_bias), at(5), sigmoid(at(6)), at(7), state);
  }
  if (state) state->length += length;
  return out_proj(norm(y.reshape({batch, length, d_inner}).to(parts[0].dtype()), parts[0]));
}

Tensor Mamba3::recurrence(const Tensor& x, const Tensor& b_in, const Tensor& c_in,
                          const Tensor& delta, const Tensor& alpha, const Tensor& lambda,
                          const Tensor& phi, MixerState* state) const {
  constexpr double kPi = std::numbers::pi, kSlowest = 1e-4;
  const int64_t length = x.size(1);
  const Tensor b = for_heads(b_in, n_heads) + b_bias.squeeze(1);
  const Tensor c = for_heads(c_in, n_heads) + c_bias.squeeze(1);
  const Tensor rate = maximum(relu(alpha) + 1 / (1 + relu(-alpha)), full_like(alpha, kSlowest));
  const Tensor fading = maximum(rate * delta, full_like(delta, 1e-30));  // is divided by below

  const bool goes_on = state && state->angle.defined();
  Tensor theta = cumsum(kPi * phi.tanh().unsqueeze(2) * delta.unsqueeze(-1), 1);
  if (goes_on) theta = theta + state->angle.unsqueeze(1);
  const Tensor cosine = cos(theta), sine = sin(theta), b_turned = rotated(b, cosine, sine);

  // What a token leaves to the next one is in the state as if it had been taken in with the token,
  // once that next one is known: so the scale of x_t in the state, and in y_t itself, differ.
  const Tensor late = (1 - lambda) * delta;
  const Tensor left = concat({late.slice(1, 1, length), zeros_like(last_of(late).unsqueeze(1))}, 1);
  const Tensor scale = (lambda * delta + left) / fading;  // ssd multiplies by its Δ, the fading
  SsdInputs more;
  if (goes_on)
    more.state = state->ssm + late.slice(1, 0, 1).reshape({x.size(0), n_heads, 1, 1}) *
                                  state->values.unsqueeze(-1) * state->keys.unsqueeze(-2);
  const SsdResult r =
      ssd(x * scale.unsqueeze(-1), fading, full_like(dt_bias, -1), b_turned,
          rotated(c, cosine, sine), more, {.dt_softplus = false, .final_state = state != nullptr});
  if (state) {
    const Tensor angle = last_of(theta);  // without its whole turns, which would cost digits
    state->angle = angle - 2 * kPi * (angle / (2 * kPi)).to(int64).to(angle.dtype());
    state->ssm = *r.state, state->keys = last_of(b_turned), state->values = last_of(x);
  }
  return r.y + x * (d - left * (b * c).sum(-1)).unsqueeze(-1);  // b · c is the same unturned
}

}  // namespace norma::nn
