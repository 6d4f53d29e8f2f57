#pragma once

#include <string>

#include "norma/core/safetensors.h"

namespace norma::testing {

/// Values that an independent implementation made: tests/golden/NAME.safetensors, written by
/// tests/golden/NAME.py.
class Golden {
 public:
  explicit Golden(const std::string& name)
      : file_(load_safetensors(std::string(NORMA_GOLDEN_DIR) + "/" + name + ".safetensors")) {}
  Tensor operator[](const std::string& key) const { return file_.at(key).to(default_device()); }

 private:
  Safetensors file_;
};

inline Golden golden(const std::string& name) { return Golden(name); }

}  // namespace norma::testing
