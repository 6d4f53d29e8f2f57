#include "norma/core/autograd.h"

#include <array>
#include <cmath>
#include <thread>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/gradient_memory.h"
#include "norma/core/op.h"
#include "norma/core/random.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "testing/compare.h"

namespace norma {
namespace {

Tensor leaf(std::initializer_list<double> values) { return tensor(values).requires_grad_(); }

TEST(Autograd, GradientsOfATensorUsedTwiceAdd) {
  const Tensor x = leaf({3});
  (x * x + x).sum().backward();
  EXPECT_SAME_BITS(x.grad(), tensor({7}));
}

TEST(Autograd, ThreadsThatShareAWeightRecordOverOneLeaf) {
  const DefaultDevice there(cpu);
  for (int round = 0; round < 50; ++round) {
    const Tensor w = leaf({2});
    EXPECT_TRUE(w.impl().node) << "threads would each make a leaf at their first op";
    std::array<Tensor, 3> y;
    std::vector<std::thread> threads;
    for (size_t i = 0; i < y.size(); ++i)
      threads.emplace_back([&, i] { y[i] = w * static_cast<double>(i + 1); });
    for (std::thread& thread : threads) thread.join();
    (y[0] + y[1] + y[2]).sum().backward();
    EXPECT_SAME_BITS(w.grad(), tensor({6}));
  }
}

TEST(Autograd, EachBackwardAddsToGradUntilItIsCleared) {
  const Tensor x = leaf({2});
  for (int i = 1; i <= 3; ++i) {
    (x * 5).sum().backward();
    EXPECT_SAME_BITS(x.grad(), tensor({5.0 * i}));
  }
  x.clear_grad();
  EXPECT_FALSE(x.has_grad());
  EXPECT_THROW(x.grad(), GraphError);
}

TEST(Autograd, TwoLeavesOfASumGetGradientsOfTheirOwn) {
  const Tensor x = leaf({1, 2}), y = leaf({3, 4});
  (x + y).sum().backward();
  x.grad().fill_(9);
  EXPECT_SAME_BITS(y.grad(), tensor({1, 1}));
}

TEST(Autograd, DiamondIsSweptOnce) {
  const Tensor x = leaf({2});
  const Tensor a = x * 3, b = a * a, c = a + 1;
  (b * c).sum().backward();  // 9x²(3x + 1): 81x² + 18x
  EXPECT_SAME_BITS(x.grad(), tensor({81 * 4 + 18 * 2}));
}

/// 2 x, whose backward adds to what has arrived of x's gradient.
struct AddingDouble {
  static constexpr std::string_view name = "adding_double";
  static inline int taken = 0;
  static Tensor forward(Context&, const Tensor& x) { return x * 2; }
  static Tensor backward(Context&, const Tensor& dy) {
    const Tensor arrived = detail::take_gradient(0);
    EXPECT_FALSE(detail::take_gradient(1).defined());
    if (!arrived.defined()) return dy * 2;
    ++taken;
    return arrived.add_(dy * 2);
  }
};

TEST(Autograd, AnOpMayAddToTheGradientThatHasArrived) {
  const Tensor x = leaf({1, 2});
  const auto gradient = [&](const auto& other_use, const BackwardOptions& options = {}) {
    AddingDouble::taken = 0;
    const Tensor h = x * 3, doubled = apply<AddingDouble>(h);
    const Tensor other = other_use(h);  // later: its gradient comes first
    return grad({(doubled + other).sum()}, {x}, {}, options)[0];
  };
  const auto square = [](const Tensor& h) { return h * h; };
  const Tensor expected = tensor({3 * (2 + 6.0), 3 * (2 + 12.0)});
  EXPECT_SAME_BITS(gradient(square), expected);
  EXPECT_EQ(AddingDouble::taken, 1);
  EXPECT_SAME_BITS(gradient(square, {.create_graph = true}).detach(), expected);
  EXPECT_EQ(AddingDouble::taken, 0) << "the sweep is recorded";
  EXPECT_SAME_BITS(gradient([](const Tensor& h) { return h + h.detach(); }), tensor({9, 9}));
  EXPECT_EQ(AddingDouble::taken, 0) << "the sum's gradient is that of its other argument too";
  EXPECT_SAME_BITS(gradient([](const Tensor& h) { return h.detach() * 5; }), tensor({6, 6}));
  EXPECT_EQ(AddingDouble::taken, 0) << "nothing has arrived";
}

TEST(Autograd, AHookSeesTheSumThatAnOpHasAddedTo) {
  const Tensor x = leaf({1, 2}), h = x * 3;
  Tensor seen;
  h.register_hook([&](const Tensor& g) {
    seen = g.clone();
    return std::optional<Tensor>();
  });
  AddingDouble::taken = 0;
  const Tensor doubled = apply<AddingDouble>(h);
  (doubled + h * h).sum().backward();
  EXPECT_EQ(AddingDouble::taken, 1);
  EXPECT_SAME_BITS(seen, tensor({8, 14}));
  EXPECT_SAME_BITS(x.grad(), tensor({24, 42}));
}

TEST(Autograd, UnusedResultsAndInputsHaveNoGradient) {
  const Tensor x = leaf({1, 2, 3}), unused = leaf({1});
  const auto parts = split(x, {1, 2}, 0);
  parts[1].sum().backward();
  EXPECT_SAME_BITS(x.grad(), tensor({0, 1, 1}));
  EXPECT_FALSE(unused.has_grad());
  EXPECT_SAME_BITS(grad({(x * 2).sum()}, {unused})[0], tensor({0}));
}

TEST(Autograd, NothingIsRecordedUnderNoGrad) {
  const Tensor x = leaf({1});
  {
    const NoGrad plain;
    EXPECT_FALSE((x * 2).requires_grad());
    const EnableGrad again;
    EXPECT_TRUE((x * 2).requires_grad());
  }
  EXPECT_TRUE((x * 2).requires_grad());
  EXPECT_FALSE((x * 2).detach().requires_grad());
}

TEST(Autograd, DetachedValuesAreConstants) {
  const Tensor x = leaf({3});
  (x * x.detach()).sum().backward();
  EXPECT_SAME_BITS(x.grad(), tensor({3}));
}

TEST(Autograd, HookRegisteredByAHookIsForTheNextSweep) {
  const Tensor x = leaf({1});
  std::vector<int> calls;
  const std::string held(64, 'h');  // what a moved hook would have lost
  x.register_hook([&calls, &x, held](const Tensor&) -> std::optional<Tensor> {
    for (int i = 0; i < 8; ++i)
      x.register_hook([&calls](const Tensor&) -> std::optional<Tensor> {
        calls.push_back(1);
        return none;
      });
    calls.push_back(held == std::string(64, 'h') ? 0 : -1);
    return none;
  });
  x.sum().backward();
  EXPECT_EQ(calls, std::vector<int>({0}));
  x.sum().backward();
  EXPECT_EQ(calls, std::vector<int>({0, 0, 1, 1, 1, 1, 1, 1, 1, 1}));
}

TEST(Autograd, HooksSeeAndReplaceGradients) {
  const Tensor x = leaf({1, 2});
  const Tensor y = x * 2;
  Tensor seen;
  y.register_hook([&](const Tensor& g) {
    seen = g.clone();
    return std::optional<Tensor>(g * 10);
  });
  int calls = 0;
  x.register_hook([&](const Tensor&) -> std::optional<Tensor> {
    ++calls;
    return none;
  });
  (y * 3).sum().backward();
  EXPECT_SAME_BITS(seen, tensor({3, 3}));
  EXPECT_SAME_BITS(x.grad(), tensor({60, 60}));
  EXPECT_EQ(calls, 1);
}

TEST(Autograd, HookThatReturnsAnotherShapeIsNamed) {
  const Tensor x = leaf({1, 2});
  const Tensor y = x * 2;
  y.register_hook([](const Tensor&) { return std::optional<Tensor>(ones({3})); });
  EXPECT_THROW_MSG(
      (y * 3).sum().backward(), GraphError,
      format("register_hook: a hook must return a gradient like its own, float32 (2,) on {}, but "
             "gave float32 (3,) on {}",
             x.device(), x.device()));
}

TEST(Autograd, RefusedGradientLeavesTheOldOne) {
  const Tensor x = leaf({1, 2});
  x.set_grad(tensor({3, 4}));
  EXPECT_THROW_MSG(
      x.set_grad(ones({3})), GraphError,
      format("set_grad: the gradient must be float32 (2,) on {}, like its tensor, but is float32 "
             "(3,) on {}",
             x.device(), x.device()));
  EXPECT_SAME_BITS(x.grad(), tensor({3, 4}));
}

TEST(Autograd, ManyResultsOfOneOpGetTheirGradients) {
  const Tensor x = arange(40, float32).requires_grad_();
  const auto parts = chunk(x, 40, 0);
  (parts[39] * 3 + parts[1]).sum().backward();
  EXPECT_EQ(x.grad().select(0, 39).item(), 3);
  EXPECT_EQ(x.grad().select(0, 1).item(), 1);
}

TEST(Autograd, SecondSweepOverAFreedGraphIsNamed) {
  const Tensor x = leaf({2});
  const Tensor y = (x * x).sum();
  y.backward();
  EXPECT_THROW_MSG(y.backward(), GraphError,
                   "backward: the graph must still be there, but what sum saved was freed by an "
                   "earlier sweep; pass .retain_graph = true to that one");
}

TEST(Autograd, RetainedGraphCanBeSweptAgain) {
  const Tensor x = leaf({2});
  const Tensor y = (x * x).sum();
  backward({y}, {}, {.retain_graph = true});
  y.backward();
  EXPECT_SAME_BITS(x.grad(), tensor({8}));
}

TEST(Autograd, SavedTensorChangedInPlaceIsNamed) {
  const Tensor x = leaf({2, 3});
  const Tensor constant = tensor({1, 2});
  const Tensor y = (x * constant).sum();
  constant.fill_(7);
  EXPECT_THROW_MSG(
      y.backward(), GraphError,
      "backward: tensor 1 of shape (2,), saved by mul, was changed in place (version " +
          std::to_string(constant.storage()->version()) + ", saved at " +
          std::to_string(constant.storage()->version() - 1) + "); clone it first");
}

TEST(Autograd, RecordedTensorsAreNotWrittenInPlace) {
  const Tensor x = leaf({2});
  EXPECT_THROW_MSG(x.fill_(1), GraphError,
                   "fill_: under recording the target must have no history, but it requires a "
                   "gradient; write under NoGrad, or to a detached tensor");
  const NoGrad plain;
  x.fill_(1);
}

TEST(Autograd, OnlyOneElementStartsASweepByItself) {
  const Tensor x = leaf({1, 2});
  EXPECT_THROW((x * 2).backward(), GraphError);
  EXPECT_THROW(tensor({1}).backward(), GraphError);
  EXPECT_THROW((x * 2).backward(tensor({1, 2, 3})), ShapeError);
  EXPECT_THROW(tensor({1}, int64).requires_grad_(), DTypeError);
}

TEST(Autograd, HigherDerivativesOfAPower) {
  const Tensor x = tensor({2}, float64).requires_grad_();
  Tensor y = (x * x * x * x * x).sum();
  double factor = 1;
  for (int order = 1; order <= 5; ++order) {
    factor *= 6 - order;
    y = grad({y}, {x}, {}, {.create_graph = true})[0];
    EXPECT_CLOSE(y.detach(), tensor({factor * std::pow(2.0, 5 - order)}, float64),
                 {.relative = 1e-14});
    y = y.sum();
  }
}

TEST(Autograd, GradLeavesGradAlone) {
  const Tensor x = leaf({2}), y = leaf({3});
  const auto grads = grad({(x * y).sum()}, {x});
  EXPECT_SAME_BITS(grads[0], tensor({3}));
  EXPECT_FALSE(x.has_grad());
  EXPECT_FALSE(y.has_grad());
}

/// Counts the steps of the sweeps on its thread.
class CountSteps final : public Observer {
 public:
  void applied(const OpInfo&, const Call&) override {}
  void differentiated(const Node& node, const Node::Gradients&) override {
    names.emplace_back(node.name());
  }
  std::vector<std::string> names;
};

TEST(Autograd, GradRunsOnlyWhatLeadsToItsInputs) {
  const Tensor x = leaf({2}), y = leaf({3});
  const Tensor h = exp(x), loss = (h * tanh(y) + sin(cos(y))).sum();
  CountSteps steps;
  const auto grads = grad({loss}, {h});
  EXPECT_EQ(steps.names, (std::vector<std::string>{"sum", "add", "mul"}));
  EXPECT_SAME_BITS(grads[0], tanh(y).detach());
  // What was not swept is not freed either.
  EXPECT_SAME_BITS(grad({h.sum()}, {x})[0], h.detach());
  const Tensor a = leaf({1}), elsewhere = exp(leaf({1}));
  steps.names.clear();
  EXPECT_SAME_BITS(grad({elsewhere}, {a})[0], tensor({0}));
  EXPECT_TRUE(steps.names.empty());
}

TEST(Autograd, ChainOfAHundredThousandNodesNeitherSweepsNorDiesRecursively) {
  const Tensor x = leaf({1});
  {
    Tensor y = x;
    for (int i = 0; i < 100000; ++i) y = y + 1;
    y.sum().backward();
    EXPECT_SAME_BITS(x.grad(), tensor({1}));
  }
  Tensor y = x;
  for (int i = 0; i < 100000; ++i) y = y * 1;
  const Tensor g = grad({y.sum()}, {x}, {}, {.create_graph = true})[0];
  EXPECT_SAME_BITS(g.detach(), tensor({1}));
  y = Tensor();  // and here it dies
}

TEST(Autograd, WhatWasSavedIsFreedAsTheSweepPasses) {
  const int64_t n = 1 << 18, bytes = 4 * n;
  const Tensor x = randn({n}).requires_grad_();
  Tensor y = x;
  for (int i = 0; i < 16; ++i) y = exp(y * 0.5);
  const Tensor loss = y.sum();
  y = Tensor();
  int64_t during = 0;
  x.register_hook([&](const Tensor&) -> std::optional<Tensor> {
    during = memory_stats(default_device()).allocated;
    return none;
  });
  const int64_t before = memory_stats(default_device()).allocated;
  loss.backward();
  // 16 saved exponentials are gone; a few gradients are there.
  EXPECT_LT(during, before - 10 * bytes);
}

TEST(Autograd, GradientsOfViewsReachTheirPlace) {
  const Tensor x = leaf({1, 2, 3, 4, 5, 6});
  const Tensor m = x.reshape({2, 3}).t();
  (m.select(0, 1) * 10).sum().backward();
  EXPECT_SAME_BITS(x.grad(), tensor({0, 10, 0, 0, 10, 0}));
}

}  // namespace
}  // namespace norma
