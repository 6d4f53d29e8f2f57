#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "norma/nn/language_model.h"

namespace norma::nn {

struct GenerateOptions {
  int64_t length = 200;    ///< tokens to add
  double temperature = 1;  ///< logits are divided by it; 0: always the likeliest
  int64_t top_k = 0;       ///< choose among the k likeliest; 0: all
  uint64_t seed = 1;
  std::optional<int32_t> end = none;  ///< stop after this token
};

/// Goes on from `prompt`, token by token; returns what was added. The model sees its last `context`
/// tokens. `seen` is called with each token as it comes. Draws from a generator of its own:
/// sampling does not change a training run. ValueError for an empty prompt and impossible options.
std::vector<int32_t> generate(LanguageModel& model, const std::vector<int32_t>& prompt,
                              const GenerateOptions& options = {},
                              const std::function<void(int32_t)>& seen = nullptr);

}  // namespace norma::nn
