#include "norma/core/capture.h"

#include <cstdlib>

#include "norma/core/allocator.h"
#include "norma/core/autograd.h"
#include "norma/core/checkpoint.h"
#include "norma/core/cuda/allocator.h"
#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/dropout/dropout.h"
#include "norma/ops/elementwise/activation.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"
#include "testing/compare.h"
#include "testing/on_gpu.h"

namespace norma {
namespace {

struct Pair {
  Tensor inputs, targets;
};
enum class Mode { one, other };

/// Of what kind arguments are: reading a value is allowed in a kind's first call alone.
template <class... A>
::testing::AssertionResult new_kind(Captured<void (*)(const A&...)>& f, const A&... arguments) {
  try {
    f(arguments...);
    return ::testing::AssertionSuccess();
  } catch (const GraphError&) {
    return ::testing::AssertionFailure() << "not the first of its kind";
  }
}
template <class... A>
Captured<void (*)(const A&...)> probe() {
  return capture<void (*)(const A&...)>([](const A&...) { (void)ones({}).item(); });
}

bool on_gpu() { return default_device().is_cuda(); }

/// Compares every call with the second one on a GPU too.
class CaptureChecks : public ::testing::Test {
 protected:
  CaptureChecks() { setenv("NORMA_CHECK_CAPTURE", "1", 1); }
  ~CaptureChecks() override { unsetenv("NORMA_CHECK_CAPTURE"); }
};

TEST(Capture, GivesWhatTheFunctionGives) {
  const Tensor w = randn({4, 2});
  const auto f = [&](const Tensor& x) { return tanh(matmul(x, w)); };
  auto captured = capture(f);
  for (int i = 0; i < 4; ++i) {
    const Tensor x = randn({3, 4});
    EXPECT_SAME_BITS(captured(x), f(x));
  }
}

TEST(Capture, ScratchOfParallelWorkIsNoTensorOfTheCall) {
  if (on_gpu()) GTEST_SKIP() << "the processor's work";
  const int before = num_threads();
  set_num_threads(1);
  int64_t calls = 0;
  auto captured = capture([&](const Tensor& x) {
    ++calls;
    // As if this thread had taken another share of the blocks each time.
    parallel_for(2, [&](int64_t) {
      for (int64_t i = 0; i < calls; ++i) (void)empty({8});
    });
    return tanh(x) * x;
  });
  const Tensor x = randn({3});
  for (int i = 0; i < 4; ++i) EXPECT_SAME_BITS(captured(x), tanh(x) * x);
  set_num_threads(before);
}

TEST(Capture, ScratchThatDependsOnValuesIsNoTensorOfTheCall) {
  auto f = capture([](const Tensor& x) { return rms_norm(x) * 2 * 2; });
  for (double value : {1., 1., 1e30, 1.}) {  // the squares of 1e30 overflow: another kernel
    const Tensor x = full({2, 8}, value);
    EXPECT_SAME_BITS(f(x), rms_norm(x) * 2 * 2);
  }
}

TEST(Capture, RunsOnceACall) {
  const Tensor count = zeros({});
  auto step = capture([&] { count.add_(ones({})); });
  for (int i = 1; i <= 4; ++i) {
    step();
    EXPECT_EQ(count.item(), i);
  }
}

TEST(Capture, ArgumentsStandInFixedPlacesAndKeepTheirOwn) {
  std::vector<const void*> places;
  auto f = capture([&](const Pair& p) {
    places.push_back(p.inputs.data());
    p.inputs.add_(p.targets);
    return p.inputs * 2;
  });
  const Tensor x = ones({2}), y = full({2}, 3);
  for (int i = 0; i < 3; ++i) EXPECT_SAME_BITS(f(Pair{x, y}), full({2}, 8));
  EXPECT_SAME_BITS(x, ones({2}));
  EXPECT_NE(places[0], x.data());
  for (const void* place : places) EXPECT_EQ(place, places[0]);
}

TEST(Capture, ArgumentsOfAnyStridesAreTaken) {
  auto f = capture([](const Tensor& x) { return x + 1; });
  const Tensor x = randn({3, 4});
  EXPECT_SAME_BITS(f(x.t()), x.t() + 1);
  EXPECT_SAME_BITS(f(x.t().contiguous()), x.t() + 1);
}

TEST(Capture, KindIsShapeDTypeAndWhetherAGradientIsWanted) {
  auto f = probe<Tensor>();
  EXPECT_TRUE(new_kind(f, ones({2, 3})));
  EXPECT_FALSE(new_kind(f, zeros({2, 3})));
  EXPECT_TRUE(new_kind(f, ones({3, 2})));
  EXPECT_TRUE(new_kind(f, ones({6})));
  EXPECT_TRUE(new_kind(f, ones({2, 3}, float64)));
  EXPECT_TRUE(new_kind(f, ones({2, 3}).requires_grad_()));
  const NoGrad plain;
  EXPECT_TRUE(new_kind(f, ones({2, 3})));
}

TEST(Capture, KindIsStructureNumbersEnumsAndText) {
  auto number = probe<double, int>();
  EXPECT_TRUE(new_kind(number, 1.0, 2));
  EXPECT_FALSE(new_kind(number, 1.0, 2));
  EXPECT_TRUE(new_kind(number, 1.5, 2));
  EXPECT_TRUE(new_kind(number, 1.0, 3));
  auto mode = probe<Mode>();
  EXPECT_TRUE(new_kind(mode, Mode::one));
  EXPECT_TRUE(new_kind(mode, Mode::other));
  EXPECT_FALSE(new_kind(mode, Mode::one));
  auto text = probe<std::string, std::string>();
  EXPECT_TRUE(new_kind(text, std::string("ab"), std::string("c")));
  EXPECT_TRUE(new_kind(text, std::string("a"), std::string("bc")));
  auto optional = probe<std::optional<Tensor>, std::optional<Tensor>>();
  const std::optional<Tensor> x = ones({2});
  EXPECT_TRUE(new_kind(optional, x, {}));
  EXPECT_TRUE(new_kind(optional, {}, x));
  EXPECT_FALSE(new_kind(optional, x, {}));
  auto list = probe<std::vector<Pair>>();
  EXPECT_TRUE(new_kind(list, {{ones({2}), ones({2})}}));
  EXPECT_TRUE(new_kind(list, {{ones({2}), ones({2})}, {ones({2}), ones({2})}}));
  EXPECT_TRUE(new_kind(list, {{ones({2}), Tensor()}}));
}

class Visited {
 public:
  explicit Visited(const Tensor& x) : x_(x) {}
  template <class V>
  void visit(V& v) {
    v("x", x_);
  }
  const Tensor& x() const { return x_; }

 private:
  Tensor x_;
};

TEST(Capture, ObjectsAreLookedThroughByVisit) {
  auto f = capture([](const Visited& v) { return v.x() * 2; });
  for (int i = 0; i < 3; ++i) EXPECT_SAME_BITS(f(Visited(full({2}, i))), full({2}, 2 * i));
}

TEST(Capture, ResultsAreCopiesWithoutHistory) {
  struct Results {
    Tensor y;
    std::optional<Tensor> maybe;
    std::vector<Tensor> list;
  };
  const Tensor w = full({2}, 3).requires_grad_();
  auto f = capture([&](const Tensor& x) {
    const Tensor y = x * w;
    return Results{y, y, {x, w}};
  });
  std::vector<Results> all;
  for (int i = 0; i < 3; ++i) all.push_back(f(full({2}, i)));
  for (int i = 0; i < 3; ++i) {
    const Results& r = all[static_cast<size_t>(i)];
    EXPECT_SAME_BITS(r.y, full({2}, 3 * i));
    EXPECT_SAME_BITS(r.maybe.value(), r.y);
    EXPECT_SAME_BITS(r.list[0], full({2}, i));
    EXPECT_FALSE(r.y.requires_grad());
    EXPECT_FALSE(r.list[1].requires_grad());
    EXPECT_NE(r.list[1].data(), w.data());
  }
}

TEST(Capture, FreesWhatACallMade) {
  if (on_gpu()) GTEST_SKIP() << "a graph keeps its memory";
  const Tensor w = randn({64, 64}).requires_grad_();
  auto f = capture([&](const Tensor& x) { return grad({matmul(x, w).sum()}, {w})[0]; });
  const Tensor x = randn({64, 64});
  for (int i = 0; i < 2; ++i) f(x);
  const int64_t before = memory_stats().allocated;
  for (int i = 0; i < 3; ++i) f(x);
  EXPECT_EQ(memory_stats().allocated, before);
}

TEST(Capture, GradientsOfArgumentsAreTakenInside) {
  auto f = capture([](const Tensor& x) {
    x.square().sum().backward();
    return x.grad();
  });
  const Tensor x = full({2}, 3).requires_grad_();
  for (int i = 0; i < 3; ++i) EXPECT_SAME_BITS(f(x), full({2}, 6));
  EXPECT_FALSE(x.has_grad());
}

TEST(Capture, GradientsGatherInPlaceFromTheSecondCallOn) {
  const Tensor w = ones({2}).requires_grad_();
  auto gather = capture([&](const Tensor& x) { (x * w).sum().backward(); });
  gather(ones({2}));
  const void* place = w.grad().data();
  for (int i = 2; i < 5; ++i) {
    gather(ones({2}));
    EXPECT_SAME_BITS(w.grad(), full({2}, i));
    EXPECT_EQ(w.grad().data(), place);
  }
}

// Random numbers: a call draws with its own number and ordinals from 0.

TEST(Capture, DrawsFromTheNextCallNumber) {
  manual_seed(5);
  const uint64_t key = ambient_generator().state().key;
  // Random tensors are made on the processor, so that a GPU's graph cannot draw them.
  auto f = capture([](const Tensor& x) {
    return std::vector{dropout(x, 0.5), on_gpu() ? dropout(x, 0.25) : rand({6})};
  });
  const Tensor x = ones({6});
  for (uint32_t call = 1; call <= 4; ++call) {
    const auto y = f(x);
    for (int64_t i = 0; i < 6; ++i) {
      EXPECT_EQ(y[0].to_vector<float>()[static_cast<size_t>(i)],
                uniform_at({.key = key, .call = call, .ordinal = 0}, i) < 0.5F ? 0 : 2);
      const float second = uniform_at({.key = key, .call = call, .ordinal = 1}, i);
      EXPECT_EQ(y[1].to_vector<float>()[static_cast<size_t>(i)],
                !on_gpu()       ? second
                : second < 0.25 ? 0
                                : static_cast<float>(1 / 0.75));
    }
    EXPECT_EQ(ambient_generator().state(), (GeneratorState{.key = key, .calls = call}));
  }
}

TEST(Capture, DrawsAlikeAfterDrawsElsewhere) {
  const auto draws = [](bool elsewhere) {
    manual_seed(6);
    auto f = capture([](const Tensor& x) { return dropout(x, 0.5); });
    std::vector<Tensor> all;
    for (int i = 0; i < 4; ++i) {
      if (elsewhere) rand({3});
      all.push_back(f(ones({50})));
    }
    return all;
  };
  const auto a = draws(false), b = draws(true);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_SAME_BITS(a[i], b[i]);
  EXPECT_FALSE(::norma::testing::same_bits(a[2], a[3]));
}

TEST(Capture, CheckpointsDrawTheirNumbersAgain) {
  manual_seed(7);
  const Tensor w = ones({40}).requires_grad_();
  auto f = capture([&](const Tensor& x) {
    const Tensor y =
        checkpoint([&](const auto& in) { return std::vector{dropout(in[0] * w, 0.5)}; }, {x})[0];
    return std::vector{y, grad({y.sum()}, {w})[0]};
  });
  for (int i = 0; i < 4; ++i) {
    const auto y = f(ones({40}));
    EXPECT_SAME_BITS(y[0], y[1]);
  }
}

// What a replay would not do is an error, on every device.

TEST(Capture, HostReadsAreNamed) {
  const auto message = [](const char* where, const char* what) {
    return std::string(where) + ": a captured function must leave values on the device, but this " +
           "reads a float32 " + what + "; return it and read the copy";
  };
  const Tensor outside = ones({2});
  const auto second = [](auto f) {
    auto captured = capture(f);
    captured(ones({2}));
    captured(ones({2}));
  };
  EXPECT_THROW_MSG(second([](const Tensor& x) { (void)x.sum().item(); }), GraphError,
                   message("item", "() made by sum"));
  EXPECT_THROW_MSG(second([](const Tensor& x) { (void)exp(x).to_vector<double>(); }), GraphError,
                   message("to_vector", "(2,) made by exp"));
  if (!on_gpu())
    EXPECT_THROW_MSG(second([](const Tensor& x) { (void)tanh(x).span<float>(); }), GraphError,
                     message("span", "(2,) made by tanh"));
  EXPECT_THROW_MSG(second([](const Tensor& x) { print("{}", x * 2); }), GraphError,
                   message("print", "(2,) made by mul"));
  EXPECT_THROW_MSG(second([&](const Tensor&) { (void)outside.to_vector<float>(); }), GraphError,
                   message("to_vector", "(2,) from outside"));
}

TEST(Capture, EscapingTensorIsNamed) {
  Tensor kept;
  auto f = capture([&](const Tensor& x) { kept = exp(x + 1); });
  f(ones({2}));  // what stays of the first call may be a table or a state
  EXPECT_THROW_MSG(f(ones({2})), GraphError,
                   "capture: a tensor made in the captured function must not outlive the call, but "
                   "a float32 (2,) made by exp does; return it, or copy_() it into a tensor from "
                   "outside");
}

TEST(Capture, EscapingFactoryIsNamed) {
  Tensor kept;
  auto f = capture([&] { kept = zeros({3}); });
  f();
  EXPECT_THROW_MSG(f(), GraphError,
                   "capture: a tensor made in the captured function must not outlive the call, but "
                   "one of 12 bytes does; return it, or copy_() it into a tensor from outside");
}

TEST(Capture, EscapingGradientIsNamed) {
  const Tensor w = ones({2}).requires_grad_();
  auto f = capture([&](const Tensor& x) {
    w.clear_grad();
    (x * w).sum().backward();
  });
  f(ones({2}));
  EXPECT_THROW_MSG(f(ones({2})), GraphError,
                   "capture: a gradient made in the captured function must not outlive the call, "
                   "but that of a float32 (2,) leaf does; call zero_grad() inside, last or first");
}

TEST(Capture, DroppedGradientIsNamed) {
  const Tensor w = ones({2}).requires_grad_();
  auto f = capture([&](const Tensor& x) { (x * w).sum().backward(); });
  for (int i = 0; i < 3; ++i) f(ones({2}));
  w.clear_grad();
  EXPECT_THROW_MSG(f(ones({2})), GraphError,
                   "capture: gradients must stay where the captured call found them, but that of a "
                   "float32 (2,) leaf was dropped or made anew; call zero_grad() inside the "
                   "captured function");
}

TEST(Capture, KeptArgumentIsNamedAtTheFirstCallToo) {
  std::vector<Tensor> kept;
  auto f = capture([&](const Tensor&, const Pair& p) { kept.push_back(p.targets); });
  const char* message =
      "capture: argument 1.1 must not be kept after the call, but a tensor or a graph still refers "
      "to it; clone() what is to stay";
  EXPECT_THROW_MSG(f(ones({}), (Pair{ones({2}), ones({2})})), GraphError, message);
  EXPECT_THROW_MSG(f(ones({}), (Pair{ones({2}), zeros({2})})), GraphError, message);
  EXPECT_SAME_BITS(kept[0], ones({2}));  // what was kept stays as it was
}

TEST(Capture, KeptGraphKeepsItsArgument) {
  Tensor loss;
  auto f = capture([&](const Tensor& x) { loss = x.square().sum(); });
  EXPECT_THROW_MSG(f(ones({2}).requires_grad_()), GraphError,
                   "capture: argument 0 must not be kept after the call, but a tensor or a graph "
                   "still refers to it; clone() what is to stay");
}

TEST(Capture, ArgumentWithHistoryIsNamed) {
  auto f = capture([](const Tensor& x) { return x * 2; });
  const Tensor x = exp(ones({2}).requires_grad_());
  EXPECT_THROW_MSG(f(x), GraphError,
                   "capture: argument 0 must be without history, but exp made it under recording; "
                   "detach() it first");
}

TEST(Capture, ArgumentsThatWereRefusedAreTakenOnceTheyFit) {
  auto f = capture([](const Tensor& a, const Tensor& b) { return a + b; });
  const Tensor a = ones({2}), b = ones({2}).requires_grad_();
  EXPECT_THROW(f(a, b * 2), GraphError);  // of the same kind as b, but with a history
  EXPECT_SAME_BITS(f(a, b), full({2}, 2));
}

TEST(Capture, NestedCallIsNamed) {
  auto inner = capture([](const Tensor& x) { return x * 2; });
  auto outer = capture([&](const Tensor& x) { return inner(x); });
  EXPECT_THROW_MSG(outer(ones({2})), GraphError,
                   "capture: a captured function must not be called inside another, but is; call "
                   "the plain function there");
}

/// Calls f three times with i = 0, 1, 2 inside: the third call is compared with the second.
template <class F>
void three_calls(F f) {
  int i = 0;
  auto captured = capture([&](const Tensor& x) { return f(x, i); });
  for (; i < 3; ++i) captured(ones({2}));
}

TEST_F(CaptureChecks, HiddenBranchIsNamed) {
  EXPECT_THROW_MSG(three_calls([](const Tensor& x, int i) { return i < 2 ? exp(x) : tanh(x); }),
                   GraphError,
                   "capture: every call must do what the captured one did, but this one does tanh "
                   "where that did exp; make what decides it an argument");
  EXPECT_THROW_MSG(three_calls([](const Tensor& x, int i) { return i < 2 ? x : tanh(x); }),
                   GraphError,
                   "capture: every call must do what the captured one did, but this one goes on "
                   "with tanh where that ended; make what decides it an argument");
  EXPECT_THROW_MSG(
      three_calls([](const Tensor& x, int i) { return i > 1 ? x : tanh(x); }), GraphError,
      "capture: every call must do what the captured one did, but this one ended where "
      "that went on with tanh; make what decides it an argument");
  EXPECT_THROW_MSG(three_calls([](const Tensor& x, int i) { return i < 1 ? x : tanh(x); }),
                   GraphError,
                   "capture: the second call must do what the first did, but it has one more tanh; "
                   "make what decides it an argument");
}

TEST_F(CaptureChecks, TablesMadeInTheFirstCallMayStay) {
  Tensor table;
  EXPECT_NO_THROW(three_calls([&](const Tensor& x, int) {
    if (!table.defined()) table = exp(ones({2}));
    return x * table;
  }));
}

TEST_F(CaptureChecks, ReassignedTensorIsNamed) {
  Tensor outside = ones({2});
  EXPECT_THROW_MSG(three_calls([&](const Tensor& x, int) {
                     const Tensor y = x * outside;
                     outside = outside.clone().detach();
                     return y;
                   }),
                   GraphError,
                   "capture: a tensor made in the captured function must not outlive the call, but "
                   "a float32 (2,) made by to does; return it, or copy_() it into a tensor from "
                   "outside");
  auto f = capture([&](const Tensor& x) { return x * outside; });
  for (int i = 0; i < 3; ++i) f(ones({2}));
  outside.fill_(4);  // new values are fine
  EXPECT_SAME_BITS(f(ones({2})), full({2}, 4));
  outside = ones({2});
  EXPECT_THROW_MSG(
      f(ones({2})), GraphError,
      "capture: mul must read the same tensors at every call, but its input 1, a "
      "float32 (2,), was another one in the captured call; copy_() new values into the "
      "old tensor, or make it an argument");
  outside = ones({1});
  EXPECT_THROW_MSG(
      f(ones({2})), GraphError,
      "capture: mul must see the same shapes at every call, but its input 1 is float32 "
      "(1,), and was float32 (2,) in the captured call");
}

TEST_F(CaptureChecks, AnotherTensorOfTheCallIsNamed) {
  EXPECT_THROW_MSG(three_calls([](const Tensor& x, int i) {
                     const Tensor a = exp(x), b = tanh(x);
                     return (i < 2 ? a : b) * 2;
                   }),
                   GraphError,
                   "capture: mul must read the same tensors at every call, but its input 0, "
                   "a float32 (2,), was another one in the captured call; copy_() new values into "
                   "the old tensor, or make it an argument");
}

TEST_F(CaptureChecks, ChangedOptionsAreNamed) {
  EXPECT_THROW_MSG(three_calls([](const Tensor& x, int i) { return x * i; }), GraphError,
                   "capture: full must write the same values at every call, but they differ from "
                   "the captured call's; pass what changes as an argument or in a tensor");
  EXPECT_THROW_MSG(three_calls([](const Tensor& x, int i) { return x.slice(0, i / 2, i / 2 + 1); }),
                   GraphError,
                   "capture: slice must have the same options at every call, but they differ from "
                   "the captured call's; pass what changes as an argument or in a tensor");
  const Tensor outside = ones({2});
  EXPECT_THROW_MSG(three_calls([&](const Tensor& x, int i) {
                     outside.fill_(i);
                     return x;
                   }),
                   GraphError,
                   "capture: fill_ must write the same values at every call, but they differ from "
                   "the captured call's; pass what changes as an argument or in a tensor");
}

TEST_F(CaptureChecks, FreezingAfterwardsIsNamed) {
  const Tensor w = ones({2}).requires_grad_();
  auto f = capture([&](const Tensor& x) { return x * w; });
  for (int i = 0; i < 2; ++i) f(ones({2}));
  w.requires_grad_(false);
  EXPECT_THROW_MSG(f(ones({2})), GraphError,
                   "capture: mul must see the same graph at every call, but its input 1, a float32 "
                   "(2,), required a gradient in the captured call; set requires_grad before the "
                   "first one");
}

TEST_F(CaptureChecks, ChangedResultIsNamed) {
  EXPECT_THROW_MSG(three_calls([](const Tensor& x, int i) {
                     return i < 2 ? std::optional<Tensor>() : std::optional<Tensor>(x);
                   }),
                   GraphError,
                   "capture: the result must have the same parts at every call, but an optional or "
                   "a vector in it differs from the captured call's; make what decides it an "
                   "argument");
}

TEST(Capture, GoesOnAfterAnError) {
  bool broken = false;
  auto f = capture([&](const Tensor& x) {
    const Tensor y = exp(x);
    if (broken) throw ValueError("broken: must not be");
    return y;
  });
  for (int i = 0; i < (on_gpu() ? 2 : 4); ++i) {  // a replay does not see `broken`
    broken = true;
    EXPECT_THROW(f(ones({2})), ValueError);
    broken = false;
    EXPECT_SAME_BITS(f(zeros({2})), ones({2}));
  }
  EXPECT_NO_THROW(ones({}).item());  // no call runs any more
  EXPECT_EQ(ambient_generator().state().call, 0U);
}

// What only a GPU has.

using CaptureOnGpu = testing::OnGpu<>;

TEST_F(CaptureOnGpu, ReplayRunsNoHostCode) {
  int runs = 0;
  const Tensor w = full({1000}, 3);
  auto f = capture([&](const Tensor& x) {
    ++runs;
    return exp(x * w).sum();
  });
  for (int i = 0; i < 6; ++i) {
    const Tensor x = full({1000}, 0.125 * i);
    EXPECT_SAME_BITS(f(x), exp(x * w).sum());
  }
  EXPECT_EQ(runs, 2);
}

/// Results and gradients of some calls, with values that the host works out for each of them.
std::vector<Tensor> some_calls(bool checked) {
  setenv("NORMA_CHECK_CAPTURE", checked ? "1" : "0", 1);
  manual_seed(9);
  const Tensor w = full({64, 33}, 0.5).requires_grad_(), sum = zeros({64, 33});
  auto f = capture([&](const Tensor& x) {
    const Tensor y = tanh(dropout(x, 0.3) * w + dropout(w, 0.1)) * arange(33, float32).exp();
    const Tensor g = grad({y.sum()}, {w})[0];
    sum.add_(g);
    return std::vector{y, y.mean(-1), g};
  });
  std::vector<Tensor> all;
  for (int i = 0; i < 5; ++i) {
    for (const Tensor& t : f(full({64, 33}, 0.1 * i))) all.push_back(t);
    all.push_back(sum.clone());
  }
  unsetenv("NORMA_CHECK_CAPTURE");
  return all;
}

TEST_F(CaptureOnGpu, EagerAndReplayedHaveTheSameBits) {
  const auto replayed = some_calls(false), eager = some_calls(true);
  ASSERT_EQ(replayed.size(), eager.size());
  for (size_t i = 0; i < eager.size(); ++i) EXPECT_SAME_BITS(replayed[i], eager[i]);
}

TEST_F(CaptureOnGpu, ResultsOfEarlierCallsStay) {
  auto f = capture([](const Tensor& x) { return std::vector{x, x * 2, x.slice(0, 1, 2)}; });
  std::vector<std::vector<Tensor>> all;
  for (int i = 0; i < 6; ++i) all.push_back(f(full({3}, i)));
  for (int i = 0; i < 6; ++i) {
    const auto& r = all[static_cast<size_t>(i)];
    EXPECT_SAME_BITS(r[0], full({3}, i));
    EXPECT_SAME_BITS(r[1], full({3}, 2 * i));
    EXPECT_SAME_BITS(r[2], full({1}, i));
  }
}

MemoryStats gpu_memory() {
  if constexpr (kBuiltWithCuda) return memory_stats(cuda);
  return {};
}

TEST_F(CaptureOnGpu, MemoryStaysAsItIs) {
  const Tensor w = ones({256, 256}).requires_grad_();
  auto f = capture([&](const Tensor& x) { return grad({exp(x * w).sum()}, {w})[0].sum(); });
  const Tensor x = ones({256, 256});
  for (int i = 0; i < 3; ++i) f(x);
  synchronize(cuda);
  const MemoryStats before = gpu_memory();
  for (int i = 0; i < 20; ++i) f(x);
  EXPECT_EQ(gpu_memory().allocated, before.allocated);
  EXPECT_EQ(gpu_memory().reserved, before.reserved);
}

TEST_F(CaptureOnGpu, TableCountsNodes) {
  auto f = capture([](const Tensor& x) { return exp(exp(x + 1)); });
  EXPECT_EQ(f.graph_nodes(), "");
  for (int i = 0; i < 2; ++i) f(ones({100}));
  const std::string table = f.graph_nodes();
  EXPECT_THAT(table, ::testing::StartsWith("4 nodes, 4 on the longest path, 0 of 3 edges overlap"));
  EXPECT_THAT(table, ::testing::HasSubstr("     2  norma::"));
}

TEST_F(CaptureOnGpu, WorkOnTheProcessorIsNamed) {
  const Tensor here = ones({2}, float32, cpu);
  const auto second = [](auto f) {
    auto captured = capture(f);
    captured(ones({2}));
    captured(ones({2}));
  };
  EXPECT_THROW_MSG(second([&](const Tensor& x) {
                     exp(here);
                     return x * 2;
                   }),
                   GraphError,
                   "exp: a function captured on cuda:0 must work there alone, but this is on cpu "
                   "and would not be replayed; move what it needs to cuda:0 before the call");
  EXPECT_THROW_MSG(second([&](const Tensor& x) {
                     return x * tensor({1, 2});
                   }),
                   GraphError,
                   "from_span: a function captured on cuda:0 must work there alone, but this is on "
                   "cpu and would not be replayed; move what it needs to cuda:0 before the call");
  EXPECT_THROW_MSG(second([&](const Tensor& x) { return x * randn({2}); }), GraphError,
                   "randn: a function captured on cuda:0 must work there alone, but random tensors "
                   "are made on cpu; draw before the call and pass the tensor, or use dropout()");
}

TEST_F(CaptureOnGpu, ANewCaptureAfterOneThatFailed) {
  Tensor kept;
  auto bad = capture([&](const Tensor& x) { kept = exp(x); });
  bad(ones({4}));
  EXPECT_THROW(bad(ones({4})), GraphError);
  auto sync = capture([](const Tensor& x) { (void)x.sum().item(); });
  sync(ones({4}));
  EXPECT_THROW(sync(ones({4})), GraphError);
  auto good = capture([](const Tensor& x) { return x + 1; });
  for (int i = 0; i < 4; ++i) EXPECT_SAME_BITS(good(full({4}, i)), full({4}, i + 1));
}

}  // namespace
}  // namespace norma
