#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "norma/core/tensor.h"

namespace norma {

/// Tensors by name in an order, and texts by key: what one .safetensors file holds.
struct Safetensors {
  std::vector<std::pair<std::string, Tensor>> tensors;
  std::map<std::string, std::string> metadata;
  std::string path;  ///< where they were read from, for errors

  /// The tensor of that name; IOError naming the path where there is none.
  const Tensor& at(std::string_view name) const;
};

/// Writes tensors of any device, dtype and strides, in the safetensors format
/// (github.com/huggingface/safetensors); the file appears whole or not at all. Names keep their
/// order; the elements lie aligned, the widest dtypes first. Throws ValueError for a name given
/// twice or reserved and for text that is not UTF-8, IOError.
void save_safetensors(const std::string& path,
                      const std::vector<std::pair<std::string, Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

/// What save_safetensors or the Python package wrote, on the CPU, in the header's order. Dtypes
/// F64 F32 F16 BF16 I64 I32 BOOL. Throws IOError naming the path, the tensor, what the format
/// wants and what came: a header that is no JSON or over 100 MB, names twice, elements that
/// overlap, leave holes or do not fit shape and dtype.
Safetensors load_safetensors(const std::string& path);

}  // namespace norma
