#include "norma/ops/attention/attention.h"

#include <cmath>

#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma {
namespace {

struct Case {
  Shape q, k;
  bool causal;
  const char* why;
  double p = 0;
};
const Case kCases[] = {
    {{2, 3, 5, 4}, {2, 3, 5, 4}, true, "small"},
    {{1, 2, 1, 1}, {1, 2, 1, 1}, true, "one element"},
    {{2, 2, 130, 8}, {2, 2, 130, 8}, true, "several blocks, an odd last one"},
    {{2, 2, 64, 32}, {2, 2, 64, 32}, true, "exactly one block"},
    {{1, 4, 70, 6}, {1, 2, 70, 6}, true, "shared keys"},
    {{1, 6, 9, 6}, {1, 1, 9, 6}, true, "one head of keys"},
    {{1, 2, 3, 4}, {1, 2, 90, 4}, true, "queries at the end of a cache"},
    {{1, 2, 90, 4}, {1, 2, 70, 4}, false, "everything seen"},
    {{0, 2, 4, 4}, {0, 2, 4, 4}, true, "no batch"},
    {{1, 2, 0, 4}, {1, 2, 3, 4}, true, "no queries"},
    {{1, 2, 3, 4}, {1, 2, 0, 4}, false, "no keys"},
    {{2, 2, 5, 4}, {2, 2, 7, 4}, true, "dropout, rows of no whole fours", 0.3},
    {{1, 4, 70, 6}, {1, 2, 130, 6}, true, "dropout, shared keys, several blocks", 0.5},
};

template <class T>
class AttentionTest : public ::testing::Test {};
TYPED_TEST_SUITE(AttentionTest, testing::FloatingTypes);

TYPED_TEST(AttentionTest, KernelIsItsDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  // Scores of size √D in D products, exp, sums over up to 130 keys.
  const double stats = 512 * unit_roundoff(stats_dtype(dtype)), round = unit_roundoff(dtype);
  // Tensor cores take probabilities of the half types: y is off by Σ p |v| of it, |v| below 5.
  const double through_p = default_device().is_cuda() && size_of(dtype) == 2 ? 5 * round : 0;
  for (const auto& [q_shape, k_shape, causal, why, p] : kCases) {
    SCOPED_TRACE(why);
    const AttentionOptions o{.causal = causal, .p = p, .key = {.key = 7, .ordinal = 3}};
    const Tensor q = randn(q_shape, float64).to(dtype), k = randn(k_shape, float64).to(dtype);
    const Tensor v = randn(k_shape, float64).to(dtype), dy = randn(q_shape, float64).to(dtype);
    const auto kernel = apply<Attention>(q, k, v, o);
    const auto formula = Attention::define(q.to(float64), k.to(float64), v.to(float64), o);
    EXPECT_CLOSE(kernel.y, formula.y, {.relative = round, .absolute = stats + through_p + 0x1p-25});
    EXPECT_CLOSE(kernel.lse.value, formula.lse.value, {.relative = stats, .absolute = stats});
    const auto grads = apply<AttentionBackward>(dy, q, k, v, kernel.y, kernel.lse.value, o);
    const auto expected = AttentionBackward::define(dy.to(float64), q.to(float64), k.to(float64),
                                                    v.to(float64), {}, {}, o);
    // The saved y is rounded to the dtype, and Σ dy ⊙ y with it.
    const double through_y = 64 * round;
    EXPECT_CLOSE(grads.dq, expected.dq, {.relative = round, .absolute = 8 * stats + through_y});
    EXPECT_CLOSE(grads.dk, expected.dk, {.relative = round, .absolute = 8 * stats + through_y});
    EXPECT_CLOSE(grads.dv, expected.dv, {.relative = round, .absolute = 8 * stats + through_y});
  }
}

TEST(Attention, GradientIsTheDerivative) {
  for (const auto& [q_shape, k_shape, causal, why, p] : kCases) {
    if (q_shape.numel() > 200 || k_shape.numel() > 800) continue;
    SCOPED_TRACE(why);
    const Tensor q = randn(q_shape, float64), k = randn(k_shape, float64),
                 v = randn(k_shape, float64);
    AttentionOptions o{.causal = causal, .scale = 0.7, .p = p, .key = {.key = 5}};
    EXPECT_OK(gradcheck<Attention>(q, k, v, o));
    o.scale = 0;
    EXPECT_OK(gradgradcheck<Attention>(q, k, v, o));
  }
}

TEST(Attention, LaterKeysChangeNothingToTheBit) {
  const Tensor q = randn({1, 2, 100, 8}), k = randn({1, 2, 100, 8}), v = randn({1, 2, 100, 8});
  const Tensor y = scaled_dot_product_attention(q, k, v);
  Tensor other = v.clone();
  other.slice(2, 70, 100).fill_(7);
  EXPECT_SAME_BITS(scaled_dot_product_attention(q, k, other).slice(2, 0, 70), y.slice(2, 0, 70));
}

TEST(Attention, HeadsAreReadWhereTheyLieAndWrittenAsRows) {
  const Tensor x = randn({2, 5, 3, 4});  // (B, T, H, D)
  const Tensor q = x.transpose(1, 2), y = scaled_dot_product_attention(q, q, q);
  EXPECT_SAME_BITS(y, scaled_dot_product_attention(q.contiguous(), q.contiguous(), q.contiguous()));
  EXPECT_TRUE(y.transpose(1, 2).is_dense());
}

TEST(Attention, BitsDoNotDependOnThreads) {
  const int before = num_threads();
  const Tensor q = randn({3, 2, 100, 16}).requires_grad_(), dy = randn({3, 2, 100, 16});
  std::vector<Tensor> first;
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    const Tensor y = scaled_dot_product_attention(q, q, q);
    const std::vector<Tensor> both{y.detach(), grad({y}, {q}, {dy})[0]};
    if (first.empty()) first = both;
    for (size_t i = 0; i < 2; ++i) EXPECT_SAME_BITS(both[i], first[i]);
  }
  set_num_threads(before);
}

TEST(Attention, AgreesWithPyTorch) {
  const testing::Golden g = testing::golden("ops/attention/attention");
  for (const char* name : {"full", "grouped"}) {
    const auto at = [&](const char* what) { return g[std::string(name) + "." + what]; };
    const Tensor q = at("q").requires_grad_(), k = at("k").requires_grad_(),
                 v = at("v").requires_grad_();
    const Tensor y = scaled_dot_product_attention(q, k, v);
    EXPECT_CLOSE(y.detach(), at("y"), {.absolute = 1e-14});
    const auto grads = grad({y}, {q, k, v}, {at("dy")});
    EXPECT_CLOSE(grads[0], at("dq"), {.absolute = 1e-14});
    EXPECT_CLOSE(grads[1], at("dk"), {.absolute = 1e-14});
    EXPECT_CLOSE(grads[2], at("dv"), {.absolute = 1e-14});
  }
}

TEST(Attention, DropoutKeepsTheMeanAndDrawsAnew) {
  const Tensor q = randn({4, 2, 64, 8}), v = ones({4, 2, 64, 8});
  const AttentionOptions o{.causal = false, .p = 0.25};
  const Tensor y = scaled_dot_product_attention(q, q, v, o);
  // Without dropout each of 512 rows is 1; with it its variance is ⅓ Σ p² ≤ ⅓.
  EXPECT_NEAR(y.mean().item(), 1, 5 / std::sqrt(3. * 512));
  EXPECT_GT((y - 1).square().mean().item(), 1e-3);
  EXPECT_GT((scaled_dot_product_attention(q, q, v, o) - y).square().mean().item(), 1e-3);
}

TEST(Attention, MistakesAreNamed) {
  const Tensor q = ones({1, 3, 4, 2}), k = ones({1, 2, 4, 2});
  EXPECT_THROW_MSG(
      scaled_dot_product_attention(q, k, k), ShapeError,
      "attention: q must be (B, H, T, D), k and v (B, H_kv, S, D) with H_kv dividing H, "
      "but they are (1, 3, 4, 2), (1, 2, 4, 2) and (1, 2, 4, 2)");
  EXPECT_THROW_MSG(
      scaled_dot_product_attention(q, q.slice(2, 0, 2), q.slice(2, 0, 2)), ShapeError,
      "attention: causal queries must not outnumber the keys, but q is (1, 3, 4, 2) and "
      "k (1, 3, 2, 2)");
  EXPECT_THROW_MSG(scaled_dot_product_attention(q, q, q, {.p = 1}), ValueError,
                   "attention: p must be from 0 to below 1, but is 1");
}

}  // namespace
}  // namespace norma
