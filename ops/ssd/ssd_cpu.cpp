#include <algorithm>
#include <cmath>

#include "norma/core/parallel.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/lanes_cpu.h"
#include "norma/ops/matmul/kernels.h"
#include "norma/ops/ssd/kernels.h"

namespace norma {
namespace {

// A task runs along time, chunk by chunk, for some neighbouring heads of one group. A head's P
// columns lie beside the next head's, as in x, so that all heads' products with b and c, and the
// sums over heads of db and dc, are one product each; only those with a head's own L are batched.

constexpr int64_t kChunk = 64;  // the heads' triangles cost Q² each, the states' products N · P
constexpr int64_t kTasks = 16;

struct Sizes {
  int64_t batch, length, heads, head_dim, groups, n, chunk;
  int64_t parts;     // tasks a group
  int64_t per_part;  // heads a task

  int64_t shared() const { return heads / groups; }
  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  int64_t tasks() const { return batch * groups * parts; }
};
Sizes sizes_of(const ConstView& x, const ConstView& b, int64_t chunk) {
  Sizes s{x.shape[0], x.shape[1], x.shape[2], x.shape[3], b.shape[2], b.shape[3], 0, 1, 0};
  s.chunk = std::min(chunk > 0 ? chunk : kChunk, s.length);
  if (s.batch == 0 || s.heads == 0) return s;
  const int64_t wanted =
      std::clamp<int64_t>(kTasks / (s.batch * s.groups), 1, std::max<int64_t>(1, s.shared()));
  s.per_part = (s.shared() + wanted - 1) / wanted;
  s.parts = (s.shared() + s.per_part - 1) / s.per_part;
  return s;
}

/// What a task works on.
struct Part {
  int64_t batch, group, first_head, heads, index;  // index: among its group's parts

  Part(const Sizes& s, int64_t task)
      : batch(task / s.parts / s.groups),
        group(task / s.parts % s.groups),
        first_head(group * s.shared() + task % s.parts * s.per_part),
        heads(std::min(s.per_part, (group + 1) * s.shared() - first_head)),
        index(task % s.parts) {}
};

/// A matrix, or a batch of them, as the product kernel takes it.
template <class Acc>
struct Matrix {
  const Acc* data;
  int64_t rows, cols, row_stride, col_stride;
  int64_t count = 1, stride = 0;

  Matrix t() const { return {data, cols, rows, col_stride, row_stride, count, stride}; }
};
/// c = a b, c dense.
template <class Acc>
void multiply(const Matrix<Acc>& a, const Matrix<Acc>& b, Acc* c) {
  MatmulArgs args;
  const auto view = [](const Matrix<Acc>& m) {
    ConstView v;
    v.data = m.data, v.dtype = dtype_of<Acc>;
    v.shape = {m.count, m.rows, m.cols}, v.strides = {m.stride, m.row_stride, m.col_stride};
    return v;
  };
  args.a = view(a), args.b = view(b);
  args.c.data = c, args.c.dtype = dtype_of<Acc>;
  args.c.shape = {a.count, a.rows, b.cols}, args.c.strides = {a.rows * b.cols, b.cols, 1};
  run(Cpu{}, args);
}

/// Consecutive pieces of one allocation, each on a cache line of its own.
template <class Acc>
class Memory {
 public:
  explicit Memory(Acc* at) : at_(at) {}
  Acc* take(int64_t n) {
    Acc* taken = at_;
    at_ += detail::round_up_to_lanes<Acc>(n);
    taken_ += detail::round_up_to_lanes<Acc>(n);
    return taken;
  }
  int64_t taken() const { return taken_; }

 private:
  Acc* at_;
  int64_t taken_ = 0;
};

template <class T, class Acc>
void read_run(const T* from, int64_t n, Acc* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Acc>(from[i]);
}
template <class T, class AnyView>
auto* at(const AnyView& view, int64_t batch, int64_t t) {
  return view.template as<T>() + batch * view.strides[0] + t * view.strides[1];
}

template <class Acc>
Acc softplus(Acc v) {
  return std::max(v, Acc(0)) + std::log1p(std::exp(-std::abs(v)));
}

/// One chunk's inputs in Acc and what both directions derive from them.
template <class T>
struct Chunk {
  using Acc = stats_t<T>;
  const Sizes& s;
  Part part;
  int64_t width;                            // columns of all heads
  Acc *x, *scaled, *b, *c, *delta, *slope;  // scaled = Δ x; slope: dΔ / d(dt)
  Acc *sum, *rise, *fall, *cb, *m;          // s, exp(s), exp(s_Q − s), a row a head
  int64_t first = 0, steps = 0;

  Chunk(const Sizes& sizes, const Part& p, Memory<Acc>& memory)
      : s(sizes),
        part(p),
        width(p.heads * s.head_dim),
        x(memory.take(s.chunk * width)),
        scaled(memory.take(s.chunk * width)),
        b(memory.take(s.chunk * s.n)),
        c(memory.take(s.chunk * s.n)),
        delta(memory.take(s.chunk * p.heads)),
        slope(memory.take(s.chunk * p.heads)),
        sum(memory.take(s.chunk * p.heads)),
        rise(memory.take(s.chunk * p.heads)),
        fall(memory.take(s.chunk * p.heads)),
        cb(memory.take(s.chunk * s.chunk)),
        m(memory.take(p.heads * s.chunk * s.chunk)) {}

  /// (steps, width), rows of all heads.
  Matrix<Acc> rows(const Acc* data) const { return {data, steps, width, width, 1}; }
  /// The same, a matrix (steps, P) a head.
  Matrix<Acc> by_head(const Acc* data) const {
    return {data, steps, s.head_dim, width, 1, part.heads, s.head_dim};
  }
  Matrix<Acc> states(const Acc* data) const { return {data, steps, s.n, s.n, 1}; }
  Matrix<Acc> triangles(const Acc* data) const {
    return {data, steps, steps, steps, 1, part.heads, steps * steps};
  }
  Matrix<Acc> triangle(const Acc* data) const { return {data, steps, steps, steps, 1}; }
  Matrix<Acc> state(const Acc* data) const { return {data, width, s.n, s.n, 1}; }

  template <class Args>
  void read(const Args& k, int64_t j) {
    first = j * s.chunk, steps = std::min(s.chunk, s.length - first);
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t t = first + i;
      read_run(at<T>(k.x, part.batch, t) + part.first_head * s.head_dim, width, x + i * width);
      read_run(at<T>(k.b, part.batch, t) + part.group * s.n, s.n, b + i * s.n);
      read_run(at<T>(k.c, part.batch, t) + part.group * s.n, s.n, c + i * s.n);
      const T* dt = at<T>(k.dt, part.batch, t) + part.first_head;
      for (int64_t h = 0; h < part.heads; ++h) read_step(k, static_cast<Acc>(dt[h]), i, h);
    }
    for (int64_t h = 0; h < part.heads; ++h) {
      Acc running = 0, lost = 0;  // Kahan's sum: exponentials of its differences err by its error
      const Acc a = k.a.template at<Acc>(part.first_head + h);
      for (int64_t i = 0; i < steps; ++i) {
        const Acc term = delta[h * steps + i] * a - lost, next = running + term;
        lost = (next - running) - term;
        running = next;
        sum[h * steps + i] = running;
        rise[h * steps + i] = std::exp(running);
      }
      for (int64_t i = 0; i < steps; ++i)
        fall[h * steps + i] = std::exp(running - sum[h * steps + i]);
    }
    for_each_head_row([&](int64_t h, int64_t i, int64_t row) {
      for (int64_t p = 0; p < s.head_dim; ++p) scaled[row + p] = x[row + p] * delta[h * steps + i];
    });
  }
  /// cb = c bᵀ and m = L ⊙ cb, nothing computed where L is 0: exp(s_i − s_j) may overflow there.
  void multiply_triangles() {
    multiply(states(c), states(b).t(), cb);
    for (int64_t h = 0; h < part.heads; ++h)
      for (int64_t i = 0; i < steps; ++i) {
        Acc* row = m + (h * steps + i) * steps;
        decay_row(h, i, row);
        for (int64_t j = 0; j <= i; ++j) row[j] *= cb[i * steps + j];
        std::fill(row + i + 1, row + steps, Acc(0));
      }
  }
  /// L_ij for j ≤ i.
  void decay_row(int64_t h, int64_t i, Acc* row) const {
    constexpr int64_t kCount = detail::kLaneCount<Acc>;
    const Acc *from = sum + h * steps, last = from[i];
    // The end of the whole lanes is worked out first: g++ 12 splits a loop until j + kCount > i + 1
    // that is followed by j > i, and loses its first lanes (-fsplit-loops).
    const int64_t whole = (i + 1) / kCount * kCount, more = i + 1 - whole;
    for (int64_t j = 0; j < whole; j += kCount)
      detail::store_lanes(row + j, detail::exp2_lanes<Acc>((last - detail::load_lanes(from + j)) *
                                                           detail::kLog2E<Acc>));
    if (more == 0) return;
    Acc rest[kCount] = {};
    for (int64_t e = 0; e < more; ++e) rest[e] = last - from[whole + e];
    detail::store_lanes(rest,
                        detail::exp2_lanes<Acc>(detail::load_lanes(rest) * detail::kLog2E<Acc>));
    std::copy_n(rest, more, row + whole);
  }
  /// f(head of the part, step, where its P columns begin in (steps, width)).
  template <class F>
  void for_each_head_row(const F& f) const {
    for (int64_t i = 0; i < steps; ++i)
      for (int64_t h = 0; h < part.heads; ++h) f(h, i, i * width + h * s.head_dim);
  }
  /// to = from, a head's row times its factor.
  void weigh(const Acc* from, const Acc* factors, Acc* to) const {
    for_each_head_row([&](int64_t h, int64_t i, int64_t row) {
      const Acc factor = factors[h * steps + i];
      for (int64_t p = 0; p < s.head_dim; ++p) to[row + p] = from[row + p] * factor;
    });
  }
  /// state = exp(s_end) state + added, both (width, N).
  void fade_and_add(Acc* state, const Acc* added) const {
    for (int64_t h = 0; h < part.heads; ++h) {
      const Acc fade = rise[h * steps + steps - 1];
      Acc* to = state + h * s.head_dim * s.n;
      const Acc* from = added + h * s.head_dim * s.n;
      for (int64_t i = 0; i < s.head_dim * s.n; ++i) to[i] = to[i] * fade + from[i];
    }
  }
  /// The state after the chunk, from the one before. `product`: (width, N).
  void advance(Acc* state, Acc* weighed, Acc* product) const {
    weigh(scaled, fall, weighed);
    multiply(rows(weighed).t(), states(b), product);
    fade_and_add(state, product);
  }

 private:
  template <class Args>
  void read_step(const Args& k, Acc dt, int64_t i, int64_t h) {
    const Acc raw = k.dt_bias ? dt + k.dt_bias.template at<Acc>(part.first_head + h) : dt;
    const Acc free = k.dt_softplus ? softplus(raw) : raw;
    const Acc low = static_cast<Acc>(k.dt_min), high = static_cast<Acc>(k.dt_max);
    delta[h * steps + i] = free < low ? low : free > high ? high : free;
    slope[h * steps + i] = free < low || free > high ? Acc(0)
                           : k.dt_softplus           ? 1 / (1 + std::exp(-raw))
                                                     : Acc(1);
  }
};

/// The part of a (B, H, P, N) state that belongs to a task, or null.
template <class Acc, class AnyVec>
auto* state_of(const AnyVec& state, const Sizes& s, const Part& part) {
  auto* data = state.template as<Acc>();
  return state ? data + (part.batch * s.heads + part.first_head) * s.head_dim * s.n : nullptr;
}

template <class T>
struct ForwardTask {
  using Acc = stats_t<T>;
  const SsdForwardArgs& k;
  const Sizes& s;
  Part part;
  Chunk<T> chunk;
  Acc *state, *y, *more, *product;

  ForwardTask(const SsdForwardArgs& args, const Sizes& sizes, const Part& p, Memory<Acc>& memory)
      : k(args),
        s(sizes),
        part(p),
        chunk(s, p, memory),
        state(memory.take(chunk.width * s.n)),
        y(memory.take(s.chunk * chunk.width)),
        more(memory.take(s.chunk * chunk.width)),
        product(memory.take(chunk.width * s.n)) {}

  void run() {
    const int64_t size = chunk.width * s.n;
    const Acc* before = state_of<Acc>(k.state, s, part);
    Acc* last = state_of<Acc>(k.last_state, s, part);
    if (before)
      std::copy_n(before, size, state);
    else
      std::fill_n(state, size, Acc(0));
    for (int64_t j = 0; j < s.chunks(); ++j) {
      chunk.read(k, j);
      chunk.multiply_triangles();
      // (head, step, P): the product kernel writes dense matrices.
      multiply(chunk.triangles(chunk.m), chunk.by_head(chunk.scaled), y);
      const bool begun = before || j > 0;
      if (begun) multiply(chunk.states(chunk.c), chunk.state(state).t(), more);
      write(begun);
      if (last || j + 1 < s.chunks()) chunk.advance(state, more, product);
    }
    if (last) std::copy_n(state, size, last);
  }

 private:
  void write(bool begun) const {
    chunk.for_each_head_row([&](int64_t h, int64_t i, int64_t row) {
      Acc* out = y + (h * chunk.steps + i) * s.head_dim;
      const int64_t head = part.first_head + h;
      const Acc rise = chunk.rise[h * chunk.steps + i];
      if (begun)
        for (int64_t p = 0; p < s.head_dim; ++p) out[p] += rise * more[row + p];
      if (k.d)
        for (int64_t p = 0; p < s.head_dim; ++p)
          out[p] += k.d.at<Acc>(head * s.head_dim + p) * chunk.x[row + p];
      T* to = at<T>(k.y, part.batch, chunk.first + i) + head * s.head_dim;
      for (int64_t p = 0; p < s.head_dim; ++p) to[p] = static_cast<T>(out[p]);
    });
  }
};

/// Where a task's sums go that others add to: (T, N) of db and dc, and of its sequence.
template <class Acc>
struct Partial {
  Acc *db, *dc, *da, *dd, *ddt_bias;
};

template <class T>
struct BackwardTask {
  using Acc = stats_t<T>;
  const SsdBackwardArgs& k;
  const Sizes& s;
  Part part;
  Chunk<T> chunk;
  Acc *states, *dstate;  // every chunk's, before it; what arrives from behind
  Acc *dy, *dscaled, *work, *other, *by_head, *product, *rows_of_states;
  Acc *dm, *dcb, *dsum;

  BackwardTask(const SsdBackwardArgs& args, const Sizes& sizes, const Part& p, Memory<Acc>& memory)
      : k(args),
        s(sizes),
        part(p),
        chunk(s, p, memory),
        states(memory.take(s.chunks() * chunk.width * s.n)),
        dstate(memory.take(chunk.width * s.n)),
        dy(memory.take(s.chunk * chunk.width)),
        dscaled(memory.take(s.chunk * chunk.width)),
        work(memory.take(s.chunk * chunk.width)),
        other(memory.take(s.chunk * chunk.width)),
        by_head(memory.take(s.chunk * chunk.width)),
        product(memory.take(chunk.width * s.n)),
        rows_of_states(memory.take(s.chunk * s.n)),
        dm(memory.take(p.heads * s.chunk * s.chunk)),
        dcb(memory.take(s.chunk * s.chunk)),
        dsum(memory.take(p.heads * s.chunk)) {}

  void run(const Partial<Acc>& partial) {
    const int64_t size = chunk.width * s.n;
    const Acc* before = state_of<Acc>(k.state, s, part);
    const Acc* behind = state_of<Acc>(k.dlast_state, s, part);
    if (before)
      std::copy_n(before, size, states);
    else
      std::fill_n(states, size, Acc(0));
    if (behind)
      std::copy_n(behind, size, dstate);
    else
      std::fill_n(dstate, size, Acc(0));
    for (int64_t j = 0; j + 1 < s.chunks(); ++j) {
      chunk.read(k, j);
      std::copy_n(states + j * size, size, states + (j + 1) * size);
      chunk.advance(states + (j + 1) * size, work, product);
    }
    for (int64_t j = s.chunks() - 1; j >= 0; --j) {
      chunk.read(k, j);
      for (int64_t i = 0; i < chunk.steps; ++i)
        read_run(at<T>(k.dy, part.batch, chunk.first + i) + part.first_head * s.head_dim,
                 chunk.width, dy + i * chunk.width);
      const bool begun = before || j > 0, followed = behind || j + 1 < s.chunks();
      Acc *db = partial.db + chunk.first * s.n, *dc = partial.dc + chunk.first * s.n;
      through_triangles(db, dc);
      if (followed) through_next_state(states + j * size, begun, db);
      if (begun) through_state(states + j * size, dc);
      finish(partial);
      if (k.dstate || j > 0) {
        chunk.weigh(dy, chunk.rise, work);
        multiply(chunk.rows(work).t(), chunk.states(chunk.c), product);
        chunk.fade_and_add(dstate, product);
      }
    }
    if (Acc* to = state_of<Acc>(k.dstate, s, part)) std::copy_n(dstate, size, to);
  }

 private:
  /// m's and cb's gradients, and with them the first terms of dsum, dscaled, db and dc.
  void through_triangles(Acc* db, Acc* dc) {
    const int64_t steps = chunk.steps;
    chunk.multiply_triangles();
    multiply(chunk.by_head(dy), chunk.by_head(chunk.scaled).t(), dm);
    std::fill_n(dsum, part.heads * steps, Acc(0));
    std::fill_n(dcb, steps * steps, Acc(0));
    for (int64_t h = 0; h < part.heads; ++h)
      for (int64_t i = 0; i < steps; ++i) {
        const Acc *m = chunk.m + (h * steps + i) * steps, *d = dm + (h * steps + i) * steps;
        Acc *columns = dsum + h * steps, decay[kRow], row = 0;
        Acc* l = steps <= kRow ? decay : work;  // a row of L
        chunk.decay_row(h, i, l);
        for (int64_t j = 0; j <= i; ++j) dcb[i * steps + j] += l[j] * d[j];
        for (int64_t j = 0; j <= i; ++j) columns[j] -= d[j] * m[j];
        for (int64_t j = 0; j <= i; ++j) row += d[j] * m[j];
        columns[i] += row;
      }
    multiply(chunk.triangles(chunk.m).t(), chunk.by_head(dy), by_head);
    chunk.for_each_head_row([&](int64_t h, int64_t i, int64_t row) {
      std::copy_n(by_head + (h * steps + i) * s.head_dim, s.head_dim, dscaled + row);
    });
    multiply(chunk.triangle(dcb), chunk.states(chunk.b), dc);
    multiply(chunk.triangle(dcb).t(), chunk.states(chunk.c), db);
  }
  /// The terms that come through the state after the chunk.
  void through_next_state(const Acc* state, bool begun, Acc* db) {
    const int64_t steps = chunk.steps;
    multiply(chunk.states(chunk.b), chunk.state(dstate).t(), other);
    chunk.for_each_head_row([&](int64_t h, int64_t i, int64_t row) {
      const Acc fall = chunk.fall[h * steps + i];
      Acc along = 0;
      for (int64_t p = 0; p < s.head_dim; ++p) {
        along += chunk.scaled[row + p] * other[row + p];
        dscaled[row + p] += fall * other[row + p];
      }
      dsum[h * steps + i] -= fall * along;
      dsum[h * steps + steps - 1] += fall * along;
    });
    if (begun)
      for (int64_t h = 0; h < part.heads; ++h) {
        const int64_t first = h * s.head_dim * s.n;
        Acc both = 0;
        for (int64_t i = first; i < first + s.head_dim * s.n; ++i) both += dstate[i] * state[i];
        dsum[h * steps + steps - 1] += chunk.rise[h * steps + steps - 1] * both;
      }
    chunk.weigh(chunk.scaled, chunk.fall, work);
    multiply(chunk.rows(work), chunk.state(dstate), rows_of_states);
    for (int64_t i = 0; i < steps * s.n; ++i) db[i] += rows_of_states[i];
  }
  /// Those that come through y from the state before it.
  void through_state(const Acc* state, Acc* dc) {
    const int64_t steps = chunk.steps;
    multiply(chunk.states(chunk.c), chunk.state(state).t(), other);
    chunk.for_each_head_row([&](int64_t h, int64_t i, int64_t row) {
      Acc along = 0;
      for (int64_t p = 0; p < s.head_dim; ++p) along += other[row + p] * dy[row + p];
      dsum[h * steps + i] += chunk.rise[h * steps + i] * along;
    });
    chunk.weigh(dy, chunk.rise, work);
    multiply(chunk.rows(work), chunk.state(state), rows_of_states);
    for (int64_t i = 0; i < steps * s.n; ++i) dc[i] += rows_of_states[i];
  }
  /// dx, ddt and the sums for the parameters.
  void finish(const Partial<Acc>& partial) {
    const int64_t steps = chunk.steps;
    for (int64_t h = 0; h < part.heads; ++h)
      for (int64_t i = steps - 2; i >= 0; --i) dsum[h * steps + i] += dsum[h * steps + i + 1];
    chunk.for_each_head_row([&](int64_t h, int64_t i, int64_t row) {
      const int64_t head = part.first_head + h;
      const Acc delta = chunk.delta[h * steps + i], along = dsum[h * steps + i];
      T* dx = at<T>(k.dx, part.batch, chunk.first + i) + head * s.head_dim;
      Acc ddelta = 0;
      for (int64_t p = 0; p < s.head_dim; ++p) {
        const Acc skip = k.d ? k.d.at<Acc>(head * s.head_dim + p) : Acc(0);
        ddelta += dscaled[row + p] * chunk.x[row + p];
        dx[p] = static_cast<T>(dscaled[row + p] * delta + skip * dy[row + p]);
      }
      if (k.d)
        for (int64_t p = 0; p < s.head_dim; ++p)
          partial.dd[head * s.head_dim + p] += dy[row + p] * chunk.x[row + p];
      const Acc raw = (ddelta + k.a.at<Acc>(head) * along) * chunk.slope[h * steps + i];
      at<T>(k.ddt, part.batch, chunk.first + i)[head] = static_cast<T>(raw);
      partial.da[head] += delta * along;
      partial.ddt_bias[head] += raw;
    });
  }

  static constexpr int64_t kRow = 256;
};

template <class Task>
int64_t memory_of(const Sizes& s, const auto& args) {
  Memory<typename Task::Acc> counting(nullptr);
  Task(args, s, Part(s, 0), counting);
  return counting.taken();
}

template <class T>
void forward(const SsdForwardArgs& k) {
  using Acc = stats_t<T>;
  const Sizes s = sizes_of(k.x, k.b, k.chunk);
  if (k.x.shape.numel() == 0) return;
  const Split work = split(s.tasks(), 1);
  const int64_t needed = memory_of<ForwardTask<T>>(s, k);
  parallel_for(work.blocks, [&](int64_t block) {
    const Tensor scratch = empty({needed}, dtype_of<Acc>, cpu);
    for (int64_t task = work.begin(block); task < work.end(block); ++task) {
      Memory<Acc> memory(scratch.span<Acc>().data());
      ForwardTask<T>(k, s, Part(s, task), memory).run();
    }
  });
}

template <class T, class Acc>
void add_parts(const View& out, const Acc* parts, const Sizes& s) {
  const int64_t rows = s.batch * s.length * s.groups;
  const Split work = split(rows, std::max<int64_t>(1, 4096 / s.n));
  parallel_for(work.blocks, [&](int64_t block) {
    for (int64_t row = work.begin(block); row < work.end(block); ++row) {
      const int64_t group = row % s.groups, t = row / s.groups % s.length;
      const int64_t batch = row / s.groups / s.length;
      const Acc* from = parts + ((batch * s.groups + group) * s.parts * s.length + t) * s.n;
      T* to = at<T>(out, batch, t) + group * s.n;
      for (int64_t i = 0; i < s.n; ++i) {
        Acc sum = 0;
        for (int64_t part = 0; part < s.parts; ++part) sum += from[part * s.length * s.n + i];
        to[i] = static_cast<T>(sum);
      }
    }
  });
}
template <class Acc>
void add_sequences(const Vec& out, const Acc* parts, int64_t batch) {
  if (!out) return;
  for (int64_t i = 0; i < out.n; ++i) {
    Acc sum = 0;
    for (int64_t j = 0; j < batch; ++j) sum += parts[j * out.n + i];
    out.at<Acc>(i) = sum;
  }
}

template <class T>
void backward(const SsdBackwardArgs& k) {
  using Acc = stats_t<T>;
  const Sizes s = sizes_of(k.x, k.b, k.chunk);
  const bool nothing = k.x.shape.numel() == 0 || s.n == 0;
  const int64_t tasks = nothing ? 0 : s.tasks(), batch = nothing ? 0 : s.batch;
  const int64_t per_task = s.length * s.n, width = s.heads * s.head_dim;
  const Tensor over_heads = empty({2, tasks, per_task}, dtype_of<Acc>, cpu);
  const Tensor over_batch = zeros({batch, 2 * s.heads + width}, dtype_of<Acc>, cpu);
  Acc *db = over_heads.span<Acc>().data(), *dc = db + tasks * per_task;
  Acc *da = over_batch.span<Acc>().data(), *ddt_bias = da + batch * s.heads,
      *dd = ddt_bias + batch * s.heads;
  if (!nothing) {
    const Split work = split(tasks, 1);
    const int64_t needed = memory_of<BackwardTask<T>>(s, k);
    parallel_for(work.blocks, [&](int64_t block) {
      const Tensor scratch = empty({needed}, dtype_of<Acc>, cpu);
      for (int64_t task = work.begin(block); task < work.end(block); ++task) {
        Memory<Acc> memory(scratch.span<Acc>().data());
        const Part part(s, task);
        BackwardTask<T>(k, s, part, memory)
            .run({db + task * per_task, dc + task * per_task, da + part.batch * s.heads,
                  dd + part.batch * width, ddt_bias + part.batch * s.heads});
      }
    });
    add_parts<T>(k.db, db, s);
    add_parts<T>(k.dc, dc, s);
  }
  add_sequences(k.da, da, batch);
  add_sequences(k.dd, dd, batch);
  add_sequences(k.ddt_bias, ddt_bias, batch);
}

}  // namespace

void run(Cpu, const SsdForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { forward<T>(k); });
}
void run(Cpu, const SsdBackwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { backward<T>(k); });
}

}  // namespace norma
