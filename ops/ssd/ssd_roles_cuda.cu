#include "norma/core/cuda/runtime.h"
#include "norma/core/cuda/tma.cuh"
#include "norma/ops/ssd/ssd_backward_cuda.cuh"

namespace norma::ssd_cuda {
namespace {

// Of a block's sixteen warps four each have one of four roles, 16 steps a warp, and meet once a
// head: `scores` is a head ahead of the others, for `inputs` needs its m. Where all sixteen shared
// each product, a quarter of its columns a warp, twice as many instructions loaded operands and
// added up rows, and all waited four times a head. A block has a multiprocessor for itself and
// reads the next head's rows and states while it works.

constexpr int kThreads = 512, kRoles = 4;

/// kBuffers of heads: three, or one where shared memory ends before; then reads are waited for.
template <class T, int kN, int kBuffers>
struct BackwardShared {
  struct Head {
    T state[kP][kN + kPad], dstate[kP][kN + kPad];
    T x[kQ][kP + kPad], dy[kQ][kP + kPad];
    float sum[kQ], delta[kQ], slope[kQ], d[kP];
  };
  struct Ring {
    T m[kQ][kQ + kPad];
    HeadSums sums;
    Head head;
  };
  T b[kQ][kN + kPad], c[kQ][kN + kPad];
  Ring ring[kBuffers];
};

/// A block's chunk and heads, and a warp's 16 steps in it.
template <class T, int kN, int kBuffers>
struct Backward {
  using Shared = BackwardShared<T, kN, kBuffers>;
  using Head = typename Shared::Head;
  using Ring = typename Shared::Ring;
  static constexpr int kWide = kN + kPad, kNarrow = kP + kPad, kSquare = kQ + kPad;
  static constexpr int kTilesN = kN / 8, kTilesP = kP / 8;

  const BackwardKernelArgs<T>& k;
  Shared& sh;
  int group, part, first, last;
  int chunk, batch;
  int block = int(threadIdx.x) / kWarpSize % 4, i0 = block * 16;
  int lane = lane_of(), g = lane / 4, c = lane % 4 * 2;

  __device__ Backward(const BackwardKernelArgs<T>& k, Shared& shared) : k(k), sh(shared) {
    const Sizes& s = k.size;
    part = int(blockIdx.y) % k.parts, group = int(blockIdx.y) / k.parts;
    chunk = int(blockIdx.x % s.chunks), batch = int(blockIdx.x / s.chunks);
    first = group * s.shared() + part * k.heads_each;
    last = min(first + k.heads_each, (group + 1) * s.shared());
  }

  __device__ __forceinline__ int64_t begin() const { return int64_t{chunk} * kQ; }
  __device__ __forceinline__ Ring& place(int head) const {
    return sh.ring[(head - first) % kBuffers];
  }
  /// All of the block, each role from a place of its own, which __syncthreads() must not be.
  __device__ __forceinline__ static void meet() { named_sync(1, kThreads); }
  __device__ __forceinline__ void fetch(int head) const {
    const Sizes& s = k.size;
    Head& to = place(head).head;
    const int64_t at_state = ((batch * s.chunks + chunk) * s.heads + head) * kP * kN;
    const int thread = thread_anew();
    copy_rows<kP, kThreads>(&to.x[0][0], k.x, batch, begin(), s.length, int64_t{head} * kP, thread);
    copy_rows<kP, kThreads>(&to.dy[0][0], k.dy, batch, begin(), s.length, int64_t{head} * kP,
                            thread);
    copy_matrix<kN, kThreads>(&to.state[0][0], k.states + at_state, thread);
    copy_matrix<kN, kThreads>(&to.dstate[0][0], k.dstates + at_state, thread);
    const int64_t at = Steps::at(s, batch, head, begin());
    copy_steps(to.sum, k.steps.sum + at, thread);
    copy_steps(to.delta, k.steps.delta + at, thread);
    copy_steps(to.slope, k.steps.slope + at, thread);
    if (k.d) copy_steps(to.d, k.d + head * kP, thread);
    commit_copies();
  }

  /// work(head, its place) by all warps at once, of those that are behind a head later; where there
  /// is one buffer after a barrier. over(head, its place) when all are done with it.
  template <bool kBehind, class Work, class Over>
  __device__ __forceinline__ void each_head(const Work& work, const Over& over) const {
    if constexpr (kBuffers == 1) {
      for (int head = first; head < last; ++head) {
        if (head > first) fetch(head);
        wait_for_copies<0>();
        meet();
        if (!kBehind) work(head, sh.ring[0]);
        meet();
        if (kBehind) work(head, sh.ring[0]);
        meet();
        over(head, sh.ring[0]);
      }
    } else {
      for (int next = first; next <= last; ++next) {
        wait_for_copies<0>();
        meet();  // the next head is here, and the last but one is done with
        if (next + 1 < last) fetch(next + 1);
        if (next - 2 >= first) over(next - 2, place(next - 2));
        const int head = next - kBehind;
        if (head >= first && head < last) work(head, place(head));
      }
      meet();
      over(last - 1, place(last - 1));
    }
  }
  template <bool kBehind, class Work>
  __device__ __forceinline__ void each_head(const Work& work) const {
    each_head<kBehind>(work, [](int, const Ring&) {});
  }

  /// m = L ⊙ c bᵀ, and what its gradient dy (Δ x)ᵀ gives; last d(c bᵀ), where m was. Of both only
  /// the 16 × 16 blocks up to the diagonal.
  __device__ __forceinline__ void scores() const {
    float cb[kQ / 8][4] = {}, dcb[kQ / 8][4] = {};
#pragma unroll
    for (int n = 0; n < kN; n += 16) {
      Block<T> a;
      load_a(a, &sh.c[0][0], kWide, i0, n);
#pragma unroll
      for (int tile = 0; tile < kQ / 8; tile += 2) {
        if (tile * 8 > i0) break;  // the same for the whole warp
        Block<T> b;
        load_b(b, &sh.b[0][0], kWide, n, tile * 8);
        multiply_add(cb[tile], a, b, 0);
        multiply_add(cb[tile + 1], a, b, 1);
      }
    }
    each_head<false>([&](int, Ring& at) {
      const Head& own = at.head;
      const float sums[2] = {own.sum[i0 + g], own.sum[i0 + g + 8]};
      float of_rows[2] = {};
#pragma unroll
      for (int j0 = 0; j0 < kQ; j0 += 16) {
        if (j0 > i0) break;
        // Not ahead of the diagonal, where 2^(s_i − s_j) may overflow.
        const bool seen[2] = {j0 < i0 || g >= c, j0 < i0 || g > c};
        float r[2][4] = {};
#pragma unroll
        for (int p = 0; p < kP; p += 16) {
          Block<T> a, b;
          load_a(a, &own.dy[0][0], kNarrow, i0, p);
          load_b(b, &own.x[0][0], kNarrow, p, j0);
          multiply_add(r[0], a, b, 0);
          multiply_add(r[1], a, b, 1);
        }
        float of_columns[4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int j = j0 + half * 8 + c, tile = j0 / 8 + half;
          const Pair sum = read_pair(&own.sum[j]), delta = read_pair(&own.delta[j]);
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            float m[2];
#pragma unroll
            for (int e = 0; e < 2; ++e) {
              const float free = exp2_fast(sums[row] - (e == 0 ? sum.low : sum.high));
              const float l = row < half    ? (j0 == i0 ? 0.0f : free)
                              : row == half ? (seen[e] ? free : 0.0f)
                                            : free;
              m[e] = l * cb[tile][row * 2 + e];
              const float dm = r[half][row * 2 + e] * (e == 0 ? delta.low : delta.high);
              dcb[tile][row * 2 + e] += l * dm;
              of_rows[row] += m[e] * dm;
              of_columns[half * 2 + e] += m[e] * r[half][row * 2 + e];
            }
            put_pair(&at.m[i0 + g + row * 8][j], m[0], m[1]);
          }
        }
        const float sum = over_rows(of_columns);
        if (lane % 8 < 4) at.sums.columns[block][j0 + lane / 16 * 8 + c + lane / 8 % 2] = sum;
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float sum = over_row(of_rows[row]);
        if (c == 0) at.sums.rows[i0 + g + row * 8] = sum;
      }
    });
#pragma unroll
    for (int tile = 0; tile < kQ / 8; ++tile)
#pragma unroll
      for (int row = 0; row < 2; ++row)
        put_pair(&sh.ring[0].m[i0 + g + row * 8][tile * 8 + c], dcb[tile][row * 2],
                 dcb[tile][row * 2 + 1]);
    meet();
  }

  /// d(Δ x), and dx; rows are steps j here.
  __device__ __forceinline__ void inputs() const {
    each_head<true>([&](int head, Ring& at) {
      const Head& own = at.head;
      const float end = own.sum[kQ - 1];
      const float fall[2] = {exp2_fast(end - own.sum[i0 + g]),
                             exp2_fast(end - own.sum[i0 + g + 8])};
      const float delta[2] = {own.delta[i0 + g], own.delta[i0 + g + 8]};
      float du[kTilesP][4] = {};
#pragma unroll
      for (int n = 0; n < kN; n += 16) {
        Block<T> a;
        load_a(a, &sh.b[0][0], kWide, i0, n);
        multiply_tiles(du, a, &own.dstate[0][0], kWide, n, 0);
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const T* x_row = &own.x[i0 + g][c];
        float fallen = 0;
#pragma unroll
        for (int tile = 0; tile < kTilesP; ++tile) {
          float &low = du[tile][row * 2], &high = du[tile][row * 2 + 1];
          const Pair x = read_pair(x_row + row * 8 * kNarrow + tile * 8);
          low *= fall[row], high *= fall[row];
          fallen += low * x.low + high * x.high;
        }
        fallen = over_row(fallen);
        if (c == 0) at.sums.fallen[i0 + g + row * 8] = fallen;
      }
#pragma unroll
      for (int i = 0; i < kQ; i += 16) {
        if (i < i0) continue;
        Block<T> a;
        load_a_turned(a, &at.m[0][0], kSquare, i0, i);
        multiply_tiles_turned(du, a, &own.dy[0][0], kNarrow, i, 0);
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int64_t t = begin() + i0 + g + row * 8;
        if (t >= k.size.length) continue;
        T* out = k.dx.row(batch, t) + int64_t{head} * kP + c;
        const T* dy_row = &own.dy[i0 + g + row * 8][c];
#pragma unroll
        for (int tile = 0; tile < kTilesP; ++tile) {
          float low = du[tile][row * 2] * delta[row], high = du[tile][row * 2 + 1] * delta[row];
          if (k.d) {
            const Pair dy = read_pair(dy_row + tile * 8), d = read_pair(&own.d[tile * 8 + c]);
            low += d.low * dy.low, high += d.high * dy.high;
          }
          put_pair(out + tile * 8, low, high);  // store_tiles was no faster here
        }
      }
    });
    meet();
  }

  /// dc: through the state before the chunk, and last through c bᵀ.
  __device__ __forceinline__ void outputs() const {
    float dc[kTilesN][4] = {};
    each_head<true>([&](int, Ring& at) {
      const Head& own = at.head;
      const float rise[2] = {exp2_fast(own.sum[i0 + g]), exp2_fast(own.sum[i0 + g + 8])};
      float risen[2] = {};
#pragma unroll
      for (int n0 = 0; n0 < kN; n0 += 64) {  // as many sums as registers hold
        float through[8][4] = {};
#pragma unroll
        for (int p = 0; p < kP; p += 16) {
          Block<T> a;
          load_a(a, &own.dy[0][0], kNarrow, i0, p);
          multiply_tiles_turned(through, a, &own.state[0][0], kWide, p, n0);
        }
#pragma unroll
        for (int tile = 0; tile < 8; ++tile)
#pragma unroll
          for (int row = 0; row < 2; ++row) {
            const Pair out = read_pair(&sh.c[i0 + g + row * 8][n0 + tile * 8 + c]);
            const float low = through[tile][row * 2], high = through[tile][row * 2 + 1];
            dc[n0 / 8 + tile][row * 2] += low * rise[row];
            dc[n0 / 8 + tile][row * 2 + 1] += high * rise[row];
            risen[row] += low * out.low + high * out.high;
          }
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float sum = over_row(risen[row]);
        if (c == 0) at.sums.risen[i0 + g + row * 8] = sum * rise[row];
      }
    });
    meet();
#pragma unroll
    for (int j = 0; j < kQ; j += 16) {
      if (j > i0) break;
      Block<T> a;
      load_a(a, &sh.ring[0].m[0][0], kSquare, i0, j);
      multiply_tiles_turned(dc, a, &sh.b[0][0], kWide, j, 0);
    }
    put_sums(dc, k.dc, k.dc_parts);
  }

  /// db likewise: through the state after the chunk, and last through c bᵀ. Also what is no row's:
  /// ⟨dS, S⟩ and dd, each the diagonal of a product, and the gradients of a head's steps.
  __device__ __forceinline__ void states() const {
    float db[kTilesN][4] = {};
    OwnSteps steps;  // its place is read over before its sums are whole
    const auto work = [&](int head, Ring& at) {
      const Head& own = at.head;
      steps.read(own, k.a[head]);
      const float end = own.sum[kQ - 1];
      const float fall[2] = {exp2_fast(end - own.sum[i0 + g]) * own.delta[i0 + g],
                             exp2_fast(end - own.sum[i0 + g + 8]) * own.delta[i0 + g + 8]};
#pragma unroll
      for (int p = 0; p < kP; p += 16) {
        Block<T> a;
        load_a(a, &own.x[0][0], kNarrow, i0, p);
        scale_rows(a, fall);
        multiply_tiles_turned(db, a, &own.dstate[0][0], kWide, p, 0);
      }
      float dot[2][4] = {}, dd[2][4] = {};
#pragma unroll
      for (int n = 0; n < kN; n += 16) {
        Block<T> a, b;
        load_a(a, &own.state[0][0], kWide, i0, n);
        load_b(b, &own.dstate[0][0], kWide, n, i0);
        multiply_add(dot[0], a, b, 0);
        multiply_add(dot[1], a, b, 1);
      }
#pragma unroll
      for (int t = 0; t < kQ; t += 16) {
        Block<T> a, b;
        load_a_turned(a, &own.dy[0][0], kNarrow, i0, t);
        load_b_turned(b, &own.x[0][0], kNarrow, t, i0);
        multiply_add(dd[0], a, b, 0);
        multiply_add(dd[1], a, b, 1);
      }
      const bool holds = g / 2 * 2 == c, odd = g % 2;  // (g, g) and (g + 8, g + 8)
      const float sum = warp_sum(!holds ? 0 : odd ? dot[0][1] + dot[1][3] : dot[0][0] + dot[1][2]);
      if (lane == 0) at.sums.dot[block] = sum;
      if (holds) {
        float* to = sums_of_chunk() + head * kP + i0 + g;
        to[0] = odd ? dd[0][1] : dd[0][0], to[8] = odd ? dd[1][3] : dd[1][2];
      }
    };
    each_head<true>(work, [&](int head, const Ring& at) {
      if (block == 0) finish_head(k, batch, begin(), head, at.sums, steps);
    });
    meet();
#pragma unroll
    for (int i = 0; i < kQ; i += 16) {
      if (i < i0) continue;
      Block<T> a;
      load_a_turned(a, &sh.ring[0].m[0][0], kSquare, i0, i);
      multiply_tiles_turned(db, a, &sh.c[0][0], kWide, i, 0);
    }
    put_sums(db, k.db, k.db_parts);
  }

  __device__ __forceinline__ float* sums_of_chunk() const {
    return k.sums + blockIdx.x * int64_t{k.size.heads} * (kP + 2);
  }

  /// A warp's rows of db or dc: to their place, or where heads are divided among blocks to a part.
  __device__ __forceinline__ void put_sums(const float (&v)[kTilesN][4], const Sequence<T>& whole,
                                           float* parts) const {
    const Sizes& s = k.size;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int64_t t = begin() + i0 + g + row * 8;
      if (t >= s.length) continue;
      T* to = whole.row(batch, t) + group * kN + c;
      float* own = parts + (((part * s.batch + batch) * s.length + t) * s.groups + group) * kN + c;
#pragma unroll
      for (int tile = 0; tile < kTilesN; ++tile)
        if (k.parts == 1)
          put_pair(to + tile * 8, v[tile][row * 2], v[tile][row * 2 + 1]);
        else
          put_pair(own + tile * 8, v[tile][row * 2], v[tile][row * 2 + 1]);
    }
  }
};

template <class T, int kN, int kBuffers>
__global__ void __launch_bounds__(kThreads, kBackwardBlocks)
    ssd_backward_kernel(BackwardKernelArgs<T> k) {
  extern __shared__ __align__(16) unsigned char memory[];
  using Shared = BackwardShared<T, kN, kBuffers>;
  const Backward<T, kN, kBuffers> own(k, *reinterpret_cast<Shared*>(memory));
  const int64_t column = int64_t{own.group} * kN;
  copy_rows<kN, kThreads>(&own.sh.b[0][0], k.b, own.batch, own.begin(), k.size.length, column);
  copy_rows<kN, kThreads>(&own.sh.c[0][0], k.c, own.batch, own.begin(), k.size.length, column);
  commit_copies();
  own.fetch(own.first);
  wait_for_copies<1>();
  __syncthreads();
  switch (int(threadIdx.x) / (kThreads / kRoles)) {  // each multiprocessor's part has one of each
    case 0:
      return own.scores();
    case 1:
      return own.inputs();
    case 2:
      return own.outputs();
    default:
      return own.states();
  }
}

}  // namespace

template <class T, int kN>
void backward_chunks(Cuda on, const BackwardKernelArgs<T>& k) {
  const auto with_buffers = [&]<int kBuffers>() {
    launch(on,
           {.grid = dim3(unsigned(k.size.batch * k.size.chunks), unsigned(k.parts * k.size.groups)),
            .block = dim3(kThreads),
            .shared = sizeof(BackwardShared<T, kN, kBuffers>)},
           ssd_backward_kernel<T, kN, kBuffers>, k);
  };
  constexpr int64_t kThree = sizeof(BackwardShared<T, kN, 3>);
  if (kThree <= detail::cuda_shared_memory(on.device))
    with_buffers.template operator()<3>();
  else
    with_buffers.template operator()<1>();
}

template void backward_chunks<BFloat16, 64>(Cuda, const BackwardKernelArgs<BFloat16>&);
template void backward_chunks<BFloat16, 128>(Cuda, const BackwardKernelArgs<BFloat16>&);
template void backward_chunks<Float16, 64>(Cuda, const BackwardKernelArgs<Float16>&);
template void backward_chunks<Float16, 128>(Cuda, const BackwardKernelArgs<Float16>&);

}  // namespace norma::ssd_cuda
