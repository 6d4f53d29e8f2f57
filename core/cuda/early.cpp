#include "norma/core/cuda/early.h"

namespace norma::detail {

void count_writes(Storage& weights) {
  if (!weights.count_writes()) count_write();  // who made them may still be on its way
}

bool may_read_early(const Cuda& on) {
  struct Seen {
    void* stream = nullptr;
    uint64_t writes = 0;
  };
  thread_local constinit Seen seen;
  const uint64_t writes = counted_writes();
  if (seen.stream == on.stream && seen.writes == writes) return true;
  seen = {on.stream, writes};
  return false;
}

}  // namespace norma::detail
