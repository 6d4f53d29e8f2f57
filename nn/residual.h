#pragma once

#include <optional>
#include <vector>

#include "norma/core/tensor.h"

namespace norma::nn {

/// A residual stream. A branch that was added waits until somebody reads the sum: a norm reads it
/// together with the sum, in one pass over memory.
struct Stream {
  Tensor value;
  std::optional<Tensor> pending = none;

  void add(const Tensor& branch);
  const Tensor& read();
  void set(const Tensor& sum) { value = sum, pending = none; }
};

/// The streams that a placement carries from layer to layer.
struct Residual {
  Stream main;
  std::vector<Stream> more = {};
};

}  // namespace norma::nn
