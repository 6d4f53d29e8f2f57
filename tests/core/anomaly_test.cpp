#include "norma/core/anomaly.h"

#include "norma/ops/elementwise/binary.h"
#include "norma/ops/elementwise/unary.h"
#include "norma/ops/reduce/reduce.h"
#include "testing/compare.h"

namespace norma {
namespace {

TEST(AnomalyMode, NamesTheOpThatMadeTheFirstNan) {
  const Tensor x = tensor({1, -1}).requires_grad_();
  const AnomalyMode watch;
  EXPECT_THROW_MSG(
      norma::log(x * 2), GraphError,
      "anomaly: log must give finite values, but gave NaN in a result of (2,); its inputs "
      "are (2,) of float32 made by mul");
}
TEST(AnomalyMode, NamesTheOpWhoseGradientFirstBreaks) {
  const Tensor x = tensor({0, 1}).requires_grad_();
  const Tensor y = norma::sqrt(x).sum();
  const AnomalyMode watch;
  EXPECT_THROW_MSG(
      y.backward(), GraphError,
      "anomaly: div must give finite values, but gave Inf in a result of (2,); its inputs "
      "are (2,) of float32, (2,) of float32");
}
TEST(AnomalyMode, WhatWasBrokenBeforeIsNotReported) {
  const Tensor x = tensor({1}) / tensor({0});
  const AnomalyMode watch;
  norma::exp(x * 2);
}
TEST(AnomalyMode, EndsWithItsScope) {
  { const AnomalyMode watch; }
  norma::log(tensor({-1}));
}

}  // namespace
}  // namespace norma
