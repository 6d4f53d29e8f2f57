#pragma once

#include <functional>
#include <span>
#include <vector>

#include "norma/core/tensor.h"

namespace norma::detail {

// A second stream beside the thread's, for work that nobody needs soon: the product that gives a
// weight's gradient beside the rest of the sweep. Small ones leave most of a GPU idle; a recorded
// graph gets a second branch by it. Defined in builds with CUDA alone.

/// Whether work was given to the side and not yet joined.
extern constinit thread_local bool side_pending;

/// Runs `work`, which may read `reads` and returns what it makes. Its kernels may start when all
/// that the thread's stream was given so far is done, and run at the same time as what comes next.
/// What was given before is joined first. `reads` are held until the join, so that nobody writes to
/// them in place. The engine joins before an op reads a result and at the end of a sweep; other
/// code calls join_side() before it does.
std::vector<Tensor> run_beside(Device device, std::vector<Tensor> reads,
                               const std::function<std::vector<Tensor>()>& work);
/// The thread's stream waits for the side.
void join_side();
/// The same, where one of `inputs` is a result of the side's.
void join_side_for(std::span<const Tensor* const> inputs);
/// Forgets what was given to the side, where the record of it is thrown away.
void abandon_side();

}  // namespace norma::detail
