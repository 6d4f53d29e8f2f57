// How a training step's time grows with the batch, the length and the depth: nanoGPT's char model,
// one of the three at a time.
//   build/cuda-hopper/bench/growth > growth.tsv             measures, a line each
//   build/cpu/bench/growth growth.tsv bench/growth.png      draws
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "norma/core/capture.h"
#include "norma/core/cuda/allocator.h"
#include "norma/core/file.h"
#include "norma/core/format.h"
#include "norma/core/random.h"
#include "norma/nn/gnuplot.h"
#include "norma/nn/language_model.h"
#include "norma/nn/optimizer.h"
#include "norma/nn/trainer.h"
#include "norma/ops/cross_entropy/cross_entropy.h"

namespace {

using namespace norma;
using namespace norma::nn;

struct Size {
  int64_t batch = 64, length = 256, depth = 6;
};

/// The best of three turns, in ms.
double milliseconds_a_step(const Size& size, Device device) {
  const PrecisionScope precision("bf16");
  const DefaultDevice there(device);
  manual_seed(1);
  LanguageModelOptions o;
  o.vocab_size = 65, o.context = size.length, o.n_layers = size.depth, o.n_heads = 6;
  o.d_model = 384, o.norm = "layer", o.mlp = MlpKind::gelu_tanh;
  o.positions = Positions::learned;
  LanguageModel model(o);
  to(model, device);
  AdamW adam(decay_groups(named_parameters(model), 0.1), {.lr = 1e-3});
  const Tensor inputs = randint(0, o.vocab_size, {size.batch, size.length}, int32);
  const Tensor targets = randint(0, o.vocab_size, {size.batch, size.length}, int32);
  auto step = capture([&](const Tensor& x, const Tensor& y) {
    const Tensor loss = cross_entropy(model(x), y);
    loss.backward();
    adam.clip(1);
    adam.step();
    adam.zero_grad();
    return loss.detach();
  });
  for (int i = 0; i < 3; ++i) step(inputs, targets);
  double best = 0;
  for (int turn = 0; turn < 3; ++turn) {
    synchronize(device);
    int steps = 0;
    const auto begin = std::chrono::steady_clock::now();
    double seconds = 0;
    while (seconds < 0.1) {
      for (int i = 0; i < 4; ++i) step(inputs, targets);
      synchronize(device);
      steps += 4;
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    }
    best = turn == 0 ? seconds / steps : std::min(best, seconds / steps);
  }
  return 1e3 * best;
}

void measure(Device device) {
  std::printf("# varied\tvalue\tms\n");
  const auto row = [&](const char* varied, int64_t value, const Size& size) {
    std::printf(
        "%s", format("{}\t{}\t{:.4f}\n", varied, value, milliseconds_a_step(size, device)).c_str());
    std::fflush(stdout);
  };
  for (int64_t batch = 1; batch <= 512; batch *= 2) row("batch", batch, {.batch = batch});
  for (int64_t length = 64; length <= 16384; length *= 2)
    row("length", length, {.batch = 4, .length = length});
  for (int64_t depth = 2; depth <= 96; depth *= 2) row("depth", depth, {.depth = depth});
  row("depth", 96, {.depth = 96});
}

struct Point {
  double value, ms;
};
/// The lines of `table` that vary `what`.
std::vector<Point> points(const std::string& table, const std::string& what) {
  std::vector<Point> found;
  for (size_t at = 0; at < table.size(); at = table.find('\n', at) + 1) {
    const std::string line = table.substr(at, table.find('\n', at) - at);
    Point p{};
    if (line.starts_with(what + "\t") &&
        std::sscanf(line.c_str() + what.size(), "%lf %lf", &p.value, &p.ms) == 2)
      found.push_back(p);
    if (table.find('\n', at) == std::string::npos) break;
  }
  return found;
}

void draw(const std::string& table, const std::string& picture) {
  std::string script =
      "set terminal pngcairo size 1500,480 font ',10'\nset key top left\nset grid\n"
      "set logscale xy\nset ylabel 'ms a step'\nset multiplot layout 1,3\n";
  const auto panel = [&](const std::string& what, const std::string& title, const char* label) {
    const std::vector<Point> all = points(table, what);
    if (all.empty()) throw IOError("growth: the table must have lines of {}, but has none", what);
    script += "$" + what + " << END\n";
    for (const Point& p : all) script += format("{} {}\n", p.value, p.ms);
    // What doubles with the size, through the last point.
    script += format(
        "END\nset title {}\nset xlabel {}\nplot ${} with linespoints lw 2 pt 7 title "
        "'measured', {}*x with lines dt 2 lc 'black' title 'in proportion'\n",
        gnuplot_quoted(title), gnuplot_quoted(label), what, all.back().ms / all.back().value);
  };
  panel("batch", "rows of 256 tokens, 6 layers", "rows a batch");
  panel("length", "4 rows, 6 layers", "tokens a row");
  panel("depth", "64 rows of 256 tokens", "layers");
  write_file_atomically(picture, gnuplot(script + "unset multiplot\n"));
}

}  // namespace

int main(int argc, char** argv) {
  try {
    if (argc == 3)
      draw(read_file(argv[1]), argv[2]);
    else
      measure(Device::best());
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
