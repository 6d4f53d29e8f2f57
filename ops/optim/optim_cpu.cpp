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

}  // namespace

void run(Cpu, const AdamwArgs& k) {
  visit_floating(k.p.dtype, [&]<class T>() {
    using Acc = stats_t<T>;
    const auto step = static_cast<double>(k.numbers.step);
    const Acc b1 = static_cast<Acc>(k.beta1), b2 = static_cast<Acc>(k.beta2);
    const Acc size = static_cast<Acc>(k.numbers.lr / (1 - std::pow(k.beta1, step)));
    const Acc correction = static_cast<Acc>(1 / std::sqrt(1 - std::pow(k.beta2, step)));
    const Acc keep = static_cast<Acc>(1 - k.numbers.lr * k.weight_decay),
              eps = static_cast<Acc>(k.eps);
    for_blocks(k.p.n, [&](int64_t, int64_t first, int64_t last) {
      T* __restrict__ p = k.p.as<T>();
      const T* __restrict__ g = k.grad.as<T>();
      Acc* __restrict__ m = k.m.as<Acc>();
      Acc* __restrict__ v = k.v.as<Acc>();
      for (int64_t i = first; i < last; ++i) {
        const Acc d = static_cast<Acc>(g[i]);
        m[i] = b1 * m[i] + (1 - b1) * d;
        v[i] = b2 * v[i] + (1 - b2) * d * d;
        const Acc change = size * m[i] / (std::sqrt(v[i]) * correction + eps);
        p[i] = static_cast<T>(static_cast<Acc>(p[i]) * keep - change);
      }
    });
  });
}

void run(Cpu, const SgdArgs& k) {
  visit_floating(k.p.dtype, [&]<class T>() {
    using Acc = stats_t<T>;
    const Acc lr = static_cast<Acc>(k.numbers.lr), momentum = static_cast<Acc>(k.momentum);
    const Acc keep = static_cast<Acc>(1 - k.numbers.lr * k.weight_decay);
    for_blocks(k.p.n, [&](int64_t, int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        Acc d = static_cast<Acc>(k.grad.at<T>(i));
        if (k.velocity) {
          Acc& velocity = k.velocity.at<Acc>(i);
          velocity = momentum * velocity + d;
          d = k.nesterov ? d + momentum * velocity : velocity;
        }
        T& p = k.p.at<T>(i);
        p = static_cast<T>(static_cast<Acc>(p) * keep - lr * d);
      }
    });
  });
}

void run(Cpu, const SquareSumArgs& k) {
  const Split blocks = split(k.x.n, detail::kPieceGrain);
  double sums[128] = {};  // split makes no more blocks
  visit_floating(k.x.dtype, [&]<class T>() {
    parallel_for(blocks.blocks, [&](int64_t b) {
      const T* x = k.x.as<T>() + blocks.begin(b);
      sums[b] = detail::sum_lanes<double>(blocks.end(b) - blocks.begin(b), [&](int64_t i) {
        const double v = static_cast<double>(static_cast<stats_t<T>>(x[i]));
        return v * v;
      });
    });
  });
  *k.out = 0;
  for (int64_t b = 0; b < blocks.blocks; ++b) *k.out += sums[b];
}

void run(Cpu, const ScaleArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() {
    const auto factor = static_cast<stats_t<T>>(k.factor);
    for_blocks(k.x.n, [&](int64_t, int64_t first, int64_t last) {
      T* x = k.x.as<T>();
      for (int64_t i = first; i < last; ++i)
        x[i] = static_cast<T>(static_cast<stats_t<T>>(x[i]) * factor);
    });
  });
}

}  // namespace norma
