#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "norma/core/tensor.h"
#include "norma/ops/elementwise/operands_cpu.h"
#include "norma/ops/optim/kernels.h"
#include "norma/ops/softmax/rows_cpu.h"

namespace norma {
namespace {

/// The tensors of a step cut into pieces, for one job of all: most weights are a piece or two,
/// which as a job each would leave one of two threads waiting.
class Pieces {
 public:
  void add(int64_t n) {
    begins_.push_back(count_);
    splits_.push_back(split(n, kGrain));
    count_ += splits_.back().blocks;
  }
  int64_t count() const { return count_; }
  /// f(tensor, piece, first, last) for each.
  template <class F>
  void run(const F& f) const {
    parallel_for(count_, [&](int64_t piece) {
      const auto after = std::upper_bound(begins_.begin(), begins_.end(), piece);
      const size_t t = static_cast<size_t>(after - begins_.begin()) - 1;
      const int64_t block = piece - begins_[t];
      f(t, piece, splits_[t].begin(block), splits_[t].end(block));
    });
  }

 private:
  static constexpr int64_t kGrain = 8192;  // elements: AdamW reads and writes 28 bytes of each

  int64_t count_ = 0;
  std::vector<int64_t> begins_;
  std::vector<Split> splits_;
};

double square_sum(const ConstVec& x, int64_t first, int64_t last) {
  double sum = 0;
  visit_floating(x.dtype, [&]<class T>() {
    sum = detail::sum_lanes<double>(last - first, [&](int64_t i) {
      const double v = static_cast<double>(static_cast<stats_t<T>>(x.at<T>(first + i)));
      return v * v;
    });
  });
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
void adamw(const AdamwSlot& k, const AdamwArgs& all, double skipped, stats_t<T> factor,
           int64_t first, int64_t last) {
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
  adamw_range(numbers, last - first, k.p.as<T>() + first, k.grad.as<T>() + first,
              k.m.as<Acc>() + first, k.v.as<Acc>() + first);
  round(k.p, k.rounded, first, last);
}

template <class T>
void sgd(const SgdSlot& k, const SgdArgs& all, stats_t<T> factor, int64_t first, int64_t last) {
  using Acc = stats_t<T>;
  const Acc lr = static_cast<Acc>(all.numbers.lr), momentum = static_cast<Acc>(all.momentum);
  const Acc keep = static_cast<Acc>(1 - all.numbers.lr * k.weight_decay);
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
}

}  // namespace

void run(Cpu, const GradNormArgs& k) {
  Pieces pieces;
  for (const ConstVec& grad : k.grads) pieces.add(grad.n);
  std::vector<double> sums(static_cast<size_t>(pieces.count()));
  pieces.run([&](size_t t, int64_t piece, int64_t first, int64_t last) {
    sums[static_cast<size_t>(piece)] = square_sum(k.grads[t], first, last);
  });
  const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
  decide_step(*k.state, std::sqrt(total), k.decide.limit, k.decide.scaled);
  *k.norm = static_cast<float>(k.state->norm);
}

void run(Cpu, const AdamwArgs& k) {
  if (k.state && k.state->skip) return;
  const double factor = k.state ? k.state->factor : 1, skipped = k.state ? k.state->skipped : 0;
  Pieces pieces;
  for (const AdamwSlot& slot : k.slots) pieces.add(slot.p.n);
  pieces.run([&](size_t t, int64_t, int64_t first, int64_t last) {
    visit_floating(k.slots[t].p.dtype, [&]<class T>() {
      adamw<T>(k.slots[t], k, skipped, static_cast<stats_t<T>>(factor), first, last);
    });
  });
}

void run(Cpu, const SgdArgs& k) {
  if (k.state && k.state->skip) return;
  const double factor = k.state ? k.state->factor : 1;
  Pieces pieces;
  for (const SgdSlot& slot : k.slots) pieces.add(slot.p.n);
  pieces.run([&](size_t t, int64_t, int64_t first, int64_t last) {
    visit_floating(k.slots[t].p.dtype, [&]<class T>() {
      sgd<T>(k.slots[t], k, static_cast<stats_t<T>>(factor), first, last);
    });
  });
}

void run(Cpu, const ScaleArgs& k) {
  if (k.state->factor == 1) return;
  Pieces pieces;
  for (const Vec& x : k.xs) pieces.add(x.n);
  pieces.run([&](size_t t, int64_t, int64_t first, int64_t last) {
    visit_floating(k.xs[t].dtype, [&]<class T>() {
      const auto factor = static_cast<stats_t<T>>(k.state->factor);
      T* values = k.xs[t].as<T>();
      for (int64_t i = first; i < last; ++i)
        values[i] = static_cast<T>(static_cast<stats_t<T>>(values[i]) * factor);
    });
  });
}

}  // namespace norma
