// A training step (forward, backward, clipping, AdamW) of nanoGPT's models and Mamba's on random
// tokens; beside it bench/peers/train_gpu.py and bench/peers/mamba_gpu.py time the same in Python.
//   build/cuda-hopper/bench/train [toy] [char] [gpt2] [mamba1] [mamba2] [toy-mamba2]
//     [--device NAME] [--precision NAME] [--profile] [--nodes]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "norma/core/capture.h"
#include "norma/core/cuda/allocator.h"
#include "norma/core/format.h"
#include "norma/core/random.h"
#include "norma/nn/language_model.h"
#include "norma/nn/optimizer.h"
#include "norma/nn/profiler.h"
#include "norma/nn/trainer.h"
#include "norma/ops/cross_entropy/cross_entropy.h"

namespace {

using namespace norma;
using namespace norma::nn;

struct Case {
  const char* name;
  LanguageModelOptions model;
  int64_t batch;
  const char* precision;
  int steps;
};

std::vector<Case> cases() {
  const auto gpt = [](int64_t layers, int64_t heads, int64_t width, int64_t context,
                      int64_t vocabulary) {
    LanguageModelOptions o;
    o.vocab_size = vocabulary, o.context = context, o.n_layers = layers, o.n_heads = heads;
    o.d_model = width, o.norm = "layer", o.mlp = MlpKind::gelu_tanh;
    o.positions = Positions::learned;
    return o;
  };
  const auto mamba = [](const char* kind, int64_t layers, int64_t width, int64_t context,
                        int64_t vocabulary) {
    LanguageModelOptions o;
    o.vocab_size = vocabulary, o.context = context, o.n_layers = layers, o.d_model = width;
    o.layers = kind;
    return o;
  };
  return {{"toy", gpt(4, 4, 128, 64, 65), 12, "tf32", 400},
          {"char", gpt(6, 6, 384, 256, 65), 64, "bf16", 200},
          {"gpt2", gpt(12, 12, 768, 1024, 50304), 32, "bf16", 20},
          {"mamba1", mamba("mamba1", 24, 768, 1024, 50288), 16, "bf16", 20},
          {"mamba2", mamba("mamba2", 24, 768, 1024, 50288), 16, "bf16", 20},
          {"toy-mamba2", mamba("mamba2", 4, 128, 64, 65), 12, "tf32", 400}};
}

double seconds_a_step(int steps, Device device, const auto& step) {
  synchronize(device);
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < steps; ++i) step();
  synchronize(device);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() / steps;
}

void run(const Case& c, Device device, const std::string& precision, bool with_profile,
         bool with_nodes) {
  const PrecisionScope scope(precision);
  const DefaultDevice there(device);
  manual_seed(1);
  LanguageModel model(c.model);
  to(model, device);
  AdamW adam(decay_groups(named_parameters(model), 0.1), {.lr = 1e-3, .beta2 = 0.95});
  if (precision == "fp16") adam.use_loss_scaling();
  const Tensor inputs = randint(0, c.model.vocab_size, {c.batch, c.model.context}, int32);
  const Tensor targets = randint(0, c.model.vocab_size, {c.batch, c.model.context}, int32);
  const auto step = [&](const Tensor& x, const Tensor& y) {
    const Tensor loss = cross_entropy(model(x), y, {.in_place = true});
    adam.scaled(loss).backward();
    adam.clip(1);
    adam.step();
    adam.zero_grad();
    return loss.detach();
  };
  const auto report = [&](const char* mode, double seconds, double loss) {
    std::printf(
        "%s",
        format("{:<10} {:<5} {:<8} {:>9.3f} ms a step {:>12.0f} tokens/s  loss {:.4f}\n", c.name,
               precision, mode, 1e3 * seconds, static_cast<double>(inputs.numel()) / seconds, loss)
            .c_str());
    std::fflush(stdout);
  };
  const int steps = device.is_cuda() ? c.steps : std::max(1, c.steps / 20);
  Tensor loss;
  for (int i = 0; i < 3; ++i) loss = step(inputs, targets);
  const double first_loss = loss.item();
  report("eager", seconds_a_step(steps, device, [&] { step(inputs, targets); }), first_loss);
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) {
      const MemoryStats stats = memory_stats(device);
      std::printf("%s", format("{:<10} peak {:.2f} GiB in use, {:.2f} GiB reserved\n", c.name,
                               static_cast<double>(stats.peak) / (1 << 30),
                               static_cast<double>(stats.reserved) / (1 << 30))
                            .c_str());
      reset_peak(device);
    }
  if (with_profile) {
    Profiler profiler(device);
    for (int i = 0; i < 6; ++i) {
      profiler.begin_step();
      const Tensor l = cross_entropy(model(inputs), targets, {.in_place = true});
      adam.scaled(l).backward();
      adam.clip(1);
      profiler.mark("gradient norm");
      adam.step();
      profiler.mark("optimizer");
      adam.zero_grad();
      profiler.end_step();
    }
    std::printf("%s", profiler.table().c_str());
  }
  auto captured = capture(step);
  for (int i = 0; i < 4; ++i) loss = captured(inputs, targets);
  const double seconds = seconds_a_step(steps, device, [&] { loss = captured(inputs, targets); });
  report("captured", seconds, loss.item());
  if (with_nodes) std::printf("%s", captured.graph_nodes().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> names;
  std::string device = "best", precision;
  bool with_profile = false, with_nodes = false;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--device" && i + 1 < argc)
      device = argv[++i];
    else if (word == "--precision" && i + 1 < argc)
      precision = argv[++i];
    else if (word == "--profile")
      with_profile = true;
    else if (word == "--nodes")
      with_nodes = true;
    else
      names.push_back(word);
  }
  try {
    for (const Case& c : cases())
      if (names.empty() || std::find(names.begin(), names.end(), c.name) != names.end())
        run(c, device_from_string(device), precision.empty() ? c.precision : precision,
            with_profile, with_nodes);
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
