#include "norma/core/processor.h"

#include <gtest/gtest.h>

#include <string>

namespace norma::detail {
namespace {

TEST(Processor, ThisOneHasWhatTheTestsWereBuiltFor) {
  EXPECT_EQ(features_built_for & ~features_present(), 0u);
}

#ifdef __AVX2__
TEST(Processor, BuildKnowsWhatItWasBuiltFor) { EXPECT_NE(features_built_for & 1u << 3, 0u); }
#endif

TEST(Processor, ErrorNamesEveryMissingFeatureAndTheMend) {
  char out[512];
  const size_t length = write_processor_error(out, sizeof out, 1u << 3 | 1u << 7);
  EXPECT_EQ(
      std::string(out, length),
      "norma: the processor must have what norma was built for, but lacks avx2 avx512f; build "
      "norma on this machine, or with -DNORMA_ARCH=x86-64\n");
}

TEST(Processor, ErrorOfEverythingFitsItsBuffer) {
  char out[513];
  EXPECT_LT(write_processor_error(out, 512, ~0u), 512u);
}

}  // namespace
}  // namespace norma::detail
