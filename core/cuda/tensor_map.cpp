#include "norma/core/cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include "norma/core/cuda/check.h"
#include "norma/core/error.h"

namespace norma::detail {
namespace {

/// Found through the runtime: libcuda is not linked, so that programs start without a driver.
PFN_cuTensorMapEncodeTiled_v12000 encode_function() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                           cudaEnableDefault, &result),
          "find cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess)
      throw CudaError("cuda: the driver must have cuTensorMapEncodeTiled, but has not");
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(found);
  }();
  return function;
}

}  // namespace

CUtensorMap tensor_map(DType dtype, const void* data, const std::array<int64_t, 4>& sizes,
                       const std::array<int64_t, 4>& strides, int box_rows) {
  CUtensorMap map;
  cuuint64_t dims[4], steps[3];
  for (size_t d = 0; d < 4; ++d) dims[d] = static_cast<cuuint64_t>(sizes[d]);
  // The stride of a dimension of one element means nothing, but must be a valid one.
  for (size_t d = 1; d < 4; ++d)
    steps[d - 1] = static_cast<cuuint64_t>((sizes[d] == 1 ? 64 : strides[d]) * size_of(dtype));
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(box_rows), 1, 1}, every[4] = {1, 1, 1, 1};
  const CUresult status = encode_function()(
      &map, dtype == bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      4, const_cast<void*>(data), dims, steps, box, every, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    throw CudaError("cuda: a tensor map must be made, but CUDA says {}", int(status));
  return map;
}

}  // namespace norma::detail
