#pragma once

#include <memory>

namespace norma {

class Tensor;

namespace detail {

/// A kernel that was not yet launched, so that the op that comes next may take its work into one of
/// its own. Whoever else asks where a tensor lies (Tensor::data) starts it first.
class WaitingLaunch {
 public:
  WaitingLaunch() = default;
  virtual ~WaitingLaunch() = default;
  WaitingLaunch(const WaitingLaunch&) = delete;
  WaitingLaunch& operator=(const WaitingLaunch&) = delete;

  virtual void start() = 0;
  virtual const Tensor& result() const = 0;  ///< what it gives, dense
};

/// While one lives, launches of this thread may wait; none outlives it.
class MayWait {
 public:
  MayWait();
  ~MayWait() noexcept(false);
  MayWait(const MayWait&) = delete;
  MayWait& operator=(const MayWait&) = delete;

 private:
  int unwinding_;
};
bool may_wait();

/// Whether one waits.
extern constinit thread_local bool launch_waits;
/// From here on this one waits.
void let_wait(std::unique_ptr<WaitingLaunch> launch);
void start_waiting_launch();
/// The one whose result `t` is, or a dense view of all of it: who takes it starts it.
std::unique_ptr<WaitingLaunch> take_waiting(const Tensor& t);

}  // namespace detail
}  // namespace norma
