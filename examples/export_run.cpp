// export_run CONFIG.json FOLDER: what a run begins with and learns from, for another framework to
// train on: its weights (initial.safetensors, a checkpoint of step 0) and, as .npy files, the token
// ids of every step's batch and the whole validation part.
#include <cstdio>
#include <filesystem>

#include "norma/norma.h"

using namespace norma;

namespace {

void export_run(const std::string& config, const std::string& folder) {
  nn::TrainOptions options;
  nn::set_from_json(options, read_file(config), config);
  std::filesystem::create_directories(folder);
  const nn::Trainer trainer(options);
  trainer.save(folder + "/initial.safetensors");

  const nn::Dataset& data = trainer.dataset();
  std::vector<Tensor> inputs, targets;
  for (int64_t step = 0; step < options.steps; ++step) {
    const nn::Batch batch = data.batch(nn::Part::train, options.seed, step, options.batch);
    inputs.push_back(batch.inputs);
    targets.push_back(batch.targets);
  }
  save_npy(folder + "/inputs.npy", stack(inputs, 0));
  save_npy(folder + "/targets.npy", stack(targets, 0));
  const nn::Batch validation = data.validation_batch(0, data.validation_rows());
  save_npy(folder + "/validation_inputs.npy", validation.inputs);
  save_npy(folder + "/validation_targets.npy", validation.targets);
  std::printf("%s: %lld steps of %lld rows of %lld tokens, and %lld rows to validate on\n",
              folder.c_str(), static_cast<long long>(options.steps),
              static_cast<long long>(options.batch), static_cast<long long>(data.context()),
              static_cast<long long>(data.validation_rows()));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: export_run CONFIG.json FOLDER\n");
    return 2;
  }
  try {
    export_run(argv[1], argv[2]);
  } catch (const Error& error) {
    std::fprintf(stderr, "export_run: %s\n", error.what());
    return 1;
  }
  return 0;
}
