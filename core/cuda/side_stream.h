#pragma once

#include <functional>
#include <span>
#include <vector>

#include "norma/core/tensor.h"

namespace norma::detail {

// Streams beside the thread's, for work that nobody needs soon: the product that gives a weight's
// gradient beside the rest of the sweep. Small ones leave most of a GPU idle; a recorded graph gets
// branches by it. Defined in builds with CUDA alone, but for sweep_joins and OneStream
// (core/sweep.cpp).

/// Whether a sweep runs on this thread: it joins what is given to the side before it ends.
bool sweep_joins();
/// While one lives, this thread gives nothing to the side: for who times what runs.
class OneStream {
 public:
  OneStream();
  ~OneStream();
  OneStream(const OneStream&) = delete;
  OneStream& operator=(const OneStream&) = delete;
};

/// Whether work was given to the side and not yet joined.
extern constinit thread_local bool side_pending;

/// Runs `work`, which may read `reads` and returns what it makes; outside of sweeps as if called
/// here. Its kernels may start when all that the thread's stream was given so far is done, and run
/// at the same time as what comes next. What was given before is joined first. `reads` are held
/// until the join, so that nobody writes to them in place. The engine joins before an op reads a
/// result and at the end of a sweep.
std::vector<Tensor> run_beside(Device device, std::vector<Tensor> reads,
                               const std::function<std::vector<Tensor>()>& work);
/// Runs `work`, an op's kernels. In a sweep the last of them, which give nothing but `results`, may
/// go to the side by themselves, without a join of what was given before: where may_go_aside(), on
/// the stream that go_aside() gives for `on`. The memory that `work` lets go stays until a join,
/// and so does what is in `reads`, which the last kernels read.
void run_with_aside(Device device, std::span<const Tensor> results,
                    const std::function<void()>& work, std::span<const Tensor> reads = {});
bool may_go_aside();
Cuda go_aside(const Cuda& on);
/// The thread's stream waits for the side.
void join_side();
/// The same, where something was given to it: before someone reads a gradient.
inline void join_side_stream() {
  if constexpr (kBuiltWithCuda)
    if (side_pending) join_side();
}
/// The same, where one of `inputs` is a result of the side's.
void join_side_for(std::span<const Tensor* const> inputs);
/// Forgets what was given to the side, where the record of it is thrown away.
void abandon_side();

}  // namespace norma::detail
