#include "norma/core/cuda/side_stream.h"

#include "norma/core/autograd.h"
#include "norma/core/capture.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/reduce/reduce.h"
#include "testing/compare.h"
#include "testing/on_gpu.h"

namespace norma {
namespace {

class SideStream : public testing::OnGpu<> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (IsSkipped()) return;
    manual_seed(1);
    x_ = randn({96, 64}, float32, cuda);
    for (int i = 0; i < 6; ++i) {
      weights_.push_back((randn({64, 64}, float32, cuda) * 0.2).detach().requires_grad_());
      biases_.push_back(randn({64}, float32, cuda).requires_grad_());
    }
  }
  /// The gradients of layers that use their input twice, so that gradients are added on the way.
  std::vector<Tensor> gradients() const {
    Tensor h = x_;
    for (size_t i = 0; i < weights_.size(); ++i) h = h + tanh(linear(h, weights_[i], biases_[i]));
    std::vector<Tensor> all = weights_;
    all.insert(all.end(), biases_.begin(), biases_.end());
    return grad({h.square().sum()}, all);
  }
  Tensor x_;
  std::vector<Tensor> weights_, biases_;
};

void expect_same(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_SAME_BITS(a[i], b[i]);
}

TEST_F(SideStream, WeightGradientsHaveTheBitsOfOneStream) {
  const auto expected = [&] {
    const detail::OneStream plain;
    return gradients();
  }();
  for (int i = 0; i < 20; ++i) expect_same(gradients(), expected);
  auto captured = capture([&] { return gradients(); });
  for (int i = 0; i < 5; ++i) expect_same(captured(), expected);
}

TEST_F(SideStream, NormsWeightGradientsHaveTheBitsOfOneStream) {
  struct NormSize {
    Shape shape;
    const char* why;
  };
  for (const auto& [shape, why] : {NormSize{{96, 64}, "small: one launch by itself, two beside"},
                                   {{4096, 640}, "a ring of blocks, whose sums are added up"},
                                   {{40, 1001}, "any rows"}}) {
    SCOPED_TRACE(why);
    const Tensor x = randn(shape);
    std::vector<Tensor> weights;  // w and b of 20 norms: more than wait for one join
    for (int i = 0; i < 40; ++i) weights.push_back(randn({shape.back()}).requires_grad_());
    const auto gradients = [&] {
      Tensor h = x;
      for (size_t i = 0; i < weights.size(); i += 2)
        h = h + layer_norm(h, weights[i], weights[i + 1]);
      return grad({h.square().sum()}, weights);
    };
    const auto expected = [&] {
      const detail::OneStream plain;
      return gradients();
    }();
    for (int i = 0; i < 5; ++i) expect_same(gradients(), expected);
    auto captured = capture([&] { return gradients(); });
    for (int i = 0; i < 5; ++i) expect_same(captured(), expected);
  }
}

TEST_F(SideStream, ProductsThatAddToAGradientHaveTheSameBitsEagerAndCaptured) {
  const Tensor x = randn({4, 512, 256}, bfloat16, cuda).requires_grad_();
  const Tensor u = randn({128, 256}, float32, cuda).requires_grad_(),
               v = randn({128, 256}, float32, cuda).requires_grad_();
  const auto gradients = [&] {
    const Tensor h = x * 2;
    return grad({(linear(h, u) * linear(h, v)).sum()}, {x, u, v});
  };
  const auto expected = gradients();
  const auto sum = [&](const Tensor& one, const Tensor& other) {
    return grad({(linear(x * 2, one) * linear(x.detach() * 2, other)).sum()}, {x})[0];
  };
  EXPECT_CLOSE(expected[0], sum(u, v).to(float32) + sum(v, u).to(float32),
               {.relative = 0.01, .absolute = 8});
  auto captured = capture([&] { return gradients(); });
  for (int i = 0; i < 5; ++i) expect_same(captured(), expected);
}

TEST_F(SideStream, IsABranchOfARecordedGraph) {
  const auto path = [](const std::string& table) {
    const size_t at = table.find("nodes, ") + 7;
    return std::pair(std::stoi(table), std::stoi(table.substr(at)));
  };
  auto captured = capture([&] { return gradients(); });
  for (int i = 0; i < 2; ++i) captured();
  const auto [nodes, longest] = path(captured.graph_nodes());
  EXPECT_LT(longest, nodes) << captured.graph_nodes();
}

TEST_F(SideStream, HooksSeeWholeGradients) {
  Tensor seen;
  weights_[0].register_hook([&](const Tensor& g) {
    seen = g.clone();
    return std::optional<Tensor>();
  });
  const auto all = gradients();
  EXPECT_SAME_BITS(seen, all[0]);
}

}  // namespace
}  // namespace norma
