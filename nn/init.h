#pragma once

#include "norma/core/tensor.h"

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

}  // namespace norma::nn
