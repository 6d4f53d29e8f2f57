// Times norms for bench/peers/norms.py, which asks line by line so that peers take turns:
//   echo "layer forward 1024 64 0.1" | build/cpu/bench/norm_times
// A line: kind (layer, rms, gated or copy), direction, rows, cols, seconds; the answer: the least
// microseconds a call took.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <iostream>
#include <limits>
#include <string>

#include "copy.h"
#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/rms_norm.h"

namespace norma {
namespace {

struct Cell {
  std::string kind, direction;
  int64_t rows = 0, cols = 0;
  bool operator==(const Cell&) const = default;
};

struct Inputs {
  Tensor x, z, w, b, dy, y;

  explicit Inputs(const Cell& cell) {
    const bool backward = cell.direction == "backward", gated = cell.kind == "gated";
    const Shape shape{cell.rows, cell.cols};
    x = randn(shape), w = ones({cell.cols}), b = zeros({cell.cols});
    if (gated) z = randn(shape);
    if (backward || cell.kind == "copy") dy = randn(shape);
    if (!backward) return;
    for (Tensor* t : {&x, &w, &b}) t->requires_grad_();
    if (gated) z.requires_grad_();
    y = norm(cell);
  }
  Tensor norm(const Cell& cell) const {
    if (cell.kind == "rms") return rms_norm(x, w);
    if (cell.kind == "layer") return layer_norm(x, w, b);
    return gated_norm(x, z, w);
  }
  void call(const Cell& cell, bool past_the_caches) const {
    if (cell.kind == "copy") {
      const auto copy = past_the_caches ? copy_past_the_caches : copy_by_memcpy;
      return copy(static_cast<const std::byte*>(x.data()), static_cast<std::byte*>(dy.data()),
                  x.numel() * 4);
    }
    if (cell.direction == "backward") {
      std::vector<Tensor> inputs{x, w};
      if (cell.kind == "layer") inputs.push_back(b);
      if (cell.kind == "gated") inputs.push_back(z);
      grad({y}, inputs, {dy}, {.retain_graph = true});
    } else {
      const NoGrad plain;
      norm(cell);
    }
  }
};

/// The least time of a call, over runs of calls that last 50 µs or more.
double least_microseconds(const Cell& cell, const Inputs& inputs, double seconds) {
  using Clock = std::chrono::steady_clock;
  double least = std::numeric_limits<double>::infinity();
  int calls = 1;
  const auto begin = Clock::now();
  for (int run = 0; run < 3 || Clock::now() < begin + std::chrono::duration<double>(seconds);
       ++run) {
    const auto start = Clock::now();
    for (int i = 0; i < calls; ++i) inputs.call(cell, run & 1);
    const std::chrono::duration<double, std::micro> took = Clock::now() - start;
    least = std::min(least, took.count() / calls);
    if (took.count() < 50) calls *= 2;
  }
  return least;
}

}  // namespace
}  // namespace norma

int main() {
  using namespace norma;
  Cell cell, last;
  std::optional<Inputs> inputs;
  double seconds;
  if (isatty(STDIN_FILENO)) {
    std::puts("norm_times is asked line by line: see bench/peers/norms.py");
    return 0;
  }
  while (std::cin >> cell.kind >> cell.direction >> cell.rows >> cell.cols >> seconds) {
    if (cell != last) inputs.reset();
    if (!inputs) inputs.emplace(cell);
    last = cell;
    std::printf("%.4f\n", least_microseconds(cell, *inputs, seconds));
    std::fflush(stdout);
  }
}
