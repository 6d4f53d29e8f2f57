#pragma once

#include "norma/ops/norm/plain.cuh"

// Rows that begin off 16 bytes, or whose last vector is not whole: shared memory holds the 16-byte
// pieces that cover one, from which it is moved to begin on 16 bytes, and a row of results leaves
// as the 16-byte pieces inside it and what is before and after them.

namespace norma::norm_cuda {

/// How far an address is past one on 16 bytes.
__device__ __forceinline__ uint32_t skew_of(const void* p) {
  return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(p)) % 16;
}
/// Of the 16-byte pieces that cover so many bytes.
__device__ __forceinline__ uint32_t covering(uint32_t skew, uint32_t bytes) {
  return (skew + bytes + 15) / 16 * 16;
}

/// 16 bytes of shared memory that begin `skew` bytes after p, which is on 16.
__device__ __forceinline__ void read_skewed(const unsigned char* p, uint32_t skew,
                                            uint32_t (&taken)[4]) {
  const uint4 a = reinterpret_cast<const uint4*>(p)[0], b = reinterpret_cast<const uint4*>(p)[1];
  uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
  take_16_bytes(words, skew, taken);
}
/// Clears all but the first n elements of T, one of them or more.
template <class T>
__device__ __forceinline__ void keep_first(uint32_t (&words)[4], int n) {
  const int bytes = n * int{sizeof(T)};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int kept = bytes - 4 * i;
    if (kept < 4) words[i] = kept > 0 ? words[i] & 0xffffu : 0;
  }
}

/// n elements from shared memory, on 16 bytes, to anywhere, by `lanes` lanes.
template <class T>
__device__ __forceinline__ void write_row(const unsigned char* from, T* to, int n, int lane,
                                          int lanes) {
  constexpr int kWidth = 16 / int{sizeof(T)};
  const uint32_t skew = skew_of(to), ahead = (16 - skew) % 16;
  const int head = min(n, static_cast<int>(ahead / sizeof(T))), whole = (n - head) / kWidth;
  const T* elements = reinterpret_cast<const T*>(from);
  for (int e = lane; e < head; e += lanes) to[e] = elements[e];
  for (int i = lane; i < whole; i += lanes) {
    uint32_t words[4];
    read_skewed(from + 16 * i, ahead, words);
    reinterpret_cast<uint4*>(to + head)[i] = uint4{words[0], words[1], words[2], words[3]};
  }
  for (int e = head + whole * kWidth + lane; e < n; e += lanes) to[e] = elements[e];
}

}  // namespace norma::norm_cuda
