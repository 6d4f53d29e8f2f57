#include <cmath>

#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/optim/kernels.h"
#include "norma/ops/softmax/rows_cpu.h"

namespace norma {
namespace {

template <class F>
void for_blocks(int64_t n, const F& f) {
  const Split blocks = split(n, detail::kPieceGrain);
  parallel_for(blocks.blocks, [&](int64_t b) { f(b, blocks.begin(b), blocks.end(b)); });
}

double square_sum(const ConstVec& x) {
  const Split blocks = split(x.n, detail::kPieceGrain);
  double sums[128] = {};  // split makes no more blocks
  visit_floating(x.dtype, [&]<class T>() {
    parallel_for(blocks.blocks, [&](int64_t b) {
      const T* from = x.as<T>() + blocks.begin(b);
      sums[b] = detail::sum_lanes<double>(blocks.end(b) - blocks.begin(b), [&](int64_t i) {
        const double v = static_cast<double>(static_cast<stats_t<T>>(from[i]));
        return v * v;
      });
    });
  });
  double sum = 0;
  for (int64_t b = 0; b < blocks.blocks; ++b) sum += sums[b];
  return sum;
}

void round(const Vec& p, const Vec& rounded, int64_t first, int64_t last) {
  if (!rounded) return;
  visit_floating(rounded.dtype, [&]<class T>() {
    for (int64_t i = first; i < last; ++i) rounded.at<T>(i) = static_cast<T>(p.at<float>(i));
  });
}

template <class Acc>
struct AdamwNumbers {
  Acc b1, b2, size, correction, keep, eps, factor;
};
/// A function of its own: only of parameters does the compiler believe that they do not overlap,
/// and without that belief it takes one element at a time.
template <class T, class Acc>
[[gnu::noinline]] void adamw_range(const AdamwNumbers<Acc> a, int64_t n, T* __restrict__ p,
                                   const T* __restrict__ g, Acc* __restrict__ m,
                                   Acc* __restrict__ v) {
  for (int64_t i = 0; i < n; ++i) {
    const Acc d = static_cast<Acc>(g[i]) * a.factor;
    m[i] = a.b1 * m[i] + (1 - a.b1) * d;
    v[i] = a.b2 * v[i] + (1 - a.b2) * d * d;
    const Acc change = a.size * m[i] / (std::sqrt(v[i]) * a.correction + a.eps);
    p[i] = static_cast<T>(static_cast<Acc>(p[i]) * a.keep - change);
  }
}

template <class T>
void adamw(const AdamwSlot& k, const AdamwArgs& all, double skipped, stats_t<T> factor) {
  using Acc = stats_t<T>;
  const double step = static_cast<double>(all.numbers.step) - skipped, lr = all.numbers.lr;
  const AdamwNumbers<Acc> numbers{
      .b1 = static_cast<Acc>(all.beta1),
      .b2 = static_cast<Acc>(all.beta2),
      .size = static_cast<Acc>(lr / (1 - std::pow(all.beta1, step))),
      .correction = static_cast<Acc>(1 / std::sqrt(1 - std::pow(all.beta2, step))),
      .keep = static_cast<Acc>(1 - lr * k.weight_decay),
      .eps = static_cast<Acc>(all.eps),
      .factor = factor};
  for_blocks(k.p.n, [&](int64_t, int64_t first, int64_t last) {
    adamw_range(numbers, last - first, k.p.as<T>() + first, k.grad.as<T>() + first,
                k.m.as<Acc>() + first, k.v.as<Acc>() + first);
    round(k.p, k.rounded, first, last);
  });
}

template <class T>
void sgd(const SgdSlot& k, const SgdArgs& all, stats_t<T> factor) {
  using Acc = stats_t<T>;
  const Acc lr = static_cast<Acc>(all.numbers.lr), momentum = static_cast<Acc>(all.momentum);
  const Acc keep = static_cast<Acc>(1 - all.numbers.lr * k.weight_decay);
  for_blocks(k.p.n, [&](int64_t, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      Acc d = static_cast<Acc>(k.grad.at<T>(i)) * factor;
      if (k.velocity) {
        Acc& velocity = k.velocity.at<Acc>(i);
        velocity = momentum * velocity + d;
        d = all.nesterov ? d + momentum * velocity : velocity;
      }
      T& p = k.p.at<T>(i);
      p = static_cast<T>(static_cast<Acc>(p) * keep - lr * d);
    }
    round(k.p, k.rounded, first, last);
  });
}

}  // namespace

void run(Cpu, const GradNormArgs& k) {
  double total = 0;
  for (const ConstVec& grad : k.grads) total += square_sum(grad);
  decide_step(*k.state, std::sqrt(total), k.decide.limit, k.decide.scaled);
  *k.norm = static_cast<float>(k.state->norm);
}

void run(Cpu, const AdamwArgs& k) {
  if (k.state && k.state->skip) return;
  const double factor = k.state ? k.state->factor : 1, skipped = k.state ? k.state->skipped : 0;
  for (const AdamwSlot& slot : k.slots)
    visit_floating(slot.p.dtype,
                   [&]<class T>() { adamw<T>(slot, k, skipped, static_cast<stats_t<T>>(factor)); });
}

void run(Cpu, const SgdArgs& k) {
  if (k.state && k.state->skip) return;
  const double factor = k.state ? k.state->factor : 1;
  for (const SgdSlot& slot : k.slots)
    visit_floating(slot.p.dtype,
                   [&]<class T>() { sgd<T>(slot, k, static_cast<stats_t<T>>(factor)); });
}

void run(Cpu, const ScaleArgs& k) {
  if (k.state->factor == 1) return;
  for (const Vec& x : k.xs)
    visit_floating(x.dtype, [&]<class T>() {
      const auto factor = static_cast<stats_t<T>>(k.state->factor);
      for_blocks(x.n, [&](int64_t, int64_t first, int64_t last) {
        T* values = x.as<T>();
        for (int64_t i = first; i < last; ++i)
          values[i] = static_cast<T>(static_cast<stats_t<T>>(values[i]) * factor);
      });
    });
}

}  // namespace norma
