#include "norma/core/allocator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace norma {
namespace {

struct Block {
  void* p;
  size_t bytes;
};

TEST(Allocator, ClassesAreTheSmallestThatFitAndWasteAtMostAQuarter) {
  for (size_t bytes = 0; bytes < 300'000; bytes += 13) {
    const int c = detail::size_class(bytes);
    EXPECT_GE(detail::class_bytes(c), bytes);
    EXPECT_EQ(detail::class_bytes(c) % 64, 0u);
    if (c > 0) {
      EXPECT_LT(detail::class_bytes(c - 1), bytes);
    }
    if (bytes > 1024) {
      EXPECT_LE(detail::class_bytes(c) * 4, bytes * 5);
    }
  }
}

TEST(Allocator, BlocksAreAlignedApartAndTheirOwn) {
  std::vector<Block> blocks;
  for (size_t bytes : {0u, 1u, 64u, 65u, 1000u, 1025u, 65536u, 65537u, 1u << 20, 5u << 20}) {
    for (int copy = 0; copy < 3; ++copy) {
      void* p = allocate(bytes);
      EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % 64, 0u);
      std::memset(p, static_cast<int>(blocks.size()), bytes);
      blocks.push_back({p, bytes});
    }
  }
  for (size_t i = 0; i < blocks.size(); ++i) {
    const auto* bytes = static_cast<const unsigned char*>(blocks[i].p);
    for (size_t b = 0; b < blocks[i].bytes; b += 61) ASSERT_EQ(bytes[b], i);
    deallocate(blocks[i].p, blocks[i].bytes);
  }
}

TEST(Allocator, RepeatedWorkAsksTheSystemForNothing) {
  const auto step = [] {
    std::vector<Block> blocks;
    for (size_t bytes = 8; bytes < (8 << 20); bytes += bytes / 3 + 8)
      blocks.push_back({allocate(bytes), bytes});
    for (Block b : blocks) deallocate(b.p, b.bytes);
  };
  step();
  const MemoryStats before = memory_stats();
  for (int i = 0; i < 10; ++i) step();
  EXPECT_EQ(memory_stats().system_allocations, before.system_allocations);
  EXPECT_EQ(memory_stats().reserved, before.reserved);
}

TEST(Allocator, StatisticsCountWhatIsInUse) {
  const MemoryStats before = memory_stats();
  void* small = allocate(100);
  void* large = allocate(1 << 20);
  EXPECT_EQ(memory_stats().allocated, before.allocated + 128 + (1 << 20));
  EXPECT_GE(memory_stats().peak, memory_stats().allocated);
  EXPECT_GE(memory_stats().reserved, memory_stats().allocated);
  deallocate(small, 100);
  deallocate(large, 1 << 20);
  EXPECT_EQ(memory_stats().allocated, before.allocated);
}

TEST(Allocator, EmptyCacheGivesLargeBlocksBack) {
  deallocate(allocate(4 << 20), 4 << 20);
  const MemoryStats before = memory_stats();
  empty_cache();
  EXPECT_LE(memory_stats().reserved, before.reserved - (4 << 20));
}

TEST(Allocator, MemoryThatBlocksShareGoesBackOnceNoneIsInUse) {
  constexpr size_t kBytes = 1 << 20;
  constexpr int64_t kShared = 32 << 20;
  empty_cache();
  const int64_t before = memory_stats().reserved;
  std::vector<void*> blocks;
  for (int i = 0; i < 80; ++i) {
    blocks.push_back(allocate(kBytes));
    std::memset(blocks.back(), i, kBytes);
  }
  const int64_t most = memory_stats().reserved;
  const auto* kept = static_cast<unsigned char*>(blocks.back());
  blocks.pop_back();
  for (void* p : blocks) deallocate(p, kBytes);
  empty_cache();
  EXPECT_LE(memory_stats().reserved, most - kShared) << "one is shared by freed blocks alone";
  EXPECT_TRUE(std::all_of(kept, kept + kBytes, [](unsigned char c) { return c == 79; }));
  deallocate(const_cast<unsigned char*>(kept), kBytes);
  empty_cache();
  EXPECT_LE(memory_stats().reserved, before + kShared) << "the first may be shared with others";
}

TEST(Allocator, BlocksMayBeFreedOnAnotherThreadWithoutGrowth) {
  const auto round = [] {
    std::vector<Block> blocks;
    for (int i = 0; i < 40'000; ++i) blocks.push_back({allocate(64), 64});
    std::thread([&] {
      for (Block b : blocks) deallocate(b.p, b.bytes);
    }).join();
  };
  round();
  round();
  const MemoryStats before = memory_stats();
  for (int i = 0; i < 8; ++i) round();
  // Without passing blocks on, each round would take 2.5 MB anew.
  EXPECT_LE(memory_stats().reserved, before.reserved + (2 << 20));
}

TEST(Allocator, RandomTrafficOnSeveralThreadsKeepsContents) {
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 3; ++seed)
    threads.emplace_back([seed] {
      std::mt19937 draw(seed);
      std::vector<Block> live;
      for (int i = 0; i < 20'000; ++i) {
        if (live.size() > 50 || (!live.empty() && draw() % 2)) {
          std::swap(live[draw() % live.size()], live.back());
          const Block b = live.back();
          live.pop_back();
          ASSERT_EQ(*static_cast<size_t*>(b.p), b.bytes + seed);
          deallocate(b.p, b.bytes);
        } else {
          const size_t bytes = sizeof(size_t) + draw() % (size_t{1} << (4 + draw() % 15));
          live.push_back({allocate(bytes), bytes});
          *static_cast<size_t*>(live.back().p) = bytes + seed;
        }
      }
      for (Block b : live) deallocate(b.p, b.bytes);
    });
  for (auto& thread : threads) thread.join();
}

TEST(Allocator, AnImpossibleSizeIsNamed) {
  const size_t bytes = size_t{1} << 60;  // beyond any address space
  try {
    allocate(bytes);
    FAIL() << "no OutOfMemory";
  } catch (const OutOfMemory& error) {
    EXPECT_EQ(std::string(error.what()),
              "allocate: the system must have 1152921504606846976 bytes, but has no such block "
              "left");
  }
}

/// Its block dies after the main thread's thread-locals and the other statics.
struct Static {
  void* p = allocate(1000);
  ~Static() { deallocate(p, 1000); }
} outlives_thread_locals;

#ifdef NORMA_ASAN
TEST(AllocatorDeathTest, UseAfterFreeAndOverrunAreFoundUnderASan) {
  for (size_t bytes : {100u, 100'000u}) {
    auto* p = static_cast<volatile char*>(allocate(bytes));
    EXPECT_DEATH(p[bytes] = 1, "use-after-poison");
    deallocate(const_cast<char*>(p), bytes);
    EXPECT_DEATH(p[0] = 1, "use-after-poison");
  }
}
#endif

}  // namespace
}  // namespace norma
