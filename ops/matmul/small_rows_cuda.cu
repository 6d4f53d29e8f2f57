#include <algorithm>
#include <bit>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "norma/core/cuda/cluster.cuh"
#include "norma/core/cuda/early.h"
#include "norma/core/cuda/runtime.h"
#include "norma/core/error.h"
#include "norma/ops/matmul/fast_gelu.cuh"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/matmul/small.cuh"
#include "norma/ops/matmul/small.h"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/small_row.cuh"
#include "norma/ops/norm/small_row.h"

namespace norma {
namespace {

// Small products whose blocks have whole rows, so that a norm that is to follow finds them there. A
// single product's block has 16 rows and all of the sum's terms. Of an MLP both products are made,
// by clusters (sm_90) whose blocks have the same 32 rows and a share of the hidden columns each,
// which are a share of the second sum's terms: a block gets the parts of some rows from all, by
// stores that its barrier counts. A toy step takes 0.266 ms (H100), without norms in them 0.276; a
// norm's backward at the end of such clusters, or an MLP's two products of a backward in one, made
// it 13 µs longer: beside the weights' gradients no four multiprocessors are free at once.

using namespace small;
using norm_cuda::RowForward;

constexpr int kMostCols = 128, kColGroups = kMostCols / kTile;
constexpr int kMostTerms = 64, kMostSteps = kMostTerms / kDepth;  // of a warp
constexpr int kInboxPitch = kMostCols + 4;

template <bool kMlp>
struct RowsShape {
  static constexpr int kRows = kMlp ? 32 : 16, kRowGroups = kRows / 16;
  /// Warps that share an element's sum.
  static constexpr int kSlices = kWarps / kColGroups / kRowGroups;
};
// Of an MLP's first product.
constexpr int kHidden = RowsShape<true>::kSlices * kMostTerms, kHiddenTiles = kHidden / kTile,
              kHiddenSlices = kWarps / kHiddenTiles;

struct RowsProblem {
  Operand x, inner, outer;
  const float *inner_bias, *outer_bias;
  float *u, *hidden, *y;
  int depth, hidden_cols, cluster_bits;
  int terms;   ///< of a warp
  bool early;  ///< the right factors are there before the kernel in front has ended
};

struct NoNorm {};

/// What an MLP's first product wants.
template <bool kMlp>
struct InnerShared {};
template <>
struct InnerShared<true> {
  TilePart parts[kWarps];
  float hidden[RowsShape<true>::kRows][kHidden + 16];  ///< rounded to tf32
};
template <bool kMlp>
struct RowsShared {
  SharedBarrier arrived;  ///< first: memory that nothing is ever written over
  /// Rows of the last product: of each warp that has terms of it, in each block.
  alignas(16) float inbox[RowsShape<kMlp>::kRows * RowsShape<kMlp>::kSlices][kInboxPitch];
  InnerShared<kMlp> first;
};

template <bool kMlp>
class RowsBlock {
 public:
  using Shared = RowsShared<kMlp>;
  static constexpr int kRows = RowsShape<kMlp>::kRows, kRowGroups = RowsShape<kMlp>::kRowGroups,
                       kSlices = RowsShape<kMlp>::kSlices;

  __device__ RowsBlock(const RowsProblem& p, Shared& shared)
      : p_(p),
        m_(shared),
        rank_(kMlp ? static_cast<int>(cluster_rank()) : 0),
        first_row_((static_cast<int>(blockIdx.x) >> p.cluster_bits) * kRows),
        first_term_(rank_ * kSlices * p.terms) {}

  /// The block's barrier may be used by others after cluster_wait().
  __device__ void open_inbox() {
    if constexpr (kMlp) {
      if (threadIdx.x == 0) {
        m_.arrived.init(1);
        publish_barriers();
        const int floats = kRows * kSlices * p_.outer.count;
        m_.arrived.expect(static_cast<uint32_t>(floats) * sizeof(float));
      }
      cluster_arrive_relaxed();
    }
  }

  __device__ __forceinline__ void multiply() {
    const int group = warp() % kRowGroups, col = warp() / kRowGroups % kColGroups * kTile,
              slice = warp() / kRowGroups / kColGroups, term = slice * p_.terms;
    Operand outer = p_.outer;
    outer.data += first_term_ + term;
    const Loader<true, true> load_outer(outer, min(col, outer.count - kTile), p_.terms);
    Piece<true> b[kMostSteps];
    const auto load_right = [&] {
#pragma unroll
      for (int t = 0; t < kMostSteps; ++t)
        if (t < steps()) load_outer.load(b[t], t * kDepth);
    };
    Four low[kMostSteps], high[kMostSteps];
    if constexpr (kMlp) {
      make_hidden(load_right);
#pragma unroll
      for (int t = 0; t < kMostSteps; ++t) take_hidden(low[t], high[t], group, term + t * kDepth);
    } else {
      const float* rows[2];
#pragma unroll
      for (int h = 0; h < 2; ++h)
        rows[h] = p_.x.data +
                  min(first_row_ + group * 16 + 8 * h + lane_row(), p_.x.count - 1) * p_.x.stride +
                  first_term_ + term + 4 * lane_term();
      if (p_.early) load_right();
      wait_for_previous_kernel();
#pragma unroll
      for (int t = 0; t < kMostSteps; ++t)
        if (t < steps())
          low[t] = load<4>(rows[0] + t * kDepth), high[t] = load<4>(rows[1] + t * kDepth);
      if (!p_.early) load_right();
#pragma unroll
      for (int t = 0; t < kMostSteps; ++t) {
        if (t >= steps()) continue;
#pragma unroll
        for (int e = 0; e < 4; ++e)
          low[t][e] = __uint_as_float(to_tf32(low[t][e])),
          high[t][e] = __uint_as_float(to_tf32(high[t][e]));
      }
    }
    float c[4][4] = {};
#pragma unroll
    for (int t = 0; t < kMostSteps; ++t)
      if (t < steps()) add_terms(c, low[t], high[t], b[t]);
    if constexpr (kMlp) cluster_wait();
    if (col < p_.outer.count) send_rows(c, group, col, slice);
  }

  /// Adds up what has come, a row a warp, and does with it what comes after.
  template <class Norm>
  __device__ __forceinline__ void finish_rows(const Norm& k) {
    const int i = warp(), row = first_row_ + rank_ * rows_each() + i;
    const bool mine = i < rows_each() && row < p_.x.count;
    if constexpr (std::is_same_v<Norm, NoNorm>) {
      wait_for_rows();
      if (mine) finish_row(i, row);
    } else {
      RowForward norm(k, row, mine);
      wait_for_rows();
      if (mine) norm.finish(finish_row(i, row));
    }
  }

 private:
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / kWarpSize; }
  __device__ static int lane_row() { return static_cast<int>(threadIdx.x) % kWarpSize / 4; }
  __device__ static int lane_term() { return static_cast<int>(threadIdx.x) % 4; }
  __device__ int steps() const { return kMlp ? kMostSteps : p_.terms / kDepth; }
  /// At most a row a warp.
  __device__ int rows_each() const { return kRows >> p_.cluster_bits; }

  // ---- The first product

  struct Quad {
    int tile, row, tile_col, col;  ///< row and col are the block's
    __device__ explicit Quad(int i)
        : tile(i / kQuads),
          row(i % kQuads / (kTile / 4)),
          tile_col(i % (kTile / 4) * 4),
          col(tile * kTile + tile_col) {}
  };
  static constexpr int kThreadQuads = kHiddenTiles * kQuads / kThreads;

  /// `load_right` asks for the second product's right factor.
  template <class F>
  __device__ __forceinline__ void make_hidden(const F& load_right) {
    const int tile = warp() / kHiddenSlices;
    const Loader<true, true> load_x(p_.x, first_row_, p_.depth);
    const Loader<true, true> load_inner(p_.inner, first_term_ + tile * kTile, p_.depth);
    Part part;
    small::add_terms(part, load_x, load_inner, warp() % kHiddenSlices * kDepth,
                     kHiddenSlices * kDepth, p_.depth, false, p_.early,
                     [] { wait_for_previous_kernel(); });
    store_part<true, true>(part, m_.first.parts[warp()]);
    load_right();  // on its way while the hidden columns are finished
    __syncthreads();
    finish_hidden();
    __syncthreads();
  }

  __device__ __forceinline__ void finish_hidden() {
#pragma unroll
    for (int t = 0; t < kThreadQuads; ++t) {
      const Quad at(static_cast<int>(threadIdx.x) + t * kThreads);
      const float* bias = p_.inner_bias + first_term_ + at.col;
      const Four addend = p_.inner_bias ? load<4>(bias) : Four{};
      Four v =
          join_parts(&m_.first.parts[at.tile * kHiddenSlices], kHiddenSlices, at.row, at.tile_col);
#pragma unroll
      for (int e = 0; e < 4; ++e) v[e] += addend[e];
      const int row = first_row_ + at.row;
      const int64_t place = int64_t{row} * p_.hidden_cols + first_term_ + at.col;
      const bool inside = row < p_.x.count;
      if (inside) store(p_.u + place, v);
#pragma unroll
      for (float& e : v) e = FastGelu(e).value();
      if (inside) store(p_.hidden + place, v);
#pragma unroll
      for (float& e : v) e = __uint_as_float(to_tf32(e));
      store(&m_.first.hidden[at.row][at.col], v);
    }
  }

  // ---- The second

  __device__ __forceinline__ void take_hidden(Four& low, Four& high, int group, int term) const {
    const int row = group * 16 + lane_row(), col = term + 4 * lane_term();
    low = load<4>(&m_.first.hidden[row][col]), high = load<4>(&m_.first.hidden[row + 8][col]);
  }

  /// 16 terms of 16 rows and 32 columns.
  __device__ __forceinline__ static void add_terms(float (&c)[4][4], const Four& low,
                                                   const Four& high, const Piece<true>& b) {
#pragma unroll
    for (int s = 0; s < 4; s += 2)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        mma_tf32(c[j][0], c[j][1], c[j][2], c[j][3], __float_as_uint(low[s]),
                 __float_as_uint(high[s]), __float_as_uint(low[s + 1]),
                 __float_as_uint(high[s + 1]), to_tf32(b.at(j, s)), to_tf32(b.at(j, s + 1)));
  }

  /// To the blocks that finish these rows.
  __device__ __forceinline__ void send_rows(const float (&c)[4][4], int group, int col, int slice) {
    const int source = rank_ * kSlices + slice;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = group * 16 + 8 * h + lane_row(), to = row / rows_each();
      float* place = &m_.inbox[source * rows_each() + row % rows_each()][col + 2 * lane_term()];
      const uint32_t there = address_in(shared_address(place), to),
                     done = address_in(m_.arrived.address(), to);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 v{c[j][2 * h], c[j][2 * h + 1]};
        if constexpr (kMlp)
          send(there + 8 * j * sizeof(float), v, done);
        else
          *reinterpret_cast<float2*>(place + 8 * j) = v;
      }
    }
  }
  __device__ __forceinline__ void wait_for_rows() {
    if constexpr (kMlp)
      m_.arrived.wait(0);
    else
      __syncthreads();
  }

  /// A lane's four columns of row i of the block's.
  __device__ __forceinline__ Four finish_row(int i, int row) {
    const int col = static_cast<int>(threadIdx.x) % kWarpSize * 4;
    if (col >= p_.outer.count) return {};
    Four sum = p_.outer_bias ? load<4>(p_.outer_bias + col) : Four{};
    const int sources = kSlices << p_.cluster_bits;
#pragma unroll 8
    for (int s = 0; s < sources; ++s) {
      const Four v = load<4>(&m_.inbox[s * rows_each() + i][col]);
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] += v[e];
    }
    store(p_.y + int64_t{row} * p_.outer.count + col, sum);
    return sum;
  }

  const RowsProblem& p_;
  Shared& m_;
  int rank_, first_row_, first_term_;
};

template <bool kMlp, class Norm>
__global__ void __launch_bounds__(kThreads, 1)
    matmul_small_rows_kernel(const __grid_constant__ RowsProblem p,
                             const __grid_constant__ Norm norm) {
  extern __shared__ __align__(16) unsigned char memory[];
  RowsBlock<kMlp> block(p, *reinterpret_cast<RowsShared<kMlp>*>(memory));
  block.open_inbox();
  block.multiply();
  block.finish_rows(norm);
}

// ---- Plans

Operand whole_operand(const ConstView& x, int64_t terms, int64_t rows, int64_t count) {
  return {.data = x.as<float>(),
          .stride = static_cast<int>(terms == 1 ? rows : terms),
          .count = static_cast<int>(count),
          .along = terms == 1};
}
bool is_whole(const Operand& x) {
  return is_wide(x.data, x.stride) && (x.along || x.count % 4 == 0);
}

/// The last product, in so many shares; false where it is not for this kernel.
template <bool kMlp>
bool describe(const MatmulArgs& outer, int shares, RowsProblem& p) {
  using Shape = RowsShape<kMlp>;
  const int d = outer.c.shape.dim();
  const int64_t n = outer.c.shape[d - 2], m = outer.c.shape[d - 1], terms = outer.a.shape[d - 1];
  if (!suits_small(outer) || outer.sums || outer.epilogue != MatmulEpilogue::plain ||
      m % kTile != 0 || m > kMostCols || terms % (shares * Shape::kSlices * kDepth) != 0 ||
      terms > shares * Shape::kSlices * kMostTerms ||
      ceil_div(n, int64_t{Shape::kRows}) * shares > kSmallBlocks)
    return false;
  p.x = whole_operand(outer.a, outer.a.strides[d - 1], outer.a.strides[d - 2], n);
  p.outer = whole_operand(outer.b, outer.b.strides[d - 2], outer.b.strides[d - 1], m);
  p.outer_bias = outer.bias.as<float>(), p.y = outer.c.as<float>();
  p.terms = static_cast<int>(terms / (shares * Shape::kSlices));
  p.cluster_bits = std::countr_zero(static_cast<unsigned>(shares));
  p.early = outer.weight;
  return p.x.along && p.outer.along && is_whole(p.x) && is_whole(p.outer) &&
         is_wide(p.outer_bias, 0) && is_wide(p.y, 0);
}
/// Both of an MLP.
bool describe(const MatmulArgs& inner, const MatmulArgs& outer, RowsProblem& p) {
  const int d = inner.c.shape.dim();
  const int64_t n = inner.c.shape[d - 2], hidden = inner.c.shape[d - 1],
                depth = inner.a.shape[d - 1];
  const int64_t shares = hidden / kHidden;  // as many blocks have a row each, or more
  if (!detail::cuda_is_hopper(cuda) || hidden % kHidden != 0 || (shares != 2 && shares != 4) ||
      !suits_small(inner) || inner.epilogue != MatmulEpilogue::gelu || inner.sums ||
      !describe<true>(outer, static_cast<int>(shares), p))
    return false;
  p.x = whole_operand(inner.a, inner.a.strides[d - 1], inner.a.strides[d - 2], n);
  p.inner = whole_operand(inner.b, inner.b.strides[d - 2], inner.b.strides[d - 1], hidden);
  p.inner_bias = inner.bias.as<float>(), p.u = inner.pre.row<float>(0);
  p.hidden = inner.c.as<float>();
  p.depth = static_cast<int>(depth), p.hidden_cols = static_cast<int>(hidden);
  p.early = p.early && inner.weight;
  return p.x.along && p.inner.along && inner.pre.row_stride == hidden && depth % kDepth == 0 &&
         is_whole(p.x) && is_whole(p.inner) && is_wide(p.inner_bias, 0) && is_wide(p.u, 0) &&
         is_wide(p.hidden, 0);
}

template <bool kMlp, class Norm>
void start(Cuda on, RowsProblem p, const Norm& norm) {
  const int blocks = ceil_div(p.x.count, RowsShape<kMlp>::kRows) << p.cluster_bits;
  p.early = p.early && detail::may_read_early(on);
  launch(on,
         {.grid = dim3(static_cast<unsigned>(blocks)),
          .block = dim3(kThreads),
          .shared = sizeof(RowsShared<kMlp>),
          .cluster = 1u << p.cluster_bits,
          .overlap = true},
         matmul_small_rows_kernel<kMlp, Norm>, p, norm);
}

/// A product, or an MLP's two, at whose end there may be a norm.
class WaitingRows final : public norm_cuda::RowsProduct {
 public:
  WaitingRows(std::optional<MatmulArgs> inner, const MatmulArgs& outer, Tensor result,
              std::vector<Tensor> reads)
      : inner_(std::move(inner)),
        outer_(outer),
        result_(std::move(result)),
        reads_(std::move(reads)) {}

  const Tensor& result() const override { return result_; }
  bool suits(RowsProblem& p) const {
    return inner_ ? describe(*inner_, outer_, p) : describe<false>(outer_, 1, p);
  }
  void start() override {
    if (inner_ ? !multiply_small_mlp(on(), *inner_, outer_) : !multiply_small(on(), outer_))
      throw CudaError("matmul: a product that waits must be a small one of tf32");
  }
  bool start_with(const NormForwardArgs& k) override {
    RowsProblem p{};
    if (!norm_cuda::suits_row(k) || k.x.data != outer_.c.data || !suits(p)) return false;
    detail::chose("", "a small one, at the end of the product that gives its rows");
    inner_ ? norma::start<true>(on(), p, k) : norma::start<false>(on(), p, k);
    return true;
  }

 private:
  Cuda on() const { return cuda_stream(result_.device()); }

  std::optional<MatmulArgs> inner_;
  MatmulArgs outer_;
  Tensor result_;
  std::vector<Tensor> reads_;
};

}  // namespace

bool multiply_small_mlp(Cuda on, const MatmulArgs& inner, const MatmulArgs& outer) {
  RowsProblem p{};
  if (!describe(inner, outer, p)) return false;
  start<true>(on, p, NoNorm{});
  return true;
}

bool let_rows_wait(const Tensor& result, const std::optional<MatmulArgs>& inner,
                   const MatmulArgs& outer, std::vector<Tensor> reads) {
  if (!detail::may_wait()) return false;
  auto rows = std::make_unique<WaitingRows>(inner, outer, result, std::move(reads));
  if (RowsProblem unused{}; !rows->suits(unused)) return false;
  detail::let_wait(std::move(rows));
  return true;
}

}  // namespace norma
