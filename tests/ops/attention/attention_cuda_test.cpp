#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "norma/core/autograd.h"
#include "norma/core/format.h"
#include "norma/core/random.h"
#include "norma/ops/attention/attention.h"
#include "norma/ops/attention/kernels.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

// The kernels for a GPU against the processor's in float64, over what decides which of them run
// and how: head dimension, lengths beside whole tiles, strides, shared keys, dropout.

namespace norma {
namespace {

struct Problem {
  int64_t batch, heads, kv_heads, queries, keys, dim;
  bool causal;
  double p = 0;
  bool packed = false;  ///< q, k and v are slices of one (B, T, 3, H, D)
};

constexpr Problem kProblems[] = {
    {2, 3, 3, 64, 64, 32, true},
    {1, 2, 2, 1, 1, 64, true},
    {3, 2, 2, 33, 33, 32, true, 0, true},
    {2, 2, 2, 40, 50, 64, true},
    {1, 3, 3, 50, 40, 64, false},
    {2, 2, 2, 257, 257, 64, true},
    {2, 2, 2, 257, 257, 64, true, 0, true},
    {1, 2, 2, 300, 300, 128, true, 0, true},
    {1, 4, 2, 130, 200, 64, true},
    {1, 6, 1, 100, 100, 128, true},
    {1, 2, 2, 1, 300, 64, true},
    {2, 2, 1, 190, 130, 64, false},
    {1, 3, 3, 130, 190, 128, false},
    {1, 2, 2, 1000, 1000, 64, true},
    {1, 2, 2, 777, 777, 128, true},
    {3, 5, 5, 256, 256, 64, true},
    {40, 8, 8, 256, 256, 128, true},
    {30, 8, 8, 200, 200, 64, true, 0,
     true},  // several heads a block of the backward for short rows
    {70, 4, 4, 96, 96, 48, true, 0.3},
    {9, 20, 20, 129, 129, 64, true, 0.2},
    {1, 2, 2, 100, 100, 96, true},
    {1, 2, 2, 100, 100, 192, true},
    {1, 4, 2, 150, 150, 256, true},
    {1, 2, 2, 70, 70, 5, true},
    {1, 2, 2, 70, 70, 33, false},
    {1, 2, 2, 70, 70, 120, true},
    {2, 2, 2, 129, 130, 64, true, 0.2},
    {1, 4, 2, 200, 203, 128, false, 0.5},
    {1, 2, 2, 70, 75, 32, true, 0.3},
    {1, 2, 2, 70, 75, 256, true, 0.3},
    {1, 2, 2, 5, 0, 64, false},
    {1, 2, 2, 0, 5, 64, true},
    {0, 2, 2, 5, 5, 64, true},
};

struct Inputs {
  Tensor q, k, v, dy;
  Inputs to(Device device) const {
    const auto moved = [&](const Tensor& t) {  // with the strides of rows that lie by position
      return t.transpose(1, 2).contiguous().to(device).transpose(1, 2);
    };
    return {moved(q), moved(k), moved(v), moved(dy)};
  }
};
Inputs draw(const Problem& c, DType dtype) {
  const auto normal = [&](int64_t heads, int64_t length) {
    return randn({c.batch, heads, length, c.dim}, float64).to(dtype);
  };
  return {normal(c.heads, c.queries), normal(c.kv_heads, c.keys), normal(c.kv_heads, c.keys),
          normal(c.heads, c.queries)};
}
/// Slices of one product, as a layer makes them.
Inputs draw_packed(const Problem& c, DType dtype, Device device) {
  const Tensor qkv = randn({c.batch, c.queries, 4, c.heads, c.dim}, float64).to(dtype).to(device);
  const auto part = [&](int64_t i) { return qkv.select(2, i).transpose(1, 2); };
  return {part(0), part(1), part(2), part(3)};
}

struct Results {
  Tensor y, lse, dq, dk, dv;
};
Results results(const Inputs& in, const AttentionOptions& o) {
  const auto forward = apply<Attention>(in.q, in.k, in.v, o);
  const auto grads =
      apply<AttentionBackward>(in.dy, in.q, in.k, in.v, forward.y, forward.lse.value, o);
  return {forward.y, forward.lse, grads.dq, grads.dk, grads.dv};
}

/// ‖a − b‖ / max(‖b‖, 1) over all elements of size about 1, infinite where a is not finite but b
/// is.
double relative_error(const Tensor& a, const Tensor& b) {
  const auto x = a.to(cpu).to_vector<double>(), y = b.to(cpu).to_vector<double>();
  double off = 0, size = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (x[i] == y[i]) continue;
    off += (x[i] - y[i]) * (x[i] - y[i]);
  }
  for (double v : y) size += std::isfinite(v) ? v * v : 0;
  if (!std::isfinite(off)) return INFINITY;
  return std::sqrt(off) / std::max(std::sqrt(size), 1.);
}

using DTypeAndProblem = std::tuple<DType, Problem>;
class AttentionCudaTest : public ::testing::TestWithParam<DTypeAndProblem> {
 protected:
  void SetUp() override {
    if (!Device::best().is_cuda()) GTEST_SKIP() << "no GPU";
  }
};
std::string name_of(const ::testing::TestParamInfo<DTypeAndProblem>& info) {
  const auto& [dtype, c] = info.param;
  return norma::format("{}_{}_{}_{}_{}_{}_{}{}{}{}", to_string(dtype), c.batch, c.heads, c.kv_heads,
                       c.queries, c.keys, c.dim, c.causal ? "_causal" : "",
                       c.packed ? "_packed" : "", c.p > 0 ? "_dropout" : "");
}
constexpr DType kDTypes[] = {float32, float64, bfloat16, float16};
INSTANTIATE_TEST_SUITE_P(All, AttentionCudaTest,
                         ::testing::Combine(::testing::ValuesIn(kDTypes),
                                            ::testing::ValuesIn(kProblems)),
                         name_of);

struct Bounds {
  double y, lse, gradients;
};
void expect_the_processors(DType dtype, const Problem& c, const Bounds& bounds) {
  const AttentionOptions o{.causal = c.causal, .p = c.p, .key = {.key = 11, .ordinal = 2}};
  const Inputs on_gpu = c.packed ? draw_packed(c, dtype, cuda) : draw(c, dtype).to(cuda);
  const auto wide = [](const Tensor& t) { return detail::dense(t.to(cpu)).to(float64); };
  const Inputs exact{wide(on_gpu.q), wide(on_gpu.k), wide(on_gpu.v), wide(on_gpu.dy)};
  const Results expected = results(exact, o);
  for (bool portable : {true, false}) {
    SCOPED_TRACE(portable ? "portable" : "best");
    std::optional<PortableAttention> only_portable;
    if (portable) only_portable.emplace();
    const Results actual = results(on_gpu, o), again = results(on_gpu, o);
    const auto compare = [](const char* what, const Tensor& a, const Tensor& b, double bound) {
      EXPECT_LE(relative_error(a, b), bound) << what;
    };
    compare("y", actual.y, expected.y, bounds.y);
    compare("lse", actual.lse, expected.lse, bounds.lse);
    compare("dq", actual.dq, expected.dq, bounds.gradients);
    compare("dk", actual.dk, expected.dk, bounds.gradients);
    compare("dv", actual.dv, expected.dv, bounds.gradients);
    const auto same = [](const char* what, const Tensor& a, const Tensor& b) {
      EXPECT_SAME_BITS(detail::dense(a.to(cpu)), detail::dense(b.to(cpu))) << what;
    };
    same("y", actual.y, again.y);
    same("dq", actual.dq, again.dq);
    same("dk", actual.dk, again.dk);
    same("dv", actual.dv, again.dv);
  }
}

TEST_P(AttentionCudaTest, AgreesWithTheProcessorInFloat64) {
  const auto& [dtype, c] = GetParam();
  const double u = unit_roundoff(dtype);
  // Half types round the probabilities, then y: 2 u of y's size, less as errors are of both signs.
  // For a gradient the factors p and ds, the result, and y as it enters Σ dy ⊙ y, with a condition
  // of about 2. In float and double nothing is rounded in between, but sums of D ≤ 256 products
  // and S ≤ 1000 keys, and an exponent of size 8: 64 u.
  const bool half = size_of(dtype) == 2;
  expect_the_processors(dtype, c,
                        {.y = half ? 2 * u : 64 * u,
                         .lse = 64 * unit_roundoff(stats_dtype(dtype)),
                         .gradients = half ? 4 * u : 64 * u});
}

TEST_P(AttentionCudaTest, InTf32IsOffByItsRoundings) {
  const auto& [dtype, c] = GetParam();
  if (dtype != float32) GTEST_SKIP() << "float32 alone";
  allow_tf32(true);
  // 2⁻¹¹ of each factor. Scores of size 1 are off by that twice over, less as errors are of both
  // signs, and so are log sums; y by its own two factors besides, and a gradient by two scores'.
  const double u = std::ldexp(1, -11);
  // With one key dq and dk are 0 and show what dp and Σ dy ⊙ y, sums of D, differ by: √D u in the
  // mean, but it is one number a head, so four times that may come.
  const double gradients = c.keys == 1 ? 4 * std::sqrt(static_cast<double>(c.dim)) : 5;
  expect_the_processors(dtype, c, {.y = 3 * u, .lse = 2 * u, .gradients = gradients * u});
  allow_tf32(false);
}

/// The gradients of q, k and v through an attention and the projection behind it.
std::vector<Tensor> through_projection(const Inputs& in, const Tensor& weight) {
  const auto leaf = [](const Tensor& t) { return t.detach().clone().requires_grad_(); };
  const Tensor q = leaf(in.q), k = leaf(in.k), v = leaf(in.v), w = leaf(weight);
  const Tensor y = scaled_dot_product_attention(q, k, v);
  const int64_t rows = y.size(0) * y.size(2), width = y.size(1) * y.size(3);
  const Tensor out = linear(y.transpose(1, 2).reshape({rows, width}), w);
  return grad({out}, {q, k, v}, {in.dy.transpose(1, 2).reshape({rows, width})});
}

TEST(AttentionCuda, ABackwardBehindAProductReadsWhatWasSavedBeforeThatHasEnded) {
  if (!Device::best().is_cuda()) GTEST_SKIP() << "no GPU";
  allow_tf32(true);
  for (const int64_t length : {64, 40}) {
    const Problem c{12, 4, 4, length, length, 32, true};
    const Inputs in = draw(c, float32);
    const Tensor w = randn({128, 128}, float64) * 0.1;
    const auto wide = [](const Tensor& t) { return t.to(float64); };
    const auto expected = through_projection({wide(in.q), wide(in.k), wide(in.v), wide(in.dy)}, w);
    const auto got = through_projection(in.to(cuda), w.to(float32).to(cuda));
    // As above, and a product's two factors more.
    for (size_t i = 0; i < 3; ++i)
      EXPECT_LT(relative_error(got[i], expected[i]), 7 * std::ldexp(1, -11)) << i;
  }
  allow_tf32(false);
}

/// The mask alone: the one that the definition multiplies by.
TEST(AttentionCuda, DropoutIsTheProcessors) {
  if (!Device::best().is_cuda()) GTEST_SKIP() << "no GPU";
  // With v = 1 and no scores y is the share of the keys that are kept, a number of at most 8 bits.
  const AttentionOptions o{.causal = false, .p = 0.5, .key = {.key = 3}};
  for (DType dtype : kDTypes) {
    const Tensor q = zeros({2, 3, 130, 64}, dtype), v = ones({2, 3, 130, 64}, dtype);
    const Tensor expected = apply<Attention>(q, q, v, o).y;
    for (bool portable : {true, false}) {
      std::optional<PortableAttention> only_portable;
      if (portable) only_portable.emplace();
      const Tensor y = apply<Attention>(q.to(cuda), q.to(cuda), v.to(cuda), o).y.to(cpu);
      EXPECT_CLOSE(y, expected, {.relative = 4 * unit_roundoff(dtype)}) << to_string(dtype);
    }
  }
}

TEST(AttentionCuda, NaNStaysInItsRowAndHead) {
  if (!Device::best().is_cuda()) GTEST_SKIP() << "no GPU";
  for (DType dtype : kDTypes) {
    Inputs in = draw({1, 2, 2, 200, 200, 64, true}, dtype);
    in.q.select(1, 0).select(1, 150).fill_(NAN);
    const Inputs on_gpu = in.to(cuda);
    for (bool portable : {true, false}) {
      std::optional<PortableAttention> only_portable;
      if (portable) only_portable.emplace();
      const Tensor y = scaled_dot_product_attention(on_gpu.q, on_gpu.k, on_gpu.v).to(cpu);
      for (int64_t h = 0; h < 2; ++h)
        for (int64_t t = 0; t < 200; ++t) {
          const double first = y.select(1, h).select(1, t).select(1, 0).item();
          EXPECT_EQ(std::isnan(first), h == 0 && t == 150) << h << ", " << t;
        }
    }
  }
}

TEST(AttentionCuda, WiderHeadsAreRefused) {
  if (!Device::best().is_cuda()) GTEST_SKIP() << "no GPU";
  const Tensor q = empty({1, 1, 2, 257}, float32, cuda);
  EXPECT_THROW_MSG(scaled_dot_product_attention(q, q, q), ShapeError,
                   "attention: on a GPU D must be at most 256, but q is (1, 1, 2, 257)");
}

}  // namespace
}  // namespace norma
