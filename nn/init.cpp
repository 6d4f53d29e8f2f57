#include "norma/nn/init.h"

#include <cmath>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"

namespace norma::nn {
namespace {

void require_matrix(std::string_view name, const Tensor& t) {
  if (t.dim() != 2)
    throw ShapeError("{}: a (fan_out, fan_in) matrix is needed, but came {}", name, t.shape());
}

}  // namespace

void init_constant(const Tensor& t, double value) {
  const NoGrad plain;
  t.fill_(value);
}
void init_normal(const Tensor& t, double mean, double std) {
  const NoGrad plain;
  t.copy_(randn_like(t) * std + mean);
}
void init_uniform(const Tensor& t, double low, double high) {
  const NoGrad plain;
  t.copy_(rand_like(t) * (high - low) + low);
}
void init_xavier_uniform(const Tensor& t) {
  require_matrix("init_xavier_uniform", t);
  const double bound = std::sqrt(6 / static_cast<double>(t.size(0) + t.size(1)));
  init_uniform(t, -bound, bound);
}
void init_kaiming_uniform(const Tensor& t, double gain) {
  require_matrix("init_kaiming_uniform", t);
  const double bound = gain * std::sqrt(3 / static_cast<double>(t.size(1)));
  init_uniform(t, -bound, bound);
}

void init_inner(const Linear& layer) { init_output(layer, 1); }
void init_output(const Linear& layer, int64_t writes) {
  init_normal(layer.weight, 0, 0.02 / std::sqrt(static_cast<double>(writes)));
  if (layer.bias.defined()) init_constant(layer.bias, 0);
}

}  // namespace norma::nn
