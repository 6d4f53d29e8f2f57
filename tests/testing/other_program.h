#pragma once

#include <sys/types.h>

namespace norma::testing {

/// Products of matrices on the GPU, for as long as the program that started this one lives: what
/// `norma_tests_ops --keep-the-gpu-busy` does.
[[noreturn]] void keep_the_gpu_busy();

/// This program once more, which keeps the GPU busy beside it while one lives.
class OtherProgram {
 public:
  OtherProgram();
  ~OtherProgram();
  OtherProgram(const OtherProgram&) = delete;
  OtherProgram& operator=(const OtherProgram&) = delete;
  bool runs() const;

 private:
  pid_t process_ = 0;
  int status_ = 0;
};

}  // namespace norma::testing
