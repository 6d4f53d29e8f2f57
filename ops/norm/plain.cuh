#pragma once

#include "norma/ops/norm/row.cuh"

// What the fast kernels share: those of the plain members, whose weights are T or float and whose
// activation is short (short_gate_of).

namespace norma::norm_cuda {

/// A group of a row, by its number in the whole tensor.
struct GroupPlace {
  int64_t row, first, stat;  ///< first: the column that it begins at
  int group;
  __device__ GroupPlace(int64_t item, int64_t groups, int64_t size)
      : row(groups == 1 ? item : item / groups), stat(item) {
    const int64_t j = item - row * groups;
    group = static_cast<int>(j);
    first = j * size;
  }
};

/// kWidth elements of T as the words that they travel in, and as floats.
template <class T, int kWidth>
struct Vector {
  static constexpr int kWords = kWidth * int(sizeof(T)) / 4;
  uint32_t words[kWords];

  static __device__ __forceinline__ Vector filled(float v) {
    float all[kWidth];
#pragma unroll
    for (float& e : all) e = v;
    return pack(all);
  }
  /// Half types in pairs: one instruction, where one by one they would be two slow ones.
  static __device__ __forceinline__ Vector pack(const float (&v)[kWidth]) {
    Vector r;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 2)
        r.words[i] = pack_pair<T>(v[2 * i], v[2 * i + 1]);
      else
        r.words[i] = __float_as_uint(v[i]);
    }
    return r;
  }
  __device__ __forceinline__ void unpack(float (&v)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      if constexpr (sizeof(T) == 2) {
        const float2 both = unpack_pair<T>(words[i]);
        v[2 * i] = both.x, v[2 * i + 1] = both.y;
      } else {
        v[i] = __uint_as_float(words[i]);
      }
    }
  }
};

/// once: global memory that nobody here reads again. cached: global memory that all blocks read.
enum class From { once, cached, anywhere };

/// From an address on 16 bytes. No volatile asm, so that the compiler may move it before stores.
template <From kFrom, int kWidth, class T>
__device__ __forceinline__ Vector<T, kWidth> load_vector(const T* p) {
  Vector<T, kWidth> r;
#pragma unroll
  for (int i = 0; i < r.kWords; i += 4) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(p) + i;
    if constexpr (kFrom == From::once) {
      asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
          : "=r"(r.words[i]), "=r"(r.words[i + 1]), "=r"(r.words[i + 2]), "=r"(r.words[i + 3])
          : "l"(from));
    } else if constexpr (kFrom == From::cached) {
      asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
          : "=r"(r.words[i]), "=r"(r.words[i + 1]), "=r"(r.words[i + 2]), "=r"(r.words[i + 3])
          : "l"(from));
    } else {
      const uint4 v = *reinterpret_cast<const uint4*>(from);
      r.words[i] = v.x, r.words[i + 1] = v.y, r.words[i + 2] = v.z, r.words[i + 3] = v.w;
    }
  }
  return r;
}
template <int kWidth, class T>
__device__ __forceinline__ void store_vector(T* p, const Vector<T, kWidth>& v) {
#pragma unroll
  for (int i = 0; i < v.kWords; i += 4)
    reinterpret_cast<uint4*>(p)[i / 4] =
        make_uint4(v.words[i], v.words[i + 1], v.words[i + 2], v.words[i + 3]);
}

/// The first n elements, from and to any address; the others are 0.
template <int kWidth, class T>
__device__ __forceinline__ Vector<T, kWidth> load_part(const T* p, int n) {
  Vector<T, kWidth> r;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int e = 0; e < kWidth; ++e) r.words[e] = e < n ? __float_as_uint(p[e]) : 0;
  } else {
#pragma unroll
    for (int e = 0; e < kWidth; e += 2)
      r.words[e / 2] =
          (e < n ? uint32_t{p[e].bits} : 0) | (e + 1 < n ? uint32_t{p[e + 1].bits} << 16 : 0);
  }
  return r;
}
template <int kWidth, class T>
__device__ __forceinline__ void store_part(T* p, const Vector<T, kWidth>& v, int n) {
#pragma unroll
  for (int e = 0; e < kWidth; ++e) {
    if (e >= n) continue;
    if constexpr (sizeof(T) == 4)
      p[e] = __uint_as_float(v.words[e]);
    else
      p[e].bits = static_cast<uint16_t>(e % 2 ? v.words[e / 2] >> 16 : v.words[e / 2]);
  }
}

/// 16 of 32 bytes, from the given one of the first 16 on.
__device__ __forceinline__ void take_16_bytes(uint32_t (&words)[8], uint32_t from,
                                              uint32_t (&taken)[4]) {
#pragma unroll
  for (int i = 0; i < 6; ++i) words[i] = from & 8 ? words[i + 2] : words[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = from & 4 ? words[i + 1] : words[i];
#pragma unroll
  for (int i = 0; i < 4; ++i) taken[i] = __funnelshift_r(words[i], words[i + 1], 8 * (from & 3));
}

/// Weights of T or float: a vector of them.
template <class T, bool kAligned, int kWidth>
__device__ __forceinline__ void read_weight(const ConstVec& w, int64_t c, int n,
                                            float (&v)[kWidth]) {
  const bool narrow = w.dtype == dtype_of<T>;
  if constexpr (kAligned) {
    if (narrow)
      read_whole(w.as<T>() + c, v);
    else
      read_whole(w.as<float>() + c, v);
  } else {
    if (narrow)
      read_from(w.as<T>() + c, n, v);
    else
      read_from(w.as<float>() + c, n, v);
  }
}
/// Whether every vector of a group is whole and on 16 bytes.
template <class T, class View>
bool is_even(const View& t, int64_t size) {
  if (!t) return true;
  const int64_t width = 16 / size_of(t.dtype);
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0 && size % kLaneWidth<T> == 0 &&
         (t.row_stride % width == 0 || t.rows <= 1);
}

template <class View>
bool on_16_bytes(const View& t) {
  return reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
}

}  // namespace norma::norm_cuda
