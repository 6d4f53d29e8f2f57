// The GPU's plans: the kernels that hold a row on the chip give the bits of those that cover
// everything, and a row's do not depend on what is around it or where it lies.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <optional>
#include <ostream>
#include <string>
#include <tuple>
#include <utility>

#include "norma/core/autograd.h"
#include "norma/core/capture.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/plans.h"
#include "norma/ops/view/view.h"
#include "ops/norm/members.h"
#include "ops/norm/pretended.h"
#include "testing/compare.h"
#include "testing/on_gpu.h"

namespace norma {
namespace {

using testing::Member;
using testing::NormArguments;
using testing::Pretended;
using Maybe = std::optional<Tensor>;

Maybe of(const Tensor& t) { return t.defined() ? Maybe(t) : none; }

struct Everything {
  NormResult forward;
  NormGrads backward;
};
NormGrads backward_on_gpu(const NormArguments& a, const NormResult& forward, const Maybe& dy,
                          const Maybe& dh) {
  const auto dtype = [](const Maybe& t) { return t ? std::optional(t->dtype()) : std::nullopt; };
  return apply<NormBackward>(*dy, none, forward.h ? dh : none, forward.h ? forward.h : Maybe(a.x),
                             none, none, a.in.z, none, a.in.w, a.in.b, none, of(forward.mean.value),
                             of(forward.mean_rest.value), forward.rstd.value,
                             NormBackwardOptions{.norm = a.options,
                                                 .x_dtype = a.x.dtype(),
                                                 .dx = a.x.dtype(),
                                                 .dw = dtype(a.in.w),
                                                 .db = dtype(a.in.b),
                                                 .dz = dtype(a.in.z)});
}
Everything run_on_gpu(const NormArguments& a, const Maybe& dy, const Maybe& dh) {
  const NormResult forward = a.norm();
  return {forward, backward_on_gpu(a, forward, dy, dh)};
}
void expect_same(const Maybe& a, const Maybe& b) {
  ASSERT_EQ(a.has_value(), b.has_value());
  if (a) {
    EXPECT_SAME_BITS(*a, *b);
  }
}

void force_general(bool on) {
  if constexpr (kBuiltWithCuda) norm_cuda::only_general_plans = on;
}
/// While it lives, only backwards of at most so many elements run as one launch: of the kernel for
/// toy models, or of the one for few rows.
class MostInOneLaunch {
 public:
  MostInOneLaunch(int64_t small, int64_t few) {
    if constexpr (kBuiltWithCuda) {
      small_ = std::exchange(norm_cuda::most_small_elements, small);
      few_ = std::exchange(norm_cuda::most_few_elements, few);
    }
  }
  ~MostInOneLaunch() {
    if constexpr (kBuiltWithCuda)
      norm_cuda::most_small_elements = small_, norm_cuda::most_few_elements = few_;
  }
  MostInOneLaunch(const MostInOneLaunch&) = delete;
  MostInOneLaunch& operator=(const MostInOneLaunch&) = delete;

 private:
  int64_t small_ = 0, few_ = 0;
};

bool only_general() {
  if constexpr (kBuiltWithCuda) return norm_cuda::only_general_plans;
  return true;
}

class NormPlans : public testing::OnGpu<> {
 protected:
  void SetUp() override {
    OnGpu::SetUp();
    if (!IsSkipped() && only_general()) GTEST_SKIP() << "NORMA_NORM_PLANS=general leaves them out";
  }
};

// A dtype and a size a test, so that parts of them can run beside each other: under
// compute-sanitizer each takes a hundred times as long.
struct Size {
  int64_t rows, cols, group = 0;
  bool shared = false;
  const char* why = "";
};
void PrintTo(const Size& size, std::ostream* to) { *to << size.why; }
using DTypeAndSize = std::tuple<DType, Size>;
std::string name_of(const ::testing::TestParamInfo<DTypeAndSize>& info) {
  const auto& [dtype, size] = info.param;
  return format("{}_{}_by_{}_by_{}", dtype, size.rows, size.cols, size.group);
}
const auto kHalvesAndFloat = ::testing::Values(bfloat16, float32, float16);

class NormPlansOf : public NormPlans, public ::testing::WithParamInterface<DTypeAndSize> {
 protected:
  const DType dtype_ = std::get<0>(GetParam());
  const Size size_ = std::get<1>(GetParam());
};

// One lane to a cluster of blocks a row; odd sizes, groups of their own and of shared weights.
const Size kPlanSizes[] = {{3, 1, 0, false, "one element"},
                           {70, 24, 0, false, "rows of a warp"},
                           {500, 32, 0, false, "short"},
                           {70, 37, 0, false, "more than its vectors"},
                           {37, 257, 0, false, "odd"},
                           {37, 1000, 0, false, "few rows of one chunk"},
                           {1030, 544, 0, false, "one warp"},
                           {20, 1536, 0, false, "few rows of two chunks"},
                           {520, 1032, 0, false, "two warps"},
                           {9, 4097, 0, false, "odd, a block"},
                           {2, 65537, 0, false, "odd, a cluster"},
                           {7, 8192, 0, false, "a full block"},
                           {5, 12288, 0, false, "many blocks"},
                           {70, 16384, 0, false, "sixteen warps"},
                           {3, 65536, 0, false, "a cluster"},
                           {20, 65536, 0, false, "many clusters"},
                           {3, 131072, 0, false, "a large one"},
                           {3, 20001, 0, false, "odd, a cluster"},
                           {19, 12800, 64, false, "200 groups"},
                           {19, 1024, 64, true, "heads"}};
void expect_bits_of_general(DType dtype, const Size& size, GateOrder gate) {
  const NoGrad off;
  const auto& [rows, cols, group, shared, why] = size;
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (int residual = 0; residual < 3; ++residual) {
      Member m;
      m.options.kind = kind, m.options.gate = gate, m.options.group = group;
      m.w = true, m.b = kind == NormKind::layer;
      m.shared = shared, m.residual = residual;
      SCOPED_TRACE(to_string(m));
      const NormArguments a(m, {rows, cols}, dtype, float32);
      const auto gradient = [&](DType t) { return randn(a.x.shape(), float64).to(t); };
      const Tensor dy = gradient(dtype);
      const Maybe dh = residual ? Maybe(gradient(a.in.residual->dtype())) : none;
      force_general(true);
      const Everything general = run_on_gpu(a, dy, dh);
      force_general(false);
      const NormResult forward = a.norm();
      EXPECT_SAME_BITS(forward.y, general.forward.y);
      EXPECT_SAME_BITS(forward.rstd.value, general.forward.rstd.value);
      expect_same(forward.h, general.forward.h);
      const int64_t all = 2 * rows * cols;
      for (const auto& [small, few] : {std::pair<int64_t, int64_t>{0, 0}, {all, 0}, {0, all}}) {
        const MostInOneLaunch plans(small, few);
        const NormGrads backward = backward_on_gpu(a, forward, dy, dh);
        expect_same(backward.dx, general.backward.dx);
        expect_same(backward.dz, general.backward.dz);
      }
    }
}
// Each order's kernels are tests of their own: compute-sanitizer prepares every kernel before its
// first launch, which takes longer than to run it.
class FastPlans : public NormPlansOf {};
TEST_P(FastPlans, GiveTheBitsOfTheGeneralOnes) {
  expect_bits_of_general(dtype_, size_, GateOrder::no_gate);
}
TEST_P(FastPlans, GatedLastToo) {
  expect_bits_of_general(dtype_, size_, GateOrder::norm_then_gate);
}
TEST_P(FastPlans, GatedFirstToo) {
  expect_bits_of_general(dtype_, size_, GateOrder::gate_then_norm);
}
INSTANTIATE_TEST_SUITE_P(All, FastPlans,
                         ::testing::Combine(kHalvesAndFloat, ::testing::ValuesIn(kPlanSizes)),
                         name_of);

using RowsAlone = NormPlansOf;
TEST_P(RowsAlone, DependOnNothingAround) {
  const NoGrad off;
  const auto [rows, cols] = std::pair(size_.rows, size_.cols);
  const Tensor wide = randn({rows, cols + 3}).to(dtype_);
  const Tensor gradients = randn({rows, cols + 3}).to(dtype_);
  Member m;
  m.options.kind = NormKind::layer, m.w = true;
  NormArguments a(m, {rows, cols}, dtype_, dtype_);
  const auto run = [&](const Tensor& x, const Tensor& dy) {
    a.x = x;
    return run_on_gpu(a, dy, none);
  };
  for (int64_t shift : {0, 1}) {  // in a wider tensor, and off by one element
    const Tensor x = wide.slice(1, shift, size_.cols + shift),
                 dy = gradients.slice(1, shift, size_.cols + shift);
    const Everything strided = run(x, dy), dense = run(x.contiguous(), dy.contiguous());
    EXPECT_SAME_BITS(strided.forward.y, dense.forward.y);
    EXPECT_SAME_BITS(*strided.backward.dx, *dense.backward.dx);
    const Everything part = run(x.slice(0, 17, 20).contiguous(), dy.slice(0, 17, 20).contiguous());
    EXPECT_SAME_BITS(part.forward.y, dense.forward.y.slice(0, 17, 20));
    EXPECT_SAME_BITS(*part.backward.dx, dense.backward.dx->slice(0, 17, 20));
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, RowsAlone,
    ::testing::Combine(::testing::Values(bfloat16, float32),
                       ::testing::Values(Size{50, 33}, Size{50, 64}, Size{50, 256}, Size{50, 768},
                                         Size{50, 1000}, Size{50, 1024}, Size{50, 4096},
                                         Size{50, 4099}, Size{50, 16384})),
    name_of);

TEST_F(NormPlans, RowsThatAWarpTakesInTurnDoNotMix) {
  // As on one multiprocessor, where a warp has several turns; from memory that begins one element
  // after its results'.
  const NoGrad off;
  const Pretended one(1);
  for (DType dtype : {bfloat16, float32})
    for (int64_t cols : {32, 257})
      for (int residual : {0, 1})
        for (int64_t shift : {0, 1}) {
          SCOPED_TRACE(format("cols {} residual {} shift {}", cols, residual, shift));
          const int64_t rows = cols == 32 ? 2500 : 600;
          Member m;
          m.options.kind = NormKind::layer, m.w = m.b = true, m.residual = residual;
          NormArguments a(m, {rows, cols}, dtype, dtype);
          const auto shifted = [&] {
            const Tensor flat = randn({rows * cols + 1}).to(dtype);
            return flat.slice(0, shift, rows * cols + shift).reshape({rows, cols});
          };
          a.x = shifted();
          if (residual) a.in.residual = shifted();
          force_general(true);
          const NormResult general = a.norm();
          force_general(false);
          const NormResult fast = a.norm();
          EXPECT_SAME_BITS(fast.y, general.y);
          EXPECT_SAME_BITS(fast.rstd.value, general.rstd.value);
          expect_same(fast.h, general.h);
        }
}

/// Weights as training has them: x's dtype or float32, about 1, some or none of them.
struct WeightForm {
  bool w, b, zero_centered, wide;
};
constexpr WeightForm kWeightForms[] = {{true, true, false, false},  {true, true, false, true},
                                       {true, true, true, false},   {true, true, true, true},
                                       {false, false, false, true}, {true, false, false, true},
                                       {false, true, false, false}, {false, true, false, true}};
using WeightsOfPlans = NormPlansOf;
TEST_P(WeightsOfPlans, GiveTheBitsOfTheGeneralOnes) {
  const NoGrad off;
  struct Beside {
    GateOrder gate;
    int residual;
  };
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (const Beside& beside :
         {Beside{GateOrder::no_gate, 0}, Beside{GateOrder::no_gate, 1},
          Beside{GateOrder::no_gate, 2}, Beside{GateOrder::norm_then_gate, 0},
          Beside{GateOrder::gate_then_norm, 0}}) {
      Member m;
      m.options.kind = kind, m.options.gate = beside.gate, m.options.group = size_.group;
      m.residual = beside.residual, m.w = m.b = true, m.shared = size_.shared;
      NormArguments a(m, {size_.rows, size_.cols}, dtype_, float32);
      const Tensor w = *a.in.w, b = *a.in.b;
      for (const WeightForm& weights : kWeightForms) {
        SCOPED_TRACE(format("{} w {} b {} zero-centered {} float32 {}", to_string(m), weights.w,
                            weights.b, weights.zero_centered, weights.wide));
        const DType dtype = weights.wide ? float32 : dtype_;
        a.in.w = weights.w ? Maybe(w.to(dtype)) : none;
        const bool biased = weights.b && (kind == NormKind::layer || !weights.w);
        a.in.b = biased ? Maybe(b.to(dtype)) : none;
        a.options.zero_centered = weights.zero_centered;
        force_general(true);
        const NormResult general = a.norm();
        force_general(false);
        for (int multiprocessors : {0, 1}) {  // of one: many rows, and several in turn
          const Pretended so_many(multiprocessors);
          const NormResult fast = a.norm();
          EXPECT_SAME_BITS(fast.y, general.y);
          EXPECT_SAME_BITS(fast.rstd.value, general.rstd.value);
          expect_same(fast.h, general.h);
        }
      }
    }
}
INSTANTIATE_TEST_SUITE_P(
    All, WeightsOfPlans,
    ::testing::Combine(kHalvesAndFloat,
                       ::testing::Values(Size{150, 64}, Size{50, 544}, Size{17, 1536},
                                         Size{9, 4096}, Size{7, 16384}, Size{5, 65536},
                                         Size{3, 131072}, Size{7, 4097}, Size{5, 20001},
                                         Size{20, 1024, 256, true}, Size{9, 1024, 256, false})),
    name_of);

using PlansInTurn = NormPlansOf;
TEST_P(PlansInTurn, DoNotMixRows) {
  // As on one multiprocessor, where there are several rows to a warp, block or cluster of them.
  const NoGrad off;
  const Pretended one(1);
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (GateOrder gate : {GateOrder::no_gate, GateOrder::norm_then_gate}) {
      Member m;
      m.options.kind = kind, m.options.gate = gate, m.w = true, m.b = kind == NormKind::layer;
      SCOPED_TRACE(to_string(m));
      NormArguments a(m, {size_.rows, size_.cols}, dtype_, dtype_);
      a.x = randn({size_.rows, size_.cols + 64}).to(dtype_).slice(1, 32, size_.cols + 32);
      force_general(true);
      const NormResult general = a.norm();
      force_general(false);
      const NormResult fast = a.norm();
      EXPECT_SAME_BITS(fast.y, general.y);
      EXPECT_SAME_BITS(fast.rstd.value, general.rstd.value);
      if (kind == NormKind::layer) {
        EXPECT_SAME_BITS(fast.mean.value, general.mean.value);
        EXPECT_SAME_BITS(fast.mean_rest.value, general.mean_rest.value);
      }
    }
}
INSTANTIATE_TEST_SUITE_P(
    All, PlansInTurn,
    ::testing::Combine(kHalvesAndFloat,
                       ::testing::Values(Size{2401, 72}, Size{1201, 256}, Size{801, 768},
                                         Size{201, 4096}, Size{40, 12288}, Size{30, 16400},
                                         Size{20, 32768}, Size{12, 65536}, Size{8, 131072})),
    name_of);

class BackwardsInTurn : public NormPlansOf {
 protected:
  /// Rows so many that what waits for a row's turn was another's place before.
  void expect_bits_of_general(GateOrder gate) {
    const NoGrad off;
    const Pretended one(1);
    const MostInOneLaunch none_in_one(0, 0);
    for (NormKind kind : {NormKind::rms, NormKind::layer}) {
      Member m;
      m.options.kind = kind, m.options.gate = gate, m.options.group = size_.group;
      m.w = true, m.b = kind == NormKind::layer;
      SCOPED_TRACE(to_string(m));
      const NormArguments a(m, {size_.rows, size_.cols}, dtype_, float32);
      const Tensor dy = randn({size_.rows, size_.cols}).to(dtype_);
      force_general(true);
      const Everything general = run_on_gpu(a, dy, none);
      force_general(false);
      const NormGrads fast = backward_on_gpu(a, general.forward, dy, none);
      expect_same(fast.dx, general.backward.dx);
      expect_same(fast.dz, general.backward.dz);
      EXPECT_CLOSE(*fast.dw, *general.backward.dw, {.absolute = 2e-3});
      if (m.b) {
        EXPECT_CLOSE(*fast.db, *general.backward.db, {.absolute = 2e-3});
      }
    }
  }
};
TEST_P(BackwardsInTurn, DoNotMixRows) { expect_bits_of_general(GateOrder::no_gate); }
TEST_P(BackwardsInTurn, DoNotMixGatedRows) { expect_bits_of_general(GateOrder::norm_then_gate); }
INSTANTIATE_TEST_SUITE_P(
    All, BackwardsInTurn,
    ::testing::Combine(kHalvesAndFloat,
                       ::testing::Values(Size{2401, 72}, Size{1201, 256}, Size{701, 512},
                                         Size{801, 768}, Size{201, 4096}, Size{101, 4097},
                                         Size{70, 12288}, Size{101, 2048, 1024}, Size{50, 65536})),
    name_of);

TEST_F(NormPlans, MeansOf16BitsAreExactToAMillionthOfTheDeviation) {
  // Their terms about the mean are not added up, but follow from the sums. Among rows far from zero
  // one where a single element differs, by its last bit: the mean as one float32 would lose that.
  const NoGrad off;
  for (DType dtype : {bfloat16, float16})
    for (int64_t cols : {24, 72, 257, 1024, 1536, 4096, 20001, 131072}) {
      SCOPED_TRACE(format("{} columns of {}", cols, to_string(dtype)));
      const Tensor noise = randn({1, cols});
      Tensor one = zeros({1, cols});
      one.slice(1, cols / 2, cols / 2 + 1).fill_(1);
      const Tensor x =
          concat({noise, noise + 3, noise * 2 + 200, one * 2 + 256, one * 1e4 + 1e-3}, 0);
      for (int residual : {0, 1}) {
        Member m;
        m.options.kind = NormKind::layer, m.options.eps = 0, m.w = m.b = true;
        m.residual = residual;
        NormArguments a(m, {5, cols}, dtype, dtype);
        a.x = x.to(dtype);
        if (residual) a.in.residual = zeros({5, cols}, dtype);
        const NormResult fast = a.norm();
        const NormResult exact = a.to(float64).norm();
        const Tensor mean = fast.mean.value.to(float64) + fast.mean_rest.value.to(float64);
        EXPECT_CLOSE((mean - exact.mean.value) * exact.rstd.value, zeros({5, 1}, float64),
                     {.absolute = 0x1p-20});
        EXPECT_CLOSE(fast.rstd.value.to(float64), exact.rstd.value, {.relative = 0x1p-20});
      }
    }
}

/// The backward of a LayerNorm with both weights is that kernel, and another folds its sums or not.
void expect_launches(Shape shape, DType dtype, const char* kernel, bool folds) {
  Member m;
  m.options.kind = NormKind::layer, m.w = m.b = true;
  const NormArguments a(m, shape, dtype, float32);
  const Tensor y_gradient = randn(shape).to(dtype);
  auto captured = capture([&](const Tensor& dy) {
    const NoGrad off;
    const Everything all = run_on_gpu(a, dy, none);
    return std::array{*all.backward.dx, *all.backward.dw, *all.backward.db};
  });
  for (int i = 0; i < 4; ++i) captured(y_gradient);
  const std::string nodes = captured.graph_nodes();
  EXPECT_THAT(nodes, ::testing::HasSubstr(kernel));
  EXPECT_EQ(nodes.find("norm_fold_kernel") != std::string::npos, folds) << nodes;
}

TEST_F(NormPlans, SmallBackwardIsOneLaunch) {
  const MostInOneLaunch plan(2 * 768 * 128, 0);
  expect_launches({768, 128}, float32, "norm_backward_small_kernel", false);
}

TEST_F(NormPlans, SmallWeightGradientsAreTheSumsOverRows) {
  const NoGrad off;
  const Size sizes[] = {
      {1, 1, 0, false, "one element"}, {5, 8, 0, false, "less than a team"},
      {768, 128, 0, false, "the toy"}, {999, 24, 0, false, "teams in a warp"},
      {131, 127, 0, false, "odd"},     {300, 256, 0, false, "of half types alone"},
      {100, 384, 64, true, "heads"},   {2049, 16, 0, false, "a row more"}};
  for (const Size& size : sizes)
    for (DType dtype : {bfloat16, float32, float16}) {
      SCOPED_TRACE(size.why);
      Member m;
      m.options.kind = NormKind::layer, m.options.group = size.group;
      m.w = m.b = true, m.shared = size.shared;
      const NormArguments a(m, {size.rows, size.cols}, dtype, float32);
      const Tensor dy = randn({size.rows, size.cols}).to(dtype);
      const MostInOneLaunch plan(2 * size.rows * size.cols, 0);
      const Everything small = run_on_gpu(a, dy, none);
      EXPECT_SAME_BITS(*small.backward.dw, *run_on_gpu(a, dy, none).backward.dw);
      force_general(true);
      const Everything general = run_on_gpu(a, dy, none);
      force_general(false);
      // Sums of rows terms of about 1 (a few at most 8) in two orders.
      const double rounding = unit_roundoff(float32) * 8 * std::sqrt(size.rows * size.cols) * 4;
      EXPECT_CLOSE(*small.backward.dw, *general.backward.dw, {.absolute = rounding});
      EXPECT_CLOSE(*small.backward.db, *general.backward.db, {.absolute = rounding});
    }
}

TEST_F(NormPlans, BackwardOfFewRowsIsOneLaunch) {
  for (int64_t rows : {1, 16})
    expect_launches({rows, 4096}, bfloat16, "norm_backward_few_kernel", false);
}

TEST_F(NormPlans, BackwardOfMoreRowsIsTwoShortLaunches) {
  for (int64_t rows : {32, 132, 256})
    expect_launches({rows, 4096}, bfloat16, "norm_backward_few_kernel", true);
}

using FewRows = NormPlansOf;
TEST_P(FewRows, WeightGradientsAreTheSumsOverRows) {
  const NoGrad off;
  for (GateOrder gate : {GateOrder::no_gate, GateOrder::norm_then_gate}) {
    Member m;
    m.options.kind = NormKind::layer, m.options.gate = gate, m.w = m.b = true;
    SCOPED_TRACE(to_string(m));
    const NormArguments a(m, {size_.rows, size_.cols}, dtype_, float32);
    const Tensor dy = randn(a.x.shape()).to(dtype_);
    const MostInOneLaunch plan(0, size_.rows * size_.cols);
    const Everything few = run_on_gpu(a, dy, none);
    EXPECT_SAME_BITS(*few.backward.dw, *run_on_gpu(a, dy, none).backward.dw);
    force_general(true);
    const Everything general = run_on_gpu(a, dy, none);
    force_general(false);
    // Sums of `rows` terms of about 1 (a few at most 30, by a gate) in two orders.
    const double rounding = unit_roundoff(float32) * 30 * std::sqrt(size_.rows) * 4;
    EXPECT_CLOSE(*few.backward.dw, *general.backward.dw, {.absolute = rounding});
    EXPECT_CLOSE(*few.backward.db, *general.backward.db, {.absolute = rounding});
  }
}
const Size kFewRows[] = {{1, 4096, 0, false, "a block"},
                         {16, 4096, 0, false, "a cluster"},
                         {9, 1000, 0, false, "part of a warp"},
                         {3, 256, 0, false, "part of a chunk, one block"},
                         {5, 5120, 0, false, "clusters of five"},
                         {2, 32768, 0, false, "eight warps a row and block"},
                         {1, 65536, 0, false, "as large as it gets"},
                         {132, 4096, 0, false, "a row of sums for two rows"},
                         {37, 1000, 0, false, "the last cluster has fewer rows"},
                         {3, 131072, 0, false, "sixteen blocks a row"}};
INSTANTIATE_TEST_SUITE_P(All, FewRows,
                         ::testing::Combine(kHalvesAndFloat, ::testing::ValuesIn(kFewRows)),
                         name_of);

TEST_F(NormPlans, WeightGradientsHaveTheSameBitsAgain) {
  const NoGrad off;
  for (int64_t cols : {64, 1024, 4096, 20000}) {
    SCOPED_TRACE(cols);
    Member m;
    m.options.kind = NormKind::layer, m.w = m.b = true;
    const NormArguments a(m, {999, cols}, bfloat16, float32);
    const Tensor dy = randn({999, cols}).to(bfloat16);
    const Everything once = run_on_gpu(a, dy, none), again = run_on_gpu(a, dy, none);
    EXPECT_SAME_BITS(*once.backward.dw, *again.backward.dw);
    EXPECT_SAME_BITS(*once.backward.db, *again.backward.db);
  }
}

using ManyRows = NormPlansOf;
TEST_P(ManyRows, KeepTheDigitsOfWeightGradients) {
  // On one multiprocessor a lane has 3000 rows, or 1500 where a warp takes several at a time: plain
  // sums of so many terms would be off by some 45 or 30 units, these by at most 15.
  const NoGrad off;
  const Pretended gpu(1);
  Member m;
  m.options.kind = NormKind::layer, m.w = m.b = true;
  NormArguments a(m, {size_.rows, size_.cols}, dtype_, float32);
  const Tensor dy = randn(a.x.shape()).to(dtype_);
  const Everything fast = run_on_gpu(a, dy, none);
  a.x = a.x.to(float64), a.in.w = a.in.w->to(float64), a.in.b = a.in.b->to(float64);
  const Everything exact = run_on_gpu(a, dy.to(float64), none);
  const double unit = 0x1p-23 * std::sqrt(static_cast<double>(size_.rows));  // terms of about 1
  EXPECT_CLOSE(fast.backward.dw->to(float64), *exact.backward.dw, {.absolute = 20 * unit});
  EXPECT_CLOSE(fast.backward.db->to(float64), *exact.backward.db, {.absolute = 20 * unit});
}
INSTANTIATE_TEST_SUITE_P(All, ManyRows,
                         ::testing::Combine(::testing::Values(bfloat16, float32),
                                            ::testing::Values(Size{3000, 8192}, Size{48000, 512},
                                                              Size{96000, 64})),
                         name_of);

using PortablePlans = NormPlansOf;
TEST_P(PortablePlans, WeightGradientsHaveTheBitsOfAnyGpu) {
  const NoGrad off;
  const MostInOneLaunch none_is(0, 0);  // those plans have as many blocks everywhere
  for (GateOrder gate : {GateOrder::no_gate, GateOrder::gate_then_norm}) {
    Member m;
    m.options.kind = NormKind::layer, m.options.gate = gate, m.w = m.b = true;
    SCOPED_TRACE(to_string(m));
    NormArguments a(m, {size_.rows, size_.cols}, dtype_, dtype_ == float64 ? float64 : float32);
    const Tensor dy = randn(a.x.shape()).to(dtype_);
    const auto on = [&](int multiprocessors, bool portable) {
      const Pretended gpu(multiprocessors);
      a.options.portable = portable;
      return run_on_gpu(a, dy, none);
    };
    const Everything here = on(0, true);
    for (int multiprocessors : {8, 108}) {
      const Everything there = on(multiprocessors, true);
      EXPECT_SAME_BITS(*there.backward.dw, *here.backward.dw);
      EXPECT_SAME_BITS(*there.backward.db, *here.backward.db);
      EXPECT_SAME_BITS(*there.backward.dx, *here.backward.dx);
    }
    // Not promised otherwise: or nothing was forced.
    EXPECT_FALSE(testing::same_bits(*on(8, false).backward.dw, *on(0, false).backward.dw));
  }
}
// Of the fast plans: rows of part of a warp, of a warp, a block and a cluster; and the general one.
INSTANTIATE_TEST_SUITE_P(All, PortablePlans,
                         ::testing::Combine(::testing::Values(bfloat16, float32, float64),
                                            ::testing::Values(Size{2000, 64}, Size{2000, 1000},
                                                              Size{1000, 4096}, Size{200, 20000},
                                                              Size{100, 65536})),
                         name_of);

}  // namespace
}  // namespace norma
