// Any bytes are a tensor or an IOError: no crash, no read outside the file, no memory beyond it.
#include "norma/core/npy.h"

#include "memory_file.h"
#include "norma/core/error.h"
#include "norma/core/tensor.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const norma::testing::MemoryFile file(data, size);
  try {
    norma::load_npy(file.path()).to_vector<double>();
  } catch (const norma::IOError&) {
  }
  return 0;
}
