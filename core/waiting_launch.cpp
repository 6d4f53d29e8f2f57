#include "norma/core/waiting_launch.h"

#include <exception>
#include <utility>

#include "norma/core/tensor.h"

namespace norma::detail {

constinit thread_local bool launch_waits = false;

namespace {

thread_local constinit int may_wait_depth = 0;
thread_local std::unique_ptr<WaitingLaunch> waiting;

std::unique_ptr<WaitingLaunch> take() {
  launch_waits = false;  // first: it reads where its tensors lie
  return std::move(waiting);
}

}  // namespace

MayWait::MayWait() : unwinding_(std::uncaught_exceptions()) { ++may_wait_depth; }
MayWait::~MayWait() noexcept(false) {
  --may_wait_depth;
  if (!launch_waits || may_wait_depth > 0) return;
  if (std::uncaught_exceptions() == unwinding_) {
    start_waiting_launch();
    return;
  }
  try {  // the error that is on its way says more than what this might
    start_waiting_launch();
  } catch (...) {
  }
}
bool may_wait() { return may_wait_depth > 0; }

void let_wait(std::unique_ptr<WaitingLaunch> launch) {
  start_waiting_launch();
  waiting = std::move(launch);
  launch_waits = true;
}
void start_waiting_launch() {
  if (launch_waits) take()->start();
}
std::unique_ptr<WaitingLaunch> take_waiting(const Tensor& t) {
  if (!launch_waits) return nullptr;
  const Tensor& result = waiting->result();
  if (t.storage() != result.storage() || t.offset() != result.offset() || !t.is_dense() ||
      t.numel() != result.numel() || t.dtype() != result.dtype())
    return nullptr;
  return take();
}

}  // namespace norma::detail
