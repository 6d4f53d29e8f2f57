#pragma once

#include "norma/core/device.h"
#include "norma/core/view.h"

namespace norma {

/// Row by row: y[i] = x[index[i]].
struct GatherArgs {
  ConstRows x, index;
  Rows y;
};
void run(Cpu, const GatherArgs&);
void run(Cuda, const GatherArgs&);

/// Row by row: y = 0, then y[index[i]] += src[i] in the order of i.
struct ScatterArgs {
  ConstRows src, index;
  Rows y;
};
void run(Cpu, const ScatterArgs&);
void run(Cuda, const ScatterArgs&);

/// Row by row the indices of the k = y.cols largest.
struct TopKArgs {
  ConstRows x;
  Rows indices;
};
void run(Cpu, const TopKArgs&);
void run(Cuda, const TopKArgs&);

}  // namespace norma
