#pragma once

#include "norma/core/device.h"
#include "norma/core/error.h"
#include "norma/core/view.h"

namespace norma {

/// Which rows of a table of positions places have, where there is one: place i row first + i %
/// length.
struct PlaceRows {
  int64_t first = 0, length = 1;
};

/// y[i] = table[indices[i]], plus its place's row of `positions` (floating) where there are some. y
/// may be of a half type beside a table of float32.
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
/// of row r: in the order of i. Floating; dy may be of a half type beside float32.
struct EmbeddingBackwardArgs {
  ConstVec indices;
  ConstRows dy;
  Rows dtable;
  Rows dpositions = {};
  PlaceRows places = {};
  bool add = false;  ///< dtable[v] += instead, on a GPU
};
void run(Cpu, const EmbeddingBackwardArgs&);
void run(Cuda, const EmbeddingBackwardArgs&);

/// Calls f with the types of the rows that are many and of a table's: the same, or a half type and
/// float.
template <class F>
void visit_rows(DType rows, DType table, F&& f) {
  visit_floating(rows, [&]<class T>() {
    if (table == rows) return f.template operator()<T, T>();
    if constexpr (sizeof(T) == 2) return f.template operator()<T, float>();
    throw DTypeError("embedding: rows of {} and a table of {} must go together, but do not",
                     to_string(rows), to_string(table));
  });
}

}  // namespace norma
