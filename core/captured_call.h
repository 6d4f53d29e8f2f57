#pragma once

#include <functional>
#include <span>
#include <string_view>
#include <type_traits>

#include "norma/core/autograd.h"
#include "norma/core/tensor.h"

// What the library itself asks about the captured call that runs on this thread (core/capture.h).
namespace norma::detail {

class CapturedCall;
extern constinit thread_local CapturedCall* captured_call;
extern constinit thread_local int kernel_depth;

/// Lives while an op's kernels run: these may read values on the host.
class KernelScope {
 public:
  KernelScope() { ++kernel_depth; }
  ~KernelScope() { --kernel_depth; }
  KernelScope(const KernelScope&) = delete;
  KernelScope& operator=(const KernelScope&) = delete;
};

inline bool in_captured_call() { return captured_call != nullptr; }
/// Whether the running captured call is the second of its kind or a later one: what the host does
/// now, a replay does not.
bool is_replayed();
/// Whether t's storage was made inside the running captured call, which it must not outlive.
bool made_in_captured_call(const Tensor& t);

void forbid_host_read_slow(std::string_view where, const Tensor& t);
/// GraphError where a captured function is about to read t on the host.
inline void forbid_host_read(std::string_view where, const Tensor& t) {
  if (captured_call) [[unlikely]]
    forbid_host_read_slow(where, t);
}

/// GraphError where an op is about to run on the processor inside a function captured on a GPU.
void require_capturable(std::string_view name, std::span<const Tensor* const> inputs);
/// GraphError where a tensor is about to be drawn on the processor inside one.
void require_drawable(std::string_view where);

/// Whether the gradient of this leaf stays where it is during the running captured call, since it
/// was there before: what is added to it is added in place.
bool gradient_stays(Leaf& leaf);
/// A gradient came into being; errors name it so.
void label_gradient(const Tensor& grad);

/// While one lives, storages that are made do not count as the running captured call's, so that
/// they may outlive it: what a library keeps from call to call. Only memory: what is written on a
/// GPU meanwhile is recorded all the same.
class OutsideCapturedCall {
 public:
  OutsideCapturedCall();
  ~OutsideCapturedCall();
  OutsideCapturedCall(const OutsideCapturedCall&) = delete;
  OutsideCapturedCall& operator=(const OutsideCapturedCall&) = delete;

 private:
  StorageWatch* watch_;
  void* pool_ = nullptr;
};

/// Calls f before each replay of the running captured call: for what the host keeps up to date with
/// t, a tensor from outside. Others are left out: a replay makes them itself.
void before_each_replay(const Tensor& t, std::function<void()> f);

const void* value_each_call(size_t bytes, std::function<void(void*)> now);
/// A value that the host works out anew for each call, such as a learning rate. Where the running
/// call is captured on a GPU: the place on the device where its kernels find what now() gives,
/// which is called once a call, a replay or not, before the call's kernels run. Else null, and
/// now() is not called. What now() refers to must outlive the captured function.
template <class T>
const T* value_each_call(std::function<T()> now) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
  if (!captured_call) return nullptr;
  return static_cast<const T*>(value_each_call(
      sizeof(T), [now = std::move(now)](void* to) { *static_cast<T*>(to) = now(); }));
}

}  // namespace norma::detail
