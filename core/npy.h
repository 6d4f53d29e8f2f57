#pragma once

#include <string>

namespace norma {

class Tensor;

/// Writes t in NumPy's format (numpy.lib.format, version 1.0), for numpy.load to read; the file
/// appears whole or not at all. t: any device, strides and dtype but bfloat16, which NumPy
/// lacks: DTypeError. Throws IOError.
void save_npy(const std::string& path, const Tensor& t);

/// What numpy.save wrote, versions 1.0 to 3.0, as a tensor on the CPU. An array in Fortran order
/// becomes a tensor with those strides, without a copy. Throws IOError naming the path, what the
/// format wants and what came, for a malformed file, for big-endian elements and for dtypes other
/// than float64, float32, float16, int64, int32 and bool.
Tensor load_npy(const std::string& path);

}  // namespace norma
