#include <Eigen/Core>
#include <algorithm>
#include <cmath>

#include "norma/core/copy.h"
#include "norma/core/parallel.h"
#include "norma/core/tensor.h"
#include "norma/ops/attention/kernels.h"
#include "norma/ops/softmax/rows_cpu.h"

namespace norma {
namespace {

constexpr int64_t kBlock =
    64;  // queries, and keys, at a time: scores of 16 KB stay in the first cache

template <class T>
using Matrix = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <class T>
using Map = Eigen::Map<Matrix<T>, 0, Eigen::OuterStride<>>;
template <class T>
using ConstMap = Eigen::Map<const Matrix<T>, 0, Eigen::OuterStride<>>;

/// Rows first … first + n − 1 of one head.
template <class T>
ConstMap<T> block(const ConstView& view, int64_t batch, int64_t head, int64_t first, int64_t n) {
  const T* data =
      view.as<T>() + batch * view.strides[0] + head * view.strides[1] + first * view.strides[2];
  return {data, n, view.shape[3], Eigen::OuterStride<>(std::max(view.strides[2], view.shape[3]))};
}
template <class T>
Map<T> block(const View& view, int64_t batch, int64_t head, int64_t first, int64_t n) {
  T* data =
      view.as<T>() + batch * view.strides[0] + head * view.strides[1] + first * view.strides[2];
  return {data, n, view.shape[3], Eigen::OuterStride<>(std::max(view.strides[2], view.shape[3]))};
}

/// What queries and keys of one pair of blocks may see of each other.
struct Visible {
  bool causal;
  int64_t shift, queries, keys;  // shift: keys before the first query's own
  int64_t first_query, first_key;

  int64_t of_row(int64_t i) const {
    return causal ? std::clamp<int64_t>(first_query + i + shift + 1 - first_key, 0, keys) : keys;
  }
};

/// Which probabilities of a row dropout keeps.
class Kept {
 public:
  Kept(const AttentionSettings& settings, const ConstView& q, const ConstView& k)
      : key_(settings.key),
        p_(static_cast<float>(settings.p)),
        heads_(q.shape[1]),
        queries_(q.shape[2]),
        groups_((k.shape[2] + 3) / 4) {}
  /// f(j) for each key first_key + j that is dropped, j < n; first_key is a multiple of four.
  template <class F>
  void for_dropped(int64_t batch, int64_t head, int64_t query, int64_t first_key, int64_t n,
                   const F& f) const {
    if (p_ == 0) return;
    const int64_t row = (batch * heads_ + head) * queries_ + query;
    for (int64_t j = 0; j < n; ++j) {
      const auto group = static_cast<uint64_t>(row * groups_ + (first_key + j) / 4);
      const uint32_t word = random_words(key_, group)[static_cast<size_t>(j % 4)];
      if (static_cast<float>(word >> 8) * 0x1p-24F < p_) f(j);
    }
  }

 private:
  RandomKey key_;
  float p_;
  int64_t heads_, queries_, groups_;
};

/// The kernel's own scratch for one task.
template <class T>
struct Scratch {
  explicit Scratch(T* data, int64_t dim)
      : s(data),
        ds(s + kBlock * kBlock),
        acc(ds + kBlock * kBlock),
        more(acc + kBlock * dim),
        row(more + kBlock * dim) {}
  static int64_t size(int64_t dim) { return 2 * kBlock * kBlock + 2 * kBlock * dim + 3 * kBlock; }
  Map<T> matrix(T* at, int64_t rows, int64_t cols) const {
    return {at, rows, cols, Eigen::OuterStride<>(cols)};
  }
  T *s, *ds, *acc, *more, *row;
};

template <class T>
void attend(const AttentionForwardArgs& k, int64_t batch, int64_t head, int64_t first_query,
            const Scratch<T>& scratch) {
  const int64_t dim = k.q.shape[3], n_keys = k.k.shape[2];
  const int64_t queries = std::min(kBlock, k.q.shape[2] - first_query);
  const int64_t kv_head = head / (k.q.shape[1] / k.k.shape[1]);
  const Kept kept(k.settings, k.q, k.k);
  const auto q = block<T>(k.q, batch, head, first_query, queries);
  auto y = scratch.matrix(scratch.acc, queries, dim);
  T *largest = scratch.row, *sum = largest + kBlock, *factor = sum + kBlock;
  std::fill_n(largest, queries, -std::numeric_limits<T>::infinity());
  std::fill_n(sum, queries, T(0));
  y.setZero();
  const int64_t shift = n_keys - k.q.shape[2];
  const int64_t end = k.settings.causal ? std::min(n_keys, first_query + queries + shift) : n_keys;
  for (int64_t first_key = 0; first_key < end; first_key += kBlock) {
    const int64_t keys = std::min(kBlock, end - first_key);
    const Visible visible{k.settings.causal, shift, queries, keys, first_query, first_key};
    auto s = scratch.matrix(scratch.s, queries, keys);
    s.noalias() = q * block<T>(k.k, batch, kv_head, first_key, keys).transpose();
    for (int64_t i = 0; i < queries; ++i) {
      T* row = scratch.s + i * keys;
      const int64_t seen = visible.of_row(i);
      std::fill(row + seen, row + keys, T(0));
      factor[i] = 1;
      if (seen == 0) continue;
      for (int64_t j = 0; j < seen; ++j) row[j] *= static_cast<T>(k.settings.scale);
      const T now = detail::max_lanes(row, seen);
      const T next = now > largest[i] || now != now ? now : largest[i];
      const T shifted = std::isinf(next) ? T(0) : next;
      detail::map_packets(
          seen, row, [&](const auto& v) { return detail::exp_of(v - shifted); },
          static_cast<const T*>(row));
      if (largest[i] != next) factor[i] = std::exp(largest[i] - shifted);
      sum[i] = sum[i] * factor[i] + detail::sum_lanes<T>(seen, [&](int64_t j) { return row[j]; });
      kept.for_dropped(batch, head, first_query + i, first_key, seen,
                       [&](int64_t j) { row[j] = 0; });
      largest[i] = next;
    }
    if (first_key > 0)
      for (int64_t i = 0; i < queries; ++i) y.row(i) *= factor[i];
    y.noalias() += s * block<T>(k.v, batch, kv_head, first_key, keys);
  }
  auto out = block<T>(k.y, batch, head, first_query, queries);
  T* lse = k.lse.as<T>() + (batch * k.q.shape[1] + head) * k.q.shape[2] + first_query;
  const T rescale = static_cast<T>(1 / (1 - k.settings.p));
  for (int64_t i = 0; i < queries; ++i) {
    out.row(i) = y.row(i) * (end > 0 ? rescale / sum[i] : T(0));
    lse[i] = std::log(sum[i]) + (std::isinf(largest[i]) ? T(0) : largest[i]);
  }
}

/// All gradients of the heads that share one head of keys and values: nobody else writes them.
template <class T>
void attend_backward(const AttentionBackwardArgs& k, int64_t batch, int64_t kv_head,
                     const Scratch<T>& scratch) {
  const int64_t dim = k.q.shape[3], n_queries = k.q.shape[2], n_keys = k.k.shape[2];
  const int64_t shared = k.q.shape[1] / k.k.shape[1], shift = n_keys - n_queries;
  const T scale = static_cast<T>(k.settings.scale),
          rescale = static_cast<T>(1 / (1 - k.settings.p));
  const Kept kept(k.settings, k.q, k.k);
  for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head)
    block<T>(k.dq, batch, head, 0, n_queries).setZero();
  for (int64_t first_key = 0; first_key < n_keys; first_key += kBlock) {
    const int64_t keys = std::min(kBlock, n_keys - first_key);
    const auto key = block<T>(k.k, batch, kv_head, first_key, keys);
    const auto value = block<T>(k.v, batch, kv_head, first_key, keys);
    auto dk = scratch.matrix(scratch.acc, keys, dim), dv = scratch.matrix(scratch.more, keys, dim);
    dk.setZero();
    dv.setZero();
    for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
      const int64_t earliest = k.settings.causal ? std::max<int64_t>(0, first_key - shift) : 0;
      for (int64_t first = earliest / kBlock * kBlock; first < n_queries; first += kBlock) {
        const int64_t queries = std::min(kBlock, n_queries - first);
        const Visible visible{k.settings.causal, shift, queries, keys, first, first_key};
        const auto q = block<T>(k.q, batch, head, first, queries);
        const auto dy = block<T>(k.dy, batch, head, first, queries);
        const auto y = block<T>(k.y, batch, head, first, queries);
        const T* lse = k.lse.as<T>() + (batch * k.q.shape[1] + head) * n_queries + first;
        auto p = scratch.matrix(scratch.s, queries, keys),
             ds = scratch.matrix(scratch.ds, queries, keys);
        p.noalias() = q * key.transpose();
        ds.noalias() = dy * value.transpose();
        for (int64_t i = 0; i < queries; ++i) {
          const int64_t seen = visible.of_row(i);
          T *row = scratch.s + i * keys, *d = scratch.ds + i * keys;
          std::fill(row + seen, row + keys, T(0));
          std::fill(d + seen, d + keys, T(0));
          const T *dy_row = dy.data() + i * dy.outerStride(),
                  *y_row = y.data() + i * y.outerStride();
          const T delta =
              detail::sum_lanes<T>(dim, [&](int64_t c) { return dy_row[c] * y_row[c]; });
          const T row_lse = lse[i];
          detail::map_packets(
              seen, row, [&](const auto& v) { return detail::exp_of(v * scale - row_lse); },
              static_cast<const T*>(row));
          kept.for_dropped(batch, head, first + i, first_key, seen, [&](int64_t j) { d[j] = 0; });
          for (int64_t j = 0; j < seen; ++j) d[j] = row[j] * (d[j] * rescale - delta) * scale;
          kept.for_dropped(batch, head, first + i, first_key, seen, [&](int64_t j) { row[j] = 0; });
        }
        dv.noalias() += p.transpose() * dy;
        dk.noalias() += ds.transpose() * q;
        block<T>(k.dq, batch, head, first, queries).noalias() += ds * key;
      }
    }
    block<T>(k.dk, batch, kv_head, first_key, keys) = dk;
    block<T>(k.dv, batch, kv_head, first_key, keys) = dv * rescale;
  }
}

// Eigen has no products of half types: they are computed on float32 copies.

bool is_half(DType dtype) { return dtype == bfloat16 || dtype == float16; }
Tensor widened(const ConstView& view) {
  const Tensor wide = empty(view.shape, float32);
  run(Cpu{}, CopyArgs{.source = view, .target = wide});
  return wide;
}
void narrow(const Tensor& wide, const View& view) {
  run(Cpu{}, CopyArgs{.source = wide, .target = view});
}

template <class T>
void attend_all(const AttentionForwardArgs& k) {
  const int64_t heads = k.q.shape[1], dim = k.q.shape[3];
  const int64_t blocks = (k.q.shape[2] + kBlock - 1) / kBlock,
                tasks = k.q.shape[0] * heads * blocks;
  if (tasks == 0) return;
  const Split work = split(tasks, 1);
  const Tensor memory = empty({work.blocks, Scratch<T>::size(dim)}, dtype_of<T>);
  parallel_for(work.blocks, [&](int64_t w) {
    const Scratch<T> scratch(memory.span<T>().data() + w * Scratch<T>::size(dim), dim);
    for (int64_t task = work.begin(w); task < work.end(w); ++task)
      attend<T>(k, task / blocks / heads, task / blocks % heads, task % blocks * kBlock, scratch);
  });
}

template <class T>
void attend_all_backward(const AttentionBackwardArgs& k) {
  const int64_t heads = k.k.shape[1], dim = k.q.shape[3], tasks = k.k.shape[0] * heads;
  if (tasks == 0) return;
  const Split work = split(tasks, 1);
  const Tensor memory = empty({work.blocks, Scratch<T>::size(dim)}, dtype_of<T>);
  parallel_for(work.blocks, [&](int64_t w) {
    const Scratch<T> scratch(memory.span<T>().data() + w * Scratch<T>::size(dim), dim);
    for (int64_t task = work.begin(w); task < work.end(w); ++task)
      attend_backward<T>(k, task / heads, task % heads, scratch);
  });
}

}  // namespace

void run(Cpu on, const AttentionForwardArgs& k) {
  if (is_half(k.q.dtype)) {
    const Tensor q = widened(k.q), keys = widened(k.k), v = widened(k.v),
                 y = empty(k.y.shape, float32);
    run(on, AttentionForwardArgs{k.settings, q, keys, v, y, k.lse});
    narrow(y, k.y);
  } else if (k.q.dtype == float64) {
    attend_all<double>(k);
  } else {
    attend_all<float>(k);
  }
}

void run(Cpu on, const AttentionBackwardArgs& k) {
  if (is_half(k.q.dtype)) {
    const Tensor dq = empty(k.dq.shape, float32), dk = empty(k.dk.shape, float32),
                 dv = empty(k.dv.shape, float32);
    const Tensor dy = widened(k.dy), q = widened(k.q), keys = widened(k.k), v = widened(k.v),
                 y = widened(k.y);
    run(on, AttentionBackwardArgs{k.settings, dy, q, keys, v, y, k.lse, k.delta, dq, dk, dv});
    narrow(dq, k.dq);
    narrow(dk, k.dk);
    narrow(dv, k.dv);
  } else if (k.q.dtype == float64) {
    attend_all_backward<double>(k);
  } else {
    attend_all_backward<float>(k);
  }
}

}  // namespace norma
