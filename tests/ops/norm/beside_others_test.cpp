// Another program on the GPU: the GPU goes from one to the other in the midst of kernels, which
// shows what a kernel does that holds only where it runs undisturbed.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "norma/core/random.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/view/view.h"
#include "testing/on_gpu.h"
#include "testing/other_program.h"

namespace norma {
namespace {

/// dw of one input, `times` over. Many in a row, since a program that waits for each result gives
/// the GPU away between kernels and is never interrupted in one.
void expect_repeats(int64_t rows, int64_t cols, DType dtype, int times) {
  manual_seed(4);
  const Tensor x = randn({rows, cols}, dtype, cuda).requires_grad_(),
               w = randn({cols}, float32, cuda).requires_grad_(),
               dy = randn({rows, cols}, dtype, cuda);
  std::vector<Tensor> dws;
  for (int i = 0; i < times; ++i) dws.push_back(grad({layer_norm(x, w)}, {w}, {dy})[0]);
  const Tensor all = concat(dws, 0).to(cpu);
  const auto values = all.span<const float>();
  int wrong = 0;
  for (size_t i = 0; i < values.size(); i += static_cast<size_t>(cols))
    wrong += std::memcmp(&values[i], values.data(), static_cast<size_t>(cols) * sizeof(float)) != 0;
  EXPECT_EQ(wrong, 0) << "of " << times << " of " << rows << " x " << cols << " "
                      << to_string(dtype);
}

using BesideAnotherProgram = testing::OnGpu<>;

TEST_F(BesideAnotherProgram, WeightGradientsOfNormsRepeatToTheBit) {
  const testing::OtherProgram other;
  sleep(3);  // until it has the GPU
  ASSERT_TRUE(other.runs());
  for (const DType dtype : {bfloat16, float16, float32}) {
    expect_repeats(768, 128, dtype, 20000);
    expect_repeats(96, 4096, dtype, 5000);
  }
  EXPECT_TRUE(other.runs());
}

}  // namespace
}  // namespace norma
