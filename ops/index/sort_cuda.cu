#include <cub/device/device_radix_sort.cuh>

#include "norma/ops/index/segments.cuh"

namespace norma {
namespace {

template <class Key>
void sort_by(const Cuda& on, int64_t n, int bits, const Tensor& keys, const Tensor& places,
             const Tensor& sorted_keys, const Tensor& sorted_places) {
  size_t bytes = 0;
  const auto sort = [&](void* scratch) {
    detail::check(
        cub::DeviceRadixSort::SortPairs(
            scratch, bytes, static_cast<const Key*>(keys.data()),
            static_cast<Key*>(sorted_keys.data()), static_cast<const int32_t*>(places.data()),
            static_cast<int32_t*>(sorted_places.data()), n, 0, bits, detail::stream_of(on)),
        "sort");
  };
  sort(nullptr);
  const Tensor scratch = empty({static_cast<int64_t>(bytes)}, bool_, keys.device());
  sort(scratch.data());
}

}  // namespace

// CUB takes long to compile: here once for all who sort.
void sort_pairs(const Cuda& on, int64_t n, int bits, const Tensor& keys, const Tensor& places,
                const Tensor& sorted_keys, const Tensor& sorted_places) {
  const auto sort = keys.dtype() == int64 ? sort_by<uint64_t> : sort_by<uint32_t>;
  sort(on, n, bits, keys, places, sorted_keys, sorted_places);
}

}  // namespace norma
