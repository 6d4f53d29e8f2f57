#include "norma/ops/norm/explain.h"

#include "norma/core/device.h"
#include "norma/core/random.h"
#include "testing/compare.h"

namespace norma {
namespace {

using ::testing::HasSubstr;

TEST(Explain, CountsEachTensorOnce) {
  const Tensor x = randn({64, 256}), w = randn({256}), b = randn({256});
  const NormExplanation e = explain(x, {.w = w, .b = b}, {.kind = NormKind::layer});
  const int64_t tensor = 64 * 256 * 4, row = 256 * 4, stats = 3 * 64 * 4;
  EXPECT_EQ(e.forward.read, tensor + 2 * row);
  EXPECT_EQ(e.forward.written, tensor + stats);
  EXPECT_EQ(e.backward.read, 2 * tensor + row + stats);
  EXPECT_EQ(e.backward.written, tensor + 2 * row);
  EXPECT_GT(e.forward.share_of_copy(), 0);
  EXPECT_GT(e.backward.share_of_copy(), 0);
}
TEST(Explain, NamesTheKernelAndWhy) {
  if (!default_device().is_cpu()) GTEST_SKIP() << "the processor's kernels";
  const Tensor x = randn({4, 16}), w = randn({16});
  const NormExplanation plain = explain(x, {.w = w});
  EXPECT_THAT(plain.forward.kernel, HasSubstr("norm_cpu"));
  EXPECT_THAT(plain.backward.why, HasSubstr("plain member"));
  const NormExplanation second = explain(x, {.w = w, .w2 = w});
  EXPECT_THAT(second.forward.kernel, HasSubstr("norm_general_cpu"));
  EXPECT_EQ(second.forward.why, "it has a second weight");
}
TEST(Explain, ReadsAsText) {
  const std::string text = to_string(explain(randn({4, 16}).to(bfloat16)));
  EXPECT_THAT(text, HasSubstr("norm of (4, 16) bfloat16 on "));
  EXPECT_THAT(text, HasSubstr("% of a copy of as many bytes"));
}

}  // namespace
}  // namespace norma
