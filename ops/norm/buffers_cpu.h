#pragma once

#include <algorithm>
#include <cstdint>

#include "norma/core/strided.h"
#include "norma/core/tensor.h"

namespace norma::detail {

// Rows of any dtype through buffers of their statistics' dtype.

/// Elements at … at + n − 1 of row i: the row itself, or converted into the buffer.
template <class Acc>
const Acc* load(const ConstRows& t, int64_t i, int64_t at, int64_t n, Acc* buffer) {
  if (t.dtype == dtype_of<Acc>) return t.row<Acc>(i) + at;
  visit_floating(t.dtype, [&]<class T>() {
    const T* row = t.row<T>(i) + at;
    for (int64_t c = 0; c < n; ++c) buffer[c] = static_cast<Acc>(row[c]);
  });
  return buffer;
}
template <class Acc>
void store(const Acc* v, const Rows& t, int64_t i, int64_t at, int64_t n) {
  visit_floating(t.dtype, [&]<class T>() {
    T* row = t.row<T>(i) + at;
    for (int64_t c = 0; c < n; ++c) row[c] = static_cast<T>(v[c]);
  });
}
template <class Acc>
void round_to(DType dtype, Acc* v, int64_t n) {
  if (dtype == dtype_of<Acc>) return;
  visit_floating(dtype, [&]<class T>() {
    for (int64_t c = 0; c < n; ++c) v[c] = static_cast<Acc>(static_cast<T>(v[c]));
  });
}
template <class Acc>
Acc value_at(const ConstVec& t, int64_t i) {
  return visit_floating(t.dtype, [&]<class T>() { return static_cast<Acc>(t.at<T>(i)); });
}

/// A weight as it multiplies (1 where there is none) or a bias (0), in Acc, once for all rows.
template <class Acc>
class Weight {
 public:
  Weight(const ConstVec& from, Acc absent, bool add_one, int64_t cols, int64_t group)
      : shared_(!from || (from.n != cols)) {
    const int64_t n = from ? from.n : group;
    values_ = empty({n}, dtype_of<Acc>);
    Acc* to = values_.span<Acc>().data();
    std::fill_n(to, n, from ? Acc(add_one) : absent);
    if (!from) return;
    visit_floating(from.dtype, [&]<class W>() {
      for (int64_t c = 0; c < n; ++c) to[c] += static_cast<Acc>(from.at<W>(c));
    });
  }
  /// For the group that begins at column `at`.
  const Acc* group(int64_t at) const { return values_.span<Acc>().data() + (shared_ ? 0 : at); }

 private:
  bool shared_;
  Tensor values_;
};

/// Rows a task.
inline Split row_blocks(int64_t rows, int64_t cols, int64_t fewest) {
  return split(rows, std::max(fewest, kPieceGrain / cols));
}

/// sum += term, with what the additions before rounded away (Kahan 1965,
/// doi:10.1145/363707.363723).
template <class Acc>
void add_precisely(Acc& sum, Acc& lost, Acc term) {
  const Acc corrected = term - lost, next = sum + corrected;
  lost = (next - sum) - corrected;
  sum = next;
}

}  // namespace norma::detail
