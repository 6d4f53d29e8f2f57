#include "norma/nn/norm.h"

#include "norma/ops/elementwise/binary.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

class Halving final : public NormModule {
 public:
  Tensor forward(const Tensor& x) const override { return x * 0.5; }
};
TEST(Norm, AUsersOwnWorksByName) {
  register_norm("halving", [](const NormSpec&) { return std::make_unique<Halving>(); });
  const Norm norm({.kind = "halving", .dim = 2});
  Stream stream{ones({2})};
  stream.add(full({2}, 3));
  EXPECT_SAME_BITS(norm(stream), full({2}, 2));
  EXPECT_SAME_BITS(stream.value, full({2}, 4));
}

}  // namespace
}  // namespace norma::nn
