#include <memory>
#include <utility>
#include <vector>

#include "norma/core/cuda/fault.h"
#include "norma/core/cuda/index.cuh"
#include "norma/core/cuda/launch.cuh"
#include "norma/ops/embedding/waiting.h"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/small_row.cuh"
#include "norma/ops/norm/small_row.h"

namespace norma {
namespace {

using norm_cuda::kMostRow, norm_cuda::kRowVec, norm_cuda::RowForward, norm_cuda::RowVec;

constexpr int kRows = 8;  // of a block, a warp each

/// A lookup with positions, and the norm of its rows: a launch less on a small step's path.
__global__ void __launch_bounds__(kRows* kWarpSize)
    embedding_norm_kernel(const __grid_constant__ EmbeddingForwardArgs k,
                          const __grid_constant__ detail::FaultSlot fault,
                          const __grid_constant__ NormForwardArgs norm) {
  wait_for_previous_kernel();
  const int row = static_cast<int>(blockIdx.x) * kRows + static_cast<int>(threadIdx.y);
  const int col = static_cast<int>(threadIdx.x) * kRowVec;
  const bool real = row < k.indices.n;
  RowForward behind(norm, row, real);
  RowVec x{};
  if (real && col < k.y.cols) {
    int64_t from = index_at(k.indices, row);
    if (from < 0 || from >= k.table.rows) {
      fault.report(k.table.rows, row, from);
      from = 0;
    }
    const auto a = load<kRowVec>(k.table.row<float>(from) + col);
    const auto b =
        load<kRowVec>(k.positions.row<float>(k.places.first + row % k.places.length) + col);
#pragma unroll
    for (int e = 0; e < kRowVec; ++e) x[e] = a[e] + b[e];
    store(k.y.row<float>(row) + col, x);
  }
  behind.finish(x);
}

bool is_even(const ConstRows& t) {
  return t.dtype == float32 && t.row_stride % kRowVec == 0 &&
         reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}
bool suits(const EmbeddingForwardArgs& k) {
  constexpr int64_t kMostRows = 1 << 16;  // more are no small step's
  return k.positions && k.y.dtype == float32 && k.y.cols <= kMostRow && k.y.cols % kRowVec == 0 &&
         k.y.cols > 0 && k.y.row_stride == k.y.cols && k.indices.n <= kMostRows &&
         is_even(k.table) && is_even(k.positions);
}

class WaitingEmbedding final : public norm_cuda::RowsProduct {
 public:
  WaitingEmbedding(const EmbeddingForwardArgs& k, Tensor result, std::vector<Tensor> reads)
      : k_(k), result_(std::move(result)), reads_(std::move(reads)) {}

  const Tensor& result() const override { return result_; }
  void start() override { run(on(), k_); }
  bool start_with(const NormForwardArgs& norm) override {
    if (!norm_cuda::suits_row(norm) || norm.x.data != k_.y.data || norm.residual) return false;
    detail::chose("", "a small one, at the end of the lookup that gives its rows");
    launch(on(),
           {.grid = dim3(static_cast<unsigned>(ceil_div(k_.indices.n, int64_t{kRows}))),
            .block = dim3(kWarpSize, kRows),
            .overlap = true},
           embedding_norm_kernel, k_,
           detail::fault_slot(
               "embedding: indices must be below {}, the rows of weight, but index {} is {}"),
           norm);
    return true;
  }

 private:
  Cuda on() const { return cuda_stream(result_.device()); }

  EmbeddingForwardArgs k_;
  Tensor result_;
  std::vector<Tensor> reads_;
};

}  // namespace

bool let_embedding_wait(const Tensor& result, const EmbeddingForwardArgs& k,
                        std::vector<Tensor> reads) {
  if (!detail::may_wait() || !suits(k)) return false;
  detail::let_wait(std::make_unique<WaitingEmbedding>(k, result, std::move(reads)));
  return true;
}

}  // namespace norma
