#include <cstdlib>
#include <string_view>

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

}  // namespace

bool norm_cuda::only_general_plans = asks_for_general_plans();

void run(Cuda on, const NormForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { norm_cuda::forward<T>(on, k); });
}
void run(Cuda on, const NormBackwardArgs& k) {
  visit_floating(dtype_of_x(k), [&]<class T>() { norm_cuda::backward<T>(on, k); });
}

}  // namespace norma
