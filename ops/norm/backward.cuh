#pragma once

#include "norma/ops/norm/backward_any.cuh"
#include "norma/ops/norm/backward_few.cuh"
#include "norma/ops/norm/backward_ring.cuh"
#include "norma/ops/norm/backward_small.cuh"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

template <class T>
void backward(const Cuda& on, const NormBackwardArgs& k) {
  if constexpr (!std::is_same_v<T, double>) {
    if constexpr (std::is_same_v<T, float>)  // toy models' dtype
      if (!only_general_plans && can_be_small<T>(k)) {
        detail::chose("", "a plain member and a small one, whose cost is its launches");
        return backward_small<T>(on, k);
      }
    const auto fast = [&]<GateOrder kGate>() {
      if (backward_few<T, kGate>(on, k)) {
        detail::chose("", "a plain member of few rows, whose cost is its launches");
        return true;
      }
      return backward_ring<T, kGate>(on, k);
    };
    const auto ran = [&] {
      switch (k.options.gate) {
        case GateOrder::no_gate:
          return fast.template operator()<GateOrder::no_gate>();
        case GateOrder::norm_then_gate:
          return fast.template operator()<GateOrder::norm_then_gate>();
        case GateOrder::gate_then_norm:
          return fast.template operator()<GateOrder::gate_then_norm>();
      }
      return false;
    };
    if (!only_general_plans && can_ring<T>(on, k) && ran()) return;
  }
  backward_any<T>(on, k);
}

}  // namespace norma::norm_cuda
