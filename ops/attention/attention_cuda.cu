#include "norma/core/error.h"
#include "norma/ops/attention/hopper.h"
#include "norma/ops/attention/path.h"
#include "norma/ops/attention/portable.h"

namespace norma {
namespace attention {
namespace {

void require_head(const ConstView& q) {
  constexpr int64_t kMost = 256;
  if (q.shape[3] > kMost)
    throw ShapeError("attention: on a GPU D must be at most {}, but q is {}", kMost, q.shape);
}

}  // namespace
}  // namespace attention

void run(Cuda on, const AttentionForwardArgs& k) {
  attention::require_head(k.q);
  if (!attention::only_portable() && attention::forward_hopper(on, k)) return;
  visit_floating(k.q.dtype, [&]<class T>() { attention::forward_portable<T>(on, k); });
}

void run(Cuda on, const AttentionBackwardArgs& k) {
  attention::require_head(k.q);
  if (!attention::only_portable() && attention::backward_hopper(on, k)) return;
  visit_floating(k.q.dtype, [&]<class T>() { attention::backward_portable<T>(on, k); });
}

}  // namespace norma
