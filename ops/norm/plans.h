#pragma once

#include <cstddef>

#include "norma/ops/norm/kernels.h"

namespace norma::norm_cuda {

/// Whether the kernels that cover every member and size run alone: where the environment says
/// NORMA_NORM_PLANS=general. The plans that read each tensor once give the same bits in y, dx and
/// dz, so this is for telling a bug of theirs from another's.
extern bool only_general_plans;
/// A float32 backward without gate of at most so many elements times weight gradients (H100: 768 ×
/// 128 with dw takes 6.2 µs against 6.6, with db too 7.5 against 7.2) runs as one launch, its
/// weights' sums added by the block that comes last. For tests and timings: 0 leaves that plan out.
extern int64_t most_small_elements;
/// A backward of at most so many elements whose rows fit the warps of a cluster runs as one launch
/// too; of sixteen times as many, whose rows fit the warps of the GPU, as two short ones. For tests
/// and timings: 0 leaves those plans out.
extern int64_t most_few_elements;

/// For tests: blocks that live for a whole call are as many as on a GPU of so many
/// multiprocessors; 0: as on the one at hand.
extern int pretended_multiprocessors;
/// Of `count` blocks or clusters that this GPU runs at a time, those that the pretended one would.
int as_pretended(const Cuda& on, int count);
/// Blocks of this shape that run at a time, in whole clusters. Asks CUDA once a shape.
int resident_clusters(const Cuda& on, const void* kernel, int threads, size_t shared, int cluster);

/// For x of T.
template <class T>
void forward(const Cuda& on, const NormForwardArgs& k);
template <class T>
void backward(const Cuda& on, const NormBackwardArgs& k);

/// Whether the backward's plans that read each tensor once may run: they are compiled for Hopper
/// and newer GPUs (*_sm90_cuda.cu), and older ones have the general plans.
bool has_fast_plans(const Cuda& on);
/// Of these, a file for each dtype; false where the call does not fit.
template <class T>
bool backward_fast(const Cuda& on, const NormBackwardArgs& k);

}  // namespace norma::norm_cuda
