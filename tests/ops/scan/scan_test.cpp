#include "norma/ops/scan/scan.h"

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

/// Arguments of random numbers: a negative and dt positive, so that states fade in either reading
/// of dt.
struct Arguments {
  Tensor x, dt, a, b, c;
  ScanInputs more;

  Arguments(int64_t batch, int64_t length, int64_t channels, int64_t n, DType dtype = float64) {
    const auto random = [&](const Shape& shape) { return randn(shape, float64).to(dtype); };
    const DType stats = stats_dtype(dtype);
    x = random({batch, length, channels}), dt = abs(random(x.shape()));
    a = -exp(randn({channels, n}, float64) * 0.5).to(stats);
    b = random({batch, length, n}), c = random({batch, length, n});
    more = {.d = randn({channels}, float64).to(stats),
            .z = random(x.shape()),
            .dt_bias = abs(randn({channels}, float64)).to(stats),
            .state = randn({batch, channels, n}, float64).to(stats)};
  }
  ScanResult operator()(const ScanOptions& o = {}) const {
    return selective_scan(x, dt, a, b, c, more, o);
  }
  GradcheckReport gradcheck(const ScanOptions& o) const {
    return norma::gradcheck<SelectiveScan>(x, dt, a, b, c, more.d, more.z, more.dt_bias, more.state,
                                           o);
  }
  GradcheckReport gradgradcheck(const ScanOptions& o) const {
    return norma::gradgradcheck<SelectiveScan>(x, dt, a, b, c, more.d, more.z, more.dt_bias,
                                               more.state, o);
  }
};

TEST(SelectiveScan, GradientIsTheDerivative) {
  const Arguments full(2, 5, 3, 2);
  Arguments bare = full;
  bare.more = {};
  for (bool softplus : {true, false})
    for (bool final_state : {true, false}) {
      const ScanOptions o{.dt_softplus = softplus, .final_state = final_state, .chunk = 2};
      EXPECT_OK(full.gradcheck(o));
      EXPECT_OK(bare.gradcheck(o));
    }
  EXPECT_OK(Arguments(1, 1, 1, 1).gradcheck({.final_state = true}));
}
TEST(SelectiveScan, SecondDerivativeIsTheDerivativeOfTheFirst) {
  const Arguments full(1, 3, 2, 2);
  Arguments bare = full;
  bare.more = {};
  EXPECT_OK(full.gradgradcheck({.final_state = true}));
  EXPECT_OK(bare.gradgradcheck({.dt_softplus = false}));
}

TEST(SelectiveScan, PiecesOfASequenceGiveTheWhole) {
  const Arguments whole(2, 9, 5, 4);
  const ScanResult expected = whole({.final_state = true});
  Arguments part = whole;
  for (auto [first, last] : {std::pair{0, 1}, {1, 2}, {2, 7}, {7, 9}}) {
    const auto cut = [first = first, last = last](const Tensor& t) {
      return t.slice(1, first, last);
    };
    part.x = cut(whole.x), part.dt = cut(whole.dt), part.b = cut(whole.b), part.c = cut(whole.c);
    part.more.z = cut(*whole.more.z);
    const ScanResult result = part({.final_state = true});
    EXPECT_SAME_BITS(result.y, cut(expected.y).contiguous());
    part.more.state = result.state;
  }
  EXPECT_SAME_BITS(*part.more.state, *expected.state);
}

TEST(SelectiveScan, MistakesAreNamed) {
  const Arguments good(2, 3, 4, 5, float32);
  const auto with = [&](auto change) {
    Arguments bad = good;
    change(bad);
    return bad();
  };
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.x = ones({2, 4});
                   }),
                   ShapeError,
                   "selective_scan: x must be (B, T, E) with T of 1 or more, but is (2, 4)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.a = ones({4, 257});
                   }),
                   ShapeError,
                   "selective_scan: a must be (E, N) with the 4 channels of x (2, 3, 4) and N from "
                   "1 to 256, but is (4, 257)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.dt = ones({2, 3, 5});
                   }),
                   ShapeError,
                   "selective_scan: dt must be (B, T, E) = (2, 3, 4), but is (2, 3, 5)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.b = ones({2, 3, 4});
                   }),
                   ShapeError, "selective_scan: b must be (B, T, N) = (2, 3, 5), but is (2, 3, 4)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.more.state = ones({2, 4, 4});
                   }),
                   ShapeError,
                   "selective_scan: state must be (B, E, N) = (2, 4, 5), but is (2, 4, 4)");
  EXPECT_THROW_MSG(with([](auto& k) { k.c = k.c.to(bfloat16); }), DTypeError,
                   "selective_scan: c must be float32, but is bfloat16");
  EXPECT_THROW_MSG(with([](auto& k) { k.more.d = k.more.d->to(int32); }), DTypeError,
                   "selective_scan: d must be floating, but is int32");
  EXPECT_THROW_MSG(good({.chunk = -1}), ValueError,
                   "selective_scan: chunk must be 0 or more, but is -1");
}

}  // namespace
}  // namespace norma
