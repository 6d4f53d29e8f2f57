#include "norma/core/autocast.h"

#include <mutex>

#include "norma/core/captured_call.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {
thread_local constinit DType thread_dtype = float32;
constinit std::mutex rounding;  // threads share weights
}  // namespace

Autocast::Autocast(DType dtype) : before_(thread_dtype) {
  if (dtype != float32 && dtype != bfloat16 && dtype != float16)
    throw DTypeError("autocast: the dtype must be bfloat16, float16 or float32, but is {}",
                     to_string(dtype));
  thread_dtype = dtype;
}
Autocast::~Autocast() { thread_dtype = before_; }
DType Autocast::current() { return thread_dtype; }

namespace detail {

Tensor rounded_weight(const Tensor& w, DType dtype) {
  if (w.dtype() == dtype) return w;
  TensorImpl& impl = w.impl();
  const std::lock_guard lock(rounding);
  const uint32_t version = impl.storage->version();
  if (impl.rounded && impl.rounded->dtype == dtype && impl.rounded_version == version) {
    // A graph takes these values as they are; who changes the weight by hand means them too.
    if (is_replayed()) before_each_replay(w, [w, dtype] { rounded_weight(w, dtype); });
    return Tensor(impl.rounded);
  }
  const OutsideCapturedCall kept;
  Tensor rounded =
      impl.rounded && impl.rounded->dtype == dtype && impl.rounded->storage->device() == w.device()
          ? Tensor(impl.rounded)
          : empty(w.shape(), dtype, w.device());
  copy_elements(w, rounded);
  impl.rounded = Ref<TensorImpl>(&rounded.impl());
  impl.rounded_version = version;
  return rounded;
}

}  // namespace detail
}  // namespace norma
