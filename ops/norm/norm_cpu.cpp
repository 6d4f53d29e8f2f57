#include <algorithm>
#include <array>
#include <cmath>

#include "norma/core/cache.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/lanes32_cpu.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/elementwise/packets_cpu.h"
#include "norma/ops/norm/activation_cpu.h"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/general_cpu.h"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/statistics_cpu.h"

namespace norma {
namespace {

using detail::for_each32;
using detail::for_parts;
using detail::Lanes32;
using detail::load32;
using detail::Stats;
using detail::store32;
using detail::sum_of_leaves;
using detail::Totals;

/// Elements of a row as Accs: the row itself, or converted into the buffer.
template <class Acc, class T>
const Acc* converted(const T* row, int64_t n, Acc* buffer) {
  if constexpr (std::is_same_v<T, Acc>) {
    return row;
  } else {
    for (int64_t c = 0; c < n; ++c) buffer[c] = static_cast<Acc>(row[c]);
    return buffer;
  }
}

/// The weight as it multiplies (1 where there is none) and the bias, in Acc, once for all rows.
template <class Acc>
class Affine {
 public:
  Affine(const ConstVec& w, const ConstVec& b, const NormOptions& o, int64_t cols)
      : w_(ready(w, o.zero_centered, cols, w_scratch_)),
        b_(b ? ready(b, false, cols, b_scratch_) : nullptr) {}
  /// From column c on; no bias is null.
  const Acc* w(int64_t c) const { return w_ + c; }
  const Acc* b(int64_t c) const { return b_ ? b_ + c : nullptr; }

 private:
  static constexpr int64_t kShort = 256;
  static const Acc* ones() {  // short rows need no buffer of their own for an absent weight
    alignas(64) static constexpr auto values = [] {
      std::array<Acc, kShort> filled{};
      filled.fill(Acc(1));
      return filled;
    }();
    return values.data();
  }
  static const Acc* ready(const ConstVec& from, bool add_one, int64_t cols, Tensor& scratch) {
    if (from && from.dtype == dtype_of<Acc> && !add_one) return from.as<Acc>();
    if (!from && cols <= kShort) return ones();
    scratch = empty({cols}, dtype_of<Acc>);
    Acc* to = scratch.span<Acc>().data();
    std::fill_n(to, cols, Acc(add_one || !from));
    if (from)
      visit_floating(from.dtype, [&]<class W>() {
        for (int64_t c = 0; c < cols; ++c) to[c] += static_cast<Acc>(from.at<W>(c));
      });
    return to;
  }
  Tensor w_scratch_, b_scratch_;
  const Acc *w_, *b_;
};

/// Rows a task; the buffers of a task are one scratch tensor, so that nothing is allocated twice.
Split row_blocks(int64_t rows, int64_t cols) {
  constexpr int64_t kGrain = 1 << 14;  // elements: the 768 × 128 of a toy model in six, not three
  if (rows > 0 && rows * cols <= kGrain) return {.blocks = 1, .size = rows, .n = rows};
  return split(rows, std::max<int64_t>(1, kGrain / cols));
}

/// Whether results should go past the caches: all that the op moves is more than half of what the
/// last one holds, and each row of a result begins a line of its own. What fills that cache just
/// so comes back from memory in part: a forward of 1024 × 4096 takes 0.4 of the time past it.
template <class T>
bool streams(const Rows& out, int64_t group, int64_t tensors) {
  const auto whole_lines = [](int64_t n) { return n * static_cast<int64_t>(sizeof(T)) % 64 == 0; };
  return out.rows * out.cols * static_cast<int64_t>(sizeof(T)) * tensors >
             detail::last_cache_bytes() / 2 &&
         reinterpret_cast<uintptr_t>(out.data) % 64 == 0 && whole_lines(out.row_stride) &&
         whole_lines(group);
}

constexpr int kTogether = 4;

/// Rows whose sums take turns, so that none waits for another's. More than 512 elements at a time
/// push each other out of the first cache.
int rows_together(int64_t group, bool buffered) {
  return buffered || group > 256 ? 1 : group > 128 ? 2 : kTogether;
}
/// Long rows past the caches, part by part: each then finds its part of the weights and of their
/// sums in the first cache. Of a backward four, from 8 KB on: a Zen 4 takes 0.83 of the time for
/// rows of 4096 and 8192 elements, and more for rows whose weights stay there anyhow; a Zen 3 took
/// 0.97 to 1.10. Of a forward with w and b two, from 16 KB on: 0.85 to 0.93.
int long_rows_together(size_t row_bytes, bool buffered, size_t shortest, int most) {
  constexpr size_t kSecondCache = 128 << 10;  // bytes of one operand
  if (detail::kVectorBytes < 64 || buffered || row_bytes < shortest) return 1;
  return static_cast<int>(std::clamp<size_t>(kSecondCache / row_bytes, 1, most));
}
/// f(first, last) for each part of a row, or once for all of it.
template <class F>
void for_row_parts(bool all, int64_t n, const F& f) {
  const int64_t part = all ? n : detail::kLeaf;
  for (int64_t first = 0; first < n; first += part) f(first, std::min(n, first + part));
}
template <int kRows>
using RowCount = std::integral_constant<int, kRows>;
/// f(RowCount<count>{}): the compiler knows how many.
template <class F>
auto visit_count(int count, const F& f) {
  return count == kTogether ? f(RowCount<kTogether>{})
         : count == 2       ? f(RowCount<2>{})
                            : f(RowCount<1>{});
}

template <int kRows, class Acc>
void totals_of(const Lanes32<Acc> (&sums)[kRows], Acc* out) {
  for (int r = 0; r + 1 < kRows; r += 2) {
    const Totals<Acc> two = totals(sums[r], sums[r + 1]);
    out[r] = two.a, out[r + 1] = two.b;
  }
  if (kRows % 2) out[kRows - 1] = sums[kRows - 1].total();
}

/// What detail::moments finds, of rows of at most a leaf.
template <int kRows, class Acc>
void moments_of_rows(const Acc* const* u, int64_t n, NormKind kind, detail::Moments<Acc>* m) {
  Lanes32<Acc> sums[kRows];
  Acc total[kRows];
  if (kind != NormKind::layer) {
    for_each32(
        n, [&](int64_t c, auto count) __attribute__((always_inline)) {
          for (int r = 0; r < kRows; ++r) {
            const Lanes32<Acc> v = load32(u[r] + c, count);
            sums[r] += v * v;
          }
        });
    totals_of(sums, total);
    for (int r = 0; r < kRows; ++r) m[r] = {0, 0, total[r]};
    return;
  }
  for_each32(
      n, [&](int64_t c, auto count) __attribute__((always_inline)) {
        for (int r = 0; r < kRows; ++r) sums[r] += load32(u[r] + c, count);
      });
  totals_of(sums, total);
  const Acc size = static_cast<Acc>(n);
  for (int r = 0; r < kRows; ++r) m[r].mean = total[r] / size;
  Lanes32<Acc> rests[kRows], squares[kRows];
  for_each32(
      n, [&](int64_t i, auto count) __attribute__((always_inline)) {
        for (int r = 0; r < kRows; ++r) {
          const Lanes32<Acc> c = load32(u[r] + i, count, m[r].mean) - m[r].mean;
          rests[r] += c;
          squares[r] += c * c;
        }
      });
  for (int r = 0; r < kRows; ++r) {
    const Totals<Acc> about = totals(rests[r], squares[r]);
    m[r].mean_rest = about.a / size;
    m[r].squares = std::max(about.b - about.a * m[r].mean_rest, about.b * 0);  // keeps NaN
  }
}

/// What the second pass over a row needs.
template <class T, class Acc>
struct ForwardRow {
  const Acc *u, *gate = nullptr;  // the gate where it comes last
  Stats<Acc> s;
  T* y;
  const T* next = nullptr;  // the same columns of a later row, where that should be fetched
};

/// y = x̂ ⊙ w + b, times the gate where there is one. Without kBias b is not read: as zeros in
/// memory it would push what else a row reads out of the first cache (16384 × 4096 on a Zen 4: 0.92
/// of the time without).
template <bool kStream, bool kBias, class T, class Acc>
void normalize(const ForwardRow<T, Acc>& row, const Acc* w, const Acc* b, int64_t first,
               int64_t last) {
  const Lanes32<Acc> mean = row.s.mean, rest = row.s.mean_rest, rstd = row.s.rstd;
  for_each32(
      last - first, [&](int64_t from_first, auto count) __attribute__((always_inline)) {
        const int64_t c = first + from_first;
        if (kStream) detail::prefetch32(row.next + c);
        const Lanes32<Acc> x_hat = (load32(row.u + c, count) - mean - rest) * rstd;
        const Lanes32<Acc> bias = kBias ? load32(b + c, count) : Lanes32<Acc>(Acc(0));
        Lanes32<Acc> v = x_hat * load32(w + c, count) + bias;
        if (row.gate) v = v * load32(row.gate + c, count);
        store32<kStream>(v, row.y + c, count);
      });
}
template <bool kStream, class T, class Acc>
void normalize(const ForwardRow<T, Acc>& row, const Acc* w, const Acc* b, int64_t first,
               int64_t last) {
  b ? normalize<kStream, true>(row, w, b, first, last)
    : normalize<kStream, false>(row, w, b, first, last);
}

template <class T>
void forward(const NormForwardArgs& k) {
  using Acc = stats_t<T>;
  const NormOptions& o = k.options;
  const int64_t cols = k.x.cols, group = o.group == 0 ? cols : o.group;
  const int64_t groups = o.group == 0 ? 1 : cols / group;
  if (k.x.rows == 0) return;
  const Affine<Acc> affine(k.w, k.b, o, cols);
  const Split blocks = row_blocks(k.x.rows, cols);
  const bool stream = streams<T>(k.y, group, k.z || k.residual ? 3 : 2);
  constexpr int kBuffers = 3;
  const bool buffered = !std::is_same_v<T, Acc> || k.z;
  const bool short_rows = group <= detail::kLeaf && o.variance == Variance::two_pass;
  const int long_rows =
      stream && k.b ? long_rows_together(group * sizeof(Acc), buffered, 16 << 10, 2) : 1;
  const int together = std::max(long_rows, rows_together(group, buffered));
  // The processor's own looking ahead ends with a page: rows of 1024 came at 56 % of copy, so
  // at 80.
  constexpr int64_t kAhead = 8 << 10;  // bytes
  const int64_t later =
      stream ? std::max<int64_t>(together, kAhead / (cols * static_cast<int64_t>(sizeof(T)))) : 0;
  /// All of group j of row i but its statistics. Written in place: copying what was just written in
  /// parts makes the processor wait.
  const auto begin_row = [&](int64_t i, int64_t j, Acc* u_buffer, ForwardRow<T, Acc>& row) {
    Acc *z_buffer = u_buffer + group, *gate = z_buffer + group;
    const int64_t at = j * group;
    const T* x = k.x.row<T>(i) + at;
    if (k.residual) {
      const T* residual = k.residual.row<T>(i) + at;
      T* h = k.h.row<T>(i) + at;
      for (int64_t c = 0; c < group; ++c)
        h[c] = static_cast<T>(static_cast<Acc>(x[c]) + static_cast<Acc>(residual[c]));
      x = h;  // rounded: the backward starts from it too
    }
    row.u = converted<Acc>(x, group, u_buffer);
    row.y = k.y.row<T>(i) + at;
    if (stream) row.next = k.x.row<T>(std::min(i + later, k.x.rows - 1)) + at;
    if (k.z)
      detail::activate<Acc>(o, converted<Acc>(k.z.row<T>(i) + at, group, z_buffer), group, gate,
                            nullptr);
    if (o.gate == GateOrder::norm_then_gate) row.gate = gate;
    if (o.gate == GateOrder::gate_then_norm) {
      for (int64_t c = 0; c < group; ++c) u_buffer[c] = row.u[c] * gate[c];
      row.u = u_buffer;
    }
  };
  /// Group j of `count` rows; whether the statistics of all of them are within range.
  const auto run_rows = [&](int64_t i, int count, int64_t j, Acc* buffer) {
    ForwardRow<T, Acc> rows[kTogether];
    const Acc* u[kTogether];
    detail::Moments<Acc> m[kTogether];
    for (int r = 0; r < count; ++r) {
      begin_row(i + r, j, buffer, rows[r]);
      u[r] = rows[r].u;
    }
    if (short_rows)
      visit_count(count, [&](auto rows_now) { moments_of_rows<rows_now>(u, group, o.kind, m); });
    else
      for (int r = 0; r < count; ++r) m[r] = detail::moments(u[r], group, o);
    bool in_range = true;
    for (int r = 0; r < count; ++r) {
      in_range &= !detail::out_of_range(m[r].squares, o.eps);
      rows[r].s = detail::statistics_of(m[r], group, o);
      const int64_t at = (i + r) * groups + j;
      if (k.mean) k.mean.at<Acc>(at) = rows[r].s.mean;
      if (k.mean_rest) k.mean_rest.at<Acc>(at) = rows[r].s.mean_rest;
      k.rstd.at<Acc>(at) = rows[r].s.rstd;
    }
    const Acc *w = affine.w(j * group), *b = affine.b(j * group);
    for_row_parts(count == 1, group, [&](int64_t first, int64_t last) {
      for (int r = 0; r < count; ++r)
        stream ? normalize<true>(rows[r], w, b, first, last)
               : normalize<false>(rows[r], w, b, first, last);
    });
    return in_range;
  };

  parallel_for(blocks.blocks, [&](int64_t block) {
    // Mostly what the thread's last block had, and so in its cache (a gated backward of 256 × 4096:
    // 0.9 of the time).
    const Tensor scratch = buffered ? empty({kBuffers, group}, dtype_of<Acc>) : Tensor();
    Acc* buffer = buffered ? scratch.span<Acc>().data() : nullptr;
    int count = 1;
    for (int64_t i = blocks.begin(block); i < blocks.end(block); i += count) {
      count = i + together <= blocks.end(block) ? together : 1;
      bool in_range = true;
      for (int64_t j = 0; j < groups; ++j) in_range &= run_rows(i, count, j, buffer);
      for (int r = 0; r < count && !in_range; ++r) detail::run_general(detail::one_row(k, i + r));
    }
    if (stream) detail::end_streams();
  });
}

/// What the second pass over a row's gradient needs.
template <class T, class Acc>
struct GradientRow {
  const Acc *u, *dn;
  const Acc *h = nullptr, *gate = nullptr, *slope = nullptr;  // where the gate comes first
  Acc mean = 0, mean_rest = 0, rstd, mean_g = 0, mean_gx = 0;
  const T* dh = nullptr;
  T *dx, *dz = nullptr;
  // The same columns of a row to be read some rows later, where that should be asked for: h while
  // sums are taken, dy while dx is written, so that memory rests in neither.
  const T *later_h = nullptr, *later_dy = nullptr;
};

/// Where a block adds up dw and db; db is null where nobody wants it.
template <class Acc>
struct WeightSums {
  Acc *w, *b;
};

/// Σ g and Σ g x̂ over columns first … first + n − 1 of at most a leaf, while the row's terms join
/// dw and db. These need no sum over the row, so that they are taken here, where memory is read,
/// and not between what finish_row sends past the caches: there each store waits behind those.
template <class T, class Acc>
Totals<Acc> gradient_sums_of_leaf(const GradientRow<T, Acc>& row, const Acc* w,
                                  const WeightSums<Acc>& sums, int64_t first, int64_t n) {
  // Read one by one: a copy of what was just written in parts waits until all stores are done.
  const Acc *u = row.u + first, *dn = row.dn + first;
  const Acc mean = row.mean, rest = row.mean_rest, rstd = row.rstd;
  const T* later_h = row.later_h;
  Acc *dw = sums.w + first, *db = sums.b ? sums.b + first : nullptr;
  w += first;
  Lanes32<Acc> sum_g, sum_gx;
  for_each32(
      n, [&](int64_t c, auto count) __attribute__((always_inline)) {
        if (later_h) detail::prefetch32(later_h + first + c);
        for_parts<Acc>(
            count, [&](auto part) __attribute__((always_inline)) {
              const auto x_hat = (part.load(u + c, mean) - mean - rest) * rstd;
              const auto d = part.load(dn + c), g = d * part.load(w + c);
              part.of(sum_g) += g;
              part.of(sum_gx) += g * x_hat;
              part.store(part.load(dw + c) + d * x_hat, dw + c);
              if (db) part.store(part.load(db + c) + d, db + c);
            });
      });
  return totals(sum_g, sum_gx);
}
/// Of each of several rows.
template <class Acc>
struct RowTotals {
  Totals<Acc> of[kTogether];
  friend RowTotals operator+(const RowTotals& x, const RowTotals& y) {
    RowTotals sum;
    for (int r = 0; r < kTogether; ++r) sum.of[r] = x.of[r] + y.of[r];
    return sum;
  }
};
/// A leaf of all rows before the next one, while its part of w, dw and db is in the first cache.
template <class T, class Acc>
RowTotals<Acc> gradient_sums(const GradientRow<T, Acc>* rows, int count, const Acc* w,
                             const WeightSums<Acc>& sums, int64_t n) {
  return sum_of_leaves(n, [&](int64_t first, int64_t leaf) {
    RowTotals<Acc> totals;
    for (int r = 0; r < count; ++r)
      totals.of[r] = gradient_sums_of_leaf(rows[r], w, sums, first, leaf);
    return totals;
  });
}

/// The gradient of a row's columns first … last − 1. kStream: past the caches.
template <bool kStream, class T, class Acc>
void finish_row(const GradientRow<T, Acc>& row, const Acc* w, int64_t first, int64_t last) {
  const Acc *u = row.u, *dn = row.dn, *h = row.h, *gate = row.gate, *slope = row.slope;
  const Acc mean = row.mean, rest = row.mean_rest, rstd = row.rstd;
  const Acc mean_g = row.mean_g, mean_gx = row.mean_gx;
  const T *dh = row.dh, *later_dy = row.later_dy;
  T *dx = row.dx, *dz = row.dz;
  for_each32(
      last - first, [&](int64_t from_first, auto count) __attribute__((always_inline)) {
        const int64_t c = first + from_first;
        if (kStream && later_dy) detail::prefetch32(later_dy + c);
        Lanes32<Acc> d;
        for_parts<Acc>(
            count, [&](auto part) __attribute__((always_inline)) {
              const auto x_hat = (part.load(u + c, mean) - mean - rest) * rstd;
              const auto g = part.load(dn + c) * part.load(w + c);
              part.of(d) = (g - mean_g - x_hat * mean_gx) * rstd;
            });
        if (gate) {
          store32<kStream>(d * load32(h + c, count) * load32(slope + c, count), dz + c, count);
          d = d * load32(gate + c, count);
        }
        if (dh) d += detail::load32_as<Acc>(dh + c, count);
        store32<kStream>(d, dx + c, count);
      });
}

/// partial[0] += the other blocks' rows, one after another: the same order for any thread count.
/// A block's sums are `stride` apart.
template <class Acc>
void add_blocks(Acc* partial, int64_t blocks, int64_t stride, int64_t cols, const Vec& out) {
  if (!out) return;
  const Split tiles = split(cols, 256);
  visit_floating(out.dtype, [&]<class W>() {
    parallel_for(tiles.blocks, [&](int64_t t) {
      for (int64_t b = 1; b < blocks; ++b)
        for (int64_t c = tiles.begin(t); c < tiles.end(t); ++c)
          partial[c] += partial[b * stride + c];
      for (int64_t c = tiles.begin(t); c < tiles.end(t); ++c)
        out.at<W>(c) = static_cast<W>(partial[c]);
    });
  });
}

template <class T>
void backward(const NormBackwardArgs& k) {
  using Acc = stats_t<T>;
  const NormOptions& o = k.options;
  const int64_t cols = k.h.cols, group = o.group == 0 ? cols : o.group;
  const int64_t groups = o.group == 0 ? 1 : cols / group;
  const Affine<Acc> affine(k.w, k.b, o, cols);
  const Split blocks = row_blocks(k.h.rows, cols);
  const int64_t parts = std::max<int64_t>(1, blocks.blocks);
  // Long blocks sum every kSubRows rows by themselves: a million terms in one sum would lose
  // digits.
  constexpr int64_t kSubRows = 256;
  const bool long_blocks = blocks.size > kSubRows;
  const Rows& dx = k.dx ? k.dx : k.dresidual;
  constexpr int kBuffers = 7;
  const bool buffered = !std::is_same_v<T, Acc> || k.z || !dx;
  const bool stream = streams<T>(dx, group, 3) && (!k.z || streams<T>(k.dz, group, 5));
  const int together = stream && group > 128
                           ? long_rows_together(group * sizeof(Acc), buffered, 8 << 10, 4)
                           : rows_together(group, buffered);
  // A processor takes a load for one of what was just stored where the last 12 bits of their
  // addresses agree: db lies elsewhere in its page than dw (16384 × 1024 and 8192 × 8192: 0.85 to
  // 0.95 of the time), but for long rows one at a time, whose dw and db had better share the first
  // cache's places (1.05 to 1.1).
  constexpr int64_t kPage = 4096 / sizeof(Acc);
  const bool apart = cols % kPage == 0 && (cols == kPage || together > 1);
  const int64_t db_at = cols + (apart ? kPage / 8 : 0);
  const int64_t stride = (long_blocks ? 4 : 2) * db_at;
  const Tensor partial = empty({parts, stride}, dtype_of<Acc>);
  Acc* sums = partial.span<Acc>().data();
  if (blocks.blocks == 0) std::fill_n(sums, stride, Acc(0));
  // The processor's own looking ahead likes short rows as they lie, one after another, and ends
  // with a page. All but the shortest rows are asked for (65536 × 256: 0.86 to 0.89 of the time),
  // two ahead where that is not too much for the second cache (16384 × 4096: 0.97).
  constexpr int64_t kShort = 1 << 10, kAhead = 8 << 10, kLong = 16 << 10;  // bytes of one operand
  const int64_t row_bytes = cols * static_cast<int64_t>(sizeof(T));
  const bool ask = stream && row_bytes >= kShort;
  const int64_t later =
      std::max<int64_t>({together, row_bytes > kLong ? 1 : 2, kAhead / row_bytes});
  /// All of group j of row i but its sums: the gate's own gradient where it comes last.
  const auto begin_row = [&](int64_t i, int64_t j, Acc* h_buffer, GradientRow<T, Acc>& row) {
    Acc *dy_buffer = h_buffer + group, *z_buffer = dy_buffer + group, *gate = z_buffer + group;
    Acc *slope = gate + group, *product = slope + group;
    T* unwanted = reinterpret_cast<T*>(product + group);
    const int64_t at = j * group, next = std::min(i + later, k.h.rows - 1);
    const Acc* h = converted<Acc>(k.h.row<T>(i) + at, group, h_buffer);
    const Acc* dy = converted<Acc>(k.dy.row<T>(i) + at, group, dy_buffer);
    const Acc *w = affine.w(at), *b = affine.b(at);
    row.u = h, row.dn = dy;
    if (k.mean) row.mean = k.mean.at<Acc>(i * groups + j);
    if (k.mean_rest) row.mean_rest = k.mean_rest.at<Acc>(i * groups + j);
    row.rstd = k.rstd.at<Acc>(i * groups + j);
    if (k.dh) row.dh = k.dh.row<T>(i) + at;
    row.dx = dx ? dx.row<T>(i) + at : unwanted;
    if (ask) row.later_h = k.h.row<T>(next) + at, row.later_dy = k.dy.row<T>(next) + at;
    if (k.z)
      detail::activate<Acc>(o, converted<Acc>(k.z.row<T>(i) + at, group, z_buffer), group, gate,
                            slope);
    if (o.gate == GateOrder::gate_then_norm) {
      for (int64_t c = 0; c < group; ++c) product[c] = h[c] * gate[c];
      row.u = product;
      row.h = h, row.gate = gate, row.slope = slope;
      row.dz = k.dz ? k.dz.row<T>(i) + at : unwanted;
    } else if (o.gate == GateOrder::norm_then_gate) {
      T* dz = k.dz ? k.dz.row<T>(i) + at : unwanted;
      for (int64_t c = 0; c < group; ++c) {
        const Acc n = (h[c] - row.mean - row.mean_rest) * row.rstd * w[c] + (b ? b[c] : Acc(0));
        dz[c] = static_cast<T>(dy[c] * n * slope[c]);
      }
      for (int64_t c = 0; c < group; ++c) product[c] = dy[c] * gate[c];
      row.dn = product;
    }
  };
  /// Group j of `count` rows.
  const auto run_rows = [&](int64_t i, int count, int64_t j, Acc* buffers, Acc* dw, Acc* db) {
    GradientRow<T, Acc> rows[kTogether];
    const Acc* w = affine.w(j * group);
    const WeightSums<Acc> weights{dw + j * group, k.db ? db + j * group : nullptr};
    for (int r = 0; r < count; ++r) begin_row(i + r, j, buffers, rows[r]);
    const RowTotals<Acc> of_rows = gradient_sums(rows, count, w, weights, group);
    for (int r = 0; r < count; ++r) {
      const Totals<Acc>& s = of_rows.of[r];
      if (o.kind == NormKind::layer) rows[r].mean_g = s.a / static_cast<Acc>(group);
      rows[r].mean_gx = o.kind == NormKind::l2 ? s.b : s.b / static_cast<Acc>(group);
    }
    for_row_parts(count == 1, group, [&](int64_t first, int64_t last) {
      for (int r = 0; r < count; ++r)
        stream ? finish_row<true>(rows[r], w, first, last)
               : finish_row<false>(rows[r], w, first, last);
    });
  };

  parallel_for(blocks.blocks, [&](int64_t block) {
    const Tensor scratch = buffered ? empty({kBuffers, group}, dtype_of<Acc>) : Tensor();
    Acc* buffers = buffered ? scratch.span<Acc>().data() : nullptr;
    Acc *totals = sums + block * stride, *dw = totals + (long_blocks ? 2 * db_at : 0);
    Acc* db = dw + db_at;
    std::fill_n(totals, stride, Acc(0));
    int count = 1;
    for (int64_t i = blocks.begin(block); i < blocks.end(block); i += count) {
      count = i + together <= blocks.end(block) ? together : 1;
      for (int64_t j = 0; j < groups; ++j) run_rows(i, count, j, buffers, dw, db);
      const int64_t before = i - blocks.begin(block), done = before + count;
      if (long_blocks && (i + count == blocks.end(block) || done / kSubRows > before / kSubRows)) {
        for (int64_t c = 0; c < 2 * db_at; ++c) totals[c] += dw[c];
        std::fill_n(dw, 2 * db_at, Acc(0));
      }
    }
    if (stream) detail::end_streams();
  });
  add_blocks(sums, parts, stride, cols, k.dw);
  add_blocks(sums + db_at, parts, stride, cols, k.db);
}

/// Why the loops here do not do it all; null for the members that most models use, of one dtype.
const char* why_general(const NormOptions& o, const ConstVec& w, const ConstVec& b, int64_t cols) {
  if (o.casting == Casting::rounded) return "its x̂ is rounded before the weight";
  if (o.dropout > 0) return "it has dropout";
  if (o.saves == NormSaves::x_hat) return "it saves x̂";
  const bool shared = (w && w.n != cols) || (b && b.n != cols);
  return shared ? "its groups share a weight" : nullptr;
}
const char* why_general(const NormForwardArgs& k) {
  const auto other = [&](const auto& t) { return t && t.dtype != k.x.dtype; };
  if (k.row_scale) return "it has a row scale";
  if (k.w2) return "it has a second weight";
  if (other(k.residual) || other(k.h) || other(k.y)) return "its tensors differ in dtype";
  if (k.x_hat || (k.h && !k.residual)) return "it makes h or x̂ of its own";
  return why_general(k.options, k.w, k.b, k.x.cols);
}
const char* why_general(const NormBackwardArgs& k) {
  if (k.options.precise) return "its weight gradients are compensated sums";
  if (k.options.probe) return "it has a probe";
  if (k.row_scale) return "it has a row scale";
  if (k.w2 || k.dy2) return "it has a second weight";
  if (const char* why = why_general(k.options, k.w, k.b, k.dy.cols)) return why;
  if (!k.h) return "it saved x̂";
  const auto other = [&](const auto& t) { return t && t.dtype != k.h.dtype; };
  if (k.dx && k.dresidual) return "dx and dresidual differ";
  if (other(k.dy) || other(k.dx) || other(k.dresidual) || other(k.z))
    return "its tensors differ in dtype";
  return nullptr;
}
constexpr const char* kPlain =
    "norm_cpu: loops in vectors, statistics and results in one pass each";
constexpr const char* kGeneral = "norm_general_cpu: a group at a time through buffers";
constexpr const char* kWhyPlain = "a plain member whose tensors are of one dtype";

}  // namespace

void run(Cpu, const NormForwardArgs& k) {
  if (const char* why = why_general(k)) {
    detail::chose(kGeneral, why);
    return detail::run_general(k);
  }
  detail::chose(kPlain, kWhyPlain);
  visit_floating(k.x.dtype, [&]<class T>() { forward<T>(k); });
}
void run(Cpu, const NormBackwardArgs& k) {
  if (const char* why = why_general(k)) {
    detail::chose(kGeneral, why);
    return detail::run_general(k);
  }
  visit_floating(k.h.dtype, [&]<class T>() {
    const auto* rstd = k.rstd.as<stats_t<T>>();
    if (std::all_of(rstd, rstd + k.rstd.n, [](auto r) { return std::isnormal(r); })) {
      detail::chose(kPlain, kWhyPlain);
      backward<T>(k);
    } else {
      detail::chose(kGeneral, "a row's rstd left the range of its dtype: it is scaled");
      detail::run_general(k);
    }
  });
}

}  // namespace norma
