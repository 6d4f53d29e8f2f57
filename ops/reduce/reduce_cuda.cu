#include <limits>
#include <type_traits>

#include "norma/core/cuda/numeric.cuh"
#include "norma/core/cuda/reduce.cuh"
#include "norma/core/cuda/scratch.h"
#include "norma/core/cuda/strided.cuh"
#include "norma/ops/reduce/kernels.h"

namespace norma {
namespace {

// A result's elements are cut into chunks whose size follows from the sizes alone; each chunk is
// reduced by one block in a fixed way, and the chunks' results again, until one is left.

constexpr int kThreads = 256;
constexpr int64_t kChunk = 16384;  // elements of a row that one block reduces

template <class Acc>
struct SumOf {
  __device__ static Acc identity() { return 0; }
  __device__ static Acc combine(Acc a, Acc b) {
    if constexpr (std::is_same_v<Acc, int64_t>)  // integers wrap around
      return static_cast<Acc>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
    else
      return a + b;
  }
};
template <class Acc>
struct MaxOf {
  __device__ static Acc identity() {
    using Limits = std::numeric_limits<Acc>;
    return Limits::has_infinity ? -Limits::infinity() : Limits::min();
  }
  __device__ static Acc combine(Acc a, Acc b) {  // NaN wins
    const Acc larger = b > a ? b : a;
    return b != b ? b : larger;
  }
};

template <class R, class Acc>
__device__ Acc warp_reduce(Acc v) {
#pragma unroll
  for (int step = kWarpSize / 2; step > 0; step /= 2)
    v = R::combine(v, __shfl_down_sync(0xffffffffu, v, step));
  return v;
}

/// Where a result goes, in a dtype that is a branch alike for all threads: one store a result is
/// not worth a kernel for each.
struct Target {
  void* data;
  DType dtype;
  double divisor = 1;

  template <class Acc>
  __device__ void put(int64_t i, Acc value) const {
    if constexpr (!std::is_same_v<Acc, int64_t>) value /= static_cast<Acc>(divisor);
    const auto store = [&]<class T>(T* to) { to[i] = convert<T>(value); };
    switch (dtype) {
      case float32:
        return store(static_cast<float*>(data));
      case float64:
        return store(static_cast<double*>(data));
      case bfloat16:
        return store(static_cast<BFloat16*>(data));
      case float16:
        return store(static_cast<Float16*>(data));
      case int32:
        return store(static_cast<int32_t*>(data));
      case int64:
        return store(static_cast<int64_t*>(data));
      case bool_:
        return store(static_cast<bool*>(data));
    }
  }
};

/// In place of an integer dtype or bool, which is a branch too: int64 to what reads it.
struct AnyInteger {};
template <class T>
struct Source {
  using Acc = compute_t<T>;
  const T* data;
  explicit Source(const ConstView& x) : data(x.as<T>()) {}
  __device__ Acc at(int64_t i) const { return convert<Acc>(data[i]); }
};
template <>
struct Source<AnyInteger> {
  using Acc = int64_t;
  const void* data;
  DType dtype;
  explicit Source(const ConstView& x) : data(x.data), dtype(x.dtype) {}
  __device__ int64_t at(int64_t i) const {
    if (dtype == int64) return static_cast<const int64_t*>(data)[i];
    if (dtype == int32) return static_cast<const int32_t*>(data)[i];
    return static_cast<const bool*>(data)[i];
  }
};

/// A warp reduces a chunk of at most kChunk elements (kWarps of them a block), or the whole block
/// one chunk. y has a column for each chunk.
template <template <class> class Reduce, class T, bool kWarpEach>
__global__ void __launch_bounds__(kThreads)
    reduce_rows_kernel(Source<T> x, StridedIndex<1> kept, StridedIndex<1> reduced, int64_t results,
                       int64_t chunks, Target y) {
  using Acc = typename Source<T>::Acc;
  using R = Reduce<Acc>;
  constexpr int kLanes = kWarpEach ? kWarpSize : kThreads;
  const int lane = threadIdx.x % kLanes;
  const int64_t task = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (task >= results * chunks) return;
  const int64_t first = task % chunks * kChunk;
  const int64_t rest = reduced.count - first, n = rest < kChunk ? rest : kChunk;
  int64_t at[1];
  kept.offsets(task / chunks, at);
  const int64_t row = at[0];
  Acc sum = R::identity();
  if (reduced.dims == 1) {
    const int64_t step = reduced.strides[0][0];
    for (int64_t i = lane; i < n; i += kLanes)
      sum = R::combine(sum, x.at(row + (first + i) * step));
  } else {
    for (int64_t i = lane; i < n; i += kLanes) {
      reduced.offsets(first + i, at);
      sum = R::combine(sum, x.at(row + at[0]));
    }
  }
  sum = warp_reduce<R>(sum);
  if constexpr (!kWarpEach) {
    __shared__ Acc slots[kThreads / kWarpSize];
    if (threadIdx.x % kWarpSize == 0) slots[threadIdx.x / kWarpSize] = sum;
    __syncthreads();
    if (threadIdx.x == 0)
      for (int w = 1; w < kThreads / kWarpSize; ++w) sum = R::combine(sum, slots[w]);
  }
  if (lane == 0) y.put(task, sum);
}

/// Neighbouring results are reduced from neighbouring elements: 32 columns a block, whose eight
/// warps take every eighth row of the chunk. y is (outer, chunks, cols).
template <template <class> class Reduce, class T>
__global__ void __launch_bounds__(kThreads)
    reduce_columns_kernel(Source<T> x, StridedIndex<1> outer, StridedIndex<1> reduced, int64_t cols,
                          int64_t chunk, Target y) {
  using Acc = typename Source<T>::Acc;
  using R = Reduce<Acc>;
  constexpr int kWarps = kThreads / kWarpSize;
  __shared__ Acc slots[kWarps][kWarpSize];
  const int64_t column = int64_t{blockIdx.x} * kWarpSize + threadIdx.x;
  const int64_t first = int64_t{blockIdx.y} * chunk;
  const int64_t last = first + chunk < reduced.count ? first + chunk : reduced.count;
  for (int64_t o = blockIdx.z; o < outer.count; o += gridDim.z) {
    int64_t at[1];
    outer.offsets(o, at);
    const int64_t base = at[0];
    Acc sum = R::identity();
    if (column < cols)
      for (int64_t i = first + threadIdx.y; i < last; i += kWarps) {
        reduced.offsets(i, at);
        sum = R::combine(sum, x.at(base + at[0] + column));
      }
    slots[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < cols) {
      for (int w = 1; w < kWarps; ++w) sum = R::combine(sum, slots[w][threadIdx.x]);
      y.put((o * gridDim.y + blockIdx.y) * cols + column, sum);
    }
    __syncthreads();
  }
}

Shape part(const Shape& shape, int first, int last) {
  return Shape(std::span(shape.begin() + first, shape.begin() + last));
}
detail::StridedLoop<1> loop_of(const ConstView& x, int first, int last) {
  return {part(x.shape, first, last), {part(x.strides, first, last)}};
}

/// A dense array of partial results as the next stage reads it.
template <class T>
ConstView partial_view(const T* data, const Shape& shape, const Shape& strides) {
  ConstView view;
  view.data = data, view.shape = shape, view.strides = strides, view.dtype = dtype_of<T>;
  return view;
}

template <template <class> class R, class T>
void reduce(const Cuda& on, const ConstView& x, int kept, const Target& y);

/// Partial results in scratch memory, and the stage after them.
template <template <class> class R, class Acc, class Stage>
void in_two_stages(const Cuda& on, const Shape& shape, const Shape& strides, int kept,
                   const Target& y, const Stage& stage) {
  const DeviceScratch<Acc> partial(on, shape.numel());
  stage(Target{partial.data(), dtype_of<Acc>});
  using Next = std::conditional_t<std::is_same_v<Acc, int64_t>, AnyInteger, Acc>;
  reduce<R, Next>(on, partial_view<Acc>(partial.data(), shape, strides), kept, y);
}

template <template <class> class R, class T>
void reduce_rows(const Cuda& on, const ConstView& x, int kept, const Target& y) {
  using Acc = typename Source<T>::Acc;
  const StridedIndex<1> results(loop_of(x, 0, kept)), reduced(loop_of(x, kept, x.shape.dim()));
  const int64_t chunks = std::max<int64_t>(1, ceil_div(reduced.count, kChunk));
  const auto stage = [&](const Target& out) {
    const bool warps = reduced.count <= 1024;
    const int64_t tasks = results.count * chunks;
    const LaunchShape shape{.grid = grid_for(tasks, warps ? kThreads / kWarpSize : 1),
                            .block = dim3(kThreads)};
    const auto kernel = warps ? reduce_rows_kernel<R, T, true> : reduce_rows_kernel<R, T, false>;
    launch(on, shape, kernel, Source<T>(x), results, reduced, results.count, chunks, out);
  };
  if (chunks == 1) return stage(y);
  in_two_stages<R, Acc>(on, {results.count, chunks}, {chunks, 1}, 1, y, stage);
}

template <template <class> class R, class T>
void reduce_columns(const Cuda& on, const ConstView& x, int kept, const Target& y) {
  using Acc = typename Source<T>::Acc;
  const StridedIndex<1> outer(loop_of(x, 0, kept - 1)), reduced(loop_of(x, kept, x.shape.dim()));
  const int64_t cols = x.shape[kept - 1];
  // At least 32 rows a chunk, at most 512 chunks; up to 256 rows are one.
  const int64_t chunk =
      reduced.count <= 256 ? 256 : std::max<int64_t>(32, ceil_div(reduced.count, int64_t{512}));
  const int64_t chunks = std::max<int64_t>(1, ceil_div(reduced.count, chunk));
  const auto stage = [&](const Target& out) {
    launch(on,
           {.grid = dim3(static_cast<unsigned>(ceil_div(cols, int64_t{kWarpSize})),
                         static_cast<unsigned>(chunks),
                         static_cast<unsigned>(std::min<int64_t>(outer.count, 65535))),
            .block = dim3(kWarpSize, kThreads / kWarpSize)},
           reduce_columns_kernel<R, T>, Source<T>(x), outer, reduced, cols, chunk, out);
  };
  if (chunks == 1) return stage(y);
  in_two_stages<R, Acc>(on, {outer.count, cols, chunks}, {chunks * cols, 1, cols}, 2, y, stage);
}

template <template <class> class R, class T>
void reduce(const Cuda& on, const ConstView& x, int kept, const Target& y) {
  const StridedIndex<1> reduced(loop_of(x, kept, x.shape.dim()));
  const bool columns = kept > 0 && x.strides[kept - 1] == 1 && x.shape[kept - 1] >= 8 &&
                       reduced.count > 1 && reduced.strides[0][reduced.dims - 1] != 1;
  if (columns)
    reduce_columns<R, T>(on, x, kept, y);
  else
    reduce_rows<R, T>(on, x, kept, y);
}

/// NaN is largest; of equals the first.
template <class Acc>
__device__ bool beats(Acc a, int64_t i, Acc b, int64_t j) {
  if (a > b || (a != a && b == b)) return true;
  const bool same = a == b || (a != a && b != b);
  return same && i < j;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    argmax_kernel(const T* __restrict__ x, StridedIndex<1> kept, int64_t n, int64_t step,
                  int64_t* __restrict__ y) {
  using Acc = compute_t<T>;
  constexpr int kWarps = kThreads / kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (row >= kept.count) return;
  int64_t at[1];
  kept.offsets(row, at);
  const T* p = x + at[0];
  const int lane = threadIdx.x % kWarpSize;
  int64_t best = lane < n ? lane : 0;
  Acc value = convert<Acc>(p[best * step]);
  for (int64_t i = lane + kWarpSize; i < n; i += kWarpSize) {
    const Acc v = convert<Acc>(p[i * step]);
    if (beats(v, i, value, best)) value = v, best = i;
  }
#pragma unroll
  for (int s = kWarpSize / 2; s > 0; s /= 2) {
    const Acc v = __shfl_xor_sync(0xffffffffu, value, s);
    const int64_t i = __shfl_xor_sync(0xffffffffu, best, s);
    if (beats(v, i, value, best)) value = v, best = i;
  }
  if (lane == 0) y[row] = best;
}

/// A warp a row, 32 elements at a time: each step adds the sum so far to the warp's own scan.
template <class T>
__global__ void __launch_bounds__(kThreads)
    cumsum_kernel(const T* __restrict__ x, T* __restrict__ y, StridedIndex<2> kept, int64_t n,
                  int64_t x_step, int64_t y_step, bool reverse) {
  using Acc = compute_t<T>;
  constexpr int kWarps = kThreads / kWarpSize;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (row >= kept.count) return;
  int64_t at[2];
  kept.offsets(row, at);
  const int lane = threadIdx.x % kWarpSize;
  Acc before = 0;
  for (int64_t first = 0; first < n; first += kWarpSize) {
    const int64_t i = first + lane, place = reverse ? n - 1 - i : i;
    Acc sum = i < n ? convert<Acc>(x[at[0] + place * x_step]) : Acc(0);
#pragma unroll
    for (int s = 1; s < kWarpSize; s *= 2) {
      const Acc left = __shfl_up_sync(0xffffffffu, sum, s);
      if (lane >= s) sum = SumOf<Acc>::combine(left, sum);
    }
    sum = SumOf<Acc>::combine(before, sum);
    if (i < n) y[at[1] + place * y_step] = convert<T>(sum);
    before = __shfl_sync(0xffffffffu, sum, kWarpSize - 1);
  }
}

}  // namespace

void run(Cuda on, const ReduceArgs& k) {
  if (k.y.shape.numel() == 0) return;
  const Target y{k.y.data, k.y.dtype, k.divisor};
  const auto go = [&]<class T>() {
    if (k.reduction == Reduction::max)
      reduce<MaxOf, T>(on, k.x, k.kept, y);
    else
      reduce<SumOf, T>(on, k.x, k.kept, y);
  };
  if (!is_floating(k.x.dtype)) return go.template operator()<AnyInteger>();
  visit_floating(k.x.dtype, go);
}

void run(Cuda on, const ArgmaxArgs& k) {
  const int last = k.x.shape.dim() - 1;
  const StridedIndex<1> kept(loop_of(k.x, 0, last));
  visit_all(k.x.dtype, [&]<class T>() {
    launch(on, {.grid = grid_for(kept.count, kThreads / kWarpSize), .block = dim3(kThreads)},
           argmax_kernel<T>, k.x.as<T>(), kept, k.x.shape[last], k.x.strides[last],
           k.y.as<int64_t>());
  });
}

void run(Cuda on, const CumsumArgs& k) {
  const int last = k.x.shape.dim() - 1;
  const StridedIndex<2> kept(detail::StridedLoop<2>(
      part(k.x.shape, 0, last), {part(k.x.strides, 0, last), part(k.y.strides, 0, last)}));
  visit_all(k.x.dtype, [&]<class T>() {
    launch(on, {.grid = grid_for(kept.count, kThreads / kWarpSize), .block = dim3(kThreads)},
           cumsum_kernel<T>, k.x.as<T>(), k.y.as<T>(), kept, k.x.shape[last], k.x.strides[last],
           k.y.strides[last], k.reverse);
  });
}

}  // namespace norma
