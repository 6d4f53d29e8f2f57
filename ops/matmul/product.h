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
/// of memory.
Tensor product(const Tensor& a, const Tensor& b, const Tensor& bias, const TensorSpec& spec,
               bool apart = false);

struct LayerGrads {
  Tensor dx, dw;
  std::optional<Tensor> db = std::nullopt;
};
/// dw = dyᵀ x, db = Σ dy and dx = dy w, times gelu_tanh′(u) where there is a u, in one launch; none
/// where the GPU's kernel for small products is not for them. dy (rows, m), x (rows, k), w (m, k).
std::optional<LayerGrads> small_layer_grads(const Tensor& dy, const Tensor& x, const Tensor& w,
                                            const std::optional<Tensor>& u, bool db);

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
