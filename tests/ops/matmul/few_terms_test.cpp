#include "norma/ops/matmul/few_terms.h"

#include "norma/core/dispatch.h"
#include "norma/core/random.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/exact.h"
#include "testing/on_gpu.h"

namespace norma {
namespace {

using testing::eighths;
using testing::wide;

class FewTerms : public testing::OnGpu<::testing::TestWithParam<DType>> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (!IsSkipped()) manual_seed(1);
  }
};

struct FewTermsSize {
  int64_t rows, terms, columns, wider;  // wider: by how much rows of a, b and c lie apart
  const char* why;
};
constexpr FewTermsSize kFewTermsSizes[] = {
    {4096, 80, 1536, 0, "Mamba-1's"},
    {2048, 64, 256, 0, "fewer tiles than blocks"},
    {40003, 96, 512, 8, "many turns, a tail of rows, rows that lie apart"},
    {5001, 80, 256, 8, "a tail of one row"}};

TEST_P(FewTerms, AreTheExactSumRoundedOnce) {
  if constexpr (kBuiltWithCuda)
    for (const FewTermsSize& s : kFewTermsSizes) {
      SCOPED_TRACE(s.why);
      const DType dtype = GetParam();
      const auto rows_apart = [&](int64_t rows, int64_t columns) {
        return eighths({rows, columns + s.wider}, dtype);
      };
      const Tensor a = rows_apart(s.rows, s.terms).slice(1, 0, s.terms);
      const Tensor b = rows_apart(s.terms, s.columns).slice(1, 0, s.columns);
      const Tensor all = rows_apart(s.rows, s.columns), before = all.clone();
      const Tensor c = all.slice(1, 0, s.columns), old = before.slice(1, 0, s.columns);
      MatmulArgs args{.a = a, .b = b, .bias = {}, .c = c};
      args.accumulate = true;
      ASSERT_TRUE(add_few_terms(cuda_stream(a.device()), args));
      EXPECT_SAME_BITS(c, (matmul(wide(a), wide(b)) + wide(old)).to(float32).to(dtype));
      if (s.wider > 0) {
        EXPECT_SAME_BITS(all.slice(1, s.columns, s.columns + s.wider),
                         before.slice(1, s.columns, s.columns + s.wider));
      }
    }
}

TEST_P(FewTerms, LeavesOthersAlone) {
  if constexpr (kBuiltWithCuda) {
    const DType dtype = GetParam();
    const auto takes = [&](const Tensor& a, const Tensor& b, const Tensor& c, bool add = true) {
      MatmulArgs args{.a = a, .b = b, .bias = {}, .c = c};
      args.accumulate = add;
      return add_few_terms(cuda_stream(cuda), args);
    };
    const Tensor a = eighths({2048, 80}, dtype), b = eighths({80, 256}, dtype),
                 c = eighths({2048, 256}, dtype);
    EXPECT_TRUE(takes(a, b, c));
    EXPECT_FALSE(takes(a, b, c, false)) << "nothing to add to";
    EXPECT_FALSE(takes(a.slice(0, 0, 1000), b, c.slice(0, 0, 1000))) << "few rows";
    EXPECT_FALSE(takes(a.slice(1, 0, 40), b.slice(0, 0, 40), c)) << "no kernel for 40 terms";
    EXPECT_FALSE(takes(a.slice(1, 4, 68), b.slice(0, 0, 64), c)) << "rows off 16 bytes";
    EXPECT_FALSE(takes(a, eighths({256, 80}, dtype).t(), c)) << "b transposed";
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, FewTerms, ::testing::Values(bfloat16, float16),
                         [](const auto& p) { return std::string(to_string(p.param)); });

}  // namespace
}  // namespace norma
