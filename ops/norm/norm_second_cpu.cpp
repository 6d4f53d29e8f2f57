#include <array>
#include <cmath>

#include "norma/ops/norm/buffers_cpu.h"
#include "norma/ops/norm/kernels.h"
#include "norma/ops/norm/statistics_cpu.h"

namespace norma {
namespace {

using namespace detail;

template <class Acc>
class Second {
 public:
  explicit Second(const NormSecondArgs& args)
      : k(args),
        cols(k.dy.cols),
        group(k.options.group == 0 ? cols : k.options.group),
        groups(cols / group),
        size(k.options.kind == NormKind::l2 ? Acc(1) : static_cast<Acc>(group)),
        w(k.w, 1, k.options.zero_centered, cols, group),
        vw(k.vw, 0, false, cols, group),
        vb(k.vb, 0, false, cols, group) {}

  void run() {
    const Split blocks = row_blocks(k.dy.rows, cols, 4);
    const int64_t length = k.w ? k.w.n : cols, parts = std::max<int64_t>(1, blocks.blocks);
    const Tensor partial = zeros({k.of_w ? parts : 0, length}, dtype_of<Acc>, cpu);
    Acc* sums = k.of_w ? partial.span<Acc>().data() : nullptr;
    parallel_for(blocks.blocks, [&](int64_t block) {
      const Tensor scratch = empty({kBuffers, group}, dtype_of<Acc>);
      for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i)
        for (int64_t j = 0; j < groups; ++j) {
          Acc* sum = sums ? sums + block * length + (length == cols ? j * group : 0) : nullptr;
          one(i, j, scratch.span<Acc>().data(), sum);
        }
    });
    if (!k.of_w) return;
    visit_floating(k.of_w.dtype, [&]<class W>() {
      for (int64_t c = 0; c < length; ++c) {
        Acc sum = 0;
        for (int64_t block = 0; block < parts; ++block) sum += sums[block * length + c];
        k.of_w.at<W>(c) = static_cast<W>(sum);
      }
    });
  }

 private:
  static constexpr int kBuffers = 7;

  void one(int64_t i, int64_t j, Acc* buffers, Acc* sum) const {
    Acc *h_buffer = buffers, *x_hat = h_buffer + group, *dy_buffer = x_hat + group;
    Acc *v_buffer = dy_buffer + group, *g = v_buffer + group, *p = g + group, *out = p + group;
    const int64_t at = j * group;
    const Acc *u = load(k.h, i, at, group, h_buffer), *dy = load(k.dy, i, at, group, dy_buffer);
    const Acc* v = k.v ? load(k.v, i, at, group, v_buffer) : v_buffer;
    if (!k.v) std::fill_n(v_buffer, group, Acc(0));
    const Acc *gain = w.group(at), *of_gain = vw.group(at), *of_bias = vb.group(at);

    const Stats<Acc> s = statistics(u, group, k.options, h_buffer);
    const Acc rstd = s.rstd * s.scale;
    for (int64_t c = 0; c < group; ++c) {
      x_hat[c] = ((u[c] - s.mean) - s.mean_rest) * s.rstd;
      g[c] = gain[c] * dy[c];
      p[c] = of_gain[c] * dy[c];
    }
    const auto mean_of = [&](const Acc* a) {
      return k.options.kind == NormKind::layer ? sum_of<Acc>(
                                                     group, [](const auto& e) { return e; }, a) /
                                                     size
                                               : Acc(0);
    };
    const auto mean_product = [&](const Acc* a, const Acc* other) {
      return sum_of<Acc>(
                 group, [](const auto& e, const auto& f) { return e * f; }, a, other) /
             size;
    };
    const Acc mean_v = mean_of(v), mean_g = mean_of(g), mean_p = mean_of(p);
    const Acc s_v = mean_product(v, x_hat), s_g = mean_product(g, x_hat),
              s_p = mean_product(p, x_hat);
    // vᵀJg / D
    const Acc vjg = rstd * (mean_product(v, g) - mean_v * mean_g - s_v * s_g);
    // In g's place Jg, in p's Jp, in out Jv.
    for (int64_t c = 0; c < group; ++c) {
      out[c] = rstd * (v[c] - mean_v - x_hat[c] * s_v);
      g[c] = rstd * (g[c] - mean_g - x_hat[c] * s_g);
      p[c] = rstd * (p[c] - mean_p - x_hat[c] * s_p);
    }
    if (sum)
      for (int64_t c = 0; c < group; ++c) sum[c] += dy[c] * out[c];
    if (k.of_h) {
      for (int64_t c = 0; c < group; ++c)
        p[c] -= rstd * (s_g * out[c] + s_v * g[c] + vjg * x_hat[c]);
      store(p, k.of_h, i, at, group);
    }
    if (k.of_dy) {
      for (int64_t c = 0; c < group; ++c)
        out[c] = gain[c] * out[c] + of_gain[c] * x_hat[c] + of_bias[c];
      store(out, k.of_dy, i, at, group);
    }
  }

  const NormSecondArgs& k;
  const int64_t cols, group, groups;
  const Acc size;
  const Weight<Acc> w, vw, vb;
};

}  // namespace

void run(Cpu, const NormSecondArgs& k) {
  if (k.rstd.dtype == float64)
    Second<double>(k).run();
  else
    Second<float>(k).run();
}

}  // namespace norma
