#include <algorithm>
#include <cmath>

#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/elementwise/packets_cpu.h"
#include "norma/ops/norm/kernels.h"

namespace norma {
namespace {

constexpr int kLanes = 32;      // sums run in lanes, the same for every processor
constexpr int64_t kLeaf = 512;  // elements: 16 adds a lane, then leaves are added pairwise

template <class Acc>
struct Lanes {
  Acc v[kLanes];
  Acc total() const {
    Acc t[kLanes];
    std::copy_n(v, kLanes, t);
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) t[j] += t[j + half];
    return t[0];
  }
};

/// Σ f(c) over n elements in an order that follows from n alone: leaves in lanes, added pairwise.
template <class Acc, class F>
Acc sum_of(int64_t first, int64_t n, const F& f) {
  if (n > kLeaf) {
    int64_t left = kLeaf;
    while (left * 2 < n) left *= 2;
    return sum_of<Acc>(first, left, f) + sum_of<Acc>(first + left, n - left, f);
  }
  Lanes<Acc> sum{};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes)
    for (int j = 0; j < kLanes; ++j) sum.v[j] += f(first + c + j);
  for (int j = 0; c + j < n; ++j) sum.v[j] += f(first + c + j);
  return sum.total();
}

/// Σ c and Σ c² of c = u − mean in the order of sum_of, in one pass.
template <class Acc>
struct Moments {
  Acc sum = 0, squares = 0;
};
template <class Acc>
Moments<Acc> moments_about(const Acc* u, Acc mean, int64_t n) {
  if (n > kLeaf) {
    int64_t left = kLeaf;
    while (left * 2 < n) left *= 2;
    const auto a = moments_about(u, mean, left), b = moments_about(u + left, mean, n - left);
    return {a.sum + b.sum, a.squares + b.squares};
  }
  Lanes<Acc> sum{}, squares{};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const Acc c = u[i + j] - mean;
      sum.v[j] += c;
      squares.v[j] += c * c;
    }
  for (int j = 0; i + j < n; ++j) {
    const Acc c = u[i + j] - mean;
    sum.v[j] += c;
    squares.v[j] += c * c;
  }
  return {sum.total(), squares.total()};
}

template <class Acc>
struct Stats {
  Acc mean = 0, mean_rest = 0, rstd = 0;
};

/// Running means in lanes: each step is a division and three products for 32 elements at once.
template <class Acc>
Stats<Acc> welford(const Acc* u, int64_t n) {
  Lanes<Acc> mean{}, m2{};
  int64_t count[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    const Acc inverse = Acc(1) / static_cast<Acc>(c / kLanes + 1);
    for (int j = 0; j < kLanes; ++j) {
      const Acc delta = u[c + j] - mean.v[j];
      mean.v[j] += delta * inverse;
      m2.v[j] += delta * (u[c + j] - mean.v[j]);
    }
  }
  const Acc inverse = Acc(1) / static_cast<Acc>(c / kLanes + 1);
  for (int j = 0; j < kLanes; ++j) {
    count[j] = c / kLanes + (c + j < n);
    if (c + j >= n) continue;
    const Acc delta = u[c + j] - mean.v[j];
    mean.v[j] += delta * inverse;
    m2.v[j] += delta * (u[c + j] - mean.v[j]);
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) {
      const int64_t both = count[j] + count[j + half];
      if (both == 0) continue;
      const Acc delta = mean.v[j + half] - mean.v[j];
      const Acc share = static_cast<Acc>(count[j + half]) / static_cast<Acc>(both);
      m2.v[j] += m2.v[j + half] + delta * delta * share * static_cast<Acc>(count[j]);
      mean.v[j] += delta * share;
      count[j] = both;
    }
  return {mean.v[0], Acc(0), m2.v[0] / static_cast<Acc>(n)};  // the variance, for now
}

template <class Acc>
Stats<Acc> statistics(const Acc* u, int64_t n, const NormOptions& o) {
  Stats<Acc> s;
  Acc variance;
  const Acc size = static_cast<Acc>(n);
  if (o.kind == NormKind::rms) {
    variance = sum_of<Acc>(0, n, [&](int64_t c) { return u[c] * u[c]; }) / size;
  } else if (o.variance == Variance::welford) {
    s = welford(u, n);
    variance = s.rstd;
  } else {
    s.mean = sum_of<Acc>(0, n, [&](int64_t c) { return u[c]; }) / size;
    // What the mean's rounding left over: 0 in exact arithmetic.
    const Moments<Acc> about = moments_about(u, s.mean, n);
    const Acc squares = about.squares, rest = about.sum / size;
    variance = std::max(squares / size - rest * rest, squares * 0);  // keeps NaN
    s.mean_rest = rest;
  }
  s.rstd = 1 / std::sqrt(variance + static_cast<Acc>(o.eps));
  return s;
}

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

/// silu(z), and its slope where somebody wants it.
template <class Acc>
void gate_of(const Acc* z, int64_t n, Acc* gate, Acc* slope) {
  detail::map_packets(
      n, gate, [](const auto& v) { return (Acc(1) / (Acc(1) + detail::exp_of(-v))).eval(); }, z);
  if (slope)
    for (int64_t c = 0; c < n; ++c) slope[c] = gate[c] * (1 + z[c] * (1 - gate[c]));
  for (int64_t c = 0; c < n; ++c) gate[c] *= z[c];
}

/// The weight as it multiplies (1 where there is none) and the bias (0), in Acc, once for all rows.
template <class Acc>
class Affine {
 public:
  Affine(const ConstVec& w, const ConstVec& b, const NormOptions& o, int64_t cols) {
    w_ = ready(w, o.zero_centered, 1, cols, w_scratch_);
    b_ = ready(b, false, 0, cols, b_scratch_);
  }
  const Acc* w() const { return w_; }
  const Acc* b() const { return b_; }

 private:
  static const Acc* ready(const ConstVec& from, bool add_one, Acc absent, int64_t cols,
                          Tensor& scratch) {
    if (from && from.dtype == dtype_of<Acc> && !add_one) return from.as<Acc>();
    scratch = empty({cols}, dtype_of<Acc>);
    Acc* to = scratch.span<Acc>().data();
    std::fill_n(to, cols, from ? Acc(add_one) : absent);
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
  return split(rows, std::max<int64_t>(1, detail::kPieceGrain / cols));
}

template <class T>
void forward(const NormForwardArgs& k) {
  using Acc = stats_t<T>;
  const NormOptions& o = k.options;
  const int64_t cols = k.x.cols, group = o.group == 0 ? cols : o.group, groups = cols / group;
  if (k.x.rows == 0) return;
  const Affine<Acc> affine(k.w, k.b, o, cols);
  const Split blocks = row_blocks(k.x.rows, cols);
  constexpr int kBuffers = 3;
  const bool buffered = !std::is_same_v<T, Acc> || k.z;
  const Tensor scratch = empty({buffered ? blocks.blocks : 0, kBuffers, group}, dtype_of<Acc>);
  parallel_for(blocks.blocks, [&](int64_t block) {
    Acc* u_buffer = scratch.span<Acc>().data() + block * kBuffers * group;
    Acc *z_buffer = u_buffer + group, *gate = z_buffer + group;
    for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      for (int64_t j = 0; j < groups; ++j) {
        const int64_t at = j * group;
        const T* x = k.x.row<T>(i) + at;
        if (k.residual) {
          const T* residual = k.residual.row<T>(i) + at;
          T* h = k.h.row<T>(i) + at;
          for (int64_t c = 0; c < group; ++c)
            h[c] = static_cast<T>(static_cast<Acc>(x[c]) + static_cast<Acc>(residual[c]));
          x = h;  // rounded: the backward starts from it too
        }
        const Acc* u = converted<Acc>(x, group, u_buffer);
        if (k.z)
          gate_of<Acc>(converted<Acc>(k.z.row<T>(i) + at, group, z_buffer), group, gate, nullptr);
        if (o.gate == GateOrder::gate_then_norm) {
          for (int64_t c = 0; c < group; ++c) u_buffer[c] = u[c] * gate[c];
          u = u_buffer;
        }
        const Stats<Acc> s = statistics(u, group, o);
        if (k.mean) k.mean.at<Acc>(i * groups + j) = s.mean;
        if (k.mean_rest) k.mean_rest.at<Acc>(i * groups + j) = s.mean_rest;
        k.rstd.at<Acc>(i * groups + j) = s.rstd;
        const Acc *w = affine.w() + at, *b = affine.b() + at;
        T* y = k.y.row<T>(i) + at;
        if (o.gate == GateOrder::norm_then_gate) {
          for (int64_t c = 0; c < group; ++c)
            y[c] = static_cast<T>(((u[c] - s.mean - s.mean_rest) * s.rstd * w[c] + b[c]) * gate[c]);
        } else {
          for (int64_t c = 0; c < group; ++c)
            y[c] = static_cast<T>((u[c] - s.mean - s.mean_rest) * s.rstd * w[c] + b[c]);
        }
      }
    }
  });
}

/// Two sums at once, Σ g and Σ g x̂, in the order of sum_of.
template <class Acc>
struct TwoSums {
  Acc g = 0, gx = 0;
};
template <class Acc>
TwoSums<Acc> two_sums(const Acc* u, const Acc* dn, const Acc* w, Acc mean, Acc rest, Acc rstd,
                      Acc* dw, Acc* db, int64_t first, int64_t n) {
  if (n > kLeaf) {
    int64_t left = kLeaf;
    while (left * 2 < n) left *= 2;
    const auto a = two_sums(u, dn, w, mean, rest, rstd, dw, db, first, left);
    const auto b = two_sums(u, dn, w, mean, rest, rstd, dw, db, first + left, n - left);
    return {a.g + b.g, a.gx + b.gx};
  }
  Lanes<Acc> g{}, gx{};
  const auto step = [&](int64_t c, int j) {
    const Acc x_hat = (u[c + j] - mean - rest) * rstd, d = dn[c + j];
    g.v[j] += d * w[c + j];
    gx.v[j] += d * w[c + j] * x_hat;
    dw[c + j] += d * x_hat;
    db[c + j] += d;
  };
  int64_t c = first;
  const int64_t last = first + n;
  for (; c + kLanes <= last; c += kLanes)
    for (int j = 0; j < kLanes; ++j) step(c, j);
  for (int j = 0; c + j < last; ++j) step(c, j);
  return {g.total(), gx.total()};
}

/// partial[0] += the other blocks' rows, one after another: the same order for any thread count.
template <class Acc>
void add_blocks(Acc* partial, int64_t blocks, int64_t cols, const Vec& out) {
  if (!out) return;
  const Split tiles = split(cols, 256);
  visit_floating(out.dtype, [&]<class W>() {
    parallel_for(tiles.blocks, [&](int64_t t) {
      for (int64_t b = 1; b < blocks; ++b)
        for (int64_t c = tiles.begin(t); c < tiles.end(t); ++c)
          partial[c] += partial[b * 2 * cols + c];
      for (int64_t c = tiles.begin(t); c < tiles.end(t); ++c)
        out.at<W>(c) = static_cast<W>(partial[c]);
    });
  });
}

template <class T>
void backward(const NormBackwardArgs& k) {
  using Acc = stats_t<T>;
  const NormOptions& o = k.options;
  const int64_t cols = k.h.cols, group = o.group == 0 ? cols : o.group, groups = cols / group;
  const Affine<Acc> affine(k.w, k.b, o, cols);
  const Split blocks = row_blocks(k.h.rows, cols);
  const int64_t parts = std::max<int64_t>(1, blocks.blocks);
  const Tensor partial = empty({parts, 2, cols}, dtype_of<Acc>);
  Acc* sums = partial.span<Acc>().data();
  if (blocks.blocks == 0) std::fill_n(sums, 2 * cols, Acc(0));
  constexpr int kBuffers = 7;
  const Tensor scratch = empty({parts, kBuffers, group}, dtype_of<Acc>);
  parallel_for(blocks.blocks, [&](int64_t block) {
    Acc* h_buffer = scratch.span<Acc>().data() + block * kBuffers * group;
    Acc *dy_buffer = h_buffer + group, *z_buffer = dy_buffer + group, *gate = z_buffer + group;
    Acc *slope = gate + group, *product = slope + group;
    T* unwanted = reinterpret_cast<T*>(product + group);
    Acc* block_sums = sums + block * 2 * cols;
    std::fill_n(block_sums, 2 * cols, Acc(0));
    for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      for (int64_t j = 0; j < groups; ++j) {
        const int64_t at = j * group;
        const Acc* h = converted<Acc>(k.h.row<T>(i) + at, group, h_buffer);
        const Acc* dy = converted<Acc>(k.dy.row<T>(i) + at, group, dy_buffer);
        const Acc *w = affine.w() + at, *b = affine.b() + at;
        const Acc mean = k.mean ? k.mean.at<Acc>(i * groups + j) : Acc(0);
        const Acc rest = k.mean_rest ? k.mean_rest.at<Acc>(i * groups + j) : Acc(0);
        const Acc rstd = k.rstd.at<Acc>(i * groups + j);
        const Acc *u = h, *dn = dy;
        if (k.z)
          gate_of<Acc>(converted<Acc>(k.z.row<T>(i) + at, group, z_buffer), group, gate, slope);
        if (o.gate == GateOrder::gate_then_norm) {
          for (int64_t c = 0; c < group; ++c) product[c] = h[c] * gate[c];
          u = product;
        } else if (o.gate == GateOrder::norm_then_gate) {
          T* dz = k.dz ? k.dz.row<T>(i) + at : unwanted;
          for (int64_t c = 0; c < group; ++c) {
            const Acc n = (u[c] - mean - rest) * rstd * w[c] + b[c];
            dz[c] = static_cast<T>(dy[c] * n * slope[c]);
          }
          for (int64_t c = 0; c < group; ++c) product[c] = dy[c] * gate[c];
          dn = product;
        }
        const auto s = two_sums<Acc>(u, dn, w, mean, rest, rstd, block_sums + at,
                                     block_sums + cols + at, 0, group);
        const Acc size = static_cast<Acc>(group);
        const Acc mean_g = o.kind == NormKind::layer ? s.g / size : Acc(0), mean_gx = s.gx / size;
        const auto du = [&](int64_t c) {
          const Acc x_hat = (u[c] - mean - rest) * rstd;
          return rstd * (dn[c] * w[c] - mean_g - x_hat * mean_gx);
        };
        const Rows& target = k.dx ? k.dx : k.dresidual;
        T* dx = target ? target.row<T>(i) + at : unwanted;
        const T* dh = k.dh ? k.dh.row<T>(i) + at : nullptr;
        if (o.gate == GateOrder::gate_then_norm) {
          T* dz = k.dz ? k.dz.row<T>(i) + at : unwanted;
          for (int64_t c = 0; c < group; ++c) {
            const Acc d = du(c);
            dz[c] = static_cast<T>(d * h[c] * slope[c]);
            dx[c] = static_cast<T>(d * gate[c] + (dh ? static_cast<Acc>(dh[c]) : Acc(0)));
          }
        } else if (dh) {
          for (int64_t c = 0; c < group; ++c)
            dx[c] = static_cast<T>(du(c) + static_cast<Acc>(dh[c]));
        } else {
          for (int64_t c = 0; c < group; ++c) dx[c] = static_cast<T>(du(c));
        }
      }
    }
  });
  add_blocks(sums, parts, cols, k.dw);
  add_blocks(sums + cols, parts, cols, k.db);
}

/// What the kernels here do not compute yet.
void require_supported(bool supported) {
  if (!supported) throw ValueError("norm: this combination of options has no CPU kernel yet");
}
bool plain(const NormOptions& o, const ConstVec& w, const ConstVec& b, int64_t cols) {
  return o.kind != NormKind::l2 && o.activation == GateActivation::silu &&
         o.casting == Casting::wide && o.dropout == 0 && o.saves == NormSaves::input &&
         !o.precise && !o.probe && (!w || w.n == cols) && (!b || b.n == cols);
}

}  // namespace

void run(Cpu, const NormForwardArgs& k) {
  const auto like_x = [&](const auto& t) { return !t || t.dtype == k.x.dtype; };
  require_supported(plain(k.options, k.w, k.b, k.x.cols) && !k.row_scale && !k.w2 &&
                    like_x(k.residual) && like_x(k.h) && like_x(k.y) && (!k.h || k.residual));
  visit_floating(k.x.dtype, [&]<class T>() { forward<T>(k); });
}
void run(Cpu, const NormBackwardArgs& k) {
  const auto like_h = [&](const auto& t) { return !t || t.dtype == k.h.dtype; };
  require_supported(plain(k.options, k.w, k.b, k.h.cols) && !k.row_scale && !k.w2 && like_h(k.dy) &&
                    like_h(k.dx) && like_h(k.dresidual) && like_h(k.z));
  visit_floating(k.h.dtype, [&]<class T>() { backward<T>(k); });
}

}  // namespace norma
