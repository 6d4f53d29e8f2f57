#pragma once

#include "norma/core/tensor.h"
#include "norma/nn/linear.h"

namespace norma::nn {

// Fresh values for a parameter, in place, from the ambient generator. fan_in and fan_out are the
// sizes of a (fan_out, fan_in) matrix.

void init_constant(const Tensor& t, double value);
void init_normal(const Tensor& t, double mean = 0, double std = 0.02);
void init_uniform(const Tensor& t, double low, double high);
/// Uniform in ±√(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, AISTATS).
void init_xavier_uniform(const Tensor& t);
/// Uniform in ±gain · √(3 / fan_in) (He et al. 2015, arXiv:1502.01852). gain √2 suits ReLU;
/// PyTorch's Linear uses 1/√3.
void init_kaiming_uniform(const Tensor& t, double gain);

/// GPT-2's start of a layer inside a block: normal with σ 0.02, biases 0; and of one that writes
/// into the residual stream, divided by √writes, so that the stream does not grow with their
/// number.
void init_inner(const Linear& layer);
void init_output(const Linear& layer, int64_t writes);

}  // namespace norma::nn
