#include "norma/ops/attention/problem.cuh"

namespace norma {
namespace attention {
namespace {

constexpr int kThreads = 256;

/// Eight keys of a row a thread.
template <class T>
__global__ void __launch_bounds__(kThreads)
    attention_dropout_kernel(ConstRows x, Rows y, DropoutMask mask, stats_t<T> rescale) {
  const int64_t group = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (group >= x.rows * mask.groups) return;
  const int64_t row = group / mask.groups;
  const int place = static_cast<int>(group % mask.groups);
  const uint32_t kept = mask.kept(row, place);
  const T* from = x.row<T>(row);
  T* to = y.row<T>(row);
  for (int e = 0; e < 8 && 8 * place + e < x.cols; ++e) {
    const int64_t c = 8 * place + e;
    to[c] = convert<T>(kept >> e & 1 ? convert<stats_t<T>>(from[c]) * rescale : 0);
  }
}

}  // namespace
}  // namespace attention

void run(Cuda on, const AttentionDropoutArgs& k) {
  using namespace attention;
  const DropoutMask mask(k.settings, k.x.cols);
  visit_floating(k.x.dtype, [&]<class T>() {
    launch(on, {.grid = grid_for(k.x.rows * mask.groups, kThreads), .block = dim3(kThreads)},
           attention_dropout_kernel<T>, k.x, k.y, mask,
           static_cast<stats_t<T>>(k.settings.rescale()));
  });
}

}  // namespace norma
