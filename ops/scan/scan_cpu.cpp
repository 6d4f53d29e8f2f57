#include <algorithm>
#include <cmath>

#include "norma/core/parallel.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/lanes_cpu.h"
#include "norma/ops/elementwise/packets_cpu.h"
#include "norma/ops/scan/kernels.h"

namespace norma {
namespace {

using detail::Vector;

// A task runs along time for a block of channels side by side in vectors, so that the sum over N
// needs no sum across lanes. Of the backward's sums over channels, only those of db and dc do.

constexpr int kBlockBytes = 128;  // of channels: two cache lines of float32, whatever the processor
constexpr int kVectors = kBlockBytes / detail::kVectorBytes;
template <class Acc>
constexpr int64_t kBlock = kBlockBytes / static_cast<int64_t>(sizeof(Acc));

struct Sizes {
  int64_t batch, length, channels, n, chunk;
  int64_t chunks() const { return (length + chunk - 1) / chunk; }
  int64_t blocks(int64_t block) const { return (channels + block - 1) / block; }
};
Sizes sizes_of(const ConstView& x, const ConstView& a, int64_t chunk) {
  return {x.shape[0], x.shape[1], x.shape[2], a.shape[1], chunk};
}

/// A block of channels of one sequence.
template <class Acc>
struct Channels {
  int64_t batch, first, n;  // n ≤ kBlock; the lanes beyond hold zeros

  template <class T, class AnyView>
  auto* row(const AnyView& view, int64_t t) const {
    return view.template as<T>() + batch * view.strides[0] + t * view.strides[1] + first;
  }
  template <class T>
  void read(const T* from, Acc* to) const {
    for (int64_t e = 0; e < n; ++e) to[e] = static_cast<Acc>(from[e]);
    std::fill(to + n, to + kBlock<Acc>, Acc(0));
  }
  template <class T>
  void write(const Acc* from, T* to) const {
    for (int64_t e = 0; e < n; ++e) to[e] = static_cast<T>(from[e]);
  }
  void read_vector(const ConstVec& from, Acc* to) const {
    std::fill_n(to, kBlock<Acc>, Acc(0));
    if (from) read(from.as<Acc>() + first, to);
  }
  /// (E, N) at the block's first channel as N rows of lanes, times `factor`; zeros where absent.
  void turn(const Acc* from, int64_t states, Acc factor, Acc* to) const {
    std::fill_n(to, states * kBlock<Acc>, Acc(0));
    if (!from) return;
    for (int64_t e = 0; e < n; ++e)
      for (int64_t i = 0; i < states; ++i) to[i * kBlock<Acc> + e] = from[e * states + i] * factor;
  }
  void turn_back(const Acc* from, int64_t states, Acc* to) const {
    for (int64_t e = 0; e < n; ++e)
      for (int64_t i = 0; i < states; ++i) to[e * states + i] = from[i * kBlock<Acc> + e];
  }
  const Acc* at(const ConstVec& state, int64_t channels, int64_t states) const {
    return state ? state.as<Acc>() + (batch * channels + first) * states : nullptr;
  }
};

/// Consecutive pieces of one allocation.
template <class Acc>
class Memory {
 public:
  explicit Memory(Acc* at) : at_(at) {}
  Acc* take(int64_t n) {
    Acc* taken = at_;
    at_ += n;
    return taken;
  }

 private:
  Acc* at_;
};

/// A block of one row.
template <class Acc>
struct Block {
  using Part = Vector<Acc>;
  static constexpr int64_t kWidth = detail::VectorOf<Acc>::kWidth;
  Part v[kVectors];

  static Block load(const Acc* from) {
    return each([&](int i) { return *reinterpret_cast<const Part*>(from + i * kWidth); });
  }
  static Block zero() { return {}; }
  void store(Acc* to) const {
    for (int i = 0; i < kVectors; ++i) *reinterpret_cast<Part*>(to + i * kWidth) = v[i];
  }
  /// Halves of the block, then of the half, … added: the same order on every processor.
  Acc sum() const {
    Block all = *this;
    for (int half = kVectors / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) all.v[i] += all.v[i + half];
    return detail::sum_of_vector<Acc>(all.v[0]);
  }
  friend Block operator*(const Block& a, const Block& b) {
    return each([&](int i) { return a.v[i] * b.v[i]; });
  }
  friend Block operator*(const Block& a, Acc b) {
    return each([&](int i) { return a.v[i] * b; });
  }
  friend Block operator+(const Block& a, const Block& b) {
    return each([&](int i) { return a.v[i] + b.v[i]; });
  }
  friend Block exp2(const Block& a) {
    return each([&](int i) { return detail::exp2_vector<Acc>(a.v[i]); });
  }
  friend Block sigmoid_of(const Block& a) {
    return each([&](int i) {
      return Acc(1) / (Acc(1) + detail::exp2_vector<Acc>(a.v[i] * -detail::kLog2E<Acc>));
    });
  }

 private:
  template <class F>
  static Block each(const F& f) {
    Block block;
    for (int i = 0; i < kVectors; ++i) block.v[i] = f(i);
    return block;
  }
};

/// Rows t … t + steps − 1 of what a chunk needs, converted.
template <class T>
struct Chunk {
  using Acc = stats_t<T>;
  static constexpr int64_t kWidth = kBlock<Acc>;
  Acc *x, *raw, *delta, *gate, *sigmoid, *b, *c;  // raw = dt + dt_bias
  int64_t steps = 0;

  static int64_t scratch(const Sizes& s) { return s.chunk * (5 * kWidth + 2 * s.n); }
  Chunk(Memory<Acc>& memory, const Sizes& s)
      : x(memory.take(s.chunk * kWidth)),
        raw(memory.take(s.chunk * kWidth)),
        delta(memory.take(s.chunk * kWidth)),
        gate(memory.take(s.chunk * kWidth)),
        sigmoid(memory.take(s.chunk * kWidth)),
        b(memory.take(s.chunk * s.n)),
        c(memory.take(s.chunk * s.n)) {}

  template <class Args>
  void read(const Args& k, const Sizes& s, const Channels<Acc>& channels, int64_t t,
            const Acc* bias) {
    steps = std::min(s.chunk, s.length - t);
    for (int64_t i = 0; i < steps; ++i) {
      channels.template read<T>(channels.template row<T>(k.x, t + i), x + i * kWidth);
      Acc* row = raw + i * kWidth;
      channels.template read<T>(channels.template row<T>(k.dt, t + i), row);
      for (int64_t e = 0; e < kWidth; ++e) row[e] += bias[e];
      read_states(k.b, channels.batch, t + i, s.n, b + i * s.n);
      read_states(k.c, channels.batch, t + i, s.n, c + i * s.n);
      if (k.z.data) read_gate(channels.template row<T>(k.z, t + i), channels, i * kWidth);
    }
    if (!k.dt_softplus) {
      std::copy_n(raw, steps * kWidth, delta);
      return;
    }
    for (int64_t i = 0; i < steps * kWidth; ++i) delta[i] = -std::abs(raw[i]);
    detail::map_packets(
        steps * kWidth, delta,
        [](const auto& r, const auto& v) {
          return (r.max(Acc(0)) + detail::exp_of(v).log1p()).eval();
        },
        static_cast<const Acc*>(raw), static_cast<const Acc*>(delta));
  }

 private:
  void read_gate(const T* z, const Channels<Acc>& channels, int64_t at) {
    channels.read(z, gate + at);
    sigmoid_of(Block<Acc>::load(gate + at)).store(sigmoid + at);
  }
  static void read_states(const ConstView& from, int64_t batch, int64_t t, int64_t n, Acc* to) {
    const T* row = from.as<T>() + batch * from.strides[0] + t * from.strides[1];
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<Acc>(row[i]);
  }
};

template <class T>
void forward_task(const ScanForwardArgs& k, const Sizes& s, const Channels<stats_t<T>>& channels,
                  Memory<stats_t<T>> memory) {
  using Acc = stats_t<T>;
  using Row = Block<Acc>;
  constexpr int64_t kWidth = kBlock<Acc>;
  Acc *a = memory.take(s.n * kWidth), *h = memory.take(s.n * kWidth);
  Acc *d = memory.take(kWidth), *bias = memory.take(kWidth), *y = memory.take(kWidth);
  Chunk<T> chunk(memory, s);
  channels.turn(k.a.as<Acc>() + channels.first * s.n, s.n, detail::kLog2E<Acc>, a);
  channels.turn(channels.at(k.state, s.channels, s.n), s.n, 1, h);
  channels.read_vector(k.d, d);
  channels.read_vector(k.dt_bias, bias);
  for (int64_t j = 0; j < s.chunks(); ++j) {
    if (k.chunk_states) {
      Acc* to = k.chunk_states.as<Acc>() + (channels.batch * s.chunks() + j) * s.n * s.channels;
      for (int64_t i = 0; i < s.n; ++i)
        channels.write(h + i * kWidth, to + i * s.channels + channels.first);
    }
    chunk.read(k, s, channels, j * s.chunk, bias);
    for (int64_t t = 0; t < chunk.steps; ++t) {
      const Row delta = Row::load(chunk.delta + t * kWidth), x = Row::load(chunk.x + t * kWidth);
      const Row input = delta * x;
      Row sum = Row::load(d) * x;
      for (int64_t i = 0; i < s.n; ++i) {
        const Row state = exp2(delta * Row::load(a + i * kWidth)) * Row::load(h + i * kWidth) +
                          input * chunk.b[t * s.n + i];
        state.store(h + i * kWidth);
        sum = sum + state * chunk.c[t * s.n + i];
      }
      if (k.z.data)
        sum = sum * (Row::load(chunk.gate + t * kWidth) * Row::load(chunk.sigmoid + t * kWidth));
      sum.store(y);
      channels.write(y, channels.template row<T>(k.y, j * s.chunk + t));
    }
  }
  if (k.last_state)
    channels.turn_back(
        h, s.n, k.last_state.as<Acc>() + (channels.batch * s.channels + channels.first) * s.n);
}

template <class T>
void forward(const ScanForwardArgs& k) {
  using Acc = stats_t<T>;
  constexpr int64_t kWidth = kBlock<Acc>;
  const Sizes s = sizes_of(k.x, k.a, k.chunk);
  const int64_t blocks = s.blocks(kWidth), needed = (2 * s.n + 3) * kWidth + Chunk<T>::scratch(s);
  const Split work = split(s.batch * blocks, 1);
  parallel_for(work.blocks, [&](int64_t block) {
    const Tensor scratch = empty({needed}, dtype_of<Acc>, cpu);
    for (int64_t task = work.begin(block); task < work.end(block); ++task) {
      const int64_t first = task % blocks * kWidth;
      forward_task<T>(k, s, {task / blocks, first, std::min(kWidth, s.channels - first)},
                      Memory<Acc>(scratch.span<Acc>().data()));
    }
  });
}

/// Sums over what a task does not see: its own parts, added by index when all are done.
template <class Acc>
struct Partial {
  Acc *db, *dc;             // (T, N): of the task's channels
  Acc *da, *dd, *ddt_bias;  // N rows, a row, a row of lanes: of the task's sequence
};

template <class T>
class BackwardTask {
  using Acc = stats_t<T>;
  using Row = Block<Acc>;
  static constexpr int64_t kWidth = kBlock<Acc>;

 public:
  static int64_t scratch(const Sizes& s) {
    return (3 * s.n + 4 + s.chunk + (2 * s.chunk + 1) * s.n) * kWidth + Chunk<T>::scratch(s);
  }
  BackwardTask(const ScanBackwardArgs& args, const Sizes& sizes, Memory<Acc> memory)
      : k(args),
        s(sizes),
        a(memory.take(s.n * kWidth)),
        a_log2e(memory.take(s.n * kWidth)),
        g(memory.take(s.n * kWidth)),
        d(memory.take(kWidth)),
        bias(memory.take(kWidth)),
        row(memory.take(2 * kWidth)),
        y(memory.take(s.chunk * kWidth)),

        h(memory.take((s.chunk + 1) * s.n * kWidth)),
        decay(memory.take(s.chunk * s.n * kWidth)),
        chunk(memory, s) {}

  void run(const Channels<Acc>& channels, const Partial<Acc>& partial) {
    channels.turn(k.a.as<Acc>() + channels.first * s.n, s.n, 1, a);
    channels.turn(k.a.as<Acc>() + channels.first * s.n, s.n, detail::kLog2E<Acc>, a_log2e);
    channels.turn(channels.at(k.dlast_state, s.channels, s.n), s.n, 1, g);
    channels.read_vector(k.d, d);
    channels.read_vector(k.dt_bias, bias);
    std::fill_n(partial.da, s.n * kWidth, Acc(0));
    std::fill_n(partial.dd, kWidth, Acc(0));
    std::fill_n(partial.ddt_bias, kWidth, Acc(0));
    for (int64_t j = s.chunks() - 1; j >= 0; --j) {
      chunk.read(k, s, channels, j * s.chunk, bias);
      compute_states(channels, j);
      for (int64_t t = chunk.steps - 1; t >= 0; --t) step_back(channels, j * s.chunk, t, partial);
    }
    if (k.dstate)
      channels.turn_back(g, s.n,
                         k.dstate.as<Acc>() + (channels.batch * s.channels + channels.first) * s.n);
  }

 private:
  /// Every h and decay of chunk j anew, and y before the gate.
  void compute_states(const Channels<Acc>& channels, int64_t j) {
    const Acc* from =
        k.chunk_states.as<Acc>() + (channels.batch * s.chunks() + j) * s.n * s.channels;
    for (int64_t i = 0; i < s.n; ++i)
      channels.read(from + i * s.channels + channels.first, h + i * kWidth);
    for (int64_t t = 0; t < chunk.steps; ++t) {
      const Row delta = Row::load(chunk.delta + t * kWidth), x = Row::load(chunk.x + t * kWidth);
      const Row input = delta * x;
      Row sum = Row::load(d) * x;
      const Acc* before = h + t * s.n * kWidth;
      for (int64_t i = 0; i < s.n; ++i) {
        const Row fade = exp2(delta * Row::load(a_log2e + i * kWidth));
        const Row state = fade * Row::load(before + i * kWidth) + input * chunk.b[t * s.n + i];
        fade.store(decay + (t * s.n + i) * kWidth);
        state.store(h + ((t + 1) * s.n + i) * kWidth);
        sum = sum + state * chunk.c[t * s.n + i];
      }
      sum.store(y + t * kWidth);
    }
  }

  void step_back(const Channels<Acc>& channels, int64_t first, int64_t t,
                 const Partial<Acc>& partial) {
    const int64_t at = t * kWidth;
    const Row x = Row::load(chunk.x + at), delta = Row::load(chunk.delta + at);
    channels.template read<T>(channels.template row<T>(k.dy, first + t), row);
    Row slope = Row::load(row);
    if (k.z.data) slope = through_gate(channels, first, t, slope);
    const Row input = delta * x;
    Row dinput = Row::zero(), fading = Row::zero();
    const Acc *before = h + t * s.n * kWidth, *after = before + s.n * kWidth;
    Acc *db = partial.db + (first + t) * s.n, *dc = partial.dc + (first + t) * s.n;
    for (int64_t i = 0; i < s.n; ++i) {
      const int64_t lane = i * kWidth;
      const Row fade = Row::load(decay + t * s.n * kWidth + lane);
      const Row gradient = Row::load(g + lane) + slope * chunk.c[t * s.n + i];
      dc[i] += (Row::load(after + lane) * slope).sum();
      db[i] += (gradient * input).sum();
      dinput = dinput + gradient * chunk.b[t * s.n + i];
      const Row faded = gradient * fade, p = faded * Row::load(before + lane);
      fading = fading + p * Row::load(a + lane);
      (Row::load(partial.da + lane) + p * delta).store(partial.da + lane);
      faded.store(g + lane);
    }
    (Row::load(partial.dd) + slope * x).store(partial.dd);
    (dinput * delta + slope * Row::load(d)).store(row);
    channels.write(row, channels.template row<T>(k.dx, first + t));
    Row ddelta = dinput * x + fading;
    if (k.dt_softplus) ddelta = ddelta * sigmoid_of(Row::load(chunk.raw + at));
    (Row::load(partial.ddt_bias) + ddelta).store(partial.ddt_bias);
    ddelta.store(row);
    channels.write(row, channels.template row<T>(k.ddt, first + t));
  }

  /// dz, and what of dy gets past the gate.
  Row through_gate(const Channels<Acc>& channels, int64_t first, int64_t t, const Row& dout) {
    const Row z = Row::load(chunk.gate + t * kWidth),
              sigmoid = Row::load(chunk.sigmoid + t * kWidth);
    Row slope = dout * Row::load(y + t * kWidth);
    for (int v = 0; v < kVectors; ++v)
      slope.v[v] *= sigmoid.v[v] * (Acc(1) + z.v[v] * (Acc(1) - sigmoid.v[v]));
    slope.store(row);
    channels.write(row, channels.template row<T>(k.dz, first + t));
    return dout * (z * sigmoid);
  }

  const ScanBackwardArgs& k;
  const Sizes& s;
  Acc *a, *a_log2e, *g, *d, *bias, *row, *y, *h, *decay;
  Chunk<T> chunk;
};

/// out (batch, T, N) = Σ over groups of the partial sums.
template <class T, class Acc>
void add_groups(const View& out, const Acc* parts, int64_t groups, int64_t per_batch) {
  const Split rows = split(out.shape.numel(), 4096);
  parallel_for(rows.blocks, [&](int64_t block) {
    for (int64_t i = rows.begin(block); i < rows.end(block); ++i) {
      const Acc* from = parts + i / per_batch * groups * per_batch + i % per_batch;
      Acc sum = 0;
      for (int64_t group = 0; group < groups; ++group) sum += from[group * per_batch];
      out.as<T>()[i] = static_cast<T>(sum);
    }
  });
}

template <class T>
void backward(const ScanBackwardArgs& k) {
  using Acc = stats_t<T>;
  constexpr int64_t kWidth = kBlock<Acc>;
  constexpr int64_t kTasks = 64;  // enough for 32 threads; each holds db and dc of its own
  const Sizes s = sizes_of(k.x, k.a, k.chunk);
  const int64_t blocks = s.blocks(kWidth), per_batch = s.length * s.n;
  const int64_t wanted = std::max<int64_t>(1, kTasks / std::max<int64_t>(1, s.batch));
  const Split shares{std::min(wanted, blocks), (blocks + wanted - 1) / wanted, blocks};
  const int64_t groups = (blocks + shares.size - 1) / shares.size;
  const int64_t rows = s.n + 2;  // of da, dd and ddt_bias
  const Tensor over_channels = zeros({2, s.batch, groups, per_batch}, dtype_of<Acc>, cpu);
  const Tensor over_batch = empty({s.batch, blocks, rows, kWidth}, dtype_of<Acc>, cpu);
  const int64_t needed = BackwardTask<T>::scratch(s);
  Acc *db = over_channels.span<Acc>().data(), *dc = db + s.batch * groups * per_batch;
  parallel_for(s.batch * groups, [&](int64_t task) {
    const int64_t batch = task / groups, group = task % groups;
    const Tensor scratch = empty({needed}, dtype_of<Acc>, cpu);
    BackwardTask<T> work(k, s, Memory<Acc>(scratch.span<Acc>().data()));
    for (int64_t block = shares.begin(group); block < shares.end(group); ++block) {
      Acc* sums = over_batch.span<Acc>().data() + (batch * blocks + block) * rows * kWidth;
      work.run({batch, block * kWidth, std::min(kWidth, s.channels - block * kWidth)},
               {db + task * per_batch, dc + task * per_batch, sums, sums + s.n * kWidth,
                sums + (s.n + 1) * kWidth});
    }
  });
  add_groups<T>(k.db, db, groups, per_batch);
  add_groups<T>(k.dc, dc, groups, per_batch);
  for (int64_t e = 0; e < s.channels; ++e)
    for (int64_t i = 0; i < rows; ++i) {
      const Vec& to = i < s.n ? k.da : i == s.n ? k.dd : k.ddt_bias;
      if (!to) continue;
      Acc sum = 0;
      for (int64_t batch = 0; batch < s.batch; ++batch)
        sum += over_batch
                   .span<Acc>()[((batch * blocks + e / kWidth) * rows + i) * kWidth + e % kWidth];
      to.at<Acc>(i < s.n ? e * s.n + i : e) = sum;
    }
}

}  // namespace

void run(Cpu, const ScanForwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { forward<T>(k); });
}
void run(Cpu, const ScanBackwardArgs& k) {
  visit_floating(k.x.dtype, [&]<class T>() { backward<T>(k); });
}

}  // namespace norma
