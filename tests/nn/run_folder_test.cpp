#include "norma/nn/run_folder.h"

#include <cstdlib>
#include <filesystem>

#include "norma/core/file.h"
#include "testing/compare.h"

namespace norma::nn {
namespace {

/// A folder that goes with the test.
class RunFolderTest : public ::testing::Test {
 protected:
  RunFolderTest() {
    std::string name = ::testing::TempDir() + "norma-XXXXXX";
    path = mkdtemp(name.data());
  }
  ~RunFolderTest() override { std::filesystem::remove_all(path); }
  std::string path;
};

TEST_F(RunFolderTest, KeepsTheLastTwoCheckpointsAndTheBest) {
  const RunFolder run = RunFolder::create(path + "/a/b");
  for (int64_t step : {100, 200, 300, 400, 1000000})
    write_file_atomically(run.checkpoint_path(step), "x");
  run.keep_last_two_and(200);
  EXPECT_EQ(run.checkpoints(), (std::vector<int64_t>{200, 400, 1000000}));
  EXPECT_EQ(run.latest_checkpoint(), path + "/a/b/step-1000000.safetensors");
  EXPECT_EQ(run.checkpoint_path(7), path + "/a/b/step-000007.safetensors");
}

TEST_F(RunFolderTest, MetricsAreCutBackToTheCheckpoint) {
  const RunFolder run = RunFolder::create(path);
  run.append({{.step = 1, .loss = 2.5, .grad_norm = 1, .lr = 1e-3, .tokens_per_second = 100}});
  run.append({{.step = 2, .loss = 2.25, .validation = 2.125, .lr = 1e-3}, {.step = 3, .loss = 2}});
  std::FILE* file = std::fopen(run.metrics_path().c_str(), "a");
  std::fputs("4,1.", file);  // a write that was cut short
  std::fclose(file);
  run.cut_metrics(2);
  EXPECT_EQ(read_file(run.metrics_path()),
            "step,loss,validation,grad_norm,lr,tokens_per_second\n"
            "1,2.500000,,1.000000,1.000000e-03,100\n"
            "2,2.250000,2.125000,0.000000,1.000000e-03,0\n");
}

TEST_F(RunFolderTest, NeverWritesOverARun) {
  const RunFolder run = RunFolder::create(path);
  write_file_atomically(run.config_path(), "{}");
  EXPECT_THROW_MSG(RunFolder::create(path), IOError,
                   path + ": the folder must be new, but holds a run; go on with it by --resume " +
                       path + " or name another by --out");
  EXPECT_THROW_MSG(RunFolder::open(path + "/none"), IOError,
                   path + "/none: the folder must hold a run, but has no config.json");
  EXPECT_THROW_MSG(run.latest_checkpoint(), IOError,
                   path + ": the run must have a checkpoint, but stopped before its first one");
}

}  // namespace
}  // namespace norma::nn
