#pragma once

#include "norma/ops/norm/forward_held.cuh"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

template <class T>
void forward(const Cuda& on, const NormForwardArgs& k) {
  if constexpr (!std::is_same_v<T, double>) {
    const int64_t size = k.options.group == 0 ? k.x.cols : k.options.group;
    if (!only_general_plans && can_hold<T>(k, size)) {
      switch (k.options.gate) {
        case GateOrder::no_gate:
          return forward_held<T, GateOrder::no_gate>(on, k);
        case GateOrder::norm_then_gate:
          return forward_held<T, GateOrder::norm_then_gate>(on, k);
        case GateOrder::gate_then_norm:
          return forward_held<T, GateOrder::gate_then_norm>(on, k);
      }
    }
  }
  forward_any<T>(on, k);
}

}  // namespace norma::norm_cuda
