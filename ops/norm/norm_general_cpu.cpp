// Every member of the family, whatever its dtypes, on the processor: a group at a time in buffers
// of its statistics' dtype, which stay in the first caches up to D of a few thousand. The plain
// members have loops of their own in norm_cpu.cpp.
#include <algorithm>
#include <array>
#include <cmath>

#include "norma/core/tensor.h"
#include "norma/ops/norm/activation_cpu.h"
#include "norma/ops/norm/buffers_cpu.h"
#include "norma/ops/norm/general_cpu.h"
#include "norma/ops/norm/statistics_cpu.h"

namespace norma::detail {
namespace {

/// 1 / (1 − p), or 0 where an element of the row is dropped.
template <class Acc>
void draw_mask(const NormOptions& o, int64_t first, int64_t n, Acc* mask) {
  const auto p = static_cast<float>(o.dropout);
  const Acc kept = static_cast<Acc>(1 / (1 - o.dropout));
  std::array<uint32_t, 4> words{};
  for (int64_t c = 0; c < n; ++c) {
    const auto e = static_cast<uint64_t>(first + c);
    if (c == 0 || e % 4 == 0) words = random_words(o.key, e / 4);
    mask[c] = static_cast<float>(words[e % 4] >> 8) * 0x1p-24F < p ? Acc(0) : kept;
  }
}

template <class Acc>
class Forward {
 public:
  explicit Forward(const NormForwardArgs& args)
      : k(args),
        group(k.options.group == 0 ? k.x.cols : k.options.group),
        groups(k.x.cols / group),
        w(k.w, 1, k.options.zero_centered, k.x.cols, group),
        b(k.b, 0, false, k.x.cols, group),
        w2(k.w2, 1, k.options.zero_centered, k.x.cols, group),
        b2(k.b2, 0, false, k.x.cols, group) {}

  void run() const {
    const Split blocks = row_blocks(k.x.rows, k.x.cols, 1);
    parallel_for(blocks.blocks, [&](int64_t block) {
      const Tensor scratch = empty({4, group}, dtype_of<Acc>);
      Acc* buffers = scratch.span<Acc>().data();
      for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i)
        for (int64_t j = 0; j < groups; ++j) one(i, j, buffers);
    });
  }

 private:
  void one(int64_t i, int64_t j, Acc* buffers) const {
    Acc *value = buffers, *gate = value + group, *x_hat = gate + group, *y = x_hat + group;
    const NormOptions& o = k.options;
    const int64_t at = j * group;
    const Acc* u = k.h ? made_h(i, at, value, x_hat) : load(k.x, i, at, group, value);
    if (k.z) activate<Acc>(o, load(k.z, i, at, group, x_hat), group, gate, nullptr);
    if (o.gate == GateOrder::gate_then_norm) {
      for (int64_t c = 0; c < group; ++c) value[c] = u[c] * gate[c];
      u = value;
    }
    const Stats<Acc> s = statistics(u, group, o, value);
    const int64_t stat = i * groups + j;
    if (k.mean) k.mean.at<Acc>(stat) = s.mean / s.scale;
    if (k.mean_rest) k.mean_rest.at<Acc>(stat) = s.mean_rest / s.scale;
    k.rstd.at<Acc>(stat) = s.rstd * s.scale;
    for (int64_t c = 0; c < group; ++c) x_hat[c] = ((u[c] - s.mean) - s.mean_rest) * s.rstd;
    if (k.x_hat) store(x_hat, k.x_hat, i, at, group);
    if (o.casting == Casting::rounded) round_to(k.x.dtype, x_hat, group);
    const Acc *gain = w.group(at), *bias = b.group(at);
    if (o.gate == GateOrder::norm_then_gate)
      for (int64_t c = 0; c < group; ++c) y[c] = (x_hat[c] * gain[c] + bias[c]) * gate[c];
    else
      for (int64_t c = 0; c < group; ++c) y[c] = x_hat[c] * gain[c] + bias[c];
    store(y, k.y, i, at, group);
    if (!k.y2) return;
    const Acc *gain2 = w2.group(at), *bias2 = b2.group(at);
    for (int64_t c = 0; c < group; ++c) y[c] = x_hat[c] * gain2[c] + bias2[c];
    store(y, k.y2, i, at, group);
  }

  /// What is added to the residual, rounded as it is stored: the backward starts from it too.
  const Acc* made_h(int64_t i, int64_t at, Acc* h, Acc* other) const {
    const Acc* x = load(k.x, i, at, group, h);
    if (x != h) std::copy_n(x, group, h);
    if (k.options.dropout > 0) {
      draw_mask(k.options, i * k.x.cols + at, group, other);
      for (int64_t c = 0; c < group; ++c) h[c] = other[c] == 0 ? Acc(0) : h[c] * other[c];
    }
    if (k.row_scale) {
      const Acc scale = value_at<Acc>(k.row_scale, i);
      for (int64_t c = 0; c < group; ++c) h[c] *= scale;
    }
    if (k.residual) {
      const Acc* residual = load(k.residual, i, at, group, other);
      for (int64_t c = 0; c < group; ++c) h[c] += residual[c];
    }
    store(h, k.h, i, at, group);
    return load(ConstRows(as_const(k.h)), i, at, group, h);
  }
  static ConstRows as_const(const Rows& t) {
    ConstRows c;
    c.data = t.data, c.rows = t.rows, c.cols = t.cols, c.row_stride = t.row_stride,
    c.dtype = t.dtype;
    return c;
  }

  const NormForwardArgs& k;
  const int64_t group, groups;
  const Weight<Acc> w, b, w2, b2;
};

template <class Acc>
class Backward {
 public:
  explicit Backward(const NormBackwardArgs& args)
      : k(args),
        cols(k.dy.cols),
        group(k.options.group == 0 ? cols : k.options.group),
        groups(cols / group),
        weight_length(k.w    ? k.w.n
                      : k.b  ? k.b.n
                      : k.w2 ? k.w2.n
                             : cols),
        w(k.w, 1, k.options.zero_centered, cols, group),
        b(k.b, 0, false, cols, group),
        w2(k.w2, 1, k.options.zero_centered, cols, group),
        blocks(row_blocks(k.dy.rows, cols, 4)) {}

  void run() {
    const int64_t parts = std::max<int64_t>(1, blocks.blocks);
    const int64_t kept = k.options.precise ? 2 : 1;
    const Tensor partial = zeros({parts, kSums, kept, weight_length}, dtype_of<Acc>, cpu);
    sums = partial.span<Acc>().data();
    parallel_for(blocks.blocks, [&](int64_t block) {
      const Tensor scratch = empty({kBuffers, group}, dtype_of<Acc>);
      for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
        Acc drow = 0;
        for (int64_t j = 0; j < groups; ++j) drow += one(block, i, j, scratch.span<Acc>().data());
        if (k.drow_scale)
          visit_floating(k.drow_scale.dtype,
                         [&]<class T>() { k.drow_scale.at<T>(i) = static_cast<T>(drow); });
      }
    });
    const std::array<const Vec*, kSums> results{&k.dw, &k.db, &k.dw2, &k.db2};
    for (int which = 0; which < kSums; ++which)
      if (*results[static_cast<size_t>(which)])
        fold(*results[static_cast<size_t>(which)], which, parts);
  }

 private:
  static constexpr int kSums = 4, kBuffers = 10;

  /// The gradients of one group; returns its share of drow_scale.
  Acc one(int64_t block, int64_t i, int64_t j, Acc* buffers) const {
    std::array<Acc*, kBuffers> buffer;
    for (size_t n = 0; n < kBuffers; ++n) buffer[n] = buffers + static_cast<int64_t>(n) * group;
    auto [value, gate, slope, x_hat, rounded, dn_buffer, dy_buffer, dy2_buffer, g, du] = buffer;
    const NormOptions& o = k.options;
    const int64_t at = j * group, stat = i * groups + j;
    const bool gate_first = o.gate == GateOrder::gate_then_norm;
    if (k.z) activate<Acc>(o, load(k.z, i, at, group, value), group, gate, slope);
    const Acc* h = k.h ? load(k.h, i, at, group, value) : nullptr;
    const Row row = normalized(i, at, stat, h, gate_first ? gate : nullptr, x_hat, du);
    const Acc* multiplied = x_hat;
    if (o.casting == Casting::rounded) {
      std::copy_n(x_hat, group, rounded);
      round_to(k.x_dtype, rounded, group);
      multiplied = rounded;
    }
    const Acc *dy = load(k.dy, i, at, group, dy_buffer), *dn = dy;
    const Acc* dy2 = k.dy2 ? load(k.dy2, i, at, group, dy2_buffer) : nullptr;
    if (o.gate == GateOrder::norm_then_gate) {
      for (int64_t c = 0; c < group; ++c) dn_buffer[c] = dy[c] * gate[c];
      dn = dn_buffer;
    }
    add_weights(block, at, dn, dy2, multiplied);
    const Acc* gain = w.group(at);
    for (int64_t c = 0; c < group; ++c) g[c] = gain[c] * dn[c];
    if (dy2) {
      const Acc* gain2 = w2.group(at);
      for (int64_t c = 0; c < group; ++c) g[c] += gain2[c] * dy2[c];
    }
    through_norm(stat, row, g, x_hat, du);
    if (k.dz) {
      // In slope's place, which nothing else needs.
      const Acc* bias = b.group(at);
      if (gate_first)
        for (int64_t c = 0; c < group; ++c) slope[c] *= du[c] * h[c];
      else
        for (int64_t c = 0; c < group; ++c) slope[c] *= dy[c] * (multiplied[c] * gain[c] + bias[c]);
      store(slope, k.dz, i, at, group);
    }
    if (gate_first)
      for (int64_t c = 0; c < group; ++c) du[c] *= gate[c];
    return to_inputs(i, at, du, value, x_hat);
  }

  struct Row {
    Acc rstd, scale;  // the product is the row's own rstd, if that is a number of Acc
  };
  /// x̂ into its buffer.
  Row normalized(int64_t i, int64_t at, int64_t stat, const Acc* h, const Acc* gate, Acc* x_hat,
                 Acc* buffer) const {
    const Acc rstd = k.rstd.at<Acc>(stat);
    if (k.x_hat) {
      const Acc* saved = load(k.x_hat, i, at, group, x_hat);
      if (saved != x_hat) std::copy_n(saved, group, x_hat);
      return {rstd, 1};
    }
    const Acc* u = h;
    if (gate) {
      for (int64_t c = 0; c < group; ++c) buffer[c] = h[c] * gate[c];
      u = buffer;
    }
    Stats<Acc> s{.mean = k.mean ? k.mean.at<Acc>(stat) : Acc(0),
                 .mean_rest = k.mean_rest ? k.mean_rest.at<Acc>(stat) : Acc(0),
                 .rstd = rstd};
    // A row so large or small that its own rstd lost digits is scaled as the forward did it.
    if (!std::isnormal(rstd)) s = statistics(u, group, k.options, buffer);
    for (int64_t c = 0; c < group; ++c) x_hat[c] = ((u[c] - s.mean) - s.mean_rest) * s.rstd;
    return {s.rstd, s.scale};
  }

  void through_norm(int64_t stat, const Row& row, const Acc* g, const Acc* x_hat, Acc* du) const {
    const Acc size = k.options.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(group);
    const bool centred = k.options.kind == NormKind::layer;
    const auto product = [](const auto& p, const auto& q) { return p * q; };
    const Acc mean_gx = sum_of<Acc>(group, product, g, x_hat) / size;
    const Acc mean_g = centred ? sum_of<Acc>(
                                     group, [](const auto& v) { return v; }, g) /
                                     size
                               : Acc(0);
    for (int64_t c = 0; c < group; ++c)
      du[c] = row.rstd * (g[c] - mean_g - x_hat[c] * mean_gx) * row.scale;
    const auto length = [&](const Acc* v) { return std::sqrt(sum_of<Acc>(group, product, v, v)); };
    if (k.mean_gx) k.mean_gx.at<Acc>(stat) = mean_gx;
    if (k.g_norm) k.g_norm.at<Acc>(stat) = length(g);
    if (k.du_norm) k.du_norm.at<Acc>(stat) = length(du);
  }

  void add_weights(int64_t block, int64_t at, const Acc* dn, const Acc* dy2,
                   const Acc* x_hat) const {
    const int64_t first = weight_length == cols ? at : 0;
    const auto add = [&](int which, const Vec& wanted, const Acc* d, const Acc* factor) {
      if (!wanted || !d) return;
      Acc* sum = sums_of(block, which) + first;
      Acc* lost = sum + weight_length;
      const auto over_group = [&](const auto& step) {
        for (int64_t c = 0; c < group; ++c) step(c);
      };
      // A loop each, so that the compiler makes vectors of them.
      if (k.options.precise && factor)
        over_group([&](int64_t c) { add_precisely(sum[c], lost[c], d[c] * factor[c]); });
      else if (k.options.precise)
        over_group([&](int64_t c) { add_precisely(sum[c], lost[c], d[c]); });
      else if (factor)
        over_group([&](int64_t c) { sum[c] += d[c] * factor[c]; });
      else
        over_group([&](int64_t c) { sum[c] += d[c]; });
    };
    add(0, k.dw, dn, x_hat);
    add(1, k.db, dn, nullptr);
    add(2, k.dw2, dy2, x_hat);
    add(3, k.db2, dy2, nullptr);
  }

  /// From du, or what the gate made of it, to the gradients of h, residual, x and row_scale.
  Acc to_inputs(int64_t i, int64_t at, Acc* total, Acc* value, Acc* mask) const {
    if (k.dh) {
      const Acc* dh = load(k.dh, i, at, group, value);
      for (int64_t c = 0; c < group; ++c) total[c] += dh[c];
    }
    if (k.dresidual) store(total, k.dresidual, i, at, group);
    if (k.options.dropout > 0) {
      draw_mask(k.options, i * cols + at, group, mask);
      for (int64_t c = 0; c < group; ++c) total[c] = mask[c] == 0 ? Acc(0) : total[c] * mask[c];
    }
    Acc drow = 0;
    if (k.drow_scale) {
      const Acc* x = load(k.x, i, at, group, value);
      for (int64_t c = 0; c < group; ++c) value[c] = total[c] * x[c];
      if (k.options.dropout > 0)  // a dropped x takes no part, be it a NaN
        for (int64_t c = 0; c < group; ++c)
          if (mask[c] == 0) value[c] = 0;
      drow = sum_of<Acc>(
          group, [](const auto& v) { return v; }, value);
    }
    if (k.row_scale) {
      const Acc scale = value_at<Acc>(k.row_scale, i);
      for (int64_t c = 0; c < group; ++c) total[c] *= scale;
    }
    if (k.dx) store(total, k.dx, i, at, group);
    return drow;
  }

  Acc* sums_of(int64_t block, int which) const {
    return sums + (block * kSums + which) * weight_length * (k.options.precise ? 2 : 1);
  }
  /// The blocks' sums one after another: the same order for any thread count.
  void fold(const Vec& out, int which, int64_t parts) const {
    const Split tiles = split(weight_length, 256);
    visit_floating(out.dtype, [&]<class W>() {
      parallel_for(tiles.blocks, [&](int64_t t) {
        for (int64_t c = tiles.begin(t); c < tiles.end(t); ++c) {
          Acc sum = 0, lost = 0;
          for (int64_t block = 0; block < parts; ++block) {
            const Acc* from = sums_of(block, which) + c;
            if (k.options.precise) {
              add_precisely(sum, lost, *from);
              add_precisely(sum, lost, -from[weight_length]);
            } else {
              sum += *from;
            }
          }
          out.at<W>(c) = static_cast<W>(sum);
        }
      });
    });
  }

  const NormBackwardArgs& k;
  const int64_t cols, group, groups, weight_length;
  const Weight<Acc> w, b, w2;
  const Split blocks;
  Acc* sums = nullptr;
};

}  // namespace

NormForwardArgs one_row(NormForwardArgs k, int64_t i) {
  const int64_t groups = k.rstd.n / std::max<int64_t>(1, k.x.rows);
  const auto row = [i](auto& t) {
    if (!t) return;
    visit_floating(t.dtype, [&]<class T>() { t.data = t.template row<T>(i); });
    t.rows = 1;
  };
  const auto stat = [&](auto& t, int64_t n) {
    if (!t) return;
    visit_floating(t.dtype, [&]<class T>() { t.data = t.template as<T>() + i * n; });
    t.n = n;
  };
  row(k.x), row(k.z), row(k.residual), row(k.h), row(k.y), row(k.y2), row(k.x_hat);
  stat(k.row_scale, 1), stat(k.mean, groups), stat(k.mean_rest, groups), stat(k.rstd, groups);
  return k;
}

void run_general(const NormForwardArgs& k) {
  if (k.x.dtype == float64)
    Forward<double>(k).run();
  else
    Forward<float>(k).run();
}
void run_general(const NormBackwardArgs& k) {
  if (k.rstd.dtype == float64)
    Backward<double>(k).run();
  else
    Backward<float>(k).run();
}

}  // namespace norma::detail
