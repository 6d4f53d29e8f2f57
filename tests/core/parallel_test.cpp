#include "norma/core/parallel.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "norma/core/error.h"

namespace norma {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
#else
constexpr bool kThreadSanitizer = false;
#endif

class Parallel : public ::testing::Test {
 protected:
  void TearDown() override { set_num_threads(before_); }
  const int before_ = num_threads();
};

template <class F>
std::string value_error(const F& f) {
  try {
    f();
  } catch (const ValueError& error) {
    return error.what();
  }
  return "no ValueError";
}

TEST_F(Parallel, EachBlockRunsOnceAtEveryThreadCount) {
  for (int threads : {1, 2, 3, 8}) {
    set_num_threads(threads);
    EXPECT_EQ(num_threads(), threads);
    for (int64_t blocks : {0, 1, 2, 7, 1000}) {
      std::vector<int> runs(static_cast<size_t>(blocks), 0);
      parallel_for(blocks, [&](int64_t b) { ++runs[static_cast<size_t>(b)]; });
      EXPECT_EQ(runs, std::vector<int>(runs.size(), 1)) << threads << " threads";
    }
  }
}

TEST_F(Parallel, AThreadBeginsWithItsOwnShareOfEveryJob) {
  set_num_threads(2);
  for (int job = 0; job < 3; ++job) {
    std::array<int, 8> order = {};
    std::array<std::thread::id, 8> thread;
    std::atomic<int> begun = 0;
    std::atomic<bool> half_begun[2] = {false, false};
    parallel_for(8, [&](int64_t b) {
      const auto block = static_cast<size_t>(b);
      order[block] = begun++;
      thread[block] = std::this_thread::get_id();
      // A thread that had to wait for the processor would find its share taken by the other.
      if (b % 4 == 0) {
        half_begun[b / 4] = true;
        while (!half_begun[1 - b / 4]) std::this_thread::yield();
      }
    });
    EXPECT_EQ(thread[0], std::this_thread::get_id());
    EXPECT_NE(thread[4], std::this_thread::get_id());
    EXPECT_LT(order[4], order[1]);
  }
}

TEST_F(Parallel, ManyShortJobsInARowLoseNoBlock) {
  set_num_threads(4);
  std::atomic<int64_t> runs = 0;
  for (int job = 0; job < 5000; ++job)
    parallel_for(5, [&](int64_t) { runs.fetch_add(1, std::memory_order_relaxed); });
  EXPECT_EQ(runs, 25000);
}

TEST_F(Parallel, SleepingWorkersComeBack) {
  set_num_threads(2);
  std::atomic<int> here = 0;
  for (int job = 0; job < 3; ++job) {
    here = 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // a hundred times the spin
    // Neither block ends before both have begun: impossible on one thread.
    parallel_for(2, [&](int64_t) {
      ++here;
      while (here < 2) std::this_thread::yield();
    });
    EXPECT_EQ(here, 2);
  }
}

TEST_F(Parallel, CallerSleepsThroughALongLastBlock) {
  set_num_threads(2);
  std::atomic<int> done = 0;
  const auto caller = std::this_thread::get_id();
  parallel_for(2, [&](int64_t) {
    if (std::this_thread::get_id() != caller)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    ++done;
  });
  EXPECT_EQ(done, 2);
}

TEST_F(Parallel, NestedCallsRunOnTheirOwnThread) {
  set_num_threads(4);
  std::atomic<int> runs = 0, strayed = 0;
  parallel_for(8, [&](int64_t) {
    const auto self = std::this_thread::get_id();
    parallel_for(8, [&](int64_t) {
      strayed += std::this_thread::get_id() != self;
      ++runs;
    });
  });
  EXPECT_EQ(runs, 64);
  EXPECT_EQ(strayed, 0);
}

TEST_F(Parallel, SeveralCallersGetAllTheirBlocks) {
  set_num_threads(3);
  std::atomic<int> runs = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int job = 0; job < 200; ++job) parallel_for(6, [&](int64_t) { ++runs; });
    });
  for (auto& caller : callers) caller.join();
  EXPECT_EQ(runs, 4 * 200 * 6);
}

TEST_F(Parallel, ExceptionOfABlockReachesTheCallerAndThePoolLives) {
  for (int threads : {1, 3}) {
    set_num_threads(threads);
    for (int job = 0; job < 50; ++job) {
      EXPECT_THROW(parallel_for(100,
                                [](int64_t b) {
                                  if (b % 7 == 3) throw std::out_of_range("block");
                                }),
                   std::out_of_range);
    }
    std::atomic<int> runs = 0;
    parallel_for(100, [&](int64_t) { ++runs; });
    EXPECT_EQ(runs, 100);
  }
}

TEST_F(Parallel, BlocksAreNotBegunAfterAnException) {
  set_num_threads(1);
  int runs = 0;
  EXPECT_THROW(parallel_for(100,
                            [&](int64_t) {
                              ++runs;
                              throw std::out_of_range("first");
                            }),
               std::out_of_range);
  EXPECT_EQ(runs, 1);
}

TEST_F(Parallel, WorkersSeeWhatTheCallerWroteAndTheCallerWhatTheyWrote) {
  set_num_threads(4);
  std::vector<int64_t> values(64, 0);  // no atomics: ThreadSanitizer watches
  for (int round = 0; round < 300; ++round) {
    values[static_cast<size_t>(round) % 64] += 1;
    parallel_for(64, [&](int64_t b) { values[static_cast<size_t>(b)] += 1; });
  }
  EXPECT_EQ(std::accumulate(values.begin(), values.end(), int64_t{0}), 300 * 65);
}

TEST_F(Parallel, AForkedChildHasAPoolOfItsOwn) {
  if (kThreadSanitizer) GTEST_SKIP() << "ThreadSanitizer starts no threads after a fork";
  set_num_threads(3);
  std::atomic<int> runs = 0;
  const auto count = [&](int64_t) { ++runs; };
  parallel_for(10, count);
  const pid_t child = fork();
  if (child == 0) {
    parallel_for(10, count);
    _exit(runs == 20 ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  parallel_for(10, count);
  EXPECT_EQ(runs, 20);
}

TEST_F(Parallel, SplitCoversTheRangeInMultiplesOfTheGrain) {
  for (int64_t n : {0, 1, 63, 64, 65, 8192, 8193, 1'000'003}) {
    const Split s = split(n, 64);
    int64_t next = 0;
    for (int64_t b = 0; b < s.blocks; ++b) {
      EXPECT_EQ(s.begin(b), next);
      EXPECT_LT(s.begin(b), s.end(b));
      EXPECT_EQ(s.begin(b) % 64, 0);
      next = s.end(b);
    }
    EXPECT_EQ(next, n);
    EXPECT_LE(s.blocks, 128);
  }
  static_assert(split(100, 64).blocks == 2);
  static_assert(split(int64_t{1} << 62, 1).blocks == 128);
}

TEST_F(Parallel, ImpossibleThreadCountsAreNamed) {
  EXPECT_EQ(value_error([] { set_num_threads(0); }),
            "set_num_threads: count must be from 1 to 1024, but is 0");
  set_num_threads(2);
  EXPECT_EQ(value_error([] { parallel_for(2, [](int64_t) { set_num_threads(1); }); }),
            "set_num_threads: must be called outside parallel_for, but came from a body");
}

TEST_F(Parallel, AnUnusableEnvironmentVariableIsNamed) {
  for (const char* text : {"0", "two", "4 ", "", "1025"}) {
    setenv("NORMA_THREADS", text, 1);
    const std::string message = "NORMA_THREADS: must be a whole number from 1 to 1024, but is \"" +
                                std::string(text) + "\"; unset it to use every processor";
    EXPECT_EQ(value_error([] { detail::default_num_threads(); }), message);
  }
  setenv("NORMA_THREADS", "7", 1);
  EXPECT_EQ(detail::default_num_threads(), 7);
  unsetenv("NORMA_THREADS");
}

}  // namespace
}  // namespace norma
