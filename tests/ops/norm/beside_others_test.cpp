// Another program on the GPU: the GPU goes from one to the other in the midst of kernels, which
// shows what a kernel does that holds only where it runs undisturbed.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "norma/core/random.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

/// What the other program runs.
TEST(OtherProgram, DISABLED_KeepsTheGpuBusy) {
  const Tensor a = randn({8192, 8192}, bfloat16, cuda);
  Tensor b = empty_like(a);
  for (;;) {
    for (int i = 0; i < 10; ++i) matmul(a, a), b.copy_(a);
    synchronize(cuda);
  }
}

/// Runs beside this one, while it lives.
class OtherProgram {
 public:
  OtherProgram() {
    std::string name = "/proc/self/exe", filter = "--gtest_filter=OtherProgram.*",
                disabled = "--gtest_also_run_disabled_tests";
    char* const arguments[] = {name.data(), filter.data(), disabled.data(), nullptr};
    posix_spawn_file_actions_t silent;
    posix_spawn_file_actions_init(&silent);
    posix_spawn_file_actions_addopen(&silent, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    status_ = posix_spawn(&process_, name.c_str(), &silent, nullptr, arguments, environ);
    posix_spawn_file_actions_destroy(&silent);
  }
  ~OtherProgram() {
    if (status_ != 0) return;
    kill(process_, SIGKILL);
    waitpid(process_, nullptr, 0);
  }
  OtherProgram(const OtherProgram&) = delete;
  OtherProgram& operator=(const OtherProgram&) = delete;
  bool runs() const { return status_ == 0 && waitpid(process_, nullptr, WNOHANG) == 0; }

 private:
  pid_t process_ = 0;
  int status_ = 0;
};

/// dw of one input, `times` over. Many in a row, since a program that waits for each result gives
/// the GPU away between kernels and is never interrupted in one.
void expect_repeats(int64_t rows, int64_t cols, DType dtype, int times) {
  manual_seed(4);
  const Tensor x = randn({rows, cols}, dtype, cuda).requires_grad_(),
               w = randn({cols}, float32, cuda).requires_grad_(),
               dy = randn({rows, cols}, dtype, cuda);
  std::vector<Tensor> dws;
  for (int i = 0; i < times; ++i) dws.push_back(grad({layer_norm(x, w)}, {w}, {dy})[0]);
  const Tensor all = concat(dws, 0).to(cpu);
  const auto values = all.span<const float>();
  int wrong = 0;
  for (size_t i = 0; i < values.size(); i += static_cast<size_t>(cols))
    wrong += std::memcmp(&values[i], values.data(), static_cast<size_t>(cols) * sizeof(float)) != 0;
  EXPECT_EQ(wrong, 0) << "of " << times << " of " << rows << " x " << cols << " "
                      << to_string(dtype);
}

TEST(BesideAnotherProgram, WeightGradientsOfNormsRepeatToTheBit) {
  if (default_device().is_cpu()) GTEST_SKIP() << "needs a GPU";
  const OtherProgram other;
  sleep(3);  // until it has the GPU
  ASSERT_TRUE(other.runs());
  for (const DType dtype : {bfloat16, float16, float32}) {
    expect_repeats(768, 128, dtype, 20000);
    expect_repeats(96, 4096, dtype, 5000);
  }
  EXPECT_TRUE(other.runs());
}

}  // namespace
}  // namespace norma
