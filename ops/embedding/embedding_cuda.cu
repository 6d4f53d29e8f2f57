#include "norma/core/copy.h"
#include "norma/core/cuda/fault.h"
#include "norma/core/cuda/packed.cuh"
#include "norma/ops/embedding/kernels.h"
#include "norma/ops/index/segments.cuh"

namespace norma {
namespace {

constexpr int kThreads = 128;

/// One block a row. Copies bytes: B is 16 of them where the rows allow it.
template <class B, class I>
__global__ void embedding_forward_kernel(ConstVec indices, const B* __restrict__ table,
                                         int64_t table_stride, int64_t rows, B* __restrict__ y,
                                         int width, detail::FaultSlot fault) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (i >= indices.n) return;
  int64_t from = indices.template at<I>(i);
  if (from < 0 || from >= rows) {
    fault.report(rows, i, from);
    from = 0;
  }
  for (int c = threadIdx.x; c < width; c += blockDim.x)
    y[i * width + c] = table[from * table_stride + c];
}

/// Few places and few rows: each thread owns an element of the table and looks at every place.
template <class T, class I>
__global__ void embedding_backward_scan_kernel(ConstVec indices, ConstRows dy, Rows dtable) {
  using Acc = compute_t<T>;
  constexpr int kPlaces = 1024;
  __shared__ int places[kPlaces];
  const int64_t v = blockIdx.x;
  const int c = blockIdx.y * kThreads + threadIdx.x;
  Acc sum = 0;
  for (int64_t first = 0; first < indices.n; first += kPlaces) {
    const int n = static_cast<int>(min(int64_t{kPlaces}, indices.n - first));
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads)
      places[i] = static_cast<int>(indices.template at<I>(first + i));
    __syncthreads();
    if (c < dy.cols)
      for (int i = 0; i < n; ++i)
        if (places[i] == v) sum += convert<Acc>(dy.template row<T>(first + i)[c]);
  }
  if (c < dy.cols) dtable.template row<T>(v)[c] = convert<T>(sum);
}

template <class I>
__global__ void embedding_keys_kernel(ConstVec indices, int64_t rows, uint32_t* keys,
                                      int32_t* places) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= indices.n) return;
  const int64_t at = indices.template at<I>(i);
  keys[i] = at < 0 || at >= rows ? 0u : static_cast<uint32_t>(at);  // forward has reported it
  places[i] = static_cast<int32_t>(i);
}

// The sorted places are cut into tiles; a tile adds up its runs of equal indices. A run that lies
// in one tile is done; of the others each tile leaves its part (the first or the last of its runs),
// and the tile in which a run begins adds the parts up in order.
constexpr int kTile = 32;

template <class T>
__global__ void embedding_tiles_kernel(const uint32_t* __restrict__ keys,
                                       const int32_t* __restrict__ places, int64_t n, ConstRows dy,
                                       Rows dtable, compute_t<T>* __restrict__ first_parts,
                                       compute_t<T>* __restrict__ last_parts) {
  using Acc = compute_t<T>;
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
      dtable.template row<T>(key)[c] = convert<T>(sum);
    sum = 0;
    run = i + 1;
  }
}

template <class T>
__global__ void embedding_runs_kernel(const uint32_t* __restrict__ keys, int64_t n, int64_t tiles,
                                      Rows dtable, const compute_t<T>* __restrict__ first_parts,
                                      const compute_t<T>* __restrict__ last_parts) {
  const int64_t tile = blockIdx.x, begin = tile * kTile, end = begin + kTile;
  if (end >= n) return;
  const uint32_t key = keys[end - 1];
  if (keys[end] != key) return;
  // The run that goes on must begin here: not the tile's first run if that came from before.
  if (keys[begin] == key && begin > 0 && keys[begin - 1] == key) return;
  const int c = blockIdx.y * kThreads + threadIdx.x;
  if (c >= dtable.cols) return;
  compute_t<T> sum = last_parts[tile * dtable.cols + c];
  for (int64_t t = tile + 1; t < tiles && keys[t * kTile] == key; ++t)
    sum += first_parts[t * dtable.cols + c];
  dtable.template row<T>(key)[c] = convert<T>(sum);
}

constexpr int64_t kScanPlaces = 4096, kScanRows = 512;

}  // namespace

void run(Cuda on, const EmbeddingForwardArgs& k) {
  const int64_t size = size_of(k.y.dtype), bytes = k.y.cols * size;
  if (bytes == 0) return;
  const bool wide = bytes % 16 == 0 && k.table.row_stride * size % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(k.table.data) % 16 == 0 &&
                    reinterpret_cast<uintptr_t>(k.y.data) % 16 == 0;
  visit_index(k.indices.dtype, [&]<class I>() {
    const auto start = [&]<class B>(B) {
      const auto unit = static_cast<int64_t>(sizeof(B));
      const int64_t width = bytes / unit;
      const unsigned threads = width >= 128 ? 128 : 32;
      launch(on,
             {.grid = grid_for(k.indices.n, static_cast<int>(256 / threads)),
              .block = dim3(threads, 256 / threads)},
             embedding_forward_kernel<B, I>, k.indices, static_cast<const B*>(k.table.data),
             k.table.row_stride * size / unit, k.table.rows, static_cast<B*>(k.y.data),
             static_cast<int>(width),
             detail::fault_slot(
                 "embedding: indices must be below {}, the rows of weight, but index {} is {}"));
    };
    if (wide) return start(uint4{});
    switch (size) {
      case 8:
        return start(uint64_t{});
      case 4:
        return start(uint32_t{});
      case 2:
        return start(uint16_t{});
      default:
        return start(uint8_t{});
    }
  });
}

void run(Cuda on, const EmbeddingBackwardArgs& k) {
  const int64_t n = k.indices.n, width = k.dtable.cols, rows = k.dtable.rows;
  if (width == 0 || rows == 0) return;
  const auto columns = static_cast<unsigned>(ceil_div(width, int64_t{kThreads}));
  visit_index(k.indices.dtype, [&]<class I>() {
    visit_all(k.dtable.dtype, [&]<class T>() {
      if (n <= kScanPlaces && rows <= kScanRows) {
        launch(on, {.grid = dim3(static_cast<unsigned>(rows), columns), .block = dim3(kThreads)},
               embedding_backward_scan_kernel<T, I>, k.indices, k.dy, k.dtable);
        return;
      }
      View table;
      table.data = k.dtable.data, table.dtype = k.dtable.dtype, table.shape = {rows, width};
      table.strides = {k.dtable.row_stride, 1};
      run(on, FillArgs{.target = table, .value = 0});
      if (n == 0) return;
      const Device device = current_device();
      const auto sorted =
          sort_places<uint32_t>(on, n, bits_of(static_cast<uint64_t>(rows - 1)), device,
                                [&](uint32_t* keys, int32_t* places) {
                                  launch(on, {.grid = grid_for(n, 256), .block = dim3(256)},
                                         embedding_keys_kernel<I>, k.indices, rows, keys, places);
                                });
      using Acc = compute_t<T>;
      const int64_t tiles = ceil_div(n, int64_t{kTile});
      const Tensor parts = empty({2, tiles, width}, dtype_of<Acc>, device);
      Acc* first = static_cast<Acc*>(parts.data());
      const LaunchShape shape{.grid = dim3(static_cast<unsigned>(tiles), columns),
                              .block = dim3(kThreads)};
      launch(on, shape, embedding_tiles_kernel<T>, sorted.key(), sorted.place(), n, k.dy, k.dtable,
             first, first + tiles * width);
      launch(on, shape, embedding_runs_kernel<T>, sorted.key(), n, tiles, k.dtable, first,
             first + tiles * width);
    });
  });
}

}  // namespace norma
