#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

#include "norma/core/allocator.h"

namespace norma {

/// A vector whose first N elements need no allocation: graph nodes have one to four of everything,
/// and a malloc each would double the cost of a tiny op. More come from the thread's own blocks.
template <class T, size_t N>
class SmallVector {
 public:
  SmallVector() = default;
  explicit SmallVector(size_t n) { resize(n); }
  SmallVector(SmallVector&& other) noexcept { take(other); }
  SmallVector& operator=(SmallVector&& other) noexcept {
    if (this != &other) {
      release();
      take(other);
    }
    return *this;
  }
  SmallVector(const SmallVector&) = delete;
  SmallVector& operator=(const SmallVector&) = delete;
  ~SmallVector() { release(); }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }
  const T* begin() const { return data_; }
  const T* end() const { return data_ + size_; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

  T& push_back(T value) { return emplace_back(std::move(value)); }
  template <class... Parts>
  T& emplace_back(Parts&&... parts) {
    if (size_ == capacity_) grow(2 * capacity_);
    return *new (data_ + size_++) T{std::forward<Parts>(parts)...};
  }
  void reserve(size_t n) {
    if (n > capacity_) grow(n);
  }
  void resize(size_t n) {
    reserve(n);
    while (size_ > n) data_[--size_].~T();
    while (size_ < n) new (data_ + size_++) T();
  }
  void clear() { resize(0); }

 private:
  T* inside() { return reinterpret_cast<T*>(buffer_); }

  void grow(size_t capacity) {
    T* grown = static_cast<T*>(allocate(capacity * sizeof(T)));
    std::uninitialized_move(begin(), end(), grown);
    const size_t size = size_;
    release();
    data_ = grown, size_ = size, capacity_ = capacity;
  }
  void release() {
    std::destroy(begin(), end());
    if (data_ != inside()) deallocate(data_, capacity_ * sizeof(T));
    data_ = inside(), size_ = 0, capacity_ = N;
  }
  void take(SmallVector& other) {
    if (other.data_ != other.inside()) {
      data_ = std::exchange(other.data_, other.inside());
      size_ = std::exchange(other.size_, 0);
      capacity_ = std::exchange(other.capacity_, N);
      return;
    }
    std::uninitialized_move(other.begin(), other.end(), data_);
    size_ = other.size_;
    other.clear();
  }

  T* data_ = inside();
  size_t size_ = 0, capacity_ = N;
  alignas(T) std::byte buffer_[N * sizeof(T)];
};

}  // namespace norma
