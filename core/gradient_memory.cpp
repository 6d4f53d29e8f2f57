#include "norma/core/gradient_memory.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/op.h"

namespace norma::detail {
namespace {
// Trivially destructible: static tensors may die after the thread's other state.
struct ThreadState {
  int sweeps = 0;        // that run, one inside the other
  bool records = false;  // the running one is recorded itself
};
thread_local constinit ThreadState state;

/// A run of columns of dense rows.
struct Part {
  int64_t rows, width, begin, end;
};
/// What x is of the rows that fill its storage, where it is a part of them.
std::optional<Part> part_of(const Tensor& x) {
  int64_t run = 1, rows = 1, width = 0;
  for (int i = x.dim() - 1; i >= 0; --i) {
    if (x.shape()[i] == 1) continue;
    if (width == 0 && x.strides()[i] == run) {
      run *= x.shape()[i];
      continue;
    }
    if (width == 0) width = x.strides()[i];
    if (x.strides()[i] != width * rows) return none;
    rows *= x.shape()[i];
  }
  const bool fills = x.storage()->bytes() == rows * width * size_of(x.dtype());
  if (!fills || x.offset() + run > width || rows * run == 0) return none;
  return Part{rows, width, x.offset(), x.offset() + run};
}

/// Where the gradients of a storage's parts are put, and which parts have got their place. Rows of
/// whole lines of 128 bytes may end with less than a line that is no part's.
struct JointGradient {
  const Storage* parts_of;
  Tensor whole;  // (rows, width)
  std::vector<std::pair<int64_t, int64_t>> given = {};

  bool take(const Part& part) {
    for (const auto& [begin, end] : given)
      if (part.begin < end && begin < part.end) return false;
    given.emplace_back(part.begin, part.end);
    return true;
  }
  bool is_full() const {
    int64_t columns = 0, last = 0;
    for (const auto& [begin, end] : given) columns += end - begin, last = std::max(last, end);
    const int64_t row = whole.shape()[1] * size_of(whole.dtype());
    const int64_t spare = row - last * size_of(whole.dtype());
    return columns == last && (spare == 0 || (row % 128 == 0 && spare < 128));
  }
};
/// Those of the running sweep that are not full: the last few, which others push out.
constexpr size_t kMostJoint = 4;
thread_local std::vector<JointGradient> joint_gradients;

JointGradient& joint_gradient(const Tensor& x, const Part& part) {
  for (JointGradient& joint : joint_gradients)
    if (joint.parts_of == x.storage().get() && joint.whole.dtype() == x.dtype() &&
        joint.whole.shape() == Shape{part.rows, part.width})
      return joint;
  if (joint_gradients.size() == kMostJoint) joint_gradients.erase(joint_gradients.begin());
  return joint_gradients.emplace_back(
      JointGradient{x.storage().get(), empty({part.rows, part.width}, x.dtype(), x.device())});
}
}  // namespace

RunningSweep::RunningSweep(bool records) : before_(std::exchange(state.records, records)) {
  ++state.sweeps;
}
RunningSweep::~RunningSweep() {
  state.records = before_;
  if (--state.sweeps == 0) joint_gradients.clear();
}
int running_sweeps() { return state.sweeps; }

Tensor empty_gradient(const Tensor& x) {
  const std::optional<Part> part = state.sweeps == 0 || state.records ? none : part_of(x);
  if (!part) return empty(x.spec());
  JointGradient& joint = joint_gradient(x, *part);
  if (!joint.take(*part)) return empty(x.spec());
  const Tensor own = raw_view(joint.whole, x.shape(), x.strides(), x.offset());
  if (joint.is_full())
    joint_gradients.erase(joint_gradients.begin() + (&joint - joint_gradients.data()));
  return own;
}

}  // namespace norma::detail
