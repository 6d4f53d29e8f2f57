#include <cublasLt.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <span>
#include <string_view>
#include <unordered_map>

#include "norma/core/captured_call.h"
#include "norma/core/copy.h"
#include "norma/core/cuda/check.h"
#include "norma/core/error.h"
#include "norma/core/strided.h"
#include "norma/core/tensor.h"
#include "norma/ops/elementwise/kernels.h"
#include "norma/ops/matmul/few_terms.h"
#include "norma/ops/matmul/gelu_hopper.h"
#include "norma/ops/matmul/kernels.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/matmul/odd_hopper.h"
#include "norma/ops/matmul/small.h"
#include "norma/ops/reduce/kernels.h"

namespace norma {
namespace {

constexpr int64_t kWorkspaceBytes = 32 << 20;
// Below this many multiplications a product of one kernel is preferred to one that is split along k
// and summed by a second kernel: the launch costs more than idle multiprocessors.
constexpr int64_t kSmallProduct = int64_t{1} << 27;

void check(cublasStatus_t status, std::string_view what) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw CudaError("matmul: cuBLASLt must {}, but says {} ({})", what,
                    cublasLtGetStatusName(status), cublasLtGetStatusString(status));
}

/// One product as cuBLASLt sees it, which is column-major: our c = a b is its D = A B with A = b,
/// B = a, so that D's columns are our rows. Everything that a plan depends on.
struct Problem {
  int64_t n, k, m, batch;
  int64_t a_stride, b_stride, c_stride;  // leading dimensions
  int64_t a_step, b_step, c_step;
  int64_t pre_stride;
  int32_t a_transposed, b_transposed;
  int32_t dtype, c_dtype, epilogue, has_bias, has_sums, tf32;
  int32_t a_align, b_align, c_align, pre_align, vector_align, device, unused;

  bool operator==(const Problem& other) const {
    return std::memcmp(this, &other, sizeof(Problem)) == 0;
  }
};
static_assert(sizeof(Problem) == 11 * 8 + 15 * 4 + 4, "compared and hashed as bytes: no padding");

struct ProblemHash {
  size_t operator()(const Problem& p) const {
    return std::hash<std::string_view>()({reinterpret_cast<const char*>(&p), sizeof p});
  }
};

struct Plan {
  bool exists = false;  // else cuBLASLt has no kernel with this epilogue
  cublasLtMatmulDesc_t what = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  cublasLtMatmulAlgo_t algorithm{};
};

cudaDataType_t data_type(DType dtype) {
  switch (dtype) {
    case float64:
      return CUDA_R_64F;
    case bfloat16:
      return CUDA_R_16BF;
    case float16:
      return CUDA_R_16F;
    default:
      return CUDA_R_32F;
  }
}
cublasComputeType_t compute_type(const Problem& p) {
  if (p.dtype == static_cast<int32_t>(float64)) return CUBLAS_COMPUTE_64F;
  return p.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

cublasLtEpilogue_t epilogue_of(const Problem& p) {
  switch (static_cast<MatmulEpilogue>(p.epilogue)) {
    case MatmulEpilogue::gelu:
      return p.has_bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
    case MatmulEpilogue::gelu_backward:
      return CUBLASLT_EPILOGUE_DGELU;
    case MatmulEpilogue::plain:
      break;
  }
  if (p.has_sums) return CUBLASLT_EPILOGUE_BGRADB;
  return p.has_bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

template <class T>
void set(cublasLtMatmulDesc_t what, cublasLtMatmulDescAttributes_t attribute, const T& value) {
  check(cublasLtMatmulDescSetAttribute(what, attribute, &value, sizeof value), "take an attribute");
}
cublasLtMatrixLayout_t layout(DType dtype, int64_t rows, int64_t cols, int64_t stride,
                              int64_t batch, int64_t step) {
  cublasLtMatrixLayout_t made = nullptr;
  check(cublasLtMatrixLayoutCreate(&made, data_type(dtype), static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(cols), stride),
        "describe a matrix");
  if (batch > 1) {
    const auto count = static_cast<int32_t>(batch);
    check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                           sizeof count),
          "describe a batch");
    check(cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                           sizeof step),
          "describe a batch");
  }
  return made;
}

void set_pointers(const Plan& plan, const Problem& p, const void* bias, const void* pre,
                  const void* sums) {
  const void* vector = p.has_sums ? sums : bias;
  if (vector) set(plan.what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, vector);
  if (pre) set(plan.what, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, pre);
}

bool is_split(const cublasLtMatmulAlgo_t& algorithm) {
  int32_t parts = 1;
  size_t written = 0;
  cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &parts,
                                       sizeof parts, &written);
  return parts > 1;
}

/// Products of half types with short sums: with these tiles, which the heuristics offer among
/// others but never first, they are faster, since a tile's end takes as long as a good part of its
/// sums. Large ones by 8 to 12 % (16384 rows, sums of 768, 1536 to 3352 columns, H100), smaller
/// ones by 15 % with the last (16384 rows, sums of 384, 1152 columns), whose tiles cut such columns
/// evenly.
constexpr std::array kTilesOfShortSums{CUBLASLT_MATMUL_TILE_128x128, CUBLASLT_MATMUL_TILE_128x160,
                                       CUBLASLT_MATMUL_TILE_168x128};
constexpr std::array kTilesOfEvenColumns{CUBLASLT_MATMUL_TILE_144x128};
constexpr int64_t kShortSum = 1024, kManyShortSums = int64_t{1} << 34;
constexpr int64_t kShorterSum = 512, kEvenColumns = 144, kManyColumns = 1024;
/// The tiles to be looked for; none: the first that is offered.
std::span<const cublasLtMatmulTile_t> wanted_tiles(const Problem& p) {
  if (size_of(static_cast<DType>(p.dtype)) != 2 || p.k > kShortSum) return {};
  if (p.n * p.k * p.m * p.batch >= kManyShortSums) return kTilesOfShortSums;
  if (p.k <= kShorterSum && p.m >= kManyColumns && p.m % kEvenColumns == 0 &&
      p.n * p.k * p.m * p.batch > kSmallProduct)
    return kTilesOfEvenColumns;
  return {};
}
bool is_of(std::span<const cublasLtMatmulTile_t> tiles, const cublasLtMatmulAlgo_t& algorithm) {
  int32_t tile = 0;
  size_t written = 0;
  cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile, sizeof tile,
                                       &written);
  return std::find(tiles.begin(), tiles.end(), tile) != tiles.end() && !is_split(algorithm);
}

/// Asks the heuristics, never a stopwatch: the same plan in every run.
Plan make_plan(cublasLtHandle_t handle, const Problem& p, const void* bias, const void* pre,
               const void* sums) {
  const auto dtype = static_cast<DType>(p.dtype);
  Plan plan;
  check(cublasLtMatmulDescCreate(&plan.what, compute_type(p),
                                 dtype == float64 ? CUDA_R_64F : CUDA_R_32F),
        "describe a product");
  set(plan.what, CUBLASLT_MATMUL_DESC_TRANSA, p.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.what, CUBLASLT_MATMUL_DESC_TRANSB, p.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(plan.what, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p));
  if (pre) set(plan.what, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.pre_stride);
  set_pointers(plan, p, bias, pre, sums);
  plan.a = layout(dtype, p.b_transposed ? p.k : p.m, p.b_transposed ? p.m : p.k, p.b_stride,
                  p.batch, p.b_step);
  plan.b = layout(dtype, p.a_transposed ? p.n : p.k, p.a_transposed ? p.k : p.n, p.a_stride,
                  p.batch, p.a_step);
  plan.c = layout(static_cast<DType>(p.c_dtype), p.m, p.n, p.c_stride, p.batch, p.c_step);

  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "take preferences");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
          "take a preference");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kWorkspaceBytes));
  // Parts of a sum meet in the workspace, in float32 and in one order; never through counters.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(p.b_align));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(p.a_align));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(p.c_align));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(p.c_align));
  std::array<cublasLtMatmulHeuristicResult_t, 8> found{};
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle, plan.what, plan.a, plan.b, plan.c, plan.c, preference,
                                     static_cast<int>(found.size()), found.data(), &count);
  cublasLtMatmulPreferenceDestroy(preference);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED || count == 0) return plan;
  check(status, "find a kernel");
  const auto tiles = wanted_tiles(p);
  int chosen = -1;
  for (int i = 0; i < count; ++i) {
    const auto& result = found[static_cast<size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS) continue;
    if (chosen < 0) chosen = i;
    if (!tiles.empty()) {
      if (!is_of(tiles, result.algo)) continue;
      chosen = i;
      break;
    }
    if (p.n * p.k * p.m * p.batch > kSmallProduct) break;
    if (!is_split(result.algo)) {
      chosen = i;
      break;
    }
  }
  if (chosen < 0) return plan;
  plan.algorithm = found[static_cast<size_t>(chosen)].algo;
  plan.exists = true;
  return plan;
}

/// Everything of one process, behind one lock: submitting a product takes a few microseconds.
struct Library {
  std::mutex mutex;
  std::array<cublasLtHandle_t, 16> handles{};
  std::map<void*, Tensor> workspaces;  // by stream
  std::unordered_map<Problem, Plan, ProblemHash> plans;

  cublasLtHandle_t handle(int device) {
    cublasLtHandle_t& h = handles[static_cast<size_t>(device)];
    if (!h) check(cublasLtCreate(&h), "start");
    return h;
  }
  void* workspace(void* stream, int device) {
    const detail::OutsideCapturedCall kept;
    Tensor& t = workspaces[stream];
    if (!t.defined())
      t = empty({kWorkspaceBytes}, bool_, {Device::Kind::cuda, static_cast<uint8_t>(device)});
    return t.data();
  }
};
Library& library() {
  static auto* made = new Library;  // never destroyed: the driver may be gone before
  return *made;
}

int32_t alignment(const void* p) {
  const auto address = reinterpret_cast<uintptr_t>(p);
  return static_cast<int32_t>(std::min<uintptr_t>(256, address & (~address + 1)));
}

/// The leading dimension and whether the matrix lies transposed.
struct Lie {
  int64_t stride;
  bool transposed;
};
template <class AnyView>
Lie lie_of(const AnyView& x) {
  const int d = x.shape.dim();
  const int64_t rows = x.shape[d - 2], cols = x.shape[d - 1];
  const int64_t row_stride = x.strides[d - 2], col_stride = x.strides[d - 1];
  // A dimension of size 1 has any stride.
  if ((col_stride == 1 || cols == 1) && (row_stride >= cols || rows == 1))
    return {rows == 1 ? cols : row_stride, false};
  return {cols == 1 ? rows : col_stride, true};
}

struct Pointers {
  const void *a, *b, *bias;
  void *c, *pre, *sums;
  bool accumulate;
};

/// False where cuBLASLt has no kernel for it.
bool multiply(Cuda on, Problem p, const Pointers& at) {
  p.a_align = alignment(at.a), p.b_align = alignment(at.b), p.c_align = alignment(at.c);
  p.pre_align = alignment(at.pre), p.vector_align = alignment(at.sums ? at.sums : at.bias);
  Library& lt = library();
  const std::lock_guard lock(lt.mutex);
  cublasLtHandle_t handle = lt.handle(p.device);
  const auto [entry, is_new] = lt.plans.try_emplace(p);
  Plan& plan = entry->second;
  if (is_new) plan = make_plan(handle, p, at.bias, at.pre, at.sums);
  if (!plan.exists) return false;
  set_pointers(plan, p, at.bias, at.pre, at.sums);
  const float one = 1, old = at.accumulate ? 1 : 0;
  const double one64 = 1, old64 = old;
  const bool is_double = p.dtype == static_cast<int32_t>(float64);
  const void* alpha = is_double ? static_cast<const void*>(&one64) : &one;
  const void* beta = is_double ? static_cast<const void*>(&old64) : &old;
  check(cublasLtMatmul(handle, plan.what, alpha, at.b, plan.a, at.a, plan.b, beta, at.c, plan.c,
                       at.c, plan.c, &plan.algorithm, lt.workspace(on.stream, p.device),
                       kWorkspaceBytes, detail::stream_of(on)),
        "multiply");
  return true;
}

Device current_device() {
  int index = 0;
  detail::check(cudaGetDevice(&index), "name the device");
  return {Device::Kind::cuda, static_cast<uint8_t>(index)};
}

/// c (rows of m) ∘= what the epilogue says, by kernels of other ops.
void finish(Cuda on, const MatmulArgs& k) {
  if (k.bias) {
    ConstView bias;
    bias.data = k.bias.data, bias.dtype = k.bias.dtype, bias.shape = k.c.shape;
    bias.strides = Shape::filled(k.c.shape.dim(), 0);
    bias.strides[k.c.shape.dim() - 1] = 1;
    ConstView c;
    c.data = k.c.data, c.shape = k.c.shape, c.strides = k.c.strides, c.dtype = k.c.dtype;
    run(on, BinaryArgs{.function = BinaryFunction::add, .a = c, .b = bias, .y = k.c});
  }
  if (k.epilogue == MatmulEpilogue::plain) return;
  View pre = k.c;
  pre.data = k.pre.data;
  ConstView c, saved;
  c.data = k.c.data, c.shape = k.c.shape, c.strides = k.c.strides, c.dtype = k.c.dtype;
  saved = c, saved.data = k.pre.data;
  if (k.epilogue == MatmulEpilogue::gelu) {
    run(on, CopyArgs{.source = c, .target = pre});
    run(on, UnaryArgs{.function = UnaryFunction::gelu_tanh, .x = saved, .y = k.c});
  } else {
    run(on,
        BinaryArgs{.function = BinaryFunction::gelu_tanh_backward, .a = c, .b = saved, .y = k.c});
  }
}
void sum_a(Cuda on, const MatmulArgs& k) {
  View sums;
  sums.data = k.sums.data, sums.dtype = k.sums.dtype;
  sums.shape = {k.sums.n}, sums.strides = {1};
  ConstView a = k.a;
  Tensor wide;  // a's values as the sums want them
  if (k.a.dtype != k.sums.dtype) {
    wide = empty(k.a.shape, k.sums.dtype, current_device());
    run(on, CopyArgs{.source = k.a, .target = wide});
    a = wide;
  }
  run(on, ReduceArgs{.reduction = Reduction::sum, .x = a, .kept = 1, .y = sums});
}

}  // namespace

void run(Cuda on, const MatmulArgs& k) {
  const int d = k.c.shape.dim();
  const int64_t n = k.c.shape[d - 2], m = k.c.shape[d - 1], depth = k.a.shape[d - 1];
  if (k.c.shape.numel() == 0 && !(k.sums && n > 0)) return;
  if (add_few_terms(on, k)) return;
  const Lie c = lie_of(k.c);
  if (!k.accumulate && c.stride == m && (multiply_small(on, k) || multiply_gelu(on, k))) return;
  if (multiply_odd(on, k)) return;
  if (depth == 0 || k.c.shape.numel() == 0) {
    if (!k.accumulate) run(on, FillArgs{.target = k.c, .value = 0});
    if (k.sums) sum_a(on, k);
    return finish(on, k);
  }
  const auto batch_of = [&](const Shape& s) { return Shape(std::span(s.begin(), s.end() - 2)); };
  const detail::StridedLoop<3> batch(
      batch_of(k.c.shape), {batch_of(k.a.strides), batch_of(k.b.strides), batch_of(k.c.strides)});
  const Lie a = lie_of(k.a), b = lie_of(k.b);
  Problem p{};
  p.n = n, p.k = depth, p.m = m, p.batch = batch.row_length();
  p.a_stride = a.stride, p.b_stride = b.stride, p.c_stride = c.stride;
  p.a_step = batch.row_stride(0), p.b_step = batch.row_stride(1), p.c_step = batch.row_stride(2);
  p.a_transposed = a.transposed, p.b_transposed = b.transposed;
  p.dtype = static_cast<int32_t>(k.a.dtype), p.c_dtype = static_cast<int32_t>(k.c.dtype);
  p.tf32 = k.a.dtype == float32 && is_tf32_allowed();
  p.device = current_device().index;

  const int64_t size = size_of(k.a.dtype), c_size = size_of(k.c.dtype);
  const auto pointers = [&](int64_t row) {
    const auto at = batch.row_offsets(row);
    return Pointers{.a = static_cast<const std::byte*>(k.a.data) + at[0] * size,
                    .b = static_cast<const std::byte*>(k.b.data) + at[1] * size,
                    .bias = k.bias.data,
                    .c = static_cast<std::byte*>(k.c.data) + at[2] * c_size,
                    .pre = k.pre.data,
                    .sums = k.sums.data,
                    .accumulate = k.accumulate};
  };
  // First with everything in one kernel, else the product alone and the rest after it.
  Problem whole = p;
  whole.has_bias = static_cast<bool>(k.bias), whole.has_sums = static_cast<bool>(k.sums);
  whole.epilogue = static_cast<int32_t>(k.epilogue);
  whole.pre_stride = k.pre ? k.pre.row_stride : 0;
  // In float64 cuBLASLt's GELU is off by 10⁻¹⁰, the digits that its constants have.
  bool fused = k.epilogue == MatmulEpilogue::plain || k.c.dtype != float64;
  for (int64_t row = 0; row < batch.rows(); ++row) {
    const Pointers at = pointers(row);
    fused = fused && multiply(on, whole, at);
    if (fused) continue;
    if (!multiply(on, p,
                  {.a = at.a,
                   .b = at.b,
                   .bias = nullptr,
                   .c = at.c,
                   .pre = nullptr,
                   .sums = nullptr,
                   .accumulate = at.accumulate}))
      throw CudaError(
          "matmul: cuBLASLt must have a kernel for ({}, {}) by ({}, {}) of {}, but has none", n,
          depth, depth, m, to_string(k.c.dtype));
  }
  if (fused) return;
  if (k.sums) sum_a(on, k);
  finish(on, k);
}

}  // namespace norma
