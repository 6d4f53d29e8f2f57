#pragma once

#include "norma/nn/language_model.h"

namespace norma::nn {

/// The language model whose layers are attention and an MLP: what LanguageModel is by default.
using Transformer = LanguageModel;
using TransformerOptions = LanguageModelOptions;

}  // namespace norma::nn
