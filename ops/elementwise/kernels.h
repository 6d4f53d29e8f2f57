#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

// Every elementwise kernel reads operands of any strides (stride 0 where they broadcast) and
// computes in float32 for the half types, in 64 bits for integers, else in the dtype itself.

enum class UnaryFunction {
  neg,
  abs,
  sign,
  square,
  reciprocal,
  sqrt,
  rsqrt,
  exp,
  expm1,
  neg_exp,
  log,
  log1p,
  sin,
  cos,
  tanh,
  erf,
  sigmoid,
  silu,
  gelu,
  gelu_tanh,
  relu,
  softplus,
};
struct UnaryArgs {
  UnaryFunction function;
  ConstView x;
  View y;  ///< dense
};
void run(Cpu, const UnaryArgs&);
void run(Cuda, const UnaryArgs&);

/// The last six are gradients: a is dy, b the input, or the output of sigmoid and tanh.
enum class BinaryFunction {
  add,
  sub,
  mul,
  div,
  pow,
  minimum,
  maximum,
  tanh_backward,
  sigmoid_backward,
  silu_backward,
  gelu_backward,
  gelu_tanh_backward,
  relu_backward,
};
struct BinaryArgs {
  BinaryFunction function;
  ConstView a, b;  ///< both expanded to y's shape
  View y;          ///< dense
};
void run(Cpu, const BinaryArgs&);
void run(Cuda, const BinaryArgs&);

enum class Comparison { equal, not_equal, less, less_equal, greater, greater_equal };
struct CompareArgs {
  Comparison comparison;
  ConstView a, b;
  View y;  ///< dense bool
};
void run(Cpu, const CompareArgs&);
void run(Cuda, const CompareArgs&);

struct WhereArgs {
  ConstView condition, a, b;  ///< all expanded to y's shape
  View y;                     ///< dense
};
void run(Cpu, const WhereArgs&);
void run(Cuda, const WhereArgs&);

}  // namespace norma
