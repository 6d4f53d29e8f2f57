#pragma once

#include "norma/core/storage.h"

namespace norma::detail {

// A kernel that starts while the one in front of it in the stream still runs (LaunchShape::overlap)
// may read what that one does not write before it waits for it: weights, and in a sweep what was
// saved before. The one in front has itself waited for all before it; so both are safe behind a
// kernel that waits before it reads, and that was launched after weights were last written and the
// sweep began. Defined in builds with CUDA alone.

/// From here on changes in place of these weights count, for launches that ask may_read_early().
void count_writes(Storage& weights);
/// Whether a kernel that goes to this stream next may read so. False for the first that asks after
/// a counted change or the beginning of a sweep: behind it others may.
bool may_read_early(const Cuda& on);

}  // namespace norma::detail
