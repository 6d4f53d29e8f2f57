#pragma once

#include <limits>

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

struct SsdOptions {
  bool dt_softplus = true;  ///< softplus(dt + dt_bias), else the sum itself
  double dt_min = 0, dt_max = std::numeric_limits<double>::infinity();  ///< Δ is held between
  bool final_state = false;  ///< whether the result holds the last state
  int64_t chunk = 0;         ///< steps a block of products; 0: chosen by the kernel
  bool log_a = false;  ///< a comes as log(−a), the parameter of Mamba, and so does its gradient
  bool operator==(const SsdOptions&) const = default;
};
/// What may be absent: the skip, the bias of dt, the state to begin with (else zeros).
struct SsdInputs {
  std::optional<Tensor> d = none, dt_bias = none, state = none;
};
struct SsdResult {
  Tensor y;
  std::optional<Tensor> state;
};

/// The state-space dual of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), for each of H heads:
///   Δ = clamp(softplus(dt + dt_bias), dt_min, dt_max),
///   S_t = exp(Δ_t a) S_{t−1} + Δ_t x_t b_tᵀ,  y_t = S_t c_t + d x_t
/// x (B, T, H, P); dt (B, T, H); a (H), negative for a state that fades; b, c (B, T, G, N), G
/// dividing H, shared by H / G heads; d (H) or (H, P); dt_bias (H); state (B, H, P, N). x, dt, b, c
/// have one floating dtype; a, d, dt_bias any; the state, always kept in float32 (float64 for
/// float64), that one. y is like x, dense. Any T ≥ 1.
/// The kernels work by chunks: with s the running sum of Δ a in one, L_ij = exp(s_i − s_j) for
/// i ≥ j, else 0, and S the state before it,
///   y = (L ⊙ c bᵀ) Δx + exp(s) ⊙ c Sᵀ,  S′ = exp(s_Q) S + (exp(s_Q − s) ⊙ Δx)ᵀ b
/// Throws ShapeError, DTypeError or ValueError where arguments do not fit.
SsdResult ssd(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b, const Tensor& c,
              const SsdInputs& more = {}, const SsdOptions& options = {});

struct SsdGrads {
  Tensor dx, ddt, da, db, dc;
  std::optional<Tensor> dd, ddt_bias, dstate;
};
struct Ssd {
  using Options = SsdOptions;
  static constexpr std::string_view name = "ssd";
  static void check(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                    const Tensor& c, const std::optional<Tensor>& d,
                    const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& state,
                    const Options&);
  static SsdResult define(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                          const Tensor& c, const std::optional<Tensor>& d,
                          const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& state,
                          const Options&);
  static SsdResult forward(Context&, const Tensor& x, const Tensor& dt, const Tensor& a,
                           const Tensor& b, const Tensor& c, const std::optional<Tensor>& d,
                           const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& state,
                           const Options&);
  static SsdGrads backward(Context&, const std::optional<Tensor>& dy,
                           const std::optional<Tensor>& dlast_state);
};
/// With G_t = dy_t c_tᵀ + exp(Δ_{t+1} a) G_{t+1}:
///   dc_t = S_tᵀ dy_t,  db_t = G_tᵀ Δ_t x_t,  d(Δx)_t = G_t b_t,  d(Δa)_t = exp(Δ_t a) ⟨G_t,
///   S_{t−1}⟩, dx = Δ d(Δx) + d dy,  dΔ = ⟨d(Δx), x⟩ + a d(Δa),  da = Σ Δ d(Δa)
/// db and dc are summed over the heads of a group; dΔ reaches dt where it was not clamped.
struct SsdBackward {
  using Options = SsdOptions;
  static constexpr std::string_view name = "ssd_backward";
  static SsdGrads define(const Tensor& dy, const std::optional<Tensor>& dlast_state,
                         const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                         const Tensor& c, const std::optional<Tensor>& d,
                         const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& state,
                         const Options&);
  static SsdGrads forward(Context&, const Tensor& dy, const std::optional<Tensor>& dlast_state,
                          const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                          const Tensor& c, const std::optional<Tensor>& d,
                          const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& state,
                          const Options&);
};

}  // namespace norma
