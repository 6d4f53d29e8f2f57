#include "norma/ops/norm/explain.h"

#include "norma/core/device.h"
#include "norma/core/random.h"
#include "testing/compare.h"

namespace norma {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

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
TEST(Explain, NamesWhatAGpuLaunchedAndWhy) {
  if (default_device().is_cpu()) GTEST_SKIP() << "a GPU's kernels";
  const Tensor x = randn({64, 128}), w = randn({128}), large = randn({4096, 128});
  const NormExplanation small = explain(x, {.w = w});
  EXPECT_THAT(small.backward.kernel, HasSubstr("norm_backward_small_kernel<float"));
  EXPECT_THAT(small.backward.why, HasSubstr("a small one"));
  const NormExplanation plain = explain(large, {.w = w});
  EXPECT_THAT(plain.backward.kernel, HasSubstr(", then norm_fold_kernel<float"));
  EXPECT_THAT(plain.forward.kernel, Not(HasSubstr("norma::")));
  EXPECT_GT(plain.forward.share_of_copy(), 0);
}
TEST(Explain, ReasonsAgreeWithTheKernelsOfAGpu) {
  if (default_device().is_cpu()) GTEST_SKIP() << "a GPU's kernels";
  const Tensor x = randn({4096, 128}), w = randn({128}), z = randn({4096, 128}),
               scale = randn({4096});
  struct Case {
    const char* why;
    Tensor x;
    NormInputs in;
    NormOptions options = {};
  };
  NormOptions dropout{.dropout = 0.5}, rounded{.casting = Casting::rounded}, precise{}, probe{};
  NormProbe seen;
  precise.precise = true, probe.probe = &seen;
  const NormOptions gelu{.gate = GateOrder::norm_then_gate, .activation = GateActivation::gelu};
  const Case cases[] = {{"plain", x, {.w = w}},
                        {"gated", x, {.w = w, .z = z}, {.gate = GateOrder::gate_then_norm}},
                        {"gelu", x, {.w = w, .z = z}, gelu},
                        {"residual", x, {.w = w, .residual = z}},
                        {"second weight", x, {.w = w, .w2 = w}},
                        {"row scale", x, {.w = w, .row_scale = scale}},
                        {"dropout", x, {.w = w}, dropout},
                        {"rounded", x, {.w = w}, rounded},
                        {"float64", x.to(float64), {.w = w}},
                        {"half weights", x.to(bfloat16), {.w = w.to(float16)}},
                        {"precise", x, {.w = w}, precise},
                        {"probe", x, {.w = w}, probe}};
  for (const Case& c : cases) {
    SCOPED_TRACE(c.why);
    const NormExplanation e = explain(c.x, c.in, c.options);
    for (const NormCost* cost : {&e.forward, &e.backward}) {
      const bool says_plain = cost->why.find("a plain member") != std::string::npos;
      const bool is_general = cost->kernel.find("_any_kernel") != std::string::npos;
      EXPECT_NE(says_plain, is_general) << cost->kernel << ": " << cost->why;
    }
  }
}
TEST(Explain, ReadsAsText) {
  const std::string text = to_string(explain(randn({4, 16}).to(bfloat16)));
  EXPECT_THAT(text, HasSubstr("norm of (4, 16) bfloat16 on "));
  EXPECT_THAT(text, HasSubstr("% of a copy of as many bytes"));
}

}  // namespace
}  // namespace norma
