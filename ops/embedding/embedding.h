#pragma once

#include <optional>

#include "norma/core/op.h"
#include "norma/core/tensor.h"

namespace norma {

/// Rows of a table: y = weight[indices], (…, D) for indices (…) and weight (V, D), any dtype.
///   dweight[v] = Σ of dy over the places where indices = v, in their order: the same bits on any
///   number of threads
/// Under Autocast a float32 table gives y in the scope's dtype: a residual stream begins in it.
/// Indices int32 or int64. Throws ShapeError, DTypeError, and ValueError naming an index outside.
Tensor embedding(const Tensor& indices, const Tensor& weight);

/// The same with learned positions: y[…, t] = weight[indices[…, t]] + positions[first + t], indices
/// (…, T), positions (P, D) of weight's floating dtype. The sum is rounded once, under Autocast to
/// the scope's dtype.
///   dpositions[first + t] = Σ of dy[…, t] over the leading dimensions
/// ShapeError also where first + T > P.
Tensor embedding(const Tensor& indices, const Tensor& weight, const Tensor& positions,
                 int64_t first = 0);

struct EmbeddingOptions {
  std::optional<DType> dtype = std::nullopt;  ///< y's where it is not weight's
  bool operator==(const EmbeddingOptions&) const = default;
};
struct Embedding {
  using Options = EmbeddingOptions;
  static constexpr std::string_view name = "embedding";
  static TensorSpec check(const Tensor& indices, const Tensor& weight, const Options&);
  static Tensor forward(Context&, const Tensor& indices, const Tensor& weight, const Options&);
  static std::vector<Tensor> backward(Context&, const Tensor& dy);
};
struct EmbeddingBackwardOptions {
  int64_t rows = 0;                           ///< of the table
  std::optional<DType> dtype = std::nullopt;  ///< the gradient's where it is not x's
  bool operator==(const EmbeddingBackwardOptions&) const = default;
};
/// The transpose: y (rows, D) with y[v] = Σ of x over the places where indices = v, added to what
/// has `arrived` where that is given: it becomes y. For unrecorded sweeps on a GPU.
struct EmbeddingBackward {
  using Options = EmbeddingBackwardOptions;
  static constexpr std::string_view name = "embedding_backward";
  static Tensor forward(Context&, const Tensor& indices, const Tensor& x,
                        const std::optional<Tensor>& arrived, const Options&);
  static std::vector<Tensor> backward(Context&, const Tensor& dy);
};

struct PositionedEmbeddingOptions {
  int64_t first = 0;
  std::optional<DType> dtype = std::nullopt;  ///< y's where it is not weight's
  bool operator==(const PositionedEmbeddingOptions&) const = default;
};
struct PositionedEmbedding {
  using Options = PositionedEmbeddingOptions;
  static constexpr std::string_view name = "embedding";
  static TensorSpec check(const Tensor& indices, const Tensor& weight, const Tensor& positions,
                          const Options&);
  static Tensor define(const Tensor& indices, const Tensor& weight, const Tensor& positions,
                       const Options&);
  static Tensor forward(Context&, const Tensor& indices, const Tensor& weight,
                        const Tensor& positions, const Options&);
  static std::vector<Tensor> backward(Context&, const Tensor& dy);
};
struct PositionedEmbeddingBackwardOptions {
  int64_t rows = 0, position_rows = 0, first = 0;
  std::optional<DType> dtype = std::nullopt;  ///< the gradients' where it is not dy's
  bool operator==(const PositionedEmbeddingBackwardOptions&) const = default;
};
struct PositionedEmbeddingGrads {
  Tensor dweight, dpositions;
};
struct PositionedEmbeddingBackward {
  using Options = PositionedEmbeddingBackwardOptions;
  static constexpr std::string_view name = "embedding_backward";
  static PositionedEmbeddingGrads forward(Context&, const Tensor& indices, const Tensor& dy,
                                          const Options&);
  static std::vector<Tensor> backward(Context&, const std::optional<Tensor>& dweight,
                                      const std::optional<Tensor>& dpositions);
};

}  // namespace norma
