#pragma once

#include "norma/nn/module.h"

namespace norma::nn {

struct LinearOptions {
  int64_t d_in = 0, d_out = 0;
  bool bias = true;
};
/// y = x weightᵀ + bias; weight (d_out, d_in). Starts like PyTorch's: uniform in ±1/√d_in.
struct Linear {
  explicit Linear(const LinearOptions& options);
  Tensor operator()(const Tensor& x) const;
  void visit(Visitor& v) { v("weight", weight), v("bias", bias); }

  LinearOptions options;
  Parameter weight, bias;  ///< bias undefined where there is none
};

struct EmbeddingOptions {
  int64_t rows = 0, width = 0;
};
/// y = weight[indices]; weight (rows, width), starts standard normal.
struct Embedding {
  explicit Embedding(const EmbeddingOptions& options);
  Tensor operator()(const Tensor& indices) const;
  void visit(Visitor& v) { v("weight", weight); }

  EmbeddingOptions options;
  Parameter weight;
};

/// Dropout while training, identity otherwise.
struct Dropout {
  explicit Dropout(double probability = 0) : p(probability) {}
  Tensor operator()(const Tensor& x) const;
  void visit(Visitor& v) { v.training(training); }

  double p;
  bool training = true;
};

}  // namespace norma::nn
