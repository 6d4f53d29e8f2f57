#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace norma {

// How the blocks of one launch share one or two small products: by their sizes alone, so that the
// same products together have the same bits.

inline constexpr int kSmallTile = 32, kSmallWarps = 16, kSmallDepth = 16;

struct SmallSize {
  int64_t rows, cols, depth;
};
/// A block has row_tiles × col_tiles tiles of the product, among which its warps are shared evenly.
struct SmallShare {
  int row_tiles = 1, col_tiles = 1;

  int tiles() const { return row_tiles * col_tiles; }
  int64_t col_blocks(const SmallSize& s) const;
  int64_t blocks(const SmallSize& s) const;
};

inline constexpr int64_t kSmallBlocks = 132;  ///< an H100's multiprocessors; on others all the same
/// For what runs beside the products that a sweep waits for, which have 96 (H100: a toy step takes
/// 0.283 ms with 48, 0.288 with 72, 0.279 with 100 and 0.296 with all).
inline constexpr int64_t kSmallBlocksAside = 100;

std::array<SmallShare, 2> plan_small(std::span<const SmallSize> products,
                                     int64_t blocks_at_once = kSmallBlocks);

}  // namespace norma
