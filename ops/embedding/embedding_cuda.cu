#include "norma/core/copy.h"
#include "norma/core/cuda/fault.h"
#include "norma/core/cuda/index.cuh"
#include "norma/core/cuda/packed.cuh"
#include "norma/ops/embedding/kernels.h"
#include "norma/ops/index/segments.cuh"

namespace norma {
namespace {

constexpr int kThreads = 128;

/// One block a row. Copies bytes: B is 16 of them where the rows allow it.
template <class B>
__global__ void embedding_forward_kernel(ConstVec indices, const B* __restrict__ table,
                                         int64_t table_stride, int64_t rows, B* __restrict__ y,
                                         int width, detail::FaultSlot fault) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= indices.n) return;
  int64_t from = index_at(indices, i);
  if (from < 0 || from >= rows) {
    fault.report(rows, i, from);
    from = 0;
  }
  for (int c = threadIdx.x; c < width; c += blockDim.x)
    y[i * width + c] = table[from * table_stride + c];
}

/// Rows that are rounded, with or without positions: kWidth neighbouring columns a thread.
template <class T, class W, int kWidth>
__global__ void embedding_add_kernel(ConstVec indices, ConstRows table, ConstRows positions,
                                     PlaceRows places, Rows y, detail::FaultSlot fault) {
  using Acc = compute_t<W>;
  wait_for_previous_kernel();
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= indices.n) return;
  int64_t from = index_at(indices, i);
  if (from < 0 || from >= table.rows) {
    fault.report(table.rows, i, from);
    from = 0;
  }
  const W* row = table.template row<W>(from);
  const W* place =
      positions ? positions.template row<W>(places.first + i % places.length) : nullptr;
  for (int c = threadIdx.x * kWidth; c < y.cols; c += blockDim.x * kWidth) {
    const auto a = load<kWidth>(row + c), b = place ? load<kWidth>(place + c) : a;
    Packed<T, kWidth> sum;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      const Acc v = convert<Acc>(a[e]);
      sum[e] = convert<T>(place ? v + convert<Acc>(b[e]) : v);
    }
    store(y.template row<T>(i) + c, sum);
  }
}

/// A sum as it is written, or added to what is there.
template <class W>
__device__ __forceinline__ W with_old(const W* to, compute_t<W> sum, bool add) {
  return convert<W>(add ? convert<compute_t<W>>(*to) + sum : sum);
}

template <class W>
__device__ __forceinline__ void put_sum(const Rows& dtable, int64_t row, int64_t c,
                                        compute_t<W> sum, bool add) {
  W* to = dtable.template row<W>(row) + c;
  *to = with_old(to, sum, add);
}

/// A thread's neighbouring columns, and their sums over rows.
template <class T, class W, int kWidth>
struct ColumnSums {
  using Acc = compute_t<W>;
  const int c = static_cast<int>(blockIdx.y * kThreads + threadIdx.x) * kWidth;
  Packed<Acc, kWidth> sums{};

  __device__ __forceinline__ void add(const ConstRows& dy, int64_t i) {
    const auto row = load<kWidth>(dy.template row<T>(i) + c);
#pragma unroll
    for (int e = 0; e < kWidth; ++e) sums[e] += convert<Acc>(row[e]);
  }
  __device__ __forceinline__ void write(W* to, bool add) const {
    Packed<W, kWidth> rounded;
#pragma unroll
    for (int e = 0; e < kWidth; ++e) rounded[e] = with_old(to + c + e, sums[e], add);
    store(to + c, rounded);
  }
};

/// Row r of dpositions.
template <class T, class W, int kWidth = 1>
__device__ void sum_positions(const ConstRows& dy, const PlaceRows& places, const Rows& d,
                              int64_t r) {
  ColumnSums<T, W, kWidth> mine;
  if (mine.c >= d.cols) return;
  const int64_t place = r - places.first;
  if (place >= 0 && place < places.length) {
#pragma unroll 8
    for (int64_t i = place; i < dy.rows; i += places.length) mine.add(dy, i);
  }
  mine.write(d.template row<W>(r), false);
}
template <class T, class W>
__global__ void embedding_positions_kernel(ConstRows dy, PlaceRows places, Rows dpositions) {
  sum_positions<T, W>(dy, places, dpositions, blockIdx.x);
}

/// Few rows: a block owns a row of the table, finds the places that took it, in order, and sums.
/// Many places are shared by `shares` blocks, `share` (a multiple of 1024) to each, which leave
/// their sums in `parts`. The rows of dpositions come after the table's.
template <class T, class W, int kWidth>
__global__ void __launch_bounds__(kThreads)
    embedding_backward_scan_kernel(ConstVec indices, ConstRows dy, Rows dtable, PlaceRows places,
                                   Rows dpositions, bool add, int shares, int64_t share,
                                   compute_t<W>* __restrict__ parts) {
  constexpr int kPlaces = 1024, kWords = kPlaces / kWarpSize, kWarps = kThreads / kWarpSize;
  __shared__ uint32_t here[kWords];
  __shared__ int list[kPlaces];
  wait_for_previous_kernel();
  const int table_blocks = static_cast<int>(dtable.rows) * shares;
  const int item = blockIdx.x, v = item / shares, part = item % shares;
  if (item >= table_blocks)
    return sum_positions<T, W, kWidth>(dy, places, dpositions, item - table_blocks);
  ColumnSums<T, W, kWidth> mine;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int64_t begin = part * share, end = min(indices.n, begin + share);
  for (int64_t first = begin; first < end; first += kPlaces) {
    __syncthreads();
#pragma unroll
    for (int word = warp; word < kWords; word += kWarps) {
      const int64_t i = first + word * kWarpSize + lane;
      const uint32_t bits = __ballot_sync(~0u, i < end && index_at(indices, i) == v);
      if (lane == 0) here[word] = bits;
    }
    __syncthreads();
    int count = 0;
    for (int word = 0; word < kWords; ++word) {
      const uint32_t bits = here[word];
      if (word % kWarps == warp && (bits >> lane & 1))
        list[count + __popc(bits & ((1u << lane) - 1))] = word * kWarpSize + lane;
      count += __popc(bits);
    }
    __syncthreads();
    if (mine.c < dy.cols) {
#pragma unroll 8
      for (int i = 0; i < count; ++i) mine.add(dy, first + list[i]);
    }
  }
  if (mine.c >= dy.cols) return;
  if (parts)
    store(parts + (part * dtable.rows + v) * dy.cols + mine.c, mine.sums);
  else
    mine.write(dtable.template row<W>(v), add);
}
/// The shares' sums in order.
template <class W>
__global__ void embedding_fold_kernel(const compute_t<W>* __restrict__ parts, int64_t shares,
                                      Rows dtable, bool add) {
  wait_for_previous_kernel();
  const int64_t size = dtable.rows * dtable.cols,
                i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= size) return;
  compute_t<W> sum = 0;
#pragma unroll 8
  for (int64_t s = 0; s < shares; ++s) sum += parts[s * size + i];
  put_sum<W>(dtable, i / dtable.cols, i % dtable.cols, sum, add);
}

__global__ void embedding_keys_kernel(ConstVec indices, int64_t rows, uint32_t* keys,
                                      int32_t* places) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= indices.n) return;
  const int64_t at = index_at(indices, i);
  keys[i] = at < 0 || at >= rows ? 0u : static_cast<uint32_t>(at);  // forward has reported it
  places[i] = static_cast<int32_t>(i);
}

// The sorted places are cut into tiles; a tile adds up its runs of equal indices. A run that lies
// in one tile is done; of the others each tile leaves its part (the first or the last of its runs),
// and the block of the tile in which a run begins adds the parts up: kRunShares shares of them side
// by side, each in order, then the shares. A token that most places have makes one run of
// thousands.
constexpr int kTile = 32, kRunShares = 8;

template <class T, class W>
__global__ void embedding_tiles_kernel(const uint32_t* __restrict__ keys,
                                       const int32_t* __restrict__ places, int64_t n, ConstRows dy,
                                       Rows dtable, bool add,
                                       compute_t<W>* __restrict__ first_parts,
                                       compute_t<W>* __restrict__ last_parts) {
  using Acc = compute_t<W>;
  const int64_t begin = int64_t{blockIdx.x} * kTile, end = min(n, begin + kTile);
  const int c = blockIdx.y * kThreads + threadIdx.x;
  if (c >= dy.cols) return;
  Acc sum = 0;
  int64_t run = begin;
  for (int64_t i = begin; i < end; ++i) {
    sum += convert<Acc>(dy.template row<T>(places[i])[c]);
    const uint32_t key = keys[i];
    if (i + 1 < end && keys[i + 1] == key) continue;
    const bool from_before = run == begin && begin > 0 && keys[begin - 1] == key;
    const bool goes_on = i + 1 == end && end < n && keys[end] == key;
    if (from_before)
      first_parts[blockIdx.x * dy.cols + c] = sum;  // also where it goes on: the tile is one run
    else if (goes_on)
      last_parts[blockIdx.x * dy.cols + c] = sum;
    else
      put_sum<W>(dtable, key, c, sum, add);
    sum = 0;
    run = i + 1;
  }
}

template <class W>
__global__ void __launch_bounds__(kThreads* kRunShares)
    embedding_runs_kernel(const uint32_t* __restrict__ keys, int64_t n, int64_t tiles, Rows dtable,
                          bool add, const compute_t<W>* __restrict__ first_parts,
                          const compute_t<W>* __restrict__ last_parts) {
  const int64_t tile = blockIdx.x, begin = tile * kTile, end = begin + kTile;
  if (end >= n) return;
  const uint32_t key = keys[end - 1];
  if (keys[end] != key) return;
  // The run that goes on must begin here: not the tile's first run if that came from before.
  if (keys[begin] == key && begin > 0 && keys[begin - 1] == key) return;
  int64_t stop = tile + 1;  // the first tile that does not begin with the run's key
  for (int64_t beyond = tiles; stop < beyond;) {
    const int64_t middle = (stop + beyond) / 2;
    keys[middle * kTile] == key ? stop = middle + 1 : beyond = middle;
  }
  __shared__ compute_t<W> sums[kRunShares][kThreads];
  const int c = blockIdx.y * kThreads + threadIdx.x;
  const int64_t each = (stop - tile - 1 + kRunShares - 1) / kRunShares;
  const int64_t first = tile + 1 + threadIdx.y * each;
  compute_t<W> sum = 0;
  if (c < dtable.cols) {
#pragma unroll 8
    for (int64_t t = first; t < min(first + each, stop); ++t)
      sum += first_parts[t * dtable.cols + c];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= dtable.cols) return;
  sum = last_parts[tile * dtable.cols + c];
  for (const auto& share : sums) sum += share[threadIdx.x];
  put_sum<W>(dtable, key, c, sum, add);
}

// A block of the scan looks at every index: 2²¹ pairs of a row and a place are as fast as sorting.
// Of few rows the sorted places would be few long runs, which as many blocks add up.
constexpr int64_t kScanPlaces = 4096, kScanRows = 512, kScanPairs = kScanPlaces * kScanRows;
constexpr int64_t kFewRows = 32, kMostFewPlaces = int64_t{1} << 20;
bool is_scanned(int64_t rows, int64_t places) {
  return (rows <= kFewRows && places <= kMostFewPlaces) ||
         (rows <= kScanRows && places * rows <= kScanPairs);
}
constexpr int64_t kScanShare = 1024;

/// Threads along a row of `width` units, and the rows of a block.
LaunchShape row_shape(int64_t rows, int64_t width) {
  const unsigned threads = width >= 128 ? 128 : 32;
  return {.grid = grid_for(rows, static_cast<int>(256 / threads)),
          .block = dim3(threads, 256 / threads)};
}

/// Blocks of kThreads columns of so many rows.
dim3 row_blocks(int64_t rows, int64_t width) {
  return dim3(static_cast<unsigned>(rows),
              static_cast<unsigned>(ceil_div(width, int64_t{kThreads})));
}

void add_or_round(Cuda on, const EmbeddingForwardArgs& k, const detail::FaultSlot& fault) {
  visit_rows(k.y.dtype, k.table.dtype, [&]<class T, class W>() {
    const auto start = [&]<int kWidth>() {
      LaunchShape shape = row_shape(k.indices.n, k.y.cols / kWidth);
      shape.overlap = true;
      launch(on, shape, embedding_add_kernel<T, W, kWidth>, k.indices, k.table, k.positions,
             k.places, k.y, fault);
    };
    constexpr int kWide = kWidest<W>;
    const auto is_wide = [](const auto& rows) {
      return !rows || (rows.row_stride % kWide == 0 && is_aligned<kWide>(rows.template row<W>(0)));
    };
    const bool wide = k.y.cols % kWide == 0 && is_wide(k.table) && is_wide(k.positions) &&
                      k.y.row_stride % kWide == 0 && is_aligned<kWide>(k.y.row<T>(0));
    wide ? start.template operator()<kWide>() : start.template operator()<1>();
  });
}

template <class T, class W>
void scan(Cuda on, const EmbeddingBackwardArgs& k) {
  const int64_t n = k.indices.n, rows = k.dtable.rows, width = k.dy.cols;
  const int64_t shares = n <= kScanPlaces ? 1 : ceil_div(n, kScanShare);
  using Acc = compute_t<W>;
  const Tensor parts =
      shares == 1 ? Tensor() : empty({shares, rows, width}, dtype_of<Acc>, current_device());
  Acc* sums = shares == 1 ? nullptr : static_cast<Acc*>(parts.data());
  const auto start = [&]<int kWidth>() {
    launch(on,
           {.grid = row_blocks(rows * shares + k.dpositions.rows, ceil_div(width, kWidth)),
            .block = dim3(kThreads),
            .overlap = true},
           embedding_backward_scan_kernel<T, W, kWidth>, k.indices, k.dy, k.dtable, k.places,
           k.dpositions, k.add, static_cast<int>(shares),
           shares == 1 ? std::max<int64_t>(n, 1) : kScanShare, sums);
  };
  // Several columns a thread where one block has them all: each block looks at every index.
  constexpr int kWide = kWidest<W>;
  const auto is_wide = [&]<class E>(const auto& x, E) {
    return !x || (x.row_stride % kWide == 0 && is_aligned<kWide>(x.template row<E>(0)));
  };
  if (width > kThreads && width % kWide == 0 && is_wide(k.dy, T{}) && is_wide(k.dtable, W{}) &&
      is_wide(k.dpositions, W{}))
    start.template operator()<kWide>();
  else
    start.template operator()<1>();
  if (shares == 1) return;
  launch(on, {.grid = grid_for(rows * width, 256), .block = dim3(256), .overlap = true},
         embedding_fold_kernel<W>, sums, shares, k.dtable, k.add);
}

}  // namespace

void run(Cuda on, const EmbeddingForwardArgs& k) {
  const int64_t size = size_of(k.y.dtype), bytes = k.y.cols * size;
  if (bytes == 0) return;
  const detail::FaultSlot fault = detail::fault_slot(
      "embedding: indices must be below {}, the rows of weight, but index {} is {}");
  if (k.positions || k.y.dtype != k.table.dtype) return add_or_round(on, k, fault);
  const bool wide = bytes % 16 == 0 && k.table.row_stride * size % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(k.table.data) % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(k.y.data) % 16 == 0;
  const auto start = [&]<class B>() {
    const auto unit = static_cast<int64_t>(sizeof(B));
    launch(on, row_shape(k.indices.n, bytes / unit), embedding_forward_kernel<B>, k.indices,
           static_cast<const B*>(k.table.data), k.table.row_stride * size / unit, k.table.rows,
           static_cast<B*>(k.y.data), static_cast<int>(bytes / unit), fault);
  };
  wide ? start.template operator()<uint4>() : visit_bytes(k.y.dtype, start);
}

void run(Cuda on, const EmbeddingBackwardArgs& k) {
  const int64_t n = k.indices.n, width = k.dy.cols, rows = k.dtable.rows;
  if (width == 0) return;
  const auto rows_of = [&](int64_t count) {
    return LaunchShape{.grid = row_blocks(count, width), .block = dim3(kThreads)};
  };
  visit_rows(k.dy.dtype, k.dtable.dtype, [&]<class T, class W>() {
    if (is_scanned(rows, n)) return scan<T, W>(on, k);
    launch(on, rows_of(k.dpositions.rows), embedding_positions_kernel<T, W>, k.dy, k.places,
           k.dpositions);
    View table;
    table.data = k.dtable.data, table.dtype = k.dtable.dtype, table.shape = {rows, width};
    table.strides = {k.dtable.row_stride, 1};
    if (!k.add) run(on, FillArgs{.target = table, .value = 0});
    if (n == 0) return;
    const Device device = current_device();
    const auto sorted =
        sort_places<uint32_t>(on, n, bits_of(static_cast<uint64_t>(rows - 1)), device,
                              [&](uint32_t* keys, int32_t* places) {
                                launch(on, {.grid = grid_for(n, 256), .block = dim3(256)},
                                       embedding_keys_kernel, k.indices, rows, keys, places);
                              });
    using Acc = compute_t<W>;
    const int64_t tiles = ceil_div(n, int64_t{kTile});
    const Tensor parts = empty({2, tiles, width}, dtype_of<Acc>, device);
    Acc* first = static_cast<Acc*>(parts.data());
    launch(on, rows_of(tiles), embedding_tiles_kernel<T, W>, sorted.key(), sorted.place(), n, k.dy,
           k.dtable, k.add, first, first + tiles * width);
    LaunchShape runs = rows_of(tiles);
    runs.block.y = kRunShares;
    launch(on, runs, embedding_runs_kernel<W>, sorted.key(), n, tiles, k.dtable, k.add, first,
           first + tiles * width);
  });
}

}  // namespace norma
