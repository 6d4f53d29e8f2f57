#pragma once

#include <string>

#include "norma/nn/transformer.h"

namespace norma::nn {

/// As small a transformer as has everything, on two layers.
inline TransformerOptions tiny(const std::string& placement = "pre") {
  return {.vocab_size = 7,
          .context = 5,
          .n_layers = 2,
          .n_heads = 2,
          .d_model = 8,
          .placement = placement};
}

}  // namespace norma::nn
