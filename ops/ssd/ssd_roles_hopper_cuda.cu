#include "norma/ops/ssd/ssd_backward_cuda.cuh"
#include "norma/ops/ssd/ssd_hopper.cuh"

namespace norma::ssd_cuda {
namespace {

// The roles of ssd_roles_cuda.cu, each a warpgroup's, so that a product of all 64 steps is
// Hopper's: its right operand is read from shared memory once, not by each warp, and its sums over
// heads stay where the product adds to them. With products of one warp shared memory was read for
// half the time, and twice as many instructions were issued.

constexpr int kThreads = 4 * kGroup, kBuffers = 3;

template <class T, int kN>
struct HopperShared {
  struct Head {
    T state[kN / 64 * kPanel], dstate[kN / 64 * kPanel], x[kPanel], dy[kPanel];
    float sum[kQ], delta[kQ], slope[kQ], d[kP];
  };
  T b[kN / 64 * kPanel], c[kN / 64 * kPanel];
  Head heads[kBuffers];
  T m[kBuffers][kPanel];
  HeadSums sums[kBuffers];
  SharedBarrier here[kBuffers], shared_here;  // a head's rows and states; b and c
  SharedBarrier all;                          // of the block's warps
};
struct Maps {
  CUtensorMap x, dy, b, c, states, dstates;
};

/// The diagonal's two 8 × 8 blocks of a bᵀ.
template <class T>
__device__ __forceinline__ void multiply_diagonal(float (&d)[2][4], const Block<T>& a,
                                                  const Block<T>& b) {
  multiply<T>(d[0], a.r, b.r[0], b.r[2]);
  multiply<T>(d[1], a.r, b.r[1], b.r[3]);
}

/// A block's chunk and heads, and a warp's 16 steps in it.
template <class T, int kN>
struct HopperBackward {
  using Shared = HopperShared<T, kN>;
  using Head = typename Shared::Head;

  const BackwardKernelArgs<T>& k;
  const Maps& maps;
  Shared& sh;
  int group, part, first, last;
  int chunk, batch;
  int block = int(threadIdx.x) / kWarpSize % 4, i0 = block * 16;
  int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;

  __device__ HopperBackward(const BackwardKernelArgs<T>& k, const Maps& maps, Shared& shared)
      : k(k), maps(maps), sh(shared) {
    const Sizes& s = k.size;
    part = int(blockIdx.y) % k.parts, group = int(blockIdx.y) / k.parts;
    chunk = int(blockIdx.x % s.chunks), batch = int(blockIdx.x / s.chunks);
    first = group * s.shared() + part * k.heads_each;
    last = min(first + k.heads_each, (group + 1) * s.shared());
  }
  __device__ __forceinline__ int begin() const { return chunk * kQ; }
  /// All of the block for the nth time, each role from a place of its own. Not a bar.sync of all
  /// threads: synccheck takes those from several places for divergence. It is a hundredth slower.
  __device__ __forceinline__ void meet(int n) const {
    __syncwarp();
    if (lane == 0) sh.all.arrive();
    sh.all.wait(n % 2);
  }
  /// Before the last head but one is over.
  __device__ __forceinline__ int meetings() const { return last - first + 1; }

  // By one thread.
  __device__ void fetch_shared() const {
    sh.shared_here.expect(sizeof sh.b + sizeof sh.c);
#pragma unroll
    for (int n = 0; n < kN; n += 64) {
      copy_box(sh.b + n * kQ, maps.b, sh.shared_here, n, begin(), group, batch);
      copy_box(sh.c + n * kQ, maps.c, sh.shared_here, n, begin(), group, batch);
    }
  }
  __device__ void fetch(int head) const {
    const int at = (head - first) % kBuffers;
    Head& to = sh.heads[at];
    SharedBarrier& done = sh.here[at];
    done.expect(sizeof(Head) - (k.d ? 0 : sizeof to.d));
    copy_box(to.x, maps.x, done, 0, begin(), head, batch);
    copy_box(to.dy, maps.dy, done, 0, begin(), head, batch);
    const int row = ((batch * int(k.size.chunks) + chunk) * k.size.heads + head) * kP;
#pragma unroll
    for (int n = 0; n < kN; n += 64) {
      copy_box(to.state + n * kP, maps.states, done, n, row, 0, 0);
      copy_box(to.dstate + n * kP, maps.dstates, done, n, row, 0, 0);
    }
    const int64_t steps = Steps::at(k.size, batch, head, begin());
    bulk_copy(to.sum, k.steps.sum + steps, sizeof to.sum, done);
    bulk_copy(to.delta, k.steps.delta + steps, sizeof to.delta, done);
    bulk_copy(to.slope, k.steps.slope + steps, sizeof to.slope, done);
    if (k.d) bulk_copy(to.d, k.d + head * kP, sizeof to.d, done);
  }

  /// work(head, its place) by all warps at once, of those that are behind a head later; the others
  /// fetch. over(head, its place) when all are done with it.
  template <bool kBehind, class Work, class Over>
  __device__ __forceinline__ void each_head(const Work& work, const Over& over) const {
    for (int next = first; next <= last; ++next) {
      meet(next - first);  // the last head but one is done with
      if constexpr (!kBehind) {
        if (threadIdx.x == 0 && next + 1 < last) fetch(next + 1);
        __syncwarp();
      }
      if (next - 2 >= first) over(next - 2, (next - 2 - first) % kBuffers);
      const int head = next - kBehind, turn = head - first;
      if (head < first || head >= last) continue;
      sh.here[turn % kBuffers].wait(turn / kBuffers % 2);
      work(head, turn % kBuffers);
    }
    meet(meetings());
    over(last - 1, (last - 1 - first) % kBuffers);
  }
  template <bool kBehind, class Work>
  __device__ __forceinline__ void each_head(const Work& work) const {
    each_head<kBehind>(work, [](int, int) {});
  }

  /// m = L ⊙ c bᵀ, and what its gradient dy (Δ x)ᵀ gives; last d(c bᵀ), where m was. Of both only
  /// the 16 × 16 blocks up to the diagonal: the others stay the zeros that they were made.
  __device__ __forceinline__ void scores() const {
    float cb[kQ / 2] = {}, dcb[kQ / 2] = {}, r[kQ / 2] = {};
    keep_registers(cb);
    wgmma_begin();
#pragma unroll
    for (int n = 0; n < kN; n += 16)
      wgmma_rows<T, kQ>(cb, rows_of(sh.c, kQ, 0, n), rows_of(sh.b, kQ, 0, n), n > 0);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(cb);
    each_head<false>([&](int, int at) {
      const Head& own = sh.heads[at];
      HeadSums& sums = sh.sums[at];
      keep_registers(r);
      wgmma_begin();
#pragma unroll
      for (int p = 0; p < kP; p += 16)
        wgmma_rows<T, kQ>(r, rows_of(own.dy, kQ, 0, p), rows_of(own.x, kQ, 0, p), p > 0);
      wgmma_commit();
      const float of_row[2] = {own.sum[i0 + g], own.sum[i0 + g + 8]};
      float of_rows[2] = {};
      wgmma_wait<0>();
      keep_registers(r);
#pragma unroll
      for (int j0 = 0; j0 < kQ; j0 += 16) {
        if (j0 > i0) break;  // the same for the whole warp
        // Not ahead of the diagonal, where 2^(s_i − s_j) may overflow.
        const bool seen[2] = {j0 < i0 || g >= c, j0 < i0 || g > c};
        float of_columns[4] = {};
        uint32_t block_of_m[4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int j = j0 + half * 8 + c;
          const Pair sum = read_pair(&own.sum[j]), delta = read_pair(&own.delta[j]);
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            float m[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const int i = (j0 / 8 + half) * 4 + row * 2 + e;
              const float free = exp2_fast(of_row[row] - (e == 0 ? sum.low : sum.high));
              const float l = row < half    ? (j0 == i0 ? 0.0f : free)
                              : row == half ? (seen[e] ? free : 0.0f)
                                            : free;
              m[e] = l * cb[i];
              const float dm = r[i] * (e == 0 ? delta.low : delta.high);
              dcb[i] += l * dm;
              of_rows[row] += m[e] * dm;
              of_columns[half * 2 + e] += m[e] * r[i];
            }
            block_of_m[half * 2 + row] = pack_pair<T>(m[0], m[1]);
          }
        }
        store_block(sh.m[at], i0, j0, block_of_m);
        const float sum = over_rows(of_columns);
        if (lane % 8 < 4) sums.columns[block][j0 + lane / 16 * 8 + c + lane / 8 % 2] = sum;
      }
      copies_follow_writes();
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float sum = over_row(of_rows[row]);
        if (c == 0) sums.rows[i0 + g + row * 8] = sum;
      }
    });
#pragma unroll
    for (int j0 = 0; j0 < kQ; j0 += 16) {
      uint32_t block_of_dcb[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        block_of_dcb[i] = pack_pair<T>(dcb[j0 / 2 + i * 2], dcb[j0 / 2 + i * 2 + 1]);
      store_block(sh.m[0], i0, j0, block_of_dcb);
    }
    copies_follow_writes();
    meet(meetings() + 1);
  }

  /// d(Δ x), and dx; rows are steps j here. Then, which is no row's, the gradients of a head's
  /// steps.
  __device__ __forceinline__ void inputs() const {
    float through[kP / 2] = {}, du[kP / 2] = {};  // the state after the chunk, and m
    OwnSteps steps;  // its place is read over before its sums are whole
    const auto work = [&](int head, int at) {
      const Head& own = sh.heads[at];
      steps.read(own, k.a[head]);
      keep_registers(through);
      keep_registers(du);
      wgmma_begin();
#pragma unroll
      for (int n = 0; n < kN; n += 16)
        wgmma_rows<T, kP>(through, rows_of(sh.b, kQ, 0, n), rows_of(own.dstate, kP, 0, n), n > 0);
      wgmma_commit();
#pragma unroll
      for (int i = 0; i < kQ; i += 16)
        wgmma_rows<T, kP, true, true>(du, columns_of(sh.m[at], kQ, i), columns_of(own.dy, kQ, i),
                                      i > 0);
      wgmma_commit();
      const float end = own.sum[kQ - 1];
      const float fall[2] = {exp2_fast(end - own.sum[i0 + g]),
                             exp2_fast(end - own.sum[i0 + g + 8])};
      const float delta[2] = {own.delta[i0 + g], own.delta[i0 + g + 8]};
      float fallen[2] = {};
      wgmma_wait<1>();
      keep_registers(through);
#pragma unroll
      for (int p = 0; p < kP; p += 16) {
        Block<T> x;
        load_block(x, own.x, i0, p);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Pair pair = pair_of(x, i);
          fallen[i % 2] +=
              through[p / 2 + i * 2] * pair.low + through[p / 2 + i * 2 + 1] * pair.high;
        }
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float sum = over_row(fallen[row]);
        if (c == 0) sh.sums[at].fallen[i0 + g + row * 8] = sum * fall[row];
      }
      wgmma_wait<0>();
      keep_registers(du);
      const int64_t t = begin() + i0 + g;
      T* const out = k.dx.row(batch, t) + int64_t{head} * kP + c;
      const bool inside[2] = {t < k.size.length, t + 8 < k.size.length};
#pragma unroll
      for (int p = 0; p < kP; p += 16) {
        Block<T> dy;
        load_block(dy, own.dy, i0, p);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = i % 2, column = p + i / 2 * 8, v = p / 2 + i * 2;
          float low = (through[v] * fall[row] + du[v]) * delta[row];
          float high = (through[v + 1] * fall[row] + du[v + 1]) * delta[row];
          if (k.d) {
            const Pair slope = pair_of(dy, i), d = read_pair(&own.d[column + c]);
            low += d.low * slope.low, high += d.high * slope.high;
          }
          if (inside[row]) put_pair(out + row * 8 * k.dx.row_stride + column, low, high);
        }
      }
    };
    each_head<true>(work, [&](int head, int at) {
      if (block == 0) finish_head(k, batch, begin(), head, sh.sums[at], steps);
    });
    meet(meetings() + 1);
  }

  /// dd, the diagonal of dyᵀ x.
  __device__ __forceinline__ void put_dd(const Head& own, int head) const {
    float dd[2][4] = {};
#pragma unroll
    for (int t = 0; t < kQ; t += 16) {
      Block<T> a, b;
      load_block_turned(a, own.dy, i0, t);
      load_block_turned(b, own.x, i0, t);
      multiply_diagonal(dd, a, b);
    }
    if (g / 2 * 2 != c) return;  // (g, g) and (g + 8, g + 8) are another lane's
    float* to = k.sums + blockIdx.x * int64_t{k.size.heads} * (kP + 2) + head * kP + i0 + g;
    to[0] = g % 2 ? dd[0][1] : dd[0][0], to[8] = g % 2 ? dd[1][3] : dd[1][2];
  }

  /// dc: through the state before the chunk, and last through c bᵀ; and dd. That and the steps'
  /// gradients were the states' and made them the longest role (backward 0.257 ms for 0.254).
  __device__ __forceinline__ void outputs() const {
    float dc[kN / 2] = {}, through[kP / 2] = {};  // c Sᵀ, of which y is 2^s times the rows
    each_head<true>([&](int head, int at) {
      const Head& own = sh.heads[at];
      keep_registers(through);
      wgmma_begin();
#pragma unroll
      for (int n = 0; n < kN; n += 16)
        wgmma_rows<T, kP>(through, rows_of(sh.c, kQ, 0, n), rows_of(own.state, kP, 0, n), n > 0);
      wgmma_commit();
      const float rise[2] = {exp2_fast(own.sum[i0 + g]), exp2_fast(own.sum[i0 + g + 8])};
      Block<T> dy[kP / 16];
      uint32_t risen_dy[kP / 16][4];
#pragma unroll
      for (int p = 0; p < kP; p += 16) {
        load_block(dy[p / 16], own.dy, i0, p);
        Block<T> a = dy[p / 16];
        scale_rows(a, rise);
#pragma unroll
        for (int i = 0; i < 4; ++i) risen_dy[p / 16][i] = a.r[i];
      }
      keep_registers(risen_dy);
      keep_registers(dc);
      wgmma_begin();
#pragma unroll
      for (int p = 0; p < kP; p += 16)
        wgmma_registers<T, kN, true>(dc, risen_dy[p / 16], columns_of(own.state, kP, p), true);
      wgmma_commit();
      wgmma_wait<1>();
      keep_registers(through);
      float risen[2] = {};
#pragma unroll
      for (int p = 0; p < kP; p += 16)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const Pair pair = pair_of(dy[p / 16], i);
          risen[i % 2] +=
              through[p / 2 + i * 2] * pair.low + through[p / 2 + i * 2 + 1] * pair.high;
        }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float sum = over_row(risen[row]);
        if (c == 0) sh.sums[at].risen[i0 + g + row * 8] = sum * rise[row];
      }
      put_dd(own, head);
      wgmma_wait<0>();
      keep_registers(dc);
      keep_registers(risen_dy);
    });
    meet(meetings() + 1);
    keep_registers(dc);
    wgmma_begin();
#pragma unroll
    for (int j = 0; j < kQ; j += 16)
      wgmma_rows<T, kN, true>(dc, rows_of(sh.m[0], kQ, 0, j), columns_of(sh.b, kQ, j), true);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(dc);
    put_sums(dc, k.dc, k.dc_parts);
  }

  /// db likewise: through the state after the chunk, and last through c bᵀ; and ⟨dS, S⟩, which is
  /// no row's, the diagonal of a product.
  __device__ __forceinline__ void states() const {
    float db[kN / 2] = {};
    each_head<true>([&](int, int at) {
      const Head& own = sh.heads[at];
      const float end = own.sum[kQ - 1];
      const float fall[2] = {exp2_fast(end - own.sum[i0 + g]) * own.delta[i0 + g],
                             exp2_fast(end - own.sum[i0 + g + 8]) * own.delta[i0 + g + 8]};
      uint32_t fallen_x[kP / 16][4];
#pragma unroll
      for (int p = 0; p < kP; p += 16) {
        Block<T> a;
        load_block(a, own.x, i0, p);
        scale_rows(a, fall);
#pragma unroll
        for (int i = 0; i < 4; ++i) fallen_x[p / 16][i] = a.r[i];
      }
      keep_registers(fallen_x);
      keep_registers(db);
      wgmma_begin();
#pragma unroll
      for (int p = 0; p < kP; p += 16)
        wgmma_registers<T, kN, true>(db, fallen_x[p / 16], columns_of(own.dstate, kP, p), true);
      wgmma_commit();
      float dot[2][4] = {};
#pragma unroll
      for (int n = 0; n < kN; n += 16) {
        Block<T> a, b;
        load_block(a, own.state + n / 64 * kPanel, i0, n % 64);
        load_block(b, own.dstate + n / 64 * kPanel, i0, n % 64);
        multiply_diagonal(dot, a, b);
      }
      const bool holds = g / 2 * 2 == c, odd = g % 2;  // (g, g) and (g + 8, g + 8)
      const float sum = warp_sum(!holds ? 0 : odd ? dot[0][1] + dot[1][3] : dot[0][0] + dot[1][2]);
      if (lane == 0) sh.sums[at].dot[block] = sum;
      wgmma_wait<0>();
      keep_registers(db);
      keep_registers(fallen_x);
    });
    meet(meetings() + 1);
    keep_registers(db);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < kQ; i += 16)
      wgmma_rows<T, kN, true, true>(db, columns_of(sh.m[0], kQ, i), columns_of(sh.c, kQ, i), true);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(db);
    put_sums(db, k.db, k.db_parts);
  }

  /// A warp's rows of db or dc: to their place, or where heads are divided among blocks to a part.
  __device__ __forceinline__ void put_sums(const float (&v)[kN / 2], const Sequence<T>& whole,
                                           float* parts) const {
    const Sizes& s = k.size;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int64_t t = begin() + i0 + g + row * 8;
      if (t >= s.length) continue;
      T* to = whole.row(batch, t) + group * kN + c;
      float* own = parts + (((part * s.batch + batch) * s.length + t) * s.groups + group) * kN + c;
#pragma unroll
      for (int n = 0; n < kN; n += 8)
        if (k.parts == 1)
          put_pair(to + n, v[n / 2 + row * 2], v[n / 2 + row * 2 + 1]);
        else
          put_pair(own + n, v[n / 2 + row * 2], v[n / 2 + row * 2 + 1]);
    }
  }
};

template <class T, int kN>
__global__ void __launch_bounds__(kThreads, 1)
    ssd_backward_hopper_kernel(const __grid_constant__ Maps maps,
                               const __grid_constant__ BackwardKernelArgs<T> k) {
  if constexpr (kHasWgmma) {
    auto& shared = shared_memory<HopperShared<T, kN>>();
    const HopperBackward<T, kN> own(k, maps, shared);
    if (threadIdx.x == 0) {
#pragma unroll
      for (SharedBarrier& each : shared.here) each.init(1);
      shared.shared_here.init(1);
      shared.all.init(kThreads / kWarpSize);
      publish_barriers();
      own.fetch_shared();
      own.fetch(own.first);
    }
    auto* m = reinterpret_cast<uint4*>(shared.m);
    for (int i = int(threadIdx.x); i < int(sizeof shared.m / sizeof *m); i += kThreads)
      m[i] = make_uint4(0, 0, 0, 0);
    copies_follow_writes();
    __syncthreads();
    shared.shared_here.wait(0);
    switch (group_of_block()) {
      case 0:
        return own.scores();
      case 1:
        give_registers<104>();
        return own.inputs();
      case 2:
        take_registers<152>();
        return own.outputs();
      default:
        return own.states();
    }
  } else {
    __trap();
  }
}

template <class T, int kN>
CUtensorMap map_of(const T* states, int64_t rows) {
  const std::array<int64_t, 4> sizes{kN, rows, 1, 1}, strides{1, kN, 1, 1};
  return detail::tensor_map(dtype_of<T>, states, sizes, strides, kP);
}

}  // namespace

template <class T, int kN>
bool backward_chunks_hopper(Cuda on, const BackwardKernelArgs<T>& k) {
  const Sizes& s = k.size;
  if (!runs_on_hopper(on, s, k.x, k.dy, k.b, k.c)) return false;
  const int64_t rows = s.batch * s.chunks * s.heads * kP;
  const Maps maps{map_of(k.x, s, s.heads, kP),   map_of(k.dy, s, s.heads, kP),
                  map_of(k.b, s, s.groups, kN),  map_of(k.c, s, s.groups, kN),
                  map_of<T, kN>(k.states, rows), map_of<T, kN>(k.dstates, rows)};
  launch(on,
         {.grid = dim3(unsigned(s.batch * s.chunks), unsigned(k.parts * s.groups)),
          .block = dim3(kThreads),
          .shared = kSharedBytes<HopperShared<T, kN>>},
         ssd_backward_hopper_kernel<T, kN>, maps, k);
  return true;
}

template bool backward_chunks_hopper<BFloat16, 64>(Cuda, const BackwardKernelArgs<BFloat16>&);
template bool backward_chunks_hopper<BFloat16, 128>(Cuda, const BackwardKernelArgs<BFloat16>&);
template bool backward_chunks_hopper<Float16, 64>(Cuda, const BackwardKernelArgs<Float16>&);
template bool backward_chunks_hopper<Float16, 128>(Cuda, const BackwardKernelArgs<Float16>&);

}  // namespace norma::ssd_cuda
