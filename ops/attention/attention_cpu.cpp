#include <algorithm>
#include <cmath>

#include "norma/core/copy.h"
#include "norma/core/parallel.h"
#include "norma/core/tensor.h"
#include "norma/ops/attention/kernels.h"
#include "norma/ops/elementwise/lanes_cpu.h"
#include "norma/ops/matmul/tile_cpu.h"

namespace norma {
namespace {

using detail::Band;
using detail::multiply_alone;
using detail::Slab;
using detail::Target;
using detail::Vector;

constexpr int64_t kBlock =
    64;  // queries, and keys, at a time: scores of 16 KB stay in the first cache

/// Rows first … first + n − 1 of one head.
template <class T>
Slab<T> block(const ConstView& view, int64_t batch, int64_t head, int64_t first, int64_t n) {
  const T* data =
      view.as<T>() + batch * view.strides[0] + head * view.strides[1] + first * view.strides[2];
  return {data, n, view.shape[3], view.strides[2], 1};
}
template <class T>
Target<T> block(const View& view, int64_t batch, int64_t head, int64_t first, bool add = false) {
  T* data =
      view.as<T>() + batch * view.strides[0] + head * view.strides[1] + first * view.strides[2];
  return {data, view.shape[3], view.strides[2], nullptr, add};
}
template <class T>
Slab<T> transposed(const Slab<T>& a) {
  return {a.data, a.cols, a.rows, a.col_stride, a.row_stride};
}

/// What queries and keys of one pair of blocks may see of each other.
struct Visible {
  bool causal;
  int64_t shift, queries, keys;  // shift: keys before the first query's own
  int64_t first_query, first_key;

  int64_t of_row(int64_t i) const {
    return causal ? std::clamp<int64_t>(first_query + i + shift + 1 - first_key, 0, keys) : keys;
  }
  /// Keys that any query of the tile from row i on sees.
  int64_t of_tile(int64_t i) const { return of_row(std::min(i + detail::kTileRows, queries) - 1); }
  /// The first query that sees key j.
  int64_t first_of_key(int64_t j) const {
    return causal ? std::clamp<int64_t>(first_key + j - shift - first_query, 0, queries) : 0;
  }
};

/// The mask of dropout, see AttentionSettings.
class Mask {
 public:
  Mask(const AttentionSettings& settings, int64_t keys)
      : key_(settings.key.resolved()),
        below_(static_cast<uint32_t>(settings.dropped())),
        groups_((keys + 7) / 8) {}
  /// f(j) for each dropped key first_key + j of a row, j < n; first_key is a multiple of eight.
  template <class F>
  void for_dropped(int64_t row, int64_t first_key, int64_t n, const F& f) const {
    if (below_ == 0) return;
    for (int64_t group = 0; group < n; group += 8) {
      const auto words =
          random_words(key_, static_cast<uint64_t>(row * groups_ + (first_key + group) / 8));
      for (int64_t j = group; j < std::min(group + 8, n); ++j) {
        const uint32_t word = words[static_cast<size_t>(j % 8 / 2)];
        if ((j % 2 == 0 ? word & 0xFFFF : word >> 16) < below_) f(j);
      }
    }
  }

 private:
  RandomKey key_;
  uint32_t below_;
  int64_t groups_;
};
/// Row (batch, head, query) among all.
int64_t row_of(const ConstView& q, int64_t batch, int64_t head, int64_t query) {
  return (batch * q.shape[1] + head) * q.shape[2] + query;
}

/// The kernel's own scratch for one task. Rows of s and ds are kBlock apart.
template <class T>
struct Scratch {
  explicit Scratch(T* data, int64_t dim)
      : s(data),
        ds(s + kBlock * kBlock),
        acc(ds + kBlock * kBlock),
        row(acc + kBlock * dim),
        product(row + 3 * kBlock) {}
  static int64_t size(int64_t dim) {
    return 2 * kBlock * kBlock + kBlock * dim + 3 * kBlock +
           std::max(detail::multiply_scratch<T>(kBlock, kBlock, dim),
                    detail::multiply_scratch<T>(kBlock, dim, kBlock));
  }
  T *s, *ds, *acc, *row, *product;
};

/// scores = a · bᵀ, where queries see keys.
template <class T>
void multiply_scores(const Slab<T>& a, const Slab<T>& b, const Visible& visible, T* scores,
                     T* scratch) {
  multiply_alone(a, transposed(b), Target<T>{scores, visible.keys, kBlock}, scratch,
                 [&](int64_t i) {
                   return Band{0, a.cols, visible.of_tile(i)};
                 });
}
/// out = scores · b, or += where it adds; every query must see a key.
template <class T>
void multiply_seen(const T* scores, const Slab<T>& b, const Visible& visible, const Target<T>& out,
                   T* scratch) {
  multiply_alone(Slab<T>{scores, visible.queries, visible.keys, kBlock, 1}, b, out, scratch,
                 [&](int64_t i) {
                   return Band{0, visible.of_tile(i), out.cols};
                 });
}
/// out = scoresᵀ · b, or += where it adds, as it must where no query sees some key.
template <class T>
void multiply_seeing(const T* scores, const Slab<T>& b, const Visible& visible,
                     const Target<T>& out, T* scratch) {
  multiply_alone(Slab<T>{scores, visible.keys, visible.queries, 1, kBlock}, b, out, scratch,
                 [&](int64_t j) {
                   return Band{visible.first_of_key(j), visible.queries, out.cols};
                 });
}

// Rows of scores in whole vectors, up to the block's last key: what a query does not see becomes 0.

template <class T>
constexpr int64_t kWidth = detail::VectorOf<T>::kWidth;
static_assert(kBlock % kWidth<float> == 0 && kBlock % kWidth<double> == 0);

template <class T>
Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <class T>
void store(T* to, const Vector<T>& v) {
  *reinterpret_cast<Vector<T>*>(to) = v;
}
/// The first n elements of v, at least one, `rest` behind them.
template <class T>
Vector<T> first_of(const Vector<T>& v, int64_t n, T rest) {
  if (n >= kWidth<T>) return v;
  typename detail::IntegersOf<T>::type number;
  for (int i = 0; i < kWidth<T>; ++i) number[i] = i;
  using Integer = typename detail::IntegersOf<T>::Element;
  return number < static_cast<Integer>(n) ? v : rest + Vector<T>{};
}

/// row ⊙ scale up to `seen`; the largest of it, NaN where one is.
template <class T>
T scale_row(T* row, T scale, int64_t seen) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  const auto larger = [](const Vector<T>& a, const Vector<T>& b) {
    return a > b ? a : a != a ? a : b;
  };
  Vector<T> most = lowest + Vector<T>{};
  for (int64_t j = 0; j < seen; j += kWidth<T>) {
    const Vector<T> v = load(row + j) * scale;
    most = larger(first_of<T>(v, seen - j, lowest), most);
    store(row + j, v);
  }
  return detail::across_vector<T>(most, larger);
}
/// exp(row ⊙ scale − shift), 0 from `seen` on; its sum.
template <class T>
T exponentials(T* row, T scale, T shift, int64_t seen, int64_t keys) {
  Vector<T> sum{};
  int64_t j = 0;
  for (; j < seen; j += kWidth<T>) {
    const Vector<T> e = detail::exp_vector<T>(load(row + j) * scale - shift);
    const Vector<T> visible = first_of<T>(e, seen - j, 0);
    sum += visible;
    store(row + j, visible);
  }
  for (; j < keys; j += kWidth<T>) store(row + j, Vector<T>{});
  return detail::sum_of_vector<T>(sum);
}
/// d = row ⊙ (d ⊙ rescale − delta) ⊙ scale, 0 from `seen` on.
template <class T>
void score_gradient(const T* row, T rescale, T delta, T scale, int64_t seen, int64_t keys, T* d) {
  int64_t j = 0;
  for (; j < seen; j += kWidth<T>) {
    const Vector<T> all = load(row + j) * (load(d + j) * rescale - delta) * scale;
    store(d + j, first_of<T>(all, seen - j, 0));
  }
  for (; j < keys; j += kWidth<T>) store(d + j, Vector<T>{});
}
template <class T>
T dot(const T* a, const T* b, int64_t n) {
  Vector<T> sum{};
  int64_t c = 0;
  for (; c + kWidth<T> <= n; c += kWidth<T>) sum += load(a + c) * load(b + c);
  T total = detail::sum_of_vector<T>(sum);
  for (; c < n; ++c) total += a[c] * b[c];
  return total;
}

template <class T>
void attend(const AttentionForwardArgs& k, int64_t batch, int64_t head, int64_t first_query,
            const Scratch<T>& scratch) {
  const int64_t dim = k.q.shape[3], n_keys = k.k.shape[2];
  const int64_t queries = std::min(kBlock, k.q.shape[2] - first_query);
  const int64_t kv_head = head / (k.q.shape[1] / k.k.shape[1]);
  const Mask mask(k.settings, k.k.shape[2]);
  const auto q = block<T>(k.q, batch, head, first_query, queries);
  T* y = scratch.acc;
  T *largest = scratch.row, *sum = largest + kBlock, *factor = sum + kBlock;
  std::fill_n(largest, queries, -std::numeric_limits<T>::infinity());
  std::fill_n(sum, queries, T(0));
  const int64_t shift = n_keys - k.q.shape[2];
  const int64_t end = k.settings.causal ? std::min(n_keys, first_query + queries + shift) : n_keys;
  if (end == 0) std::fill_n(y, queries * dim, T(0));
  for (int64_t first_key = 0; first_key < end; first_key += kBlock) {
    const int64_t keys = std::min(kBlock, end - first_key);
    const Visible visible{k.settings.causal, shift, queries, keys, first_query, first_key};
    multiply_scores(q, block<T>(k.k, batch, kv_head, first_key, keys), visible, scratch.s,
                    scratch.product);
    for (int64_t i = 0; i < queries; ++i) {
      T* row = scratch.s + i * kBlock;
      const int64_t seen = visible.of_row(i);
      factor[i] = 1;
      const T now = scale_row(row, static_cast<T>(k.settings.scale), seen);
      const T next = now > largest[i] || now != now ? now : largest[i];
      const T shifted = std::isinf(next) ? T(0) : next;
      if (first_key > 0 && largest[i] != next) factor[i] = std::exp(largest[i] - shifted);
      sum[i] = sum[i] * factor[i] + exponentials(row, T(1), shifted, seen, keys);
      mask.for_dropped(row_of(k.q, batch, head, first_query + i), first_key, seen,
                       [&](int64_t j) { row[j] = 0; });
      largest[i] = next;
    }
    if (first_key > 0)
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t c = 0; c < dim; ++c) y[i * dim + c] *= factor[i];
    multiply_seen(scratch.s, block<T>(k.v, batch, kv_head, first_key, keys), visible,
                  {y, dim, dim, nullptr, first_key > 0}, scratch.product);
  }
  const auto out = block<T>(k.y, batch, head, first_query);
  T* lse = k.lse.as<T>() + (batch * k.q.shape[1] + head) * k.q.shape[2] + first_query;
  const T rescale = static_cast<T>(k.settings.rescale());
  for (int64_t i = 0; i < queries; ++i) {
    const T factor_out = end > 0 ? rescale / sum[i] : T(0);
    for (int64_t c = 0; c < dim; ++c) out.data[i * out.stride + c] = y[i * dim + c] * factor_out;
    lse[i] = std::log(sum[i]) + (std::isinf(largest[i]) ? T(0) : largest[i]);
  }
}

/// All gradients of the heads that share one head of keys and values: nobody else writes them.
template <class T>
void attend_backward(const AttentionBackwardArgs& k, int64_t batch, int64_t kv_head,
                     const Scratch<T>& scratch) {
  const int64_t dim = k.q.shape[3], n_queries = k.q.shape[2], n_keys = k.k.shape[2];
  const int64_t shared = k.q.shape[1] / k.k.shape[1], shift = n_keys - n_queries;
  const T scale = static_cast<T>(k.settings.scale), rescale = static_cast<T>(k.settings.rescale());
  const Mask mask(k.settings, k.k.shape[2]);
  for (int64_t head = kv_head * shared; n_keys == 0 && head < (kv_head + 1) * shared; ++head) {
    const auto dq = block<T>(k.dq, batch, head, 0);
    for (int64_t i = 0; i < n_queries; ++i) std::fill_n(dq.data + i * dq.stride, dim, T(0));
  }
  for (int64_t first_key = 0; first_key < n_keys; first_key += kBlock) {
    const int64_t keys = std::min(kBlock, n_keys - first_key);
    const auto key = block<T>(k.k, batch, kv_head, first_key, keys);
    const auto value = block<T>(k.v, batch, kv_head, first_key, keys);
    auto dk = block<T>(k.dk, batch, kv_head, first_key);
    auto dv = block<T>(k.dv, batch, kv_head, first_key);
    const auto begun = [&](bool now) { dk.add = dv.add = now; };  // they hold something
    const auto begin_with_zeros = [&] {
      for (const auto& d : {dk, dv})
        for (int64_t j = 0; j < keys; ++j) std::fill_n(d.data + j * d.stride, dim, T(0));
      begun(true);
    };
    for (int64_t head = kv_head * shared; head < (kv_head + 1) * shared; ++head) {
      const int64_t earliest = k.settings.causal ? std::max<int64_t>(0, first_key - shift) : 0;
      for (int64_t first = earliest / kBlock * kBlock; first < n_queries; first += kBlock) {
        const int64_t queries = std::min(kBlock, n_queries - first);
        const Visible visible{k.settings.causal, shift, queries, keys, first, first_key};
        const auto q = block<T>(k.q, batch, head, first, queries);
        const auto dy = block<T>(k.dy, batch, head, first, queries);
        const auto y = block<T>(k.y, batch, head, first, queries);
        const T* lse = k.lse.as<T>() + (batch * k.q.shape[1] + head) * n_queries + first;
        detail::fetch_rows(y, 0, queries, 0, dim);  // here by when the products are done
        multiply_scores(q, key, visible, scratch.s, scratch.product);
        multiply_scores(dy, value, visible, scratch.ds, scratch.product);
        for (int64_t i = 0; i < queries; ++i) {
          const int64_t seen = visible.of_row(i);
          T *row = scratch.s + i * kBlock, *d = scratch.ds + i * kBlock;
          const T *dy_row = dy.data + i * dy.row_stride, *y_row = y.data + i * y.row_stride;
          const T delta = dot(dy_row, y_row, dim);
          exponentials(row, scale, lse[i], seen, keys);
          mask.for_dropped(row_of(k.q, batch, head, first + i), first_key, seen,
                           [&](int64_t j) { d[j] = 0; });
          score_gradient(row, rescale, delta, scale, seen, keys, d);
          mask.for_dropped(row_of(k.q, batch, head, first + i), first_key, seen,
                           [&](int64_t j) { row[j] = 0; });
        }
        if (!dk.add && visible.first_of_key(keys - 1) >= queries) begin_with_zeros();
        multiply_seeing(scratch.s, dy, visible, dv, scratch.product);
        multiply_seeing(scratch.ds, q, visible, dk, scratch.product);
        multiply_seen(scratch.ds, key, visible, block<T>(k.dq, batch, head, first, first_key > 0),
                      scratch.product);
        begun(true);
      }
    }
    if (!dk.add) begin_with_zeros();  // no queries at all
    for (int64_t j = 0; rescale != 1 && j < keys; ++j)
      for (int64_t c = 0; c < dim; ++c) dv.data[j * dv.stride + c] *= rescale;
  }
}

// Products of half types are computed on float32 copies.

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
  parallel_for(work.blocks, [&](int64_t w) {
    // Mostly what the thread's last task had, and so in its cache (with some for each task, 3 MB
    // in a toy, its training step takes 1.03 times as long).
    const Tensor memory = empty({Scratch<T>::size(dim)}, dtype_of<T>);
    const Scratch<T> scratch(memory.span<T>().data(), dim);
    for (int64_t task = work.begin(w); task < work.end(w); ++task)
      attend<T>(k, task / blocks / heads, task / blocks % heads, task % blocks * kBlock, scratch);
  });
}

template <class T>
void attend_all_backward(const AttentionBackwardArgs& k) {
  const int64_t heads = k.k.shape[1], dim = k.q.shape[3], tasks = k.k.shape[0] * heads;
  if (tasks == 0) return;
  const Split work = split(tasks, 1);
  parallel_for(work.blocks, [&](int64_t w) {
    const Tensor memory = empty({Scratch<T>::size(dim)}, dtype_of<T>);
    const Scratch<T> scratch(memory.span<T>().data(), dim);
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

void run(Cpu, const AttentionDropoutArgs& k) {
  const Mask mask(k.settings, k.x.cols);
  visit_floating(k.x.dtype, [&]<class T>() {
    using Acc = stats_t<T>;
    const Acc rescale = static_cast<Acc>(k.settings.rescale());
    for (int64_t i = 0; i < k.x.rows; ++i) {
      const T* x = k.x.row<T>(i);
      T* y = k.y.row<T>(i);
      for (int64_t c = 0; c < k.x.cols; ++c)
        y[c] = static_cast<T>(static_cast<Acc>(x[c]) * rescale);
      mask.for_dropped(i, 0, k.x.cols, [&](int64_t c) { y[c] = T(0); });
    }
  });
}

}  // namespace norma
