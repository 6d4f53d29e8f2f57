// The family's features beside PyTorch's values.
#include "norma/core/autograd.h"
#include "norma/core/device.h"
#include "norma/ops/norm/dyt.h"
#include "norma/ops/norm/norm.h"
#include "norma/ops/reduce/reduce.h"
#include "testing/compare.h"
#include "testing/golden.h"

namespace norma {
namespace {

const testing::Golden& features() {
  static const auto* golden = new testing::Golden("ops/norm/features");
  return *golden;
}
constexpr double kFewRoundoffs = 512 * unit_roundoff(float64);

/// One recorded function: its inputs as leaves, and what it gave.
class Recorded {
 public:
  explicit Recorded(std::string name) : name_(std::move(name)) {}
  Tensor value(const std::string& what) const {
    return features()[name_ + "." + what].to(default_device());
  }
  Tensor leaf(const std::string& what) {
    names_.push_back(what);
    leaves_.push_back(value(what).requires_grad_());
    return leaves_.back();
  }
  void expect(const std::vector<std::pair<std::string, Tensor>>& results) const {
    std::vector<Tensor> outputs;
    std::vector<std::optional<Tensor>> cotangents;
    for (const auto& [what, y] : results) {
      EXPECT_CLOSE(y.detach(), value(what), {.relative = kFewRoundoffs, .absolute = kFewRoundoffs});
      outputs.push_back(y), cotangents.push_back(value("d" + what));
    }
    const auto grads = grad(outputs, leaves_, cotangents);
    for (size_t i = 0; i < grads.size(); ++i) {
      SCOPED_TRACE(names_[i]);
      EXPECT_CLOSE(grads[i], value("grad." + names_[i]),
                   {.relative = kFewRoundoffs, .absolute = kFewRoundoffs});
    }
  }
  /// The derivatives of Σ v ⊙ dx in x and w.
  void expect_second(const Tensor& y) const {
    const auto dx = grad({y}, {leaves_[0]}, {value("dy")}, {.create_graph = true});
    const auto second = grad(dx, {leaves_[0], leaves_[1]}, {value("v")});
    for (size_t i = 0; i < 2; ++i)
      EXPECT_CLOSE(second[i], value("second." + names_[i]),
                   {.relative = kFewRoundoffs, .absolute = kFewRoundoffs});
  }

 private:
  std::string name_;
  std::vector<std::string> names_;
  std::vector<Tensor> leaves_;
};

TEST(NormGolden, PlainKindsToTheSecondDerivative) {
  for (auto [name, kind] : {std::pair{"l2", NormKind::l2}, {"rms", NormKind::rms}}) {
    SCOPED_TRACE(name);
    Recorded r(name);
    const Tensor x = r.leaf("x"), w = r.leaf("w");
    const auto y = [&, kind = kind] {  // clang 14 takes no name of a pair by reference
      return fused_norm(x, {.w = w}, {.kind = kind, .eps = 1e-5}).y;
    };
    r.expect({{"y", y()}});
    r.expect_second(y());
  }
  Recorded r("layer");
  const Tensor x = r.leaf("x"), w = r.leaf("w"), b = r.leaf("b");
  const auto y = [&] {
    return fused_norm(x, {.w = w, .b = b}, {.kind = NormKind::layer, .eps = 1e-5}).y;
  };
  r.expect({{"y", y()}});
  r.expect_second(y());
}
TEST(NormGolden, GatedByGelu) {
  Recorded r("gelu");
  const Tensor x = r.leaf("x"), w = r.leaf("w"), b = r.leaf("b"), z = r.leaf("z");
  r.expect({{"y", fused_norm(x, {.w = w, .b = b, .z = z},
                             {.kind = NormKind::layer,
                              .gate = GateOrder::norm_then_gate,
                              .activation = GateActivation::gelu,
                              .eps = 1e-5})
                      .y}});
}
TEST(NormGolden, GroupsBehindASwishShareTheirWeight) {
  Recorded r("swish_groups");
  const Tensor x = r.leaf("x"), w = r.leaf("w"), b = r.leaf("b"), z = r.leaf("z");
  r.expect({{"y", fused_norm(x, {.w = w, .b = b, .z = z},
                             {.kind = NormKind::layer,
                              .gate = GateOrder::gate_then_norm,
                              .activation = GateActivation::swish,
                              .beta = 1.7,
                              .eps = 1e-5,
                              .group = 4})
                      .y}});
}
TEST(NormGolden, ResidualRowScaleAndZeroCentredWeight) {
  Recorded r("residual");
  const Tensor x = r.leaf("x"), w = r.leaf("w"), residual = r.leaf("residual"),
               row_scale = r.leaf("row_scale");
  const NormResult n = fused_norm(x, {.w = w, .residual = residual, .row_scale = row_scale},
                                  {.eps = 1e-5, .zero_centered = true});
  r.expect({{"h", *n.h}, {"y", n.y}});
}
TEST(NormGolden, TwoResultsOfOneNormalization) {
  Recorded r("two");
  const Tensor x = r.leaf("x"), w = r.leaf("w"), b = r.leaf("b"), w2 = r.leaf("w2"),
               b2 = r.leaf("b2");
  const NormResult n =
      fused_norm(x, {.w = w, .b = b, .w2 = w2, .b2 = b2}, {.kind = NormKind::layer, .eps = 1e-5});
  r.expect({{"y", n.y}, {"y2", *n.y2}});
}
TEST(DytGolden, BothRivals) {
  Recorded t("dyt");
  const Tensor x = t.leaf("x"), a = t.leaf("alpha"), w = t.leaf("w"), b = t.leaf("b");
  t.expect({{"y", dyt(x, a, w, b)}});
  Recorded e("derf");
  const Tensor u = e.leaf("x"), alpha = e.leaf("alpha"), s = e.leaf("shift"), gain = e.leaf("w"),
               bias = e.leaf("b");
  e.expect({{"y", derf(u, alpha, s, gain, bias)}});
}

}  // namespace
}  // namespace norma
