#pragma once

#include "norma/ops/norm/backward_few.cuh"
#include "norma/ops/norm/backward_ring.cuh"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/plans.h"

namespace norma::norm_cuda {

template <class T>
bool backward_fast(const Cuda& on, const NormBackwardArgs& k) {
  if (!can_ring<T>(k)) return false;
  const auto fast = [&]<GateOrder kGate>() {
    if (backward_few<T, kGate>(on, k)) {
      detail::chose("", "a plain member of few rows, whose cost is its launches");
      return true;
    }
    return backward_ring<T, kGate>(on, k);
  };
  switch (k.options.gate) {
    case GateOrder::no_gate:
      return fast.template operator()<GateOrder::no_gate>();
    case GateOrder::norm_then_gate:
      return fast.template operator()<GateOrder::norm_then_gate>();
    case GateOrder::gate_then_norm:
      return fast.template operator()<GateOrder::gate_then_norm>();
  }
  return false;
}

}  // namespace norma::norm_cuda
