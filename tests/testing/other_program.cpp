#include "testing/other_program.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include "norma/core/random.h"
#include "norma/ops/matmul/matmul.h"

namespace norma::testing {

void keep_the_gpu_busy() {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const Tensor a = randn({8192, 8192}, bfloat16, cuda);
  Tensor b = empty_like(a);
  for (;;) {
    for (int i = 0; i < 10; ++i) matmul(a, a), b.copy_(a);
    synchronize(cuda);
  }
}

OtherProgram::OtherProgram() {
  std::string name = "/proc/self/exe", what = "--keep-the-gpu-busy";
  char* const arguments[] = {name.data(), what.data(), nullptr};
  posix_spawn_file_actions_t silent;
  posix_spawn_file_actions_init(&silent);
  posix_spawn_file_actions_addopen(&silent, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  status_ = posix_spawn(&process_, name.c_str(), &silent, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&silent);
}
OtherProgram::~OtherProgram() {
  if (status_ != 0) return;
  kill(process_, SIGKILL);
  waitpid(process_, nullptr, 0);
}
bool OtherProgram::runs() const { return status_ == 0 && waitpid(process_, nullptr, WNOHANG) == 0; }

}  // namespace norma::testing
