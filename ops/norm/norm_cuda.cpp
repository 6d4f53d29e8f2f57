#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string_view>
#include <tuple>

#include "norma/core/cuda/check.h"
#include "norma/core/cuda/runtime.h"
#include "norma/ops/norm/choice.h"
#include "norma/ops/norm/plans.h"

namespace norma {
namespace {

bool asks_for_general_plans() {
  const char* plans = std::getenv("NORMA_NORM_PLANS");
  return plans && std::string_view(plans) == "general";
}

/// x's dtype, by whatever a backward has of it; the statistics' where only they are left.
DType dtype_of_x(const NormBackwardArgs& k) {
  for (const ConstRows* t : {&k.z, &k.x_hat, &k.x})
    if (*t) return t->dtype;
  if (k.dx) return k.dx.dtype;
  return k.options.casting == Casting::rounded ? k.x_dtype : k.h.dtype;
}

// What explain() says. Its kernel's name comes from the launch itself, and a test holds these
// reasons against it.

const char* why_general(const NormOptions& o, DType dtype) {
  if (norm_cuda::only_general_plans) return "NORMA_NORM_PLANS=general";
  if (dtype == float64) return "float64 has general kernels alone";
  if (o.activation == GateActivation::gelu)
    return "its gate is GELU, too long for the fast kernels";
  if (o.casting == Casting::rounded) return "its x̂ is rounded before the weight";
  if (o.dropout > 0) return "it has dropout";
  return nullptr;
}
bool other_weight(const ConstVec& w, DType dtype) {
  return w && w.dtype != dtype && w.dtype != float32;
}
const char* why(const NormForwardArgs& k) {
  if (const char* general = why_general(k.options, k.x.dtype)) return general;
  if (k.options.variance != Variance::two_pass) return "its variance is not the two-pass one";
  if (k.row_scale) return "it has a row scale";
  if (k.w2 || k.y2) return "it has a second weight";
  if (k.x_hat) return "it saves x̂";
  if (k.z && k.residual) return "it has a gate beside a residual";
  if (bool(k.h) != bool(k.residual)) return "it makes an h of its own";
  const bool beside =
      (k.w && k.b && k.w.dtype != k.b.dtype) || (k.h && k.h.dtype != k.residual.dtype);
  if (k.y.dtype != k.x.dtype || other_weight(k.w, k.x.dtype) || other_weight(k.b, k.x.dtype) ||
      beside)
    return "its tensors differ in dtype";
  return "a plain member: a group stays on the chip, and each tensor is read once";
}
const char* why(const Cuda& on, const NormBackwardArgs& k, DType dtype) {
  if (const char* general = why_general(k.options, dtype)) return general;
  if (!norm_cuda::has_fast_plans(on)) return "its GPU is older than Hopper";
  if (k.options.precise) return "its weight gradients are compensated sums";
  if (k.mean_gx || k.g_norm || k.du_norm) return "it has a probe";
  if (k.row_scale || k.drow_scale) return "it has a row scale";
  if (k.w2 || k.dy2) return "it has a second weight";
  if (!k.h) return "it saved x̂";
  if (k.options.eps <= 1e-37) return "its eps is so small that rows may have to be scaled";
  if (k.dy.dtype != dtype || other_weight(k.w, dtype) || other_weight(k.b, dtype))
    return "its tensors differ in dtype";
  return "a plain member: each tensor is read once, as far as a group fits on the chip";
}

}  // namespace

bool norm_cuda::only_general_plans = asks_for_general_plans();
int64_t norm_cuda::most_small_elements = int64_t{1} << 17;
int64_t norm_cuda::most_few_elements = int64_t{1} << 16;
int norm_cuda::pretended_multiprocessors = 0;

bool norm_cuda::has_fast_plans(const Cuda& on) {
  return !only_general_plans && detail::properties(on.device).major >= 9;
}
int norm_cuda::as_pretended(const Cuda& on, int count) {
  if (pretended_multiprocessors == 0) return count;
  return std::max(1, count * pretended_multiprocessors / detail::cuda_multiprocessors(on.device));
}

int norm_cuda::resident_clusters(const Cuda& on, const void* kernel, int threads, size_t shared,
                                 int cluster) {
  static std::mutex mutex;
  static auto* known = new std::map<std::tuple<int, const void*, int, size_t, int>, int>;
  const std::lock_guard lock(mutex);
  int& count = (*known)[{on.device.index, kernel, threads, shared, cluster}];
  if (count > 0) return as_pretended(on, count);
  detail::allow_shared_memory(kernel, shared);
  if (cluster > 8) detail::allow_large_clusters(kernel);
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  config.attrs = &attribute;
  config.numAttrs = 1;
  detail::check(cudaOccupancyMaxActiveClusters(&count, kernel, &config),
                "count the clusters that fit");
  return as_pretended(on, count);
}

void run(Cuda on, const NormForwardArgs& k) {
  detail::chose("", why(k));
  visit_floating(k.x.dtype, [&]<class T>() { norm_cuda::forward<T>(on, k); });
}
void run(Cuda on, const NormBackwardArgs& k) {
  const DType dtype = dtype_of_x(k);
  detail::chose("", why(on, k, dtype));
  visit_floating(dtype, [&]<class T>() { norm_cuda::backward<T>(on, k); });
}

}  // namespace norma
