#pragma once

#include <vector>

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

struct ScanOptions {
  bool dt_softplus = true;   ///< Δ = softplus(dt + dt_bias), else the sum itself
  bool final_state = false;  ///< whether the result holds the last state
  int64_t chunk = 0;  ///< steps between the states kept for backward; 0: chosen from N; on a GPU 32
  bool log_a = false;  ///< a comes as log(−a), the parameter of Mamba, and so does its gradient
  bool operator==(const ScanOptions&) const = default;
};
/// What may be absent: the skip, the gate, the bias of dt, the state to begin with (else zeros).
struct ScanInputs {
  std::optional<Tensor> d = none, z = none, dt_bias = none, state = none;
};
struct ScanResult {
  Tensor y;
  std::optional<Tensor> state;
};

/// The selective scan of Mamba (Gu & Dao 2023, arXiv:2312.00752), for each of E channels:
///   h_t = exp(Δ_t a) ⊙ h_{t−1} + Δ_t x_t b_t,  y_t = ⟨h_t, c_t⟩ + d x_t,  times silu(z_t) if gated
/// x, dt, z (B, T, E); a (E, N), negative for a state that fades; b, c (B, T, N); d, dt_bias (E);
/// state (B, E, N). x, dt, b, c, z have one floating dtype; a, d, dt_bias any; the state, always
/// kept in float32 (float64 for float64), that one. y is like x, dense. T ≥ 1.
/// With G_t = dy_t c_tᵀ + exp(Δ_{t+1} a) ⊙ G_{t+1} and P_t = G_t ⊙ h_{t−1} ⊙ exp(Δ_t a):
///   dc_t = Σ_E h_t dy_t,  db_t = Σ_E Δ_t x_t G_t,  d(Δx)_t = G_t b_t,  da = Σ Δ_t P_t,
///   dΔ_t = x_t d(Δx)_t + Σ_N a ⊙ P_t
/// Only every chunk-th state is kept for it; those between are computed again.
/// Throws ShapeError, DTypeError or ValueError where arguments do not fit.
ScanResult selective_scan(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                          const Tensor& c, const ScanInputs& more = {},
                          const ScanOptions& options = {});

/// The largest N.
inline constexpr int64_t kMaxScanState = 256;

struct SelectiveScan {
  using Options = ScanOptions;
  static constexpr std::string_view name = "selective_scan";
  static void check(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                    const Tensor& c, const std::optional<Tensor>& d, const std::optional<Tensor>& z,
                    const std::optional<Tensor>& dt_bias, const std::optional<Tensor>& state,
                    const Options&);
  static ScanResult define(const Tensor& x, const Tensor& dt, const Tensor& a, const Tensor& b,
                           const Tensor& c, const std::optional<Tensor>& d,
                           const std::optional<Tensor>& z, const std::optional<Tensor>& dt_bias,
                           const std::optional<Tensor>& state, const Options&);
  static ScanResult forward(Context&, const Tensor& x, const Tensor& dt, const Tensor& a,
                            const Tensor& b, const Tensor& c, const std::optional<Tensor>& d,
                            const std::optional<Tensor>& z, const std::optional<Tensor>& dt_bias,
                            const std::optional<Tensor>& state, const Options&);
  /// In the order of the arguments; undefined for absent ones.
  static std::vector<Tensor> backward(Context&, const std::optional<Tensor>& dy,
                                      const std::optional<Tensor>& dlast_state);
};
struct SelectiveScanBackward {
  using Options = ScanOptions;
  static constexpr std::string_view name = "selective_scan_backward";
  static std::vector<Tensor> define(const Tensor& dy, const std::optional<Tensor>& dlast_state,
                                    const Tensor& x, const Tensor& dt, const Tensor& a,
                                    const Tensor& b, const Tensor& c,
                                    const std::optional<Tensor>& d, const std::optional<Tensor>& z,
                                    const std::optional<Tensor>& dt_bias,
                                    const std::optional<Tensor>& state, const Tensor& chunk_states,
                                    const Options&);
  static std::vector<Tensor> forward(Context&, const Tensor& dy,
                                     const std::optional<Tensor>& dlast_state, const Tensor& x,
                                     const Tensor& dt, const Tensor& a, const Tensor& b,
                                     const Tensor& c, const std::optional<Tensor>& d,
                                     const std::optional<Tensor>& z,
                                     const std::optional<Tensor>& dt_bias,
                                     const std::optional<Tensor>& state, const Tensor& chunk_states,
                                     const Options&);
};

}  // namespace norma
