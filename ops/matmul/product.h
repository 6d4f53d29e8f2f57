#pragma once

#include <functional>
#include <optional>

#include "norma/core/tensor.h"

namespace norma::detail {

// What the ops of this room share.

/// The dtype that the device's kernel multiplies: the CPU has products of float32 and float64.
DType product_dtype(const TensorSpec& spec);
/// t in that dtype, with rows or columns dense: itself where that already holds.
Tensor product_operand(const Tensor& t);
/// All leading dimensions and the rows as one, where that needs no copy.
Tensor as_matrix(const Tensor& t);
/// a b, plus `bias` where it is defined; of product_dtype. `apart`: its rows begin at whole lines
/// of memory. `weight`: b is one, as_weight().
Tensor product(const Tensor& a, const Tensor& b, const Tensor& bias, const TensorSpec& spec,
               bool apart = false, bool weight = false);
/// From here on changes of w count for kernels that read it early. Always true.
bool as_weight(const Tensor& w);

struct LayerGrads {
  Tensor dx, dw;
  std::optional<Tensor> db = std::nullopt;
};
/// dx = dy w and, beside what a sweep goes on with, dw = dyᵀ x and db = Σ dy; none where the GPU's
/// kernel for small products is not for them. dy (rows, m), x (rows, k), w (m, k).
std::optional<LayerGrads> small_layer_grads(const Tensor& dy, const Tensor& x, const Tensor& w,
                                            bool db);

/// a b + bias, matrices, for a norm that may come next; undefined where that cannot wait.
Tensor waiting_product(const Tensor& a, const Tensor& b, const Tensor& bias);

struct MlpResult {
  Tensor u, a, y;
};
/// u = x w_inᵀ + b_in, a = gelu_tanh(u), y = a w_outᵀ + b_out in one launch, of a matrix; none
/// where the GPU's kernel for small ones is not for them.
std::optional<MlpResult> small_mlp(const Tensor& x, const Tensor& w_in,
                                   const std::optional<Tensor>& b_in, const Tensor& w_out,
                                   const std::optional<Tensor>& b_out);

struct MlpGrads {
  Tensor dx, dw_in, dw_out;
  std::optional<Tensor> db_in = std::nullopt, db_out = std::nullopt;
};
/// The same of an MLP's two layers, x → u, a = gelu_tanh(u) → y, all matrices; both weights'
/// gradients in one launch. `saved`: by a node of this sweep, all but dy.
std::optional<MlpGrads> small_mlp_grads(const Tensor& dy, const Tensor& a, const Tensor& u,
                                        const Tensor& x, const Tensor& w_in, const Tensor& w_out,
                                        bool db_in, bool db_out, bool saved);

struct MlpWeightGrads {
  Tensor dw_in, dw_out;
};
/// Of an MLP's two layers, x → a → y, all matrices: duᵀ x and dyᵀ a of `dtype` in one launch, with
/// du (like a) by `make_du` before it; none, and nothing is made, where the GPU's kernel for long
/// sums is not for them.
std::optional<MlpWeightGrads> mlp_weight_grads(const Tensor& dy, const Tensor& a, const Tensor& x,
                                               DType dtype, const std::function<Tensor()>& make_du);

/// Whether w stays float32 beside x of a half type.
bool is_rounded_for(const Tensor& x, const Tensor& w);

}  // namespace norma::detail
