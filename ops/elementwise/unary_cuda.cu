#include "norma/ops/elementwise/functions_cuda.cuh"
#include "norma/ops/elementwise/kernels.h"
#include "norma/ops/elementwise/run_cuda.cuh"

namespace norma {
namespace {

/// The function is one for all threads: a branch costs nothing beside the memory.
template <class Acc>
struct Unary {
  UnaryFunction function;
  __device__ Acc operator()(Acc v, Acc) const { return evaluate(function, v); }
};

}  // namespace

void run(Cuda on, const UnaryArgs& k) {
  visit_all(k.x.dtype,
            [&]<class T>() { map<T, T>(on, k.x, k.x, k.y, Unary<compute_t<T>>{k.function}); });
}

}  // namespace norma
