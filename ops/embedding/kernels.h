#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

/// y[i] = table[indices[i]]
struct EmbeddingForwardArgs {
  ConstVec indices;
  ConstRows table;
  Rows y;
};
void run(Cpu, const EmbeddingForwardArgs&);
void run(Cuda, const EmbeddingForwardArgs&);

/// dtable[v] = Σ dy[i] over indices[i] = v, in the order of i
struct EmbeddingBackwardArgs {
  ConstVec indices;
  ConstRows dy;
  Rows dtable;
};
void run(Cpu, const EmbeddingBackwardArgs&);
void run(Cuda, const EmbeddingBackwardArgs&);

}  // namespace norma
