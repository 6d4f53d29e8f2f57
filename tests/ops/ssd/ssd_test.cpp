#include "norma/ops/ssd/ssd.h"

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

struct Sizes {
  int64_t batch, length, heads, head_dim, groups, n;
};
/// Arguments of random numbers: a negative and dt positive, so that states fade in either reading
/// of dt.
struct Arguments {
  Tensor x, dt, a, b, c;
  SsdInputs more;

  explicit Arguments(const Sizes& s, DType dtype = float64) {
    const auto random = [&](const Shape& shape) { return randn(shape, float64).to(dtype); };
    const DType stats = stats_dtype(dtype);
    x = random({s.batch, s.length, s.heads, s.head_dim});
    dt = abs(random({s.batch, s.length, s.heads}));
    a = -exp(randn({s.heads}, float64) * 0.5).to(stats);
    b = random({s.batch, s.length, s.groups, s.n}), c = random(b.shape());
    more = {.d = randn({s.heads}, float64).to(stats),
            .dt_bias = abs(randn({s.heads}, float64)).to(stats),
            .state = randn({s.batch, s.heads, s.head_dim, s.n}, float64).to(stats)};
  }
  SsdResult operator()(const SsdOptions& o = {}) const { return ssd(x, dt, a, b, c, more, o); }
  GradcheckReport gradcheck(const SsdOptions& o) const {
    return norma::gradcheck<Ssd>(x, dt, a, b, c, more.d, more.dt_bias, more.state, o);
  }
  GradcheckReport gradgradcheck(const SsdOptions& o) const {
    return norma::gradgradcheck<Ssd>(x, dt, a, b, c, more.d, more.dt_bias, more.state, o);
  }
};

TEST(Ssd, GradientIsTheDerivative) {
  for (int64_t groups : {1, 2}) {
    const Arguments full({2, 5, 2, 3, groups, 2});
    Arguments bare = full, wide = full;
    bare.more = {};
    wide.more.d = randn({2, 3}, float64);
    for (bool softplus : {true, false})
      for (bool final_state : {true, false}) {
        const SsdOptions o{.dt_softplus = softplus, .final_state = final_state, .chunk = 2};
        EXPECT_OK(full.gradcheck(o));
        EXPECT_OK(bare.gradcheck(o));
      }
    EXPECT_OK(wide.gradcheck({.dt_min = 0.3, .dt_max = 1.1}));
  }
  EXPECT_OK(Arguments({1, 1, 1, 1, 1, 1}).gradcheck({.final_state = true}));
}
TEST(Ssd, SecondDerivativeIsTheDerivativeOfTheFirst) {
  const Arguments full({1, 3, 2, 2, 1, 2});
  Arguments bare = full, wide = full;
  bare.more = {};
  wide.more.d = randn({2, 2}, float64);
  EXPECT_OK(full.gradgradcheck({.final_state = true}));
  EXPECT_OK(bare.gradgradcheck({.dt_softplus = false}));
  EXPECT_OK(wide.gradgradcheck({.dt_min = 0.3, .dt_max = 1.1}));
}

TEST(Ssd, MistakesAreNamed) {
  const Arguments good({2, 3, 4, 5, 2, 6}, float32);
  const auto with = [&](auto change) {
    Arguments bad = good;
    change(bad);
    return bad();
  };
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.x = ones({2, 0, 4, 5});
                   }),
                   ShapeError,
                   "ssd: x must be (B, T, H, P) with T of 1 or more, but is (2, 0, 4, 5)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.b = ones({2, 3, 3, 6});
                   }),
                   ShapeError,
                   "ssd: b must be (B, T, G, N) with G dividing the 4 heads of x (2, 3, 4, 5), but "
                   "is (2, 3, 3, 6)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.dt = ones({2, 3, 5});
                   }),
                   ShapeError, "ssd: dt must be (B, T, H) = (2, 3, 4), but is (2, 3, 5)");
  EXPECT_THROW_MSG(with([](auto& k) { k.a = ones({5}); }), ShapeError,
                   "ssd: a must be (H) = (4,), but is (5,)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.more.d = ones({4, 6});
                   }),
                   ShapeError, "ssd: d must be (H) = (4,) or (H, P) = (4, 5), but is (4, 6)");
  EXPECT_THROW_MSG(with([](auto& k) {
                     k.more.state = ones({2, 4, 5, 5});
                   }),
                   ShapeError,
                   "ssd: state must be (B, H, P, N) = (2, 4, 5, 6), but is (2, 4, 5, 5)");
  EXPECT_THROW_MSG(with([](auto& k) { k.dt = k.dt.to(bfloat16); }), DTypeError,
                   "ssd: dt must be float32, but is bfloat16");
  EXPECT_THROW_MSG(good({.dt_min = 1, .dt_max = 0.5}), ValueError,
                   "ssd: dt_min must not exceed dt_max, but they are 1 and 0.5");
  EXPECT_THROW_MSG(good({.chunk = -1}), ValueError, "ssd: chunk must be 0 or more, but is -1");
}

}  // namespace
}  // namespace norma
