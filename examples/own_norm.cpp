// Norms of your own in a model: an equation, a module, a name. Trains the same small model with two
// new norms and with those there are, from the same start on the same sentences.
//   own_norm [steps]   (default 100: about a quarter of a minute on two cores)
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "norma/norma.h"

using namespace norma;

namespace {

/// y = w ⊙ x / (mean|x| + eps): an RMSNorm that takes mean sizes instead of squares. No more is
/// needed to train with it; core/op.h tells how it gets a kernel.
struct MeanAbs {
  static constexpr std::string_view name = "mean_abs";
  static Tensor define(const Tensor& x, const Tensor& w) {
    return w * x / (x.abs().mean(-1, keepdim) + 1e-6);
  }
};

class MeanAbsNorm final : public nn::NormModule {
 public:
  explicit MeanAbsNorm(const nn::NormSpec& s) : weight_(ones({s.dim})) {}
  Tensor forward(const Tensor& x) const override { return apply<MeanAbs>(x, weight_); }
  void visit(nn::Visitor& v) override { v("weight", weight_); }

 private:
  nn::Parameter weight_;
};

/// y = w ⊙ tanh(alpha x), no norm at all (Zhu et al. 2025): the library has the op, not the module.
class DynamicTanh final : public nn::NormModule {
 public:
  explicit DynamicTanh(const nn::NormSpec& s) : alpha_(full({1}, 0.5)), weight_(ones({s.dim})) {}
  Tensor forward(const Tensor& x) const override { return dyt(x, alpha_, weight_); }
  void visit(nn::Visitor& v) override { v("alpha", alpha_), v("weight", weight_); }

 private:
  nn::Parameter alpha_, weight_;
};

int run(int64_t steps) {
  // A run by this name, and its checkpoints, are for programs that know it.
  nn::register_norm("mean-abs",
                    [](const nn::NormSpec& s) { return std::make_unique<MeanAbsNorm>(s); });
  nn::register_norm("dyt", [](const nn::NormSpec& s) { return std::make_unique<DynamicTanh>(s); });
  print("gradcheck of mean-abs: {}\n\n",
        gradcheck<MeanAbs>(randn({3, 7}, float64), randn({7}, float64)));

  print("{:<10}{:>12}{:>12}{:>18}\n", "norm", "validation", "less best", "largest gradient");
  for (const char* norm : {"rms", "layer", "mean-abs", "dyt", "none"}) {
    nn::TrainOptions o;
    o.norm = norm, o.n_layers = 2, o.n_heads = 2, o.d_model = 64;
    o.steps = steps, o.warmup = 20, o.lr = 3e-3, o.clip = 0;  // unclipped, to see the gradients
    nn::Trainer trainer(o);
    double largest = 0;
    while (!trainer.finished()) largest = std::max<double>(largest, trainer.step().grad_norm);
    const nn::Evaluation e = trainer.validate(512);
    print("{:<10}{:>12.4f}{:>12.4f}{:>18.3f}\n", norm, e.loss, *e.gap, largest);
    std::fflush(stdout);
  }
  print(
      "\nWhat to see: rms and layer hardly differ, and an equation of one line keeps up with them. "
      "What does not divide by a row's size (dyt, none) starts from a small stream and learns "
      "later. "
      "One seed, one learning rate and few steps: try others.\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "100";
  const long steps = std::strtol(first.c_str(), nullptr, 10);
  if (argc > 2 || steps < 1) {
    std::printf(
        "usage: own_norm [steps]\n"
        "Trains a small model with two norms defined here, and with the library's own.\n");
    return first == "--help" || first == "-h" ? 0 : 2;
  }
  try {
    return run(steps);
  } catch (const Error& error) {
    std::fprintf(stderr, "own_norm: %s\n", error.what());
    return 1;
  }
}
