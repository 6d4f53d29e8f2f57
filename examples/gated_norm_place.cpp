// Where the norm of a Mamba-2 block stands: before the gate or behind it, whole or in groups, of
// which kind, or nowhere. Trains the same small model six times from the same start on the same
// sentences, and shows loss, gradient norm and the growth of the residual stream side by side.
//   gated_norm_place [steps]   (default 300: about four minutes on two cores)
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "norma/nn/gnuplot.h"
#include "norma/norma.h"

using namespace norma;

namespace {

struct Variant {
  const char *name, *gate, *norm;
  int64_t groups;
};
constexpr Variant kVariants[] = {{"gate, then rms", "gate-then-norm", "rms", 1},
                                 {"rms, then gate", "norm-then-gate", "rms", 1},
                                 {"gate, then rms in 4 groups", "gate-then-norm", "rms", 4},
                                 {"rms in 4 groups, then gate", "norm-then-gate", "rms", 4},
                                 {"gate, then layer", "gate-then-norm", "layer", 1},
                                 {"no norm", "gate-then-norm", "none", 1}};

nn::TrainOptions options_of(const Variant& v, int64_t steps) {
  nn::TrainOptions o;
  o.model = "mamba2", o.n_layers = 4, o.d_model = 64, o.d_state = 16, o.head_dim = 16;
  o.gate = v.gate, o.gate_norm = v.norm, o.norm_groups = v.groups;
  o.steps = steps, o.warmup = 20, o.lr = 3e-3, o.clip = 0;  // unclipped, to see the gradients
  return o;
}

/// The root mean square of the residual stream before each layer and behind the last.
std::vector<double> stream_growth(nn::Trainer& trainer) {
  const NoGrad plain;
  nn::LanguageModel& model = trainer.model();
  const nn::Batch batch = trainer.dataset().validation_batch(0, 32);
  nn::Residual r{{model.wte(batch.inputs.to(trainer.device()))}};
  std::vector<double> sizes;
  const auto note = [&] { sizes.push_back(std::sqrt(r.main.read().square().mean().item())); };
  note();
  for (const nn::Block& block : model.h) block(r), note();
  return sizes;
}

struct Result {
  Variant variant;
  std::vector<nn::CurvePoint> loss, gradient;
  std::vector<double> before, after;
  double validation = 0, largest_gradient = 0;
};

Result train(const Variant& v, int64_t steps) {
  nn::Trainer trainer(options_of(v, steps));
  Result result{v, {}, {}, stream_growth(trainer), {}};
  while (!trainer.finished()) {
    const nn::StepReport report = trainer.step();
    const auto step = static_cast<double>(trainer.steps_done());
    result.loss.push_back({step, report.loss});
    result.gradient.push_back({step, report.grad_norm});
    result.largest_gradient = std::max(result.largest_gradient, result.gradient.back().value);
    if (trainer.steps_done() % 100 == 0)
      print("{:<28} step {:>5}/{}  loss {:.4f}  gradient norm {:.3f}\n", v.name,
            trainer.steps_done(), steps, result.loss.back().value, result.gradient.back().value);
    std::fflush(stdout);
  }
  result.after = stream_growth(trainer);
  result.validation = trainer.validate(512).loss;
  return result;
}

std::string data_block(const std::string& name, const std::vector<nn::CurvePoint>& points) {
  std::string text = "$" + name + " << END\n";
  for (const nn::CurvePoint& p : points) text += format("{} {:.6g}\n", p.step, p.value);
  return text + "END\n";
}

void draw(const std::vector<Result>& results, double best, const std::string& picture) {
  std::string script = "set terminal pngcairo size 1500,480 font ',10'\nset key font ',8'\n";
  const double width = static_cast<double>(results[0].loss.size()) / 20;
  for (size_t i = 0; i < results.size(); ++i) {
    const std::string number = std::to_string(i);
    script += data_block("loss" + number, nn::smoothed(results[i].loss, width));
    script += data_block("gradient" + number, nn::smoothed(results[i].gradient, width));
    std::vector<nn::CurvePoint> depth;
    for (size_t layer = 0; layer < results[i].after.size(); ++layer)
      depth.push_back({static_cast<double>(layer), results[i].after[layer]});
    script += data_block("stream" + number, depth);
  }
  script += "set multiplot layout 1,3\nset grid\n";
  const auto panel = [&](const std::string& title, const char* label, const char* data,
                         const std::string& more) {
    script += "set title " + nn::gnuplot_quoted(title) + "\nset xlabel '" + label + "'\nplot ";
    for (size_t i = 0; i < results.size(); ++i)
      script += format("{}${}{} using 1:2 with lines lw 2 title {}", i ? ", " : "", data, i,
                       nn::gnuplot_quoted(results[i].variant.name));
    script += more + "\n";
  };
  panel("loss", "step", "loss", format(", {} dt 2 lc 'black' title 'best possible'", best));
  script += "set logscale y\n";
  panel("gradient norm", "step", "gradient", "");
  script += "set xtics 1\n";
  panel("size of the residual stream after training", "layer", "stream", "");
  write_file_atomically(picture, nn::gnuplot(script + "unset multiplot\n"));
}

int run(int64_t steps) {
  std::vector<Result> results;
  for (const Variant& v : kVariants) results.push_back(train(v, steps));
  const double best = *nn::GrammarDataset(nn::GrammarOptions{}).best_loss();
  print("\n{:<28} {:>10} {:>10} {:>16} {:>18}\n", "norm of the block", "validation", "less best",
        "largest gradient", "stream grows by");
  for (const Result& r : results)
    print("{:<28} {:>10.4f} {:>10.4f} {:>16.3f} {:>17.1f}×\n", r.variant.name, r.validation,
          r.validation - best, r.largest_gradient, r.after.back() / r.after.front());
  try {
    draw(results, best, "gated_norm_place.png");
    print("\nThe picture is gated_norm_place.png.\n");
  } catch (const IOError& error) {
    print("\nNo picture: {}\n", error.what());
  }
  print(
      "What to see: at this size the losses are close; the norm decides how loudly a block writes. "
      "With one, each block adds about as much whatever its recurrence gave, and the stream grows "
      "with the depth; without one the blocks go on as quietly as they start. Before the gate the "
      "norm leaves a token's size to the gate, behind it to the weight.\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "300";
  const long steps = std::strtol(first.c_str(), nullptr, 10);
  if (argc > 2 || steps < 1) {
    std::printf(
        "usage: gated_norm_place [steps]\n"
        "Trains a Mamba-2 block with its norm in six places; writes gated_norm_place.png.\n");
    return first == "--help" || first == "-h" ? 0 : 2;
  }
  try {
    return run(steps);
  } catch (const Error& error) {
    std::fprintf(stderr, "gated_norm_place: %s\n", error.what());
    return 1;
  }
}
