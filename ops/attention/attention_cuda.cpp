#include "norma/core/error.h"
#include "norma/ops/attention/hopper.h"
#include "norma/ops/attention/one_tile.h"
#include "norma/ops/attention/path.h"
#include "norma/ops/attention/portable.h"
#include "norma/ops/matmul/matmul.h"

namespace norma {
namespace attention {
namespace {

void require_head(const ConstView& q) {
  constexpr int64_t kMost = 256;
  if (q.shape[3] > kMost)
    throw ShapeError("attention: on a GPU D must be at most {}, but q is {}", kMost, q.shape);
}

bool takes_tf32(const ConstView& q) {
  return q.dtype == float32 && is_tf32_allowed() && q.shape[3] <= kTf32Head;
}

}  // namespace
}  // namespace attention

void run(Cuda on, const AttentionForwardArgs& k) {
  attention::require_head(k.q);
  if (!attention::only_portable() &&
      (attention::forward_one_tile(on, k) || attention::forward_hopper(on, k)))
    return;
  if (attention::takes_tf32(k.q)) return attention::forward_portable<attention::Tf32>(on, k);
  visit_floating(k.q.dtype, [&]<class T>() { attention::forward_portable<T>(on, k); });
}

void run(Cuda on, const AttentionBackwardArgs& k) {
  attention::require_head(k.q);
  if (!attention::only_portable() &&
      (attention::backward_one_tile(on, k) || attention::backward_short(on, k) ||
       attention::backward_hopper(on, k)))
    return;
  if (attention::takes_tf32(k.q)) return attention::backward_portable<attention::Tf32>(on, k);
  visit_floating(k.q.dtype, [&]<class T>() { attention::backward_portable<T>(on, k); });
}

}  // namespace norma
