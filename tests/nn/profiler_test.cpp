#include "norma/nn/profiler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "norma/norma.h"

namespace norma::nn {
namespace {
using namespace std::chrono_literals;

/// Works for a while, then asks another op for its last step.
struct WorksThenNegates {
  static constexpr std::string_view name = "works_then_negates";
  static Tensor forward(Context&, const Tensor& x) {
    std::this_thread::sleep_for(20ms);
    return -x;
  }
};

Profiler::Row row(const Profiler& profiler, std::string_view name) {
  const auto rows = profiler.rows();
  const auto found =
      std::find_if(rows.begin(), rows.end(), [&](auto& r) { return r.name == name; });
  return found == rows.end() ? Profiler::Row{} : *found;
}

TEST(Profiler, AnOpKeepsTheTimeBeforeAnOpInsideIt) {
  const Tensor x = randn({8});
  Profiler profiler(cpu);
  for (int step = 0; step < 2; ++step) {
    profiler.begin_step();
    apply<WorksThenNegates>(x);
    profiler.end_step();
  }
  const Profiler::Row outer = row(profiler, "works_then_negates"), inner = row(profiler, "neg");
  EXPECT_GE(outer.seconds, 0.020);
  EXPECT_LT(inner.seconds, 0.010);
  EXPECT_EQ(outer.calls, 1);
  EXPECT_EQ(inner.calls, 1);
  EXPECT_EQ(outer.bytes, 64);
  EXPECT_NEAR(profiler.step_seconds(), outer.seconds + inner.seconds, 1e-9);
}

}  // namespace
}  // namespace norma::nn
