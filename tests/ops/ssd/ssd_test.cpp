#include "norma/ops/ssd/ssd.h"

#include <cmath>

#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma {
namespace {

using Maybe = std::optional<Tensor>;

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
  SsdResult operator()(const SsdOptions& o, decltype(Ssd::define)* run) const {
    return run(x, dt, a, b, c, more.d, more.dt_bias, more.state, o);
  }
  Arguments in(DType dtype) const {
    const auto cast = [&](const Maybe& t) { return t ? Maybe(t->to(dtype)) : none; };
    Arguments k = *this;
    k.x = x.to(dtype), k.dt = dt.to(dtype), k.a = a.to(dtype), k.b = b.to(dtype);
    k.c = c.to(dtype);
    k.more = {cast(more.d), cast(more.dt_bias), cast(more.state)};
    return k;
  }
  SsdGrads gradients(const Tensor& dy, const Maybe& dlast, const SsdOptions& o) const {
    return apply<SsdBackward>(dy, dlast, x, dt, a, b, c, more.d, more.dt_bias, more.state, o);
  }
  SsdGrads gradients_defined(const Tensor& dy, const Tensor& dlast, const SsdOptions& o) const {
    return SsdBackward::define(dy.to(x.dtype()), dlast.to(x.dtype()), x, dt, a, b, c, more.d,
                               more.dt_bias, more.state, o);
  }
  GradcheckReport gradcheck(const SsdOptions& o) const {
    return norma::gradcheck<Ssd>(x, dt, a, b, c, more.d, more.dt_bias, more.state, o);
  }
  GradcheckReport gradgradcheck(const SsdOptions& o) const {
    return norma::gradgradcheck<Ssd>(x, dt, a, b, c, more.d, more.dt_bias, more.state, o);
  }
};

struct Case {
  Sizes sizes;
  int64_t chunk;
  const char* why;
};
const Case kCases[] = {
    {{2, 5, 2, 3, 1, 2}, 2, "small, an odd last chunk"},
    {{1, 1, 1, 1, 1, 1}, 0, "one element"},
    {{1, 150, 4, 5, 2, 3}, 0, "several chunks, two groups"},
    {{2, 64, 3, 8, 1, 16}, 64, "exactly one chunk"},
    {{1, 33, 8, 4, 8, 5}, 16, "a group a head"},
    {{1, 40, 40, 2, 2, 4}, 0, "several tasks a group"},
    {{1, 300, 1, 2, 1, 2}, 300, "a long chunk"},
    {{0, 4, 2, 3, 1, 2}, 0, "no batch"},
};

template <class T>
class SsdTest : public ::testing::Test {};
TYPED_TEST_SUITE(SsdTest, testing::FloatingTypes);

TYPED_TEST(SsdTest, KernelIsItsDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double round = unit_roundoff(dtype), stats = unit_roundoff(stats_dtype(dtype));
  for (const auto& [sizes, chunk, why] : kCases)
    for (bool full : {true, false}) {
      SCOPED_TRACE(why);
      const SsdOptions o{.dt_min = 0.05, .dt_max = 2.5, .final_state = true, .chunk = chunk};
      Arguments k(sizes, dtype);
      if (!full) k.more = {};
      const Shape state{sizes.batch, sizes.heads, sizes.head_dim, sizes.n};
      const Tensor dy = randn(k.x.shape(), float64).to(dtype);
      const Tensor dlast = randn(state, float64).to(stats_dtype(dtype));
      const Arguments exact = k.in(float64);
      const auto kernel = k(o), formula = exact(o, Ssd::define);
      // The running sum of Δ a in a chunk reaches Q Δ_max |a| and is rounded once; a difference of
      // two, and with it every exponential, errs by two such roundings. A state is a sum over
      // fading steps, y adds N of them.
      const auto in_chunk =
          static_cast<double>(std::min<int64_t>(sizes.length, chunk ? chunk : 64));
      const double drift = 2 * in_chunk * o.dt_max * (-k.a).max().item();
      // The terms of y are about as large as the largest y.
      const double terms = formula.y.numel() == 0 ? 1 : abs(formula.y).max().item();
      const double one =
          (64 + drift) * std::max(std::sqrt(static_cast<double>(sizes.n)), terms) * stats;
      const double tiny = 0x1p-24 * (round > stats);
      EXPECT_CLOSE(kernel.y, formula.y, {.relative = round, .absolute = one + tiny});
      EXPECT_CLOSE(*kernel.state, *formula.state, {.relative = stats, .absolute = one});
      const auto grads = k.gradients(dy, dlast, o),
                 expected = exact.gradients_defined(dy, dlast, o);
      // Gradients are products of three such sums; those of b, c and dt add over heads or columns,
      // those of the parameters over B · T · P.
      const double each = 16 * one + tiny;
      const double across = each * static_cast<double>(sizes.heads * sizes.head_dim);
      const double along = 4 * across * static_cast<double>(sizes.batch * sizes.length + 1);
      EXPECT_CLOSE(grads.dx, expected.dx, {.relative = round, .absolute = each});
      EXPECT_CLOSE(grads.ddt, expected.ddt, {.relative = round, .absolute = across});
      EXPECT_CLOSE(grads.db, expected.db, {.relative = round, .absolute = across});
      EXPECT_CLOSE(grads.dc, expected.dc, {.relative = round, .absolute = across});
      EXPECT_CLOSE(grads.da, expected.da, {.relative = stats, .absolute = along});
      if (!full) continue;
      EXPECT_CLOSE(*grads.dd, *expected.dd, {.relative = stats, .absolute = along});
      EXPECT_CLOSE(*grads.ddt_bias, *expected.ddt_bias, {.relative = stats, .absolute = along});
      EXPECT_CLOSE(*grads.dstate, *expected.dstate, {.relative = stats, .absolute = each});
    }
}

template <class T>
class SsdProductsTest : public ::testing::Test {
 public:
  /// Roundings in a sum of products, in units of the largest such sum. Of half types an operand of
  /// each product is exact, the other rounded once: terms err by a rounding each, sums of random
  /// terms by about as much of the largest sum. In float32 it is the running sum of Δ a in a chunk
  /// of 64 and the exponentials of its differences, as in KernelIsItsDefinition.
  static double roundings(const Arguments& k, const SsdOptions& o) {
    return sizeof(T) == 2 ? 4 : 64 + 2 * 64 * o.dt_max * (-k.a).max().item();
  }
};
using ProductTypes = ::testing::Types<BFloat16, Float16, float>;
TYPED_TEST_SUITE(SsdProductsTest, ProductTypes);

TYPED_TEST(SsdProductsTest, TensorCoresRoundOperandsAndNothingElse) {
  constexpr DType dtype = dtype_of<TypeParam>;
  // The last has many heads, and no groups: da is one number a head, what of db and dc passes c bᵀ
  // one a group there, and the largest of two may be far below the size of what cancelled in it.
  const Sizes kSizes[] = {{2, 150, 4, 64, 2, 64},
                          {1, 70, 6, 64, 1, 128},
                          {1, 128, 2, 64, 2, 128},
                          {1, 1, 32, 64, 32, 64}};
  for (const Sizes& sizes : kSizes)
    for (bool full : {true, false}) {
      SCOPED_TRACE(sizes.length);
      const SsdOptions o{.dt_max = 2.5, .final_state = true};
      Arguments k(sizes, dtype);
      if (!full) k.more = {};
      const Tensor dy = randn(k.x.shape(), float64).to(dtype);
      const Tensor dlast = randn({sizes.batch, sizes.heads, sizes.head_dim, sizes.n});
      const Arguments exact = k.in(float64);
      // Gradients pass two products. da is what is left of B · T · H · P terms of up to 16 that
      // cancel, in float32.
      const double left = 16 * static_cast<double>(k.x.numel()) * unit_roundoff(float32);
      const double roundings = this->roundings(k, o);
      const auto expect = [&](const std::string& what, const Tensor& actual,
                              const Tensor& expected) {
        SCOPED_TRACE(what);
        const double largest = abs(expected).max().item();
        EXPECT_CLOSE(
            actual, expected,
            {.absolute = roundings * unit_roundoff(dtype) * largest + (what == "da" ? left : 0)});
      };
      const auto kernel = k(o), formula = exact(o, Ssd::define);
      expect("y", kernel.y, formula.y);
      expect("state", *kernel.state, *formula.state);
      const auto grads = k.gradients(dy, dlast, o), wanted = exact.gradients_defined(dy, dlast, o);
      expect("dx", grads.dx, wanted.dx);
      expect("ddt", grads.ddt, wanted.ddt);
      expect("da", grads.da, wanted.da);
      expect("db", grads.db, wanted.db);
      expect("dc", grads.dc, wanted.dc);
      if (!full) continue;
      expect("dd", *grads.dd, *wanted.dd);
      expect("ddt_bias", *grads.ddt_bias, *wanted.ddt_bias);
      expect("dstate", *grads.dstate, *wanted.dstate);
    }
}

// One sequence of few heads is cut along time on a GPU, many are not. States must last for more
// than a segment to tell.
TYPED_TEST(SsdProductsTest, TimeInSegmentsIsTimeInOnePiece) {
  constexpr DType dtype = dtype_of<TypeParam>;
  constexpr int64_t kCopies = 34;
  Arguments one({1, 600, 8, 64, 1, 64}, dtype);
  one.a = full({8}, -0.002);
  Arguments many = one;
  const auto repeated = [](const Tensor& t) {
    Shape shape = t.shape();
    shape[0] = kCopies;
    return t.expand(shape).contiguous();
  };
  many.x = repeated(one.x), many.dt = repeated(one.dt);
  many.b = repeated(one.b), many.c = repeated(one.c), many.more.state = repeated(*one.more.state);
  const SsdOptions o{.dt_max = 2.5, .final_state = true};
  const Tensor dy = randn(one.x.shape()).to(dtype), dlast = randn({1, 8, 64, 64});
  const double roundings = this->roundings(one, o);
  const auto expect = [&](const std::string& what, const Tensor& a, const Tensor& b) {
    SCOPED_TRACE(what);
    // A state that differs in its last bit of float32 may be rounded to T the other way.
    EXPECT_CLOSE(a, b, {.absolute = roundings * unit_roundoff(dtype) * abs(b).max().item()});
  };
  const SsdResult r = one(o), all = many(o);
  expect("y", r.y, all.y.slice(0, 3, 4));
  expect("state", *r.state, all.state->slice(0, 3, 4));
  const SsdGrads g = one.gradients(dy, dlast, o);
  const SsdGrads gs = many.gradients(repeated(dy), repeated(dlast), o);
  expect("dx", g.dx, gs.dx.slice(0, 3, 4));
  expect("ddt", g.ddt, gs.ddt.slice(0, 3, 4));
  expect("db", g.db, gs.db.slice(0, 3, 4));
  expect("dc", g.dc, gs.dc.slice(0, 3, 4));
  expect("dstate", *g.dstate, gs.dstate->slice(0, 3, 4));
  expect("da", g.da * kCopies, gs.da);
}

// Sizes that have kernels by matrix products on a GPU, and others.
TYPED_TEST(SsdTest, AComesAsALogarithmAndDForHeadsOrColumns) {
  constexpr DType dtype = dtype_of<TypeParam>;
  for (const Sizes& sizes :
       {Sizes{2, 70, 4, 64, 2, 64}, {1, 100, 3, 64, 1, 128}, {2, 40, 4, 3, 2, 5}}) {
    SCOPED_TRACE(sizes.n);
    const Arguments k(sizes, dtype);
    Arguments other = k;
    other.a = (-k.a).log();
    other.more.d = k.more.d->unsqueeze(1).expand({sizes.heads, sizes.head_dim}).contiguous();
    const Tensor dy = randn(k.x.shape(), float64).to(dtype);
    // exp(log(−a)) errs by a few roundings, and so does Δ a, which reaches some tens; what it makes
    // of a number just between two of a half type's is one of them or the other.
    const double bound =
        std::max(1024 * unit_roundoff(stats_dtype(dtype)), 4 * unit_roundoff(dtype));
    const auto expect = [&](const Tensor& a, const Tensor& b) {
      EXPECT_CLOSE(a, b, {.absolute = bound * abs(b).max().item()});
    };
    expect(other({.log_a = true}).y, k().y);
    const SsdGrads g = k.gradients(dy, none, {}), h = other.gradients(dy, none, {.log_a = true});
    expect(h.dx, g.dx);
    expect(h.ddt, g.ddt);
    expect(h.db, g.db);
    expect(h.da, g.da * k.a);
    expect(h.dd->sum(-1), *g.dd);
  }
}

TEST(Ssd, ChunksAreIndependent) {
  const Arguments k({2, 50, 4, 3, 2, 5});
  const Tensor dy = randn(k.x.shape(), float64);
  const SsdResult expected = k({.final_state = true, .chunk = 50});
  const auto grads = k.gradients(dy, none, {.chunk = 50});
  for (int64_t chunk : {1, 7, 16, 0}) {
    SCOPED_TRACE(chunk);
    const SsdResult result = k({.final_state = true, .chunk = chunk});
    const auto g = k.gradients(dy, none, {.chunk = chunk});
    const double bound = 1e4 * unit_roundoff(float64);  // 50 steps, sums up to 150
    EXPECT_CLOSE(result.y, expected.y, {.absolute = bound});
    EXPECT_CLOSE(*result.state, *expected.state, {.absolute = bound});
    EXPECT_CLOSE(g.dx, grads.dx, {.absolute = bound});
    EXPECT_CLOSE(g.ddt, grads.ddt, {.absolute = 8 * bound});
    EXPECT_CLOSE(g.da, grads.da, {.absolute = 100 * bound});
    EXPECT_CLOSE(g.db, grads.db, {.absolute = 8 * bound});
    EXPECT_CLOSE(*g.dstate, *grads.dstate, {.absolute = bound});
  }
}

TEST(Ssd, PiecesOfASequenceGiveTheWhole) {
  const Arguments whole({2, 90, 4, 5, 2, 3});
  const SsdResult expected = whole({.final_state = true});
  Arguments part = whole;
  for (auto [first, last] : {std::pair{0, 1}, {1, 2}, {2, 70}, {70, 90}}) {
    const auto cut = [first = first, last = last](const Tensor& t) {
      return t.slice(1, first, last);
    };
    part.x = cut(whole.x), part.dt = cut(whole.dt), part.b = cut(whole.b), part.c = cut(whole.c);
    const SsdResult result = part({.final_state = true});
    const double bound = 1e4 * unit_roundoff(float64);  // as between chunks
    EXPECT_CLOSE(result.y, cut(expected.y), {.absolute = bound});
    part.more.state = result.state;
  }
  EXPECT_CLOSE(*part.more.state, *expected.state, {.absolute = 1e4 * unit_roundoff(float64)});
}

TEST(Ssd, GrowingStatesAreMaskedBeforeTheExponential) {
  Arguments k({1, 64, 1, 2, 1, 2}, float32);
  k.more = {};
  k.a = full({1}, -30), k.dt = full({1, 64, 1}, 10);  // exp(s_j − s_i) overflows above the diagonal
  const SsdResult result = k({.final_state = true});
  EXPECT_CLOSE(result.y, k({}, Ssd::define).y, {.absolute = 1e-4});
  EXPECT_CLOSE(k.gradients(ones_like(k.x), none, {}).dx,
               k.gradients_defined(ones_like(k.x), zeros({1, 1, 2, 2}), {}).dx, {.absolute = 1e-4});
}

TEST(Ssd, PartsOfAProjectionAreReadWhereTheyLie) {
  const Tensor joint = randn({2, 6, 60});
  Arguments k({2, 6, 4, 5, 2, 3}, float32);
  k.more = {};
  k.x = joint.slice(2, 0, 20).reshape({2, 6, 4, 5});
  k.b = joint.slice(2, 20, 26).reshape({2, 6, 2, 3}),
  k.c = joint.slice(2, 26, 38, 2).reshape({2, 6, 2, 3});
  k.dt = abs(joint.slice(2, 40, 44));
  Arguments dense = k;
  dense.x = k.x.contiguous(), dense.b = k.b.contiguous(), dense.c = k.c.contiguous();
  EXPECT_SAME_BITS(k().y, dense().y);
  const Tensor dy = randn({2, 6, 5, 4}).transpose(2, 3);
  EXPECT_SAME_BITS(k.gradients(dy, none, {}).db, dense.gradients(dy.contiguous(), none, {}).db);
}

TEST(Ssd, BitsDoNotDependOnThreads) {
  const int before = num_threads();
  const Arguments k({3, 100, 6, 16, 2, 32}, float32);
  const Tensor dy = randn(k.x.shape());
  std::vector<Tensor> first;
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    const auto g = k.gradients(dy, none, {});
    const std::vector<Tensor> all{k().y, g.dx, g.ddt, g.da, g.db, g.dc, *g.dd};
    if (first.empty()) first = all;
    for (size_t i = 0; i < all.size(); ++i) EXPECT_SAME_BITS(all[i], first[i]);
  }
  set_num_threads(before);
}

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
  EXPECT_OK(Arguments({2, 5, 2, 3, 1, 2}).gradcheck({.log_a = true}));
}
TEST(Ssd, SecondDerivativeIsTheDerivativeOfTheFirst) {
  const Arguments full({1, 3, 2, 2, 1, 2});
  Arguments bare = full, wide = full;
  bare.more = {};
  wide.more.d = randn({2, 2}, float64);
  EXPECT_OK(full.gradgradcheck({.final_state = true}));
  EXPECT_OK(bare.gradgradcheck({.dt_softplus = false}));
  EXPECT_OK(bare.gradgradcheck({.log_a = true}));
  EXPECT_OK(wide.gradgradcheck({.dt_min = 0.3, .dt_max = 1.1}));
}

TEST(Ssd, AgreesWithPyTorch) {
  const testing::Golden g = testing::golden("ops/ssd/ssd");
  for (const std::string name : {"one", "two", "eight"}) {
    SCOPED_TRACE(name);
    const auto at = [&](const char* what) { return g[name + "." + what]; };
    const bool full = name != "one";
    SsdOptions o{.final_state = true, .chunk = 5};
    if (name == "two") o.dt_min = 0.4, o.dt_max = 1.2;
    Arguments k({1, 1, 1, 1, 1, 1});
    k.x = at("x"), k.dt = at("dt"), k.a = at("a"), k.b = at("b"), k.c = at("c"), k.more = {};
    if (full) k.more = {at("d"), at("dt_bias"), at("state")};
    const SsdResult r = k(o);
    EXPECT_CLOSE(r.y, at("y"), {.absolute = 1e-13});
    EXPECT_CLOSE(*r.state, at("last"), {.absolute = 1e-13});
    const SsdGrads grads = k.gradients(at("dy"), at("dlast"), o);
    EXPECT_CLOSE(grads.dx, at("dx"), {.absolute = 1e-12});
    EXPECT_CLOSE(grads.ddt, at("ddt"), {.absolute = 1e-12});
    EXPECT_CLOSE(grads.da, at("da"), {.absolute = 1e-12});
    EXPECT_CLOSE(grads.db, at("db"), {.absolute = 1e-12});
    EXPECT_CLOSE(grads.dc, at("dc"), {.absolute = 1e-12});
    if (!full) continue;
    EXPECT_CLOSE(*grads.dd, at("dd"), {.absolute = 1e-12});
    EXPECT_CLOSE(*grads.ddt_bias, at("ddt_bias"), {.absolute = 1e-12});
    EXPECT_CLOSE(*grads.dstate, at("dstate"), {.absolute = 1e-12});
  }
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
