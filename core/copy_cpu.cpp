#include <cmath>
#include <cstring>
#include <type_traits>

#include "norma/core/copy.h"
#include "norma/core/strided.h"

namespace norma {
namespace {

template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, bool>)
    return value != From(0);
  else if constexpr (std::is_same_v<To, BFloat16> || std::is_same_v<To, Float16>)
    return To(static_cast<float>(value));
  else
    return static_cast<To>(value);
}

template <class From, class To>
void copy_run(const From* source, int64_t source_step, To* target, int64_t target_step, int64_t n) {
  if (source_step == 1 && target_step == 1) {
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(target, source, static_cast<size_t>(n) * sizeof(To));
    } else {
      for (int64_t i = 0; i < n; ++i) target[i] = convert<To>(source[i]);
    }
  } else {
    for (int64_t i = 0; i < n; ++i) target[i * target_step] = convert<To>(source[i * source_step]);
  }
}

}  // namespace

void run(Cpu, const FillArgs& k) {
  const detail::StridedLoop<1> loop(k.target.shape, {k.target.strides});
  visit_all(k.target.dtype, [&]<class T>() {
    const T value = convert<T>(k.value);
    detail::for_pieces(loop, [&](const auto& offsets, int64_t first, int64_t n) {
      T* target = k.target.as<T>() + offsets[0] + first * loop.row_stride(0);
      for (int64_t i = 0; i < n; ++i) target[i * loop.row_stride(0)] = value;
    });
  });
}

void run(Cpu, const CopyArgs& k) {
  const detail::StridedLoop<2> loop(k.source.shape, {k.source.strides, k.target.strides});
  visit_all(k.source.dtype, [&]<class From>() {
    visit_all(k.target.dtype, [&]<class To>() {
      detail::for_pieces(loop, [&](const auto& offsets, int64_t first, int64_t n) {
        copy_run(k.source.as<From>() + offsets[0] + first * loop.row_stride(0), loop.row_stride(0),
                 k.target.as<To>() + offsets[1] + first * loop.row_stride(1), loop.row_stride(1),
                 n);
      });
    });
  });
}

void run(Cpu, const AddIntoArgs& k) {
  const detail::StridedLoop<2> loop(k.source.shape, {k.source.strides, k.target.strides});
  visit_all(k.target.dtype, [&]<class T>() {
    detail::for_pieces(loop, [&](const auto& offsets, int64_t first, int64_t n) {
      const int64_t from = loop.row_stride(0), to = loop.row_stride(1);
      const T* source = k.source.as<T>() + offsets[0] + first * from;
      T* target = k.target.as<T>() + offsets[1] + first * to;
      for (int64_t i = 0; i < n; ++i)
        target[i * to] = static_cast<T>(target[i * to] + source[i * from]);
    });
  });
}

void run(Cpu, const RampArgs& k) {
  visit_all(k.target.dtype, [&]<class T>() {
    T* target = k.target.as<T>();
    for (int64_t i = 0; i < k.target.shape.numel(); ++i)
      target[i] = convert<T>(std::fma(k.step, static_cast<double>(i), k.first));
  });
}

}  // namespace norma
