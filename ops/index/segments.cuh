#pragma once

#include <cstdint>

#include "norma/core/cuda/check.h"
#include "norma/core/cuda/launch.cuh"
#include "norma/core/tensor.h"

namespace norma {

/// Numbers and where they came from, in ascending order of the numbers and, among equal ones, of
/// the places: sums over equal numbers then have one order, in every run.
template <class Key>
struct Sorted {
  Tensor keys, places;  // Key and int32
  const Key* key() const { return static_cast<const Key*>(keys.data()); }
  const int32_t* place() const { return static_cast<const int32_t*>(places.data()); }
};

/// n keys by their low `bits`, and places with them, to sorted ones; equal keys stay in order.
void sort_pairs(const Cuda& on, int64_t n, int bits, const Tensor& keys, const Tensor& places,
                const Tensor& sorted_keys, const Tensor& sorted_places);

/// fill(keys, places) writes n of both; `bits` is how many low bits of the keys are in use.
template <class Key, class Fill>
Sorted<Key> sort_places(const Cuda& on, int64_t n, int bits, Device device, const Fill& fill) {
  constexpr DType kKeys = sizeof(Key) == 8 ? int64 : int32;
  const Tensor keys = empty({n}, kKeys, device), places = empty({n}, int32, device);
  Sorted<Key> sorted{empty({n}, kKeys, device), empty({n}, int32, device)};
  fill(static_cast<Key*>(keys.data()), static_cast<int32_t*>(places.data()));
  sort_pairs(on, n, bits, keys, places, sorted.keys, sorted.places);
  return sorted;
}

inline int bits_of(uint64_t n) {
  int bits = 1;
  while (bits < 64 && (n >> bits) != 0) ++bits;
  return bits;
}

/// The device that is current, for scratch memory.
inline Device current_device() {
  int index = 0;
  detail::check(cudaGetDevice(&index), "name the device");
  return {Device::Kind::cuda, static_cast<uint8_t>(index)};
}

}  // namespace norma
