#pragma once

#include <cstdint>

#include "norma/core/dtype.h"

namespace norma {

class Tensor;

/// What mixed precision does to the floating arguments of an op (docs/mixed_precision.md lists
/// which op has which rule).
enum class CastRule : uint8_t {
  keep,      ///< nothing: their dtype decides
  low,       ///< into the scope's dtype: products, whose sums are in float32 all the same
  widest,    ///< into the widest among them: an add of bfloat16 and float32 is in float32
  float32_,  ///< into float32: what loses too much in eight or eleven bits
};

/// While one lives, ops on this thread run in mixed precision: products of `dtype`, bfloat16 or
/// float16, between weights that stay float32. Linear layers round a weight once for each value it
/// has. Backward follows the forward, in the scope or out of it. float32: none, which is also how a
/// part of a scope is left out.
class Autocast {
 public:
  explicit Autocast(DType dtype);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

  /// What this thread's products are rounded to; float32 outside of a scope.
  static DType current();

 private:
  DType before_;
};

namespace detail {
/// w in `dtype`, without history: made once for each value of w (its storage's version) and kept
/// with it. w itself where it has the dtype.
Tensor rounded_weight(const Tensor& w, DType dtype);
}  // namespace detail

}  // namespace norma
