#pragma once

#include <functional>
#include <vector>

#include "norma/core/tensor.h"

namespace norma {

/// f(inputs), remembering the inputs alone: what f's ops would save for backward is thrown away and
/// made again by running f a second time when the sweep arrives (Chen et al. 2016,
/// arXiv:1604.06174). Parameters and other tensors that f reaches by reference get their gradients
/// too. Both runs draw the same random numbers. Derivatives of any order. f must give the same
/// results twice: no state of its own. GraphError where an input was changed in place in between.
std::vector<Tensor> checkpoint(
    const std::function<std::vector<Tensor>(const std::vector<Tensor>&)>& f,
    const std::vector<Tensor>& inputs);

}  // namespace norma
