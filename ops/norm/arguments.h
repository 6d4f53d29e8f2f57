#pragma once

#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/norm.h"

namespace norma::detail {

// Optional tensors as kernels take them: an absent one is an absent view.

/// What a kernel reads of a tensor that outlives it: the tensor itself, uncounted, or a copy.
class Read {
 public:
  Read() = default;
  Read(const Tensor& t, bool as_it_is, Tensor (*copy)(const Tensor&)) : read_(&t) {
    if (as_it_is) return;
    copy_ = copy(t);
    read_ = &copy_;
  }
  Read(const Read&) = delete;
  Read& operator=(const Read&) = delete;
  const Tensor* get() const { return read_; }

 private:
  Tensor copy_;
  const Tensor* read_ = nullptr;
};
inline Read even(const Tensor& t) { return {t, has_even_rows(t), even_rows}; }
inline Read even(const std::optional<Tensor>& t) { return t ? even(*t) : Read(); }
inline Read dense(const std::optional<Tensor>& t) {
  return t ? Read(*t, t->is_dense(), dense) : Read();
}
Read even(Tensor&&) = delete;
Read even(std::optional<Tensor>&&) = delete;
inline ConstRows rows(const Read& t) { return t.get() ? ConstRows(*t.get()) : ConstRows(); }
inline ConstVec vec(const Read& t) { return t.get() ? ConstVec(*t.get()) : ConstVec(); }
inline ConstRows rows(const std::optional<Tensor>& t) { return t ? ConstRows(*t) : ConstRows(); }
inline ConstVec vec(const std::optional<Tensor>& t) { return t ? ConstVec(*t) : ConstVec(); }
inline Rows out_rows(const std::optional<Tensor>& t) { return t ? Rows(*t) : Rows(); }
inline Vec out_vec(const std::optional<Tensor>& t) { return t ? Vec(*t) : Vec(); }
/// An empty tensor of that dtype, where somebody wants it.
inline std::optional<Tensor> made(const Shape& shape, std::optional<DType> dtype, Device device) {
  return dtype ? std::optional<Tensor>(empty(shape, *dtype, device)) : none;
}

}  // namespace norma::detail
