#include <array>

#include "norma/core/cuda/early.h"
#include "norma/core/cuda/side_stream.h"
#include "norma/core/dispatch.h"
#include "norma/core/gradient_memory.h"
#include "norma/core/waiting_launch.h"
#include "norma/ops/matmul/kernels.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/matmul/product.h"
#include "norma/ops/matmul/small.h"
#include "norma/ops/matmul/weights_hopper.h"
#include "norma/ops/view/view.h"

// Gradients of whole layers by the GPU's kernels for small products and for long sums.

namespace norma::detail {
namespace {

/// Whether it is float32 that the GPU may round to tf32.
bool is_tf32(const Tensor& t) {
  return is_tf32_allowed() && t.device().is_cuda() && t.dtype() == float32;
}

/// dw = dyᵀ x and, where it is wanted, db = Σ dy, with room for them.
struct WeightProduct {
  Tensor columns, inputs, dw;
  std::optional<Tensor> db = none;

  WeightProduct(const Tensor& dy, const Tensor& x, bool with_db)
      : columns(product_operand(dy.t())),
        inputs(product_operand(x)),
        dw(empty({dy.size(1), x.size(1)}, dy.dtype(), dy.device())) {
    if (with_db) db = empty({dy.size(1)}, dy.dtype(), dy.device());
  }
  MatmulArgs args() const {
    return {.a = columns, .b = inputs, .bias = {}, .c = dw, .sums = db ? Vec(*db) : Vec()};
  }
};

}  // namespace

bool as_weight(const Tensor& w) {
  if constexpr (kBuiltWithCuda)
    if (w.device().is_cuda()) count_writes(*w.storage());
  return true;
}

std::optional<LayerGrads> small_layer_grads(const Tensor& dy, const Tensor& x, const Tensor& w,
                                            bool db) {
  if constexpr (kBuiltWithCuda) {
    if (!is_tf32(dy) || !is_tf32(w)) return none;
    const WeightProduct of_w(dy, x, db);
    const Tensor dx = empty({dy.size(0), w.size(1)}, float32, dy.device());
    const Tensor rows = product_operand(dy), weight = product_operand(w);
    const MatmulArgs of_x{.a = rows, .b = weight, .bias = {}, .c = dx, .weight = as_weight(weight)};
    if (!suits_small(of_x) || !suits_small(of_w.args())) return none;
    run_with_aside(
        dy.device(), std::array{of_w.dw, of_w.db.value_or(Tensor())},
        [&] {
          const Cuda on = cuda_stream(dy.device());
          multiply_small_aside(go_aside(on), std::array{of_w.args()});
          multiply_small(on, of_x);
        },
        std::array{of_w.columns, of_w.inputs});
    return LayerGrads{dx, of_w.dw, of_w.db};
  }
  return none;
}

Tensor waiting_product(const Tensor& a, const Tensor& b, const Tensor& bias) {
  if constexpr (kBuiltWithCuda) {
    if (!may_wait() || !is_tf32(a) || !is_tf32(b)) return {};
    const Tensor left = product_operand(a), right = product_operand(b);
    const Tensor y = empty({a.size(0), b.size(1)}, float32, a.device());
    if (let_rows_wait(y, none,
                      {.a = left, .b = right, .bias = bias, .c = y, .weight = as_weight(right)},
                      {left, right, bias}))
      return y;
  }
  return {};
}

std::optional<MlpResult> small_mlp(const Tensor& x, const Tensor& w_in,
                                   const std::optional<Tensor>& b_in, const Tensor& w_out,
                                   const std::optional<Tensor>& b_out) {
  if constexpr (kBuiltWithCuda) {
    if (!is_tf32(x) || !is_tf32(w_in)) return none;
    const auto vector = [](const std::optional<Tensor>& b) { return b ? dense(*b) : Tensor(); };
    const Tensor rows = product_operand(x), in = product_operand(w_in.t()),
                 out = product_operand(w_out.t()), of_in = vector(b_in), of_out = vector(b_out);
    const auto made = [&](const Tensor& w) {
      return empty({x.size(0), w.size(0)}, float32, x.device());
    };
    const MlpResult r{made(w_in), made(w_in), made(w_out)};
    const MatmulArgs inner{.a = rows,
                           .b = in,
                           .bias = of_in,
                           .c = r.a,
                           .epilogue = MatmulEpilogue::gelu,
                           .pre = r.u,
                           .weight = as_weight(in)};
    const MatmulArgs outer{.a = r.a, .b = out, .bias = of_out, .c = r.y, .weight = as_weight(out)};
    if (let_rows_wait(r.y, inner, outer, {rows, in, out, of_in, of_out, r.u, r.a}) ||
        multiply_small_mlp(cuda_stream(x.device()), inner, outer))
      return r;
  }
  return none;
}

std::optional<MlpGrads> small_mlp_grads(const Tensor& dy, const Tensor& a, const Tensor& u,
                                        const Tensor& x, const Tensor& w_in, const Tensor& w_out,
                                        bool db_in, bool db_out, bool saved) {
  if constexpr (kBuiltWithCuda) {
    if (!is_tf32(dy) || !is_tf32(w_in) || !is_tf32(w_out)) return none;
    const Tensor du = empty(u.spec()), dx = empty(x.spec());
    const WeightProduct of_in(du, x, db_in), of_out(dy, a, db_out);
    const Tensor rows = product_operand(dy), in = product_operand(w_in),
                 out = product_operand(w_out);
    const MatmulArgs of_u{.a = rows,
                          .b = out,
                          .bias = {},
                          .c = du,
                          .epilogue = MatmulEpilogue::gelu_backward,
                          .pre = u,
                          .weight = as_weight(out),
                          .saved = saved && running_sweeps() > 0};
    const MatmulArgs of_x{.a = du, .b = in, .bias = {}, .c = dx, .weight = as_weight(in)};
    const std::array of_weights{of_out.args(), of_in.args()};
    for (const MatmulArgs& k : {of_u, of_x, of_weights[0], of_weights[1]})
      if (!suits_small(k)) return none;
    const auto given = [](const std::optional<Tensor>& t) { return t.value_or(Tensor()); };
    run_with_aside(
        dy.device(), std::array{of_in.dw, of_out.dw, given(of_in.db), given(of_out.db)},
        [&] {
          const Cuda on = cuda_stream(dy.device());
          multiply_small(on, of_u);
          multiply_small_aside(go_aside(on), of_weights);
          multiply_small(on, of_x);
        },
        std::array{of_in.columns, of_in.inputs, of_out.columns, of_out.inputs});
    return MlpGrads{dx, of_in.dw, of_out.dw, of_in.db, of_out.db};
  }
  return none;
}

std::optional<MlpWeightGrads> mlp_weight_grads(const Tensor& dy, const Tensor& a, const Tensor& x,
                                               DType dtype,
                                               const std::function<Tensor()>& make_du) {
  if constexpr (kBuiltWithCuda) {
    if (!x.device().is_cuda() || dy.dtype() != x.dtype() || a.dtype() != x.dtype()) return none;
    const MlpWeightGrads grads{empty({a.size(1), x.size(1)}, dtype, x.device()),
                               empty({dy.size(1), a.size(1)}, dtype, x.device())};
    const Tensor inputs = product_operand(x), hidden = product_operand(a),
                 columns = product_operand(dy.t());
    const auto products = [&](const Tensor& du_columns) {
      return std::array{MatmulArgs{.a = du_columns, .b = inputs, .bias = {}, .c = grads.dw_in},
                        MatmulArgs{.a = columns, .b = hidden, .bias = {}, .c = grads.dw_out}};
    };
    if (!suits_weights(products(product_operand(a.t())))) return none;
    const Tensor du_columns = product_operand(make_du().t());
    if (!multiply_weights(cuda_stream(x.device()), products(du_columns)))
      throw CudaError("mlp: the gradient of a must lie as a does");
    return grads;
  }
  return none;
}

}  // namespace norma::detail
