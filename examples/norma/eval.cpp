// norma eval: the loss of a trained run, on its own validation data or on any text.
#include <cmath>
#include <cstdio>
#include <memory>

#include "commands.h"
#include "norma/core/format.h"
#include "norma/nn/data/text.h"
#include "norma/nn/run_folder.h"
#include "norma/nn/trainer.h"

namespace {

using namespace norma;
using namespace norma::nn;

void run_eval(const std::string& run, const std::string& text, const std::string& device,
              const std::string& precision) {
  LoadedModel loaded = load_model(RunFolder::open(run).latest_checkpoint());
  const PrecisionScope scope(precision.empty() ? loaded.info.options.precision : precision);
  if (const Device d = device_from_string(device); d.is_cuda()) to(*loaded.model, d);
  std::unique_ptr<Dataset> data;
  if (text.empty())
    data = make_dataset(loaded.info.options,
                        loaded.info.options.text.empty() && loaded.info.options.tokens.empty()
                            ? ""
                            : loaded.info.vocabulary);
  else
    data = std::make_unique<TextDataset>(
        TextDataset::open(text, {.context = loaded.model->options.context,
                                 .train_share = 0,
                                 .vocabulary = loaded.info.vocabulary}));
  const Evaluation e = evaluate(*loaded.model, *data);
  std::string line =
      format("{}: loss {:.4f} ± {:.4f} nats ({:.4f} bits, perplexity {:.2f}) over {} tokens",
             data->name(), e.loss, e.error, e.loss / std::log(2.0), std::exp(e.loss), e.tokens);
  if (e.gap) line += format(", {:+.4f} from the best possible", *e.gap);
  if (e.exact) line += format(", {:.1f} % answered right", 100 * *e.exact);
  std::printf("%s\n", line.c_str());
}

}  // namespace

void add_eval(CLI::App& app) {
  struct Settings {
    std::string run, text, device = "best", precision;
  };
  auto s = std::make_shared<Settings>();
  Command eval(app, "eval", "The loss of a run, with its standard error.");
  eval.option("run", s->run, "the run's folder").required();
  eval.option("--text", s->text, "a file to measure on; default: the run's validation data");
  eval.option("--device", s->device, "cpu, cuda, cuda:N, or best").shows_default();
  eval.option("--precision", s->precision, "fp32, tf32, bf16 or fp16; default: the run's");
  eval.runs([s] { run_eval(s->run, s->text, s->device, s->precision); });
}
