#include "norma/nn/linear.h"

#include <cmath>

#include "norma/core/random.h"
#include "norma/nn/init.h"
#include "norma/ops/dropout/dropout.h"
#include "norma/ops/embedding/embedding.h"
#include "norma/ops/matmul/matmul.h"

namespace norma::nn {

Linear::Linear(const LinearOptions& o) : options(o), weight(zeros({o.d_out, o.d_in})), bias() {
  const double bound = 1 / std::sqrt(static_cast<double>(std::max<int64_t>(1, o.d_in)));
  init_uniform(weight, -bound, bound);
  if (!o.bias) return;
  bias = Parameter(zeros({o.d_out}));
  init_uniform(bias, -bound, bound);
}
Tensor Linear::operator()(const Tensor& x) const {
  return linear(x, weight, bias.defined() ? std::optional<Tensor>(bias) : none);
}

Embedding::Embedding(const EmbeddingOptions& o) : options(o), weight(randn({o.rows, o.width})) {}
Tensor Embedding::operator()(const Tensor& indices) const { return embedding(indices, weight); }

Tensor Dropout::operator()(const Tensor& x) const { return training ? dropout(x, p) : x; }

}  // namespace norma::nn
