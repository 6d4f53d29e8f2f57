#include "norma/ops/matmul/small_plan.h"

#include <algorithm>
#include <limits>

namespace norma {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr SmallShare kShares[] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 2}, {2, 4}};
constexpr int64_t kBytesAStep = 8 << 10;  // a warp's instructions for 16 terms, as reading so much

/// What a block takes, in bytes that reach a multiprocessor in that time (40 a ns on an H100,
/// whether others read or not: that is what small products wait for).
int64_t cost(const SmallSize& s, const SmallShare& share) {
  const int64_t steps = ceil_div(s.depth, kSmallDepth);
  const int64_t floats = kSmallTile * (share.row_tiles + share.col_tiles) * steps * kSmallDepth;
  return 4 * floats + kBytesAStep * ceil_div(steps, kSmallWarps / share.tiles());
}

}  // namespace

int64_t SmallShare::col_blocks(const SmallSize& s) const {
  return ceil_div(s.cols, int64_t{col_tiles} * kSmallTile);
}
int64_t SmallShare::blocks(const SmallSize& s) const {
  return ceil_div(s.rows, int64_t{row_tiles} * kSmallTile) * col_blocks(s);
}

std::array<SmallShare, 2> plan_small(std::span<const SmallSize> products, int64_t blocks_at_once) {
  std::array<SmallShare, 2> best;
  const SmallSize absent{0, 0, 0}, &first = products[0],
                                   &second = products.size() > 1 ? products[1] : absent;
  int64_t least = std::numeric_limits<int64_t>::max(), least_sum = least;
  for (const SmallShare& a : kShares)
    for (const SmallShare& b : kShares) {
      const int64_t waves = ceil_div(a.blocks(first) + b.blocks(second), blocks_at_once);
      const int64_t mine = waves * cost(first, a), other = waves * cost(second, b);
      const int64_t longer = std::max(mine, other), sum = mine + other;
      if (longer > least || (longer == least && sum >= least_sum)) continue;
      least = longer, least_sum = sum;
      best = {a, b};
    }
  return best;
}

}  // namespace norma
