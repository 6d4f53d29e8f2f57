#pragma once

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

/// The mean over the counted targets, their sum, or one loss each.
enum class LossReduction { mean, sum, each };
struct CrossEntropyOptions {
  int64_t ignore_index = -1;   ///< targets that are left out
  double label_smoothing = 0;  ///< ε: the target distribution is (1 − ε) one-hot + ε uniform
  LossReduction reduction = LossReduction::mean;
  /// The forward pass may write the mean's gradient over the logits, for one sweep to find: for who
  /// gives them away. They are read once less then, where there is a kernel for it (bfloat16 on a
  /// GPU, rows of 1025 to 50688); a second derivative there is a GraphError.
  bool in_place = false;
  bool operator==(const CrossEntropyOptions&) const = default;
};

/// The loss of logits (…, V) against class indices (…), int32 or int64, from 0 to V − 1:
///   l = lse(logits) − (1 − ε) logits[target] − ε mean(logits)
///   dlogits = (softmax(logits) − (1 − ε) onehot − ε/V) · scale, 0 where the target is ignored
/// An ignored target loses 0; where all are ignored the mean is 0 too. Fused: forward saves one
/// number a row, and no distribution is stored. Losses of half-type logits are float32.
/// Throws ShapeError, DTypeError, and ValueError naming a target outside the classes.
Tensor cross_entropy(const Tensor& logits, const Tensor& targets,
                     const CrossEntropyOptions& options = {});

struct CrossEntropyResult {
  Tensor losses;  ///< (…), 0 where ignored
  Constant lse;
};
/// One loss a row.
struct CrossEntropy {
  using Options = CrossEntropyOptions;
  static constexpr std::string_view name = "cross_entropy";
  static void check(const Tensor& logits, const Tensor& targets, const Options&);
  static CrossEntropyResult define(const Tensor& logits, const Tensor& targets, const Options&);
  static CrossEntropyResult forward(Context&, const Tensor& logits, const Tensor& targets,
                                    const Options&);
  static Tensor backward(Context&, const std::optional<Tensor>& dlosses,
                         const std::optional<Tensor>&);
};
struct CrossEntropyBackwardOptions {
  int64_t ignore_index = -1;
  double label_smoothing = 0;
  bool in_place = false;  ///< dlogits takes the logits' memory: for the engine, at their last use
  bool operator==(const CrossEntropyBackwardOptions&) const = default;
};
struct CrossEntropyBackward {
  using Options = CrossEntropyBackwardOptions;
  static constexpr std::string_view name = "cross_entropy_backward";
  static Tensor define(const Tensor& dlosses, const Tensor& logits, const Tensor& targets,
                       const Tensor& lse, const Options&);
  static Tensor forward(Context&, const Tensor& dlosses, const Tensor& logits,
                        const Tensor& targets, const Tensor& lse, const Options&);
};

struct MeanCrossEntropyResult {
  Tensor loss;
  Constant lse, share;  ///< share: 1 / max(1, counted targets)
};
/// What training asks for: the mean without tensor arithmetic between the rows' losses and it, so
/// that a step on a GPU has three kernels here instead of a dozen.
struct MeanCrossEntropy {
  using Options = CrossEntropyOptions;
  static constexpr std::string_view name = "cross_entropy";
  static void check(const Tensor& logits, const Tensor& targets, const Options&);
  static MeanCrossEntropyResult define(const Tensor& logits, const Tensor& targets, const Options&);
  static MeanCrossEntropyResult forward(Context&, const Tensor& logits, const Tensor& targets,
                                        const Options&);
  static Tensor backward(Context&, const std::optional<Tensor>& dloss, const std::optional<Tensor>&,
                         const std::optional<Tensor>&);
};
/// CrossEntropyBackward of dlosses = dloss · share.
struct MeanCrossEntropyBackward {
  using Options = CrossEntropyBackwardOptions;
  static constexpr std::string_view name = "cross_entropy_backward";
  static Tensor define(const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                       const Tensor& lse, const Tensor& share, const Options&);
  static Tensor forward(Context&, const Tensor& dloss, const Tensor& logits, const Tensor& targets,
                        const Tensor& lse, const Tensor& share, const Options&);
};

}  // namespace norma
