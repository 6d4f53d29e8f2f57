#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

enum class MatmulEpilogue { plain, gelu, gelu_backward };

/// c = a b for each index of the leading dimensions, in which a and b have stride 0 where they
/// broadcast; a (…, n, k), b (…, k, m), c (…, n, m) dense; of a and b one of the last two strides
/// is 1. With a bias (m) it is added to every row. On the CPU float32 or float64; a GPU takes the
/// half types as they are and sums them in float32 (which c may keep). Epilogues, for which there
/// are no leading dimensions and `pre` is dense:
///   gelu           pre = a b + bias, c = gelu_tanh(pre)
///   gelu_backward  c = (a b) ⊙ gelu_tanh′(pre)
///   sums (n)       Σ_k a, of the very elements that the product reads: a bias's gradient (on a
///   GPU)
///   accumulate     c += a b, rounded once (on a GPU, which also takes a c whose rows lie apart)
struct MatmulArgs {
  ConstView a, b;
  ConstVec bias;
  View c;
  MatmulEpilogue epilogue = MatmulEpilogue::plain;
  Rows pre = {};
  Vec sums = {};
  bool accumulate = false;
  bool weight = false;  ///< b's changes count (core/cuda/early.h)
  bool saved = false;   ///< pre was made before the sweep
};
void run(Cpu, const MatmulArgs&);
void run(Cuda, const MatmulArgs&);

}  // namespace norma
