#include <algorithm>

#include "norma/core/parallel.h"
#include "norma/core/tensor.h"
#include "norma/ops/conv1d/kernels.h"
#include "norma/ops/elementwise/lanes_cpu.h"

namespace norma {
namespace {

using detail::Lanes;
using detail::load_lanes;
using detail::store_lanes;

constexpr int64_t kSteps = 64;  // rows a tile
constexpr int64_t kChannels =
    256;  // columns a tile: rows of 1 KB, all of it stays in the second cache

/// Sizes of a call. u is x behind the K − 1 inputs before it: row s of it is x's row s − past.
struct Sizes {
  int64_t batch, length, channels, width, past;

  Sizes(const ConstView& x, const ConstView& w)
      : batch(x.shape[0]),
        length(x.shape[1]),
        channels(x.shape[2]),
        width(w.shape[1]),
        past(width - 1) {}
  int64_t column_tiles() const { return (channels + kChannels - 1) / kChannels; }
};

/// Columns first … first + n − 1 of every row, padded to `padded` columns: zeros beyond.
struct Columns {
  int64_t first, n, padded;
};
template <class Acc>
Columns columns_of(const Sizes& size, int64_t tile) {
  const int64_t first = tile * kChannels, n = std::min(kChannels, size.channels - first);
  return {first, n, detail::round_up_to_lanes<Acc>(n)};
}

/// Row t of a (B, T, C) view, or null outside 0 … T − 1 and where the view is absent.
template <class T, class AnyView>
auto* row_of(const AnyView& view, int64_t batch, int64_t t, int64_t first) {
  auto* data = view.template as<T>();
  if (!view.data || t < 0 || t >= view.shape[1]) return decltype(data){nullptr};
  return data + batch * view.strides[0] + t * view.strides[1] + first;
}
template <class T, class Acc>
void read_row(const T* row, const Columns& columns, Acc* to) {
  const int64_t n = row ? columns.n : 0;
  for (int64_t c = 0; c < n; ++c) to[c] = static_cast<Acc>(row[c]);
  std::fill(to + n, to + columns.padded, Acc(0));
}
template <class T, class Acc>
void write_row(T* row, const Columns& columns, const Acc* from) {
  for (int64_t c = 0; c < columns.n; ++c) row[c] = static_cast<T>(from[c]);
}

/// Rows first … last − 1 of u.
template <class T, class Acc>
void read_inputs(const ConstView& x, const ConstView& state, int64_t past, int64_t batch,
                 int64_t first, int64_t last, const Columns& columns, Acc* u) {
  for (int64_t s = first; s < last; ++s, u += columns.padded)
    read_row(s < past ? row_of<T>(state, batch, s, columns.first)
                      : row_of<T>(x, batch, s - past, columns.first),
             columns, u);
}
/// The weights with a tap's channels side by side, then the bias.
template <class Acc>
void read_weights(const ConstView& w, const ConstVec& b, const Columns& columns, Acc* to) {
  const int64_t width = w.shape[1];
  std::fill_n(to, (width + 1) * columns.padded, Acc(0));
  for (int64_t k = 0; k < width; ++k)
    for (int64_t c = 0; c < columns.n; ++c)
      to[k * columns.padded + c] = w.as<Acc>()[(columns.first + c) * width + k];
  if (b)
    for (int64_t c = 0; c < columns.n; ++c)
      to[width * columns.padded + c] = b.at<Acc>(columns.first + c);
}
/// p = b + Σ_k w_k ⊙ u_k of the lanes at c, u at the row of the first tap.
template <class Acc>
Lanes<Acc> convolve(const Acc* u, const Acc* weights, int64_t width, int64_t padded, int64_t c) {
  Lanes<Acc> p = load_lanes(weights + width * padded + c);
  for (int64_t k = 0; k < width; ++k)
    p += load_lanes(weights + k * padded + c) * load_lanes(u + k * padded + c);
  return p;
}

/// The last K − 1 rows of u.
template <class T>
void write_last_state(const Conv1dForwardArgs& k, const Sizes& size) {
  for (int64_t batch = 0; batch < size.batch; ++batch)
    for (int64_t j = 0; j < size.past; ++j) {
      const int64_t s = size.length + j;
      const T* from =
          s < size.past ? row_of<T>(k.state, batch, s, 0) : row_of<T>(k.x, batch, s - size.past, 0);
      T* to = row_of<T>(k.last_state, batch, j, 0);
      if (from)
        std::copy_n(from, size.channels, to);
      else
        std::fill_n(to, size.channels, T(0));
    }
}

template <class T>
void forward(const Conv1dForwardArgs& k) {
  using Acc = stats_t<T>;
  constexpr int64_t kCount = detail::kLaneCount<Acc>;
  const Sizes size(k.x, k.w);
  if (k.last_state.data) write_last_state<T>(k, size);
  const int64_t row_tiles = (size.length + kSteps - 1) / kSteps;
  const Split work = split(size.batch * row_tiles * size.column_tiles(), 1);
  const int64_t needed = (kSteps + 2 * size.width + 1) * kChannels;
  parallel_for(work.blocks, [&](int64_t block) {
    const Tensor scratch = empty({needed}, dtype_of<Acc>, cpu);
    Acc* weights = scratch.span<Acc>().data();
    Acc* u = weights + (size.width + 1) * kChannels;
    for (int64_t task = work.begin(block); task < work.end(block); ++task) {
      const int64_t tile = task % size.column_tiles(), rows = task / size.column_tiles();
      const int64_t batch = rows / row_tiles, first = rows % row_tiles * kSteps;
      const int64_t last = std::min(size.length, first + kSteps);
      const Columns columns = columns_of<Acc>(size, tile);
      read_weights(k.w, k.b, columns, weights);
      read_inputs<T>(k.x, k.state, size.past, batch, first, last + size.past, columns, u);
      for (int64_t t = first; t < last; ++t) {
        Acc* row = u + (t - first) * columns.padded;
        for (int64_t c = 0; c < columns.padded; c += kCount) {
          Lanes<Acc> p = convolve(row, weights, size.width, columns.padded, c);
          if (k.silu) p *= detail::sigmoid_lanes<Acc>(p);
          store_lanes(row + c, p);  // over the first tap, which no later row reads
        }
        write_row(row_of<T>(k.y, batch, t, columns.first), columns, row);
      }
    }
  });
}

/// One tile: rows first … last − 1 of u, and of dy for the weights.
template <class T>
struct BackwardTile {
  using Acc = stats_t<T>;
  static constexpr int64_t kCount = detail::kLaneCount<Acc>;

  const Conv1dBackwardArgs& k;
  const Sizes& size;
  Acc *weights, *u, *dp;

  static int64_t scratch(const Sizes& size) {
    return (2 * kSteps + 4 * size.width + 1) * kChannels;
  }
  BackwardTile(const Conv1dBackwardArgs& args, const Sizes& sizes, Acc* memory)
      : k(args),
        size(sizes),
        weights(memory),
        u(weights + (size.width + 1) * kChannels),
        dp(u + (kSteps + 2 * size.width) * kChannels) {}

  /// dw and db of the tile's channels: (K + 1, C), taps first.
  void run(int64_t batch, int64_t first, int64_t last, const Columns& columns, Acc* sums) const {
    const int64_t begin = first - size.past, padded = columns.padded;  // of the dp that reach u
    read_weights(k.w, k.b, columns, weights);
    read_inputs<T>(k.x, k.state, size.past, batch, begin, last + size.past, columns, u);
    for (int64_t t = begin; t < last; ++t) slope(batch, t, columns, (t - begin) * padded);
    for (int64_t s = first; s < last; ++s) {
      if (s < size.length) add_to_weights((s - begin) * padded, columns, sums);
      input_gradient(batch, s, columns, dp + (s - begin) * padded);
    }
  }

 private:
  /// dp of row t over its dy. Rows outside the sequence give 0.
  void slope(int64_t batch, int64_t t, const Columns& columns, int64_t row) const {
    read_row(row_of<T>(k.dy, batch, t, columns.first), columns, dp + row);
    if (!k.silu || t < 0 || t >= size.length) return;
    for (int64_t c = 0; c < columns.padded; c += kCount) {
      const Lanes<Acc> p = convolve(u + row, weights, size.width, columns.padded, c);
      const Lanes<Acc> sigmoid = detail::sigmoid_lanes<Acc>(p);
      const Lanes<Acc> dy = load_lanes(dp + row + c);
      store_lanes(dp + row + c, dy * (sigmoid * (Acc(1) + p * (Acc(1) - sigmoid))));
    }
  }
  void add_to_weights(int64_t row, const Columns& columns, Acc* sums) const {
    for (int64_t c = 0; c < columns.padded; c += kCount) {
      const Lanes<Acc> slope = load_lanes(dp + row + c);
      for (int64_t tap = 0; tap <= size.width; ++tap) {
        Lanes<Acc> sum = load_lanes(sums + tap * columns.padded + c);
        sum += tap == size.width ? slope : slope * load_lanes(u + row + tap * columns.padded + c);
        store_lanes(sums + tap * columns.padded + c, sum);
      }
    }
  }
  /// du of row s: into dx, or for the first rows into dstate. dp at row s; du goes where u was.
  void input_gradient(int64_t batch, int64_t s, const Columns& columns, const Acc* slopes) const {
    T* to = s < size.past ? row_of<T>(k.dstate, batch, s, columns.first)
                          : row_of<T>(k.dx, batch, s - size.past, columns.first);
    if (!to) return;
    Acc* du = u;  // row `begin` of u: no tap of the rows to come
    read_row(row_of<T>(k.dlast_state, batch, s - size.length, columns.first), columns, du);
    for (int64_t c = 0; c < columns.padded; c += kCount) {
      Lanes<Acc> sum = load_lanes(du + c);
      for (int64_t tap = 0; tap < size.width; ++tap)
        sum += load_lanes(weights + tap * columns.padded + c) *
               load_lanes(slopes - tap * columns.padded + c);
      store_lanes(du + c, sum);
    }
    write_row(to, columns, du);
  }
};

template <class T>
void backward(const Conv1dBackwardArgs& k) {
  using Acc = stats_t<T>;
  const Sizes size(k.x, k.w);
  const int64_t row_tiles = (size.length + size.past + kSteps - 1) / kSteps;
  const int64_t tiles = size.column_tiles(), taps = size.width + 1;
  // Partial sums a block of row tiles: their number follows from the sizes alone.
  const Split rows = split(size.batch * row_tiles, 1);
  const int64_t padded_width = tiles * kChannels, needed = BackwardTile<T>::scratch(size);
  const Tensor partial = zeros({rows.blocks, taps, padded_width}, dtype_of<Acc>, cpu);
  parallel_for(rows.blocks * tiles, [&](int64_t task) {
    const int64_t block = task / tiles, tile = task % tiles;
    const Columns columns = columns_of<Acc>(size, tile);
    const Tensor scratch = empty({needed}, dtype_of<Acc>, cpu);
    const BackwardTile<T> work(k, size, scratch.span<Acc>().data());
    Acc* sums = partial.span<Acc>().data() + (block * padded_width + tile * kChannels) * taps;
    for (int64_t i = rows.begin(block); i < rows.end(block); ++i) {
      const int64_t first = i % row_tiles * kSteps;
      work.run(i / row_tiles, first, std::min(size.length + size.past, first + kSteps), columns,
               sums);
    }
  });
  for (int64_t c = 0; c < size.channels; ++c) {
    const int64_t tile = c / kChannels, at = c % kChannels;
    const int64_t padded = columns_of<Acc>(size, tile).padded;
    for (int64_t tap = 0; tap < taps; ++tap) {
      Acc sum = 0;
      for (int64_t block = 0; block < rows.blocks; ++block)
        sum +=
            partial
                .span<Acc>()[(block * padded_width + tile * kChannels) * taps + tap * padded + at];
      if (tap < size.width)
        k.dw.at<Acc>(c * size.width + tap) = sum;
      else if (k.db)
        k.db.at<Acc>(c) = sum;
    }
  }
}

}  // namespace

void run(Cpu, const Conv1dForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { forward<T>(k); });
}
void run(Cpu, const Conv1dBackwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { backward<T>(k); });
}

}  // namespace norma
