// norma sample: text from a trained run.
#include <chrono>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "norma/core/error.h"
#include "norma/core/format.h"
#include "norma/nn/generate.h"
#include "norma/nn/run_folder.h"
#include "norma/nn/trainer.h"

namespace {

using namespace norma;
using namespace norma::nn;

struct SampleSettings {
  std::string run, prompt, device = "best", precision;
  GenerateOptions generate;
};

void run_sample(const SampleSettings& s) {
  LoadedModel loaded = load_model(RunFolder::open(s.run).latest_checkpoint());
  std::vector<int32_t> prompt = loaded.vocabulary.encode(s.prompt);
  GenerateOptions options = s.generate;
  const PrecisionScope scope(s.precision.empty() ? loaded.info.options.precision : s.precision);
  if (const Device d = device_from_string(s.device); d.is_cuda()) to(*loaded.model, d);
  if (loaded.info.options.text.empty() && loaded.info.options.tokens.empty()) {
    const Prompt own = make_dataset(loaded.info.options)->prompt();
    options.end = own.end;
    // A sentence begins where the data's own rows begin.
    prompt.insert(prompt.begin(), own.tokens.begin(), own.tokens.end());
  } else if (prompt.empty()) {
    prompt = {0};
  }
  std::fputs(s.prompt.c_str(), stdout);
  const auto begin = std::chrono::steady_clock::now();
  const auto made = generate(*loaded.model, prompt, options, [&](int32_t token) {
    if (loaded.vocabulary.kind() != Vocabulary::Kind::bytes) std::fputc(' ', stdout);
    std::fputs(loaded.vocabulary.decode({&token, 1}).c_str(), stdout);
    std::fflush(stdout);
  });
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
  print("\n({} tokens, {:.0f} tokens/s)\n", made.size(),
        static_cast<double>(made.size()) / took.count());
}

}  // namespace

void add_sample(CLI::App& app) {
  auto s = std::make_shared<SampleSettings>();
  Command sample(app, "sample", "Generate text from a run.");
  sample.option("run", s->run, "the run's folder").required();
  sample.option("--prompt", s->prompt, "what the text begins with");
  sample.option("--length", s->generate.length, "tokens to add").shows_default();
  sample
      .option("--temperature", s->generate.temperature,
              "below 1 safer, above 1 wilder, 0 always the likeliest")
      .shows_default();
  sample.option("--top-k", s->generate.top_k, "choose among the k likeliest; 0: all")
      .shows_default();
  sample.option("--seed", s->generate.seed, "another seed, another text").shows_default();
  sample.option("--device", s->device, "cpu, cuda, cuda:N, or best").shows_default();
  sample.option("--precision", s->precision, "fp32, tf32, bf16 or fp16; default: the run's");
  sample.runs([s] { run_sample(*s); });
}
