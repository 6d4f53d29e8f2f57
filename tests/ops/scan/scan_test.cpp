#include "norma/ops/scan/scan.h"

#include <algorithm>
#include <cmath>

#include "norma/core/autograd.h"
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

struct Grads {
  Tensor dx, ddt, da, db, dc;
  Maybe dd = none, dz = none, ddt_bias = none, dstate = none;
};
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
  ScanResult operator()(const ScanOptions& o, decltype(SelectiveScan::define)* run) const {
    return run(x, dt, a, b, c, more.d, more.z, more.dt_bias, more.state, o);
  }
  Arguments in(DType dtype) const {
    const auto cast = [&](const Maybe& t) { return t ? Maybe(t->to(dtype)) : none; };
    Arguments k = *this;
    k.x = x.to(dtype), k.dt = dt.to(dtype), k.a = a.to(dtype), k.b = b.to(dtype);
    k.c = c.to(dtype);
    k.more = {cast(more.d), cast(more.z), cast(more.dt_bias), cast(more.state)};
    return k;
  }
  /// By the kernels, through the graph.
  Grads gradients(const Tensor& dy, const Maybe& dlast, ScanOptions o) const {
    const auto leaf = [](const Tensor& t) { return t.detach().requires_grad_(); };
    const auto maybe_leaf = [&](const Maybe& t) { return t ? Maybe(leaf(*t)) : none; };
    o.final_state = dlast.has_value();
    Arguments k = *this;
    k.x = leaf(x), k.dt = leaf(dt), k.a = leaf(a), k.b = leaf(b), k.c = leaf(c);
    k.more = {maybe_leaf(more.d), maybe_leaf(more.z), maybe_leaf(more.dt_bias),
              maybe_leaf(more.state)};
    std::vector<Tensor> leaves{k.x, k.dt, k.a, k.b, k.c};
    for (const Maybe& t : {k.more.d, k.more.z, k.more.dt_bias, k.more.state})
      if (t) leaves.push_back(*t);
    const ScanResult r = k(o);
    const auto g = dlast ? grad({r.y, *r.state}, leaves, {dy, *dlast}) : grad({r.y}, leaves, {dy});
    Grads grads{g[0], g[1], g[2], g[3], g[4]};
    size_t next = 5;
    if (more.d) grads.dd = g[next++];
    if (more.z) grads.dz = g[next++];
    if (more.dt_bias) grads.ddt_bias = g[next++];
    if (more.state) grads.dstate = g[next++];
    return grads;
  }
  Grads gradients_defined(const Tensor& dy, const Tensor& dlast, const ScanOptions& o) const {
    const auto g =
        SelectiveScanBackward::define(dy.to(x.dtype()), dlast.to(x.dtype()), x, dt, a, b, c, more.d,
                                      more.z, more.dt_bias, more.state, {}, o);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]};
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

struct Case {
  int64_t batch, length, channels, n, chunk;
  const char* why;
};
const Case kCases[] = {
    {2, 5, 3, 2, 2, "small, an odd last chunk"},
    {1, 1, 1, 1, 0, "one element"},
    {2, 9, 33, 16, 3, "one channel more than a block"},
    {1, 150, 7, 3, 0, "several chunks"},
    {3, 64, 40, 5, 64, "exactly one chunk"},
    {1, 4, 5, 256, 0, "the largest state"},
    {0, 4, 3, 2, 0, "no batch"},
};

template <class T>
class SelectiveScanTest : public ::testing::Test {};
TYPED_TEST_SUITE(SelectiveScanTest, testing::FloatingTypes);

TYPED_TEST(SelectiveScanTest, KernelIsItsDefinition) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const double round = unit_roundoff(dtype), stats = unit_roundoff(stats_dtype(dtype));
  for (const auto& [batch, length, channels, n, chunk, why] : kCases)
    for (bool full : {true, false}) {
      SCOPED_TRACE(why);
      const ScanOptions o{.final_state = true, .chunk = chunk};
      Arguments k(batch, length, channels, n, dtype);
      if (!full) k.more = {};
      const Tensor dy = randn(k.x.shape(), float64).to(dtype);
      const Tensor dlast = randn({batch, channels, n}, float64).to(stats_dtype(dtype));
      const Arguments exact = k.in(float64);
      const auto kernel = k(o), formula = exact(o, SelectiveScan::define);
      // A state is a sum over fading steps, each term of a few roundings; y adds N of them. Where
      // the terms are large, so is y: Δ's softplus takes three roundings, Δ x one, and the gate's
      // exponential, sum, quotient and product four.
      const double size = 64 * std::sqrt(static_cast<double>(n)), tiny = 0x1p-24 * (round > stats);
      EXPECT_CLOSE(kernel.y, formula.y,
                   {.relative = round + 8 * stats, .absolute = size * stats + tiny});
      EXPECT_CLOSE(*kernel.state, *formula.state, {.relative = stats, .absolute = 64 * stats});
      const auto grads = k.gradients(dy, dlast, o),
                 expected = exact.gradients_defined(dy, dlast, o);
      // Gradients are products of three such sums; those of b and c add up to E of them, those of
      // the parameters B · T.
      const double one = 16 * size * stats + tiny, across = one * static_cast<double>(channels);
      const double along = 4 * one * static_cast<double>(batch * length + 1);
      EXPECT_CLOSE(grads.dx, expected.dx, {.relative = round, .absolute = one});
      EXPECT_CLOSE(grads.ddt, expected.ddt, {.relative = round, .absolute = one});
      EXPECT_CLOSE(grads.db, expected.db, {.relative = round, .absolute = across});
      EXPECT_CLOSE(grads.dc, expected.dc, {.relative = round, .absolute = across});
      EXPECT_CLOSE(grads.da, expected.da, {.relative = stats, .absolute = along});
      if (!full) continue;
      EXPECT_CLOSE(*grads.dz, *expected.dz, {.relative = round, .absolute = one});
      EXPECT_CLOSE(*grads.dd, *expected.dd, {.relative = stats, .absolute = along});
      EXPECT_CLOSE(*grads.ddt_bias, *expected.ddt_bias, {.relative = stats, .absolute = along});
      EXPECT_CLOSE(*grads.dstate, *expected.dstate, {.relative = stats, .absolute = one});
    }
}

// A long sequence of few channels is cut along time on a GPU, pieces of three tiles are not. States
// must last for more than a segment to tell.
TYPED_TEST(SelectiveScanTest, TimeInSegmentsIsTimeInPieces) {
  constexpr DType dtype = dtype_of<TypeParam>;
  constexpr int64_t kLength = 600, kPiece = 96;
  for (int64_t n : {5, 20, 70}) {
    SCOPED_TRACE(n);
    const int64_t channels = n > 64 ? 8 : 40;
    Arguments whole(1, kLength, channels, n, dtype);
    whole.a = full({channels, n}, -0.002, stats_dtype(dtype));
    const Tensor dy = randn(whole.x.shape(), float64).to(dtype);
    const Tensor dlast = randn({1, channels, n}, float64).to(stats_dtype(dtype));
    const ScanOptions o{.final_state = true};
    const ScanResult r = whole(o);
    const Grads g = whole.gradients(dy, dlast, o);
    // Sums of as many terms as there are steps, rounded in another order.
    const auto expect = [&](const std::string& what, const Tensor& a, const Tensor& b) {
      SCOPED_TRACE(what);
      const double each = kLength * unit_roundoff(stats_dtype(dtype));
      EXPECT_CLOSE(a, b,
                   {.relative = 2 * unit_roundoff(dtype),  // both are rounded
                    .absolute = each * abs(b).max().item()});
    };
    std::vector<Arguments> pieces;
    std::vector<Tensor> y;
    Tensor state = *whole.more.state;
    for (int64_t t = 0; t < kLength; t += kPiece) {
      const auto cut = [&](const Tensor& all) {
        return all.slice(1, t, std::min(t + kPiece, kLength));
      };
      Arguments& k = pieces.emplace_back(whole);
      k.x = cut(whole.x), k.dt = cut(whole.dt), k.b = cut(whole.b), k.c = cut(whole.c);
      k.more.z = cut(*whole.more.z), k.more.state = state;
      const ScanResult part = k(o);
      y.push_back(part.y), state = *part.state;
    }
    expect("y", r.y, concat(y, 1));
    expect("state", *r.state, state);
    std::vector<Grads> parts(pieces.size());
    Tensor dstate = dlast, da = zeros_like(whole.a);
    for (size_t i = pieces.size(); i-- > 0;) {
      const auto t = static_cast<int64_t>(i) * kPiece;
      parts[i] = pieces[i].gradients(dy.slice(1, t, std::min(t + kPiece, kLength)), dstate, o);
      dstate = *parts[i].dstate, da = da + parts[i].da;
    }
    const auto joined = [&](auto get) {
      std::vector<Tensor> all;
      for (const Grads& part : parts) all.push_back(get(part));
      return concat(all, 1);
    };
    expect("dx", g.dx, joined([](const Grads& k) { return k.dx; }));
    expect("ddt", g.ddt, joined([](const Grads& k) { return k.ddt; }));
    expect("dz", *g.dz, joined([](const Grads& k) { return *k.dz; }));
    expect("db", g.db, joined([](const Grads& k) { return k.db; }));
    expect("dc", g.dc, joined([](const Grads& k) { return k.dc; }));
    expect("dstate", *g.dstate, dstate);
    expect("da", g.da, da);
  }
}

// So many that a GPU's threads have two channels of half types each.
TYPED_TEST(SelectiveScanTest, ManySequencesAreAsOne) {
  constexpr DType dtype = dtype_of<TypeParam>;
  const Arguments many(34, 40, 512, 16, dtype);
  const ScanResult all = many({.final_state = true});
  const Tensor dy = randn(many.x.shape(), float64).to(dtype);
  const Tensor dlast = randn(all.state->shape(), float64).to(stats_dtype(dtype));
  const Grads grads = many.gradients(dy, dlast, {.final_state = true});
  for (int64_t i : {0, 33}) {
    SCOPED_TRACE(i);
    const auto cut = [&](const Tensor& t) { return t.slice(0, i, i + 1); };
    Arguments one = many;
    one.x = cut(many.x), one.dt = cut(many.dt), one.b = cut(many.b), one.c = cut(many.c);
    one.more.z = cut(*many.more.z), one.more.state = cut(*many.more.state);
    const ScanResult r = one({.final_state = true});
    const auto expect = [&](const Tensor& a, const Tensor& b) {
      const double each = 64 * unit_roundoff(stats_dtype(dtype));  // contracted in another order
      EXPECT_CLOSE(a, b,
                   {.relative = 2 * unit_roundoff(dtype), .absolute = each * abs(b).max().item()});
    };
    expect(cut(all.y), r.y);
    expect(cut(*all.state), *r.state);
    const Grads g = one.gradients(cut(dy), cut(dlast), {.final_state = true});
    expect(cut(grads.dx), g.dx);
    expect(cut(grads.ddt), g.ddt);
    expect(cut(*grads.dz), *g.dz);
    expect(cut(grads.db), g.db);
    expect(cut(grads.dc), g.dc);
    expect(cut(*grads.dstate), *g.dstate);
  }
}

// Of few channels and of so many that time is not cut; the gradient's chain rule is da a.
TYPED_TEST(SelectiveScanTest, AComesAsALogarithm) {
  constexpr DType dtype = dtype_of<TypeParam>;
  for (int64_t length : {40, 300}) {
    SCOPED_TRACE(length);
    const Arguments k(2, length, 33, 5, dtype);
    Arguments logs = k;
    logs.a = (-k.a).log();
    const Tensor dy = randn(k.x.shape(), float64).to(dtype);
    // exp(log(−a)) errs by a few roundings, and so does Δ a, which reaches some tens.
    const double bound = 1024 * unit_roundoff(stats_dtype(dtype));
    const auto expect = [&](const Tensor& a, const Tensor& b) {
      EXPECT_CLOSE(a, b,
                   {.relative = 2 * unit_roundoff(dtype), .absolute = bound * abs(b).max().item()});
    };
    expect(logs({.log_a = true}).y, k().y);
    const Grads g = k.gradients(dy, none, {}), of_logs = logs.gradients(dy, none, {.log_a = true});
    expect(of_logs.dx, g.dx);
    expect(of_logs.ddt, g.ddt);
    expect(of_logs.db, g.db);
    expect(of_logs.da, g.da * k.a);
  }
}

TEST(SelectiveScan, ChunksChangeNoBit) {
  const Arguments k(2, 20, 5, 3, float32);
  const Tensor dy = randn(k.x.shape());
  const auto expected = k.gradients(dy, none, {.chunk = 20});
  for (int64_t chunk : {1, 3, 7, 0}) {
    SCOPED_TRACE(chunk);
    EXPECT_SAME_BITS(k({.chunk = chunk}).y, k({.chunk = 20}).y);
    const auto grads = k.gradients(dy, none, {.chunk = chunk});
    EXPECT_SAME_BITS(grads.dx, expected.dx);
    EXPECT_SAME_BITS(grads.ddt, expected.ddt);
    EXPECT_SAME_BITS(grads.da, expected.da);
    EXPECT_SAME_BITS(grads.db, expected.db);
    EXPECT_SAME_BITS(*grads.dstate, *expected.dstate);
  }
}

TEST(SelectiveScan, PartsOfAProjectionAreReadWhereTheyLie) {
  const Tensor joint = randn({2, 6, 20});
  Arguments k(2, 6, 5, 3, float32);
  k.more = {};
  k.x = joint.slice(2, 0, 5), k.dt = abs(joint.slice(2, 5, 10));
  k.b = joint.slice(2, 10, 13), k.c = joint.slice(2, 14, 20, 2);
  Arguments dense = k;
  dense.x = k.x.contiguous(), dense.b = k.b.contiguous(), dense.c = k.c.contiguous();
  EXPECT_SAME_BITS(k().y, dense().y);
  const Tensor dy = randn({2, 5, 6}).transpose(1, 2);
  EXPECT_SAME_BITS(k.gradients(dy, none, {}).db, dense.gradients(dy.contiguous(), none, {}).db);
}

TEST(SelectiveScan, BitsDoNotDependOnThreads) {
  const int before = num_threads();
  const Arguments k(3, 50, 100, 4, float32);
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
  EXPECT_OK(full.gradcheck({.log_a = true}));
}
TEST(SelectiveScan, SecondDerivativeIsTheDerivativeOfTheFirst) {
  const Arguments full(1, 3, 2, 2);
  Arguments bare = full;
  bare.more = {};
  EXPECT_OK(full.gradgradcheck({.final_state = true}));
  EXPECT_OK(bare.gradgradcheck({.dt_softplus = false}));
  EXPECT_OK(bare.gradgradcheck({.log_a = true}));
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

TEST(SelectiveScan, AgreesWithPyTorch) {
  const testing::Golden g = testing::golden("ops/scan/scan");
  for (const std::string name : {"full", "bare"}) {
    SCOPED_TRACE(name);
    const auto at = [&](const char* what) { return g[name + "." + what]; };
    const bool full = name == "full";
    const ScanOptions o{.dt_softplus = full, .final_state = true, .chunk = 4};
    Arguments k(1, 1, 1, 1);
    k.x = at("x"), k.dt = at("dt"), k.a = at("a"), k.b = at("b"), k.c = at("c"), k.more = {};
    if (full) k.more = {at("d"), at("z"), at("dt_bias"), at("state")};
    const ScanResult r = k(o);
    EXPECT_CLOSE(r.y, at("y"), {.absolute = 1e-14});
    EXPECT_CLOSE(*r.state, at("last"), {.absolute = 1e-14});
    const Grads grads = k.gradients(at("dy"), at("dlast"), o);
    EXPECT_CLOSE(grads.dx, at("dx"), {.absolute = 1e-13});
    EXPECT_CLOSE(grads.ddt, at("ddt"), {.absolute = 1e-13});
    EXPECT_CLOSE(grads.da, at("da"), {.absolute = 1e-13});
    EXPECT_CLOSE(grads.db, at("db"), {.absolute = 1e-13});
    EXPECT_CLOSE(grads.dc, at("dc"), {.absolute = 1e-13});
    if (!full) continue;
    EXPECT_CLOSE(*grads.dd, at("dd"), {.absolute = 1e-13});
    EXPECT_CLOSE(*grads.dz, at("dz"), {.absolute = 1e-13});
    EXPECT_CLOSE(*grads.ddt_bias, at("ddt_bias"), {.absolute = 1e-13});
    EXPECT_CLOSE(*grads.dstate, at("dstate"), {.absolute = 1e-13});
  }
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
