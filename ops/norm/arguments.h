#pragma once

#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/norm.h"

namespace norma::detail {

// Optional tensors as kernels take them: an absent one is an absent view.

inline std::optional<Tensor> even(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(even_rows(*t)) : none;
}
inline std::optional<Tensor> dense(const std::optional<Tensor>& t) {
  return t ? std::optional<Tensor>(dense(*t)) : none;
}
inline ConstRows rows(const std::optional<Tensor>& t) { return t ? ConstRows(*t) : ConstRows(); }
inline ConstVec vec(const std::optional<Tensor>& t) { return t ? ConstVec(*t) : ConstVec(); }
inline Rows out_rows(const std::optional<Tensor>& t) { return t ? Rows(*t) : Rows(); }
inline Vec out_vec(const std::optional<Tensor>& t) { return t ? Vec(*t) : Vec(); }
/// An empty tensor of that dtype, where somebody wants it.
inline std::optional<Tensor> made(const Shape& shape, std::optional<DType> dtype, Device device) {
  return dtype ? std::optional<Tensor>(empty(shape, *dtype, device)) : none;
}

}  // namespace norma::detail
