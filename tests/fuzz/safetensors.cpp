// Any bytes are tensors or an IOError: no crash, no read outside the file, no memory beyond it.
#include "norma/core/safetensors.h"

#include "memory_file.h"
#include "norma/core/error.h"
#include "norma/core/tensor.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const norma::testing::MemoryFile file(data, size);
  try {
    for (const auto& [name, tensor] : norma::load_safetensors(file.path()).tensors)
      tensor.to_vector<double>();
  } catch (const norma::IOError&) {
  }
  return 0;
}
