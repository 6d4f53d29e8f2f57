#include "norma/ops/elementwise/functions_cuda.cuh"
#include "norma/ops/elementwise/kernels.h"
#include "norma/ops/elementwise/run_cuda.cuh"

namespace norma {
namespace {

template <class Acc>
struct Binary {
  BinaryFunction function;
  __device__ Acc operator()(Acc a, Acc b) const { return evaluate(function, a, b); }
};

template <class Acc>
struct Compare {
  Comparison comparison;
  __device__ bool operator()(Acc a, Acc b) const {
    switch (comparison) {
      case Comparison::equal:
        return a == b;
      case Comparison::not_equal:
        return a != b;
      case Comparison::less:
        return a < b;
      case Comparison::less_equal:
        return a <= b;
      case Comparison::greater:
        return a > b;
      case Comparison::greater_equal:
        return a >= b;
    }
    return false;
  }
};

template <class T>
struct Choose {
  const bool* condition;
  const T *a, *b;
  T* y;
  __device__ void operator()(const int64_t (&at)[4]) const {
    y[at[3]] = condition[at[0]] ? a[at[1]] : b[at[2]];
  }
};

}  // namespace

void run(Cuda on, const BinaryArgs& k) {
  visit_all(k.y.dtype,
            [&]<class T>() { map<T, T>(on, k.a, k.b, k.y, Binary<compute_t<T>>{k.function}); });
}

void run(Cuda on, const CompareArgs& k) {
  visit_all(k.a.dtype, [&]<class T>() {
    map<T, bool>(on, k.a, k.b, k.y, Compare<compute_t<T>>{k.comparison});
  });
}

void run(Cuda on, const WhereArgs& k) {
  const StridedIndex<4> index(detail::StridedLoop<4>(
      k.y.shape, {k.condition.strides, k.a.strides, k.b.strides, k.y.strides}));
  visit_all(k.y.dtype, [&]<class T>() {
    for_each_element(on, index,
                     Choose<T>{k.condition.as<bool>(), k.a.as<T>(), k.b.as<T>(), k.y.as<T>()});
  });
}

}  // namespace norma
