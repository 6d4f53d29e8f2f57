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

std::array<SmallShare, 2> plan_small(std::span<const SmallSize> products);

}  // namespace norma
