#include "norma/core/tensor.h"
#include "norma/ops/cross_entropy/kernels.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/softmax/rows_cpu.h"

namespace norma {
namespace {

Split row_blocks(const ConstRows& logits) {
  return split(logits.rows, std::max<int64_t>(1, 8192 / logits.cols));
}

/// Before anything is computed, so that no task has to stop half-way.
template <class I>
void require_classes(const ConstVec& targets, int64_t classes, int64_t ignore_index) {
  for (int64_t i = 0; i < targets.n; ++i) {
    const int64_t t = targets.at<I>(i);
    if (t != ignore_index && (t < 0 || t >= classes))
      throw ValueError(
          "cross_entropy: targets must be below {}, the number of classes, or {} to be "
          "ignored, but target {} is {}",
          classes, ignore_index, i, t);
  }
}

}  // namespace

void run(Cpu, const CrossEntropyForwardArgs& k) {
  const int64_t cols = k.logits.cols;
  visit_index(k.targets.dtype, [&]<class I>() {
    require_classes<I>(k.targets, cols, k.ignore_index);
    visit_floating(k.logits.dtype, [&]<class T>() {
      using Acc = stats_t<T>;
      const Split rows = row_blocks(k.logits);
      const Tensor scratch = empty({rows.blocks, 2, cols}, dtype_of<Acc>);
      const Acc smoothing = static_cast<Acc>(k.label_smoothing);
      parallel_for(rows.blocks, [&](int64_t block) {
        Acc *buffer = scratch.span<Acc>().data() + block * 2 * cols, *e = buffer + cols;
        for (int64_t i = rows.begin(block); i < rows.end(block); ++i) {
          const Acc* x = detail::load(k.logits.row<T>(i), 1, 0, cols, buffer).data;
          const Acc lse = detail::exponentials(x, cols, e).lse();
          const int64_t target = k.targets.at<I>(i);
          k.lse.at<Acc>(i) = lse;
          Acc& loss = k.losses.at<Acc>(i);
          if (target == k.ignore_index) {
            loss = 0;
            continue;
          }
          loss = lse - (1 - smoothing) * x[target];
          if (smoothing > 0)
            loss -= smoothing * detail::sum_lanes<Acc>(cols, [&](int64_t c) { return x[c]; }) /
                    static_cast<Acc>(cols);
        }
      });
    });
  });
}

void run(Cpu, const CrossEntropyMeanArgs& k) {
  visit_index(k.targets.dtype, [&]<class I>() {
    visit_floating(k.losses.dtype, [&]<class T>() {
      if constexpr (std::is_same_v<T, stats_t<T>>) {
        double sum = 0;  // one thread: float32 would lose digits over many rows
        int64_t counted = 0;
        for (int64_t i = 0; i < k.targets.n; ++i)
          sum += k.losses.at<T>(i), counted += k.targets.at<I>(i) != k.ignore_index;
        const double share = 1 / static_cast<double>(std::max<int64_t>(1, counted));
        k.share.at<T>(0) = static_cast<T>(share), k.loss.at<T>(0) = static_cast<T>(sum * share);
      }
    });
  });
}

void run(Cpu, const CrossEntropyBackwardArgs& k) {
  const int64_t cols = k.logits.cols;
  visit_index(k.targets.dtype, [&]<class I>() {
    visit_floating(k.logits.dtype, [&]<class T>() {
      using Acc = stats_t<T>;
      const Split rows = row_blocks(k.logits);
      const Tensor scratch = empty({rows.blocks, 2, cols}, dtype_of<Acc>);
      const Acc smoothing = static_cast<Acc>(k.label_smoothing);
      parallel_for(rows.blocks, [&](int64_t block) {
        Acc *buffer = scratch.span<Acc>().data() + block * 2 * cols, *p = buffer + cols;
        for (int64_t i = rows.begin(block); i < rows.end(block); ++i) {
          T* dx = k.dlogits.row<T>(i);
          const int64_t target = k.targets.at<I>(i);
          if (target == k.ignore_index) {
            std::fill_n(dx, cols, T(0));
            continue;
          }
          const Acc* x = detail::load(k.logits.row<T>(i), 1, 0, cols, buffer).data;
          const Acc lse = k.lse.at<Acc>(i);
          const Acc scale =
              k.share ? k.dlosses.at<Acc>(0) * k.share.at<Acc>(0) : k.dlosses.at<Acc>(i);
          const Acc uniform = smoothing / static_cast<Acc>(cols);
          detail::map_packets(
              cols, p, [&](const auto& v) { return detail::exp_of(v - lse); }, x);
          p[target] -= 1 - smoothing;
          for (int64_t c = 0; c < cols; ++c) dx[c] = static_cast<T>((p[c] - uniform) * scale);
        }
      });
    });
  });
}

}  // namespace norma
