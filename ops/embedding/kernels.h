#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

/// Which rows of a table of positions places have, where there is one: place i row first + i %
/// length.
struct PlaceRows {
  int64_t first = 0, length = 1;
};

/// y[i] = table[indices[i]], plus its place's row of `positions` (floating) where there are some.
struct EmbeddingForwardArgs {
  ConstVec indices;
  ConstRows table;
  Rows y;
  ConstRows positions = {};
  PlaceRows places = {};
};
void run(Cpu, const EmbeddingForwardArgs&);
void run(Cuda, const EmbeddingForwardArgs&);

/// dtable[v] = Σ dy[i] over indices[i] = v, and dpositions[r], where there is one, over the places
/// of row r: in the order of i. Floating.
struct EmbeddingBackwardArgs {
  ConstVec indices;
  ConstRows dy;
  Rows dtable;
  Rows dpositions = {};
  PlaceRows places = {};
};
void run(Cpu, const EmbeddingBackwardArgs&);
void run(Cuda, const EmbeddingBackwardArgs&);

}  // namespace norma
