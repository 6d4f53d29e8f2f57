#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "norma/core/device.h"
#include "testing/other_program.h"

/// NORMA_TEST_DEVICE=cuda runs the same tests with every tensor on the GPU; without a GPU the
/// program says so and ends with 77, which ctest shows as skipped.
int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "--keep-the-gpu-busy")
    norma::testing::keep_the_gpu_busy();
  ::testing::InitGoogleTest(&argc, argv);
  const char* wanted = std::getenv("NORMA_TEST_DEVICE");
  std::optional<norma::DefaultDevice> device;
  if (wanted && std::string_view(wanted) != "cpu") {
    if (norma::Device::best().is_cpu()) {
      std::printf("no GPU here: the tests on %s are skipped\n", wanted);
      return 77;
    }
    device.emplace(norma::device_from_string(wanted));
  }
  return RUN_ALL_TESTS();
}
