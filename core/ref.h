#pragma once

#include <atomic>
#include <cstdint>
#include <utility>

namespace norma {

/// The count inside an object held by Ref. One word, no control block: tiny tensors are common.
class RefCounted {
 public:
  RefCounted() = default;
  RefCounted(const RefCounted&) = delete;
  RefCounted& operator=(const RefCounted&) = delete;
  uint32_t use_count() const { return count_.load(std::memory_order_acquire); }

 private:
  template <class T>
  friend class Ref;
  std::atomic<uint32_t> count_{0};
};

/// A shared pointer to a T with the count inside. T::destroy(T*) frees what nobody holds any more.
template <class T>
class Ref {
 public:
  constexpr Ref() = default;
  explicit Ref(T* p) : p_(p) { acquire(); }
  /// The first to hold p, which was just made: nobody else sees its count yet.
  static Ref first(T* p) {
    Ref made;
    made.p_ = p;
    p->count_.store(1, std::memory_order_relaxed);
    return made;
  }
  /// Holds p without counting: give_up() must come before anything else lets go of p.
  static Ref lent(T* p) {
    Ref uncounted;
    uncounted.p_ = p;
    return uncounted;
  }
  void give_up() { p_ = nullptr; }
  Ref(const Ref& other) : p_(other.p_) { acquire(); }
  Ref(Ref&& other) noexcept : p_(std::exchange(other.p_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(p_, other.p_);
    return *this;
  }
  ~Ref() { release(); }

  T* get() const { return p_; }
  T* operator->() const { return p_; }
  T& operator*() const { return *p_; }
  explicit operator bool() const { return p_ != nullptr; }
  bool operator==(const Ref&) const = default;
  void reset() { *this = Ref(); }

 private:
  void acquire() {
    if (p_) p_->count_.fetch_add(1, std::memory_order_relaxed);
  }
  void release() {
    if (p_ && (is_last() || p_->count_.fetch_sub(1, std::memory_order_acq_rel) == 1))
      T::destroy(p_);
  }
  /// Read before it is lowered: where it is 1, no other thread can reach it, and none need be kept
  /// out by a locked instruction, which costs as much as a tenth of a tiny op's whole kernel.
  bool is_last() const { return p_->count_.load(std::memory_order_acquire) == 1; }
  T* p_ = nullptr;
};

}  // namespace norma
