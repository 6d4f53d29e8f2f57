// The parameter grids of other libraries' norm tests, against our kernels. Each peer's sizes,
// dtypes and features are kept; incoming gradients are random with a part along x̂, where a
// misquoted formula shows, and bounds are roundings, not the peers' tolerances (of which some let
// anything in bfloat16 pass). Sizes beyond a budget lose rows, never columns.
#include <cmath>
#include <limits>

#include "norma/core/device.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/formula.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/products.h"
#include "norma/ops/norm/rms_norm.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"
#include "ops/norm/members.h"
#include "testing/compare.h"

namespace norma {
namespace {

using testing::GradientCase;
using testing::Member;
using testing::NormArguments;
using Maybe = std::optional<Tensor>;

enum class Layout {
  dense,
  sliced,
  transposed,
  stepped,
  repeated_gradient,
  transposed_gradient,
  misaligned
};

struct PeerCase {
  Member member;
  Shape shape;
  DType dtype = float32, weights = float32;
  Layout layout = Layout::dense;
};
std::string to_string(const PeerCase& c) {
  return to_string(c.member) + " shape " + to_string(c.shape) + " " +
         std::string(to_string(c.dtype)) + " weights " + std::string(to_string(c.weights)) +
         " layout " + format("{}", static_cast<int>(c.layout));
}

/// rows × cols, cut to fewer rows where the float64 formulas would need more than some
/// milliseconds.
Shape within_budget(int64_t rows, int64_t cols) {
  const int64_t budget = int64_t{1} << (default_device().is_cpu() ? 16 : 18);
  return {std::min(rows, std::max<int64_t>(budget / cols, 2)), cols};
}

/// t's values as a view of another layout.
Tensor laid_out(const Tensor& t, Layout layout) {
  const int64_t cols = t.shape().back(), rows = cols == 0 ? 0 : t.numel() / cols;
  if (layout == Layout::sliced || layout == Layout::misaligned) {
    const int64_t before = layout == Layout::sliced ? 8 : 1;  // one element: no vector fits
    const Tensor wide = zeros({rows, cols + 2 * before}, t.dtype());
    wide.slice(1, before, before + cols).copy_(t.reshape({rows, cols}));
    return wide.slice(1, before, before + cols).reshape(t.shape());
  }
  if (layout == Layout::transposed) return t.transpose(0, 1).contiguous().transpose(0, 1);
  if (layout == Layout::stepped) {  // every third element of every fifth row
    const Tensor wide = zeros({5 * rows, 3 * cols}, t.dtype());
    const Tensor view = wide.slice(0, 0, 5 * rows, 5).slice(1, 0, 3 * cols, 3);
    view.copy_(t.reshape({rows, cols}));
    return view;
  }
  return t;
}

/// Forward and every gradient against the formulas in float64 on the same values.
void expect_exact(const PeerCase& peer) {
  SCOPED_TRACE(to_string(peer));
  manual_seed(3);
  NormArguments a(peer.member, peer.shape, peer.dtype, peer.weights);
  a.x = laid_out(a.x, peer.layout);
  GradientCase c(a);
  const NormOptions& o = c.a.options;
  const double stats = unit_roundoff(stats_dtype(peer.dtype)), unit = unit_roundoff(peer.dtype);
  const Tensor h = (c.result.h ? *c.result.h : c.a.x).to(float64);
  const Tensor z = c.a.in.z ? c.a.in.z->to(float64) : Tensor();
  const detail::Formula f(h, z, o);
  if (peer.layout == Layout::repeated_gradient) {
    Shape one = c.dy.shape();
    one[0] = 1;
    c.dy = randn(one, float64).to(c.dy.dtype()).expand(c.dy.shape());
  } else {
    c.dy = (c.dy.to(float64) + f.x_hat * 3).to(c.dy.dtype());
  }
  if (peer.layout == Layout::transposed_gradient) c.dy = laid_out(c.dy, Layout::transposed);

  // Forward: x̂ has some √D/2 + 4 roundings, of which a pairwise sum keeps few; w, b and gate three.
  NormArguments wide = c.a.to(float64);
  wide.x = h, wide.in.residual = wide.in.row_scale = none, wide.options.dropout = 0;
  const NormResult exact = wide.definition();
  const double cast = o.casting == Casting::rounded ? unit : 0;
  const auto largest = [](const Tensor& t) { return t.numel() ? t.abs().max().item() : 0.0; };
  const auto near = [&](const Tensor& actual, const Tensor& expected, double scale) {
    const double tiny = actual.dtype() == float16 ? 0x1p-25 : 0;
    EXPECT_CLOSE(actual, expected,
                 {.relative = unit_roundoff(actual.dtype()) + cast + 8 * stats,
                  .absolute = 16 * stats * scale + cast * scale / 16 + tiny});
  };
  near(c.result.y, exact.y, largest(exact.y) + 1);
  if (exact.y2) near(*c.result.y2, *exact.y2, largest(*exact.y2) + 1);

  // Gradients: dx and dz on the scale of what is cancelled, weights on that of their terms.
  const NormGrads kernel = c.kernel(), formula = c.exact();
  const Tensor dy = c.dy.to(float64);
  const bool gate_last = o.gate == GateOrder::norm_then_gate;
  const Tensor dn = gate_last ? dy * f.gate : dy;
  double g = largest(c.a.in.w ? dn * detail::weight_of(*c.a.in.w, o, float64, h.size(-1)) : dn);
  if (c.dy2) g += largest(*c.dy2) * (largest(*c.a.in.w2) + 1);
  double du = g * largest(f.rstd) + (c.dh ? largest(*c.dh) : 0);
  if (z.defined()) du *= 1 + largest(f.gate);
  const double scale_of_x =
      (c.a.in.row_scale ? largest(*c.a.in.row_scale) : 1) / (1 - o.dropout) * du;
  near(*kernel.dx, *formula.dx, scale_of_x);
  if (kernel.dresidual) near(*kernel.dresidual, *formula.dresidual, du);
  if (kernel.dz)
    near(*kernel.dz, *formula.dz,
         1.1 * (gate_last ? largest(dy) * (largest(exact.y) + 4) : du * largest(h)));
  if (kernel.drow_scale)
    near(*kernel.drow_scale, *formula.drow_scale,
         du * std::sqrt(static_cast<double>(h.size(-1))) * largest(c.a.x) / (1 - o.dropout));
  const auto near_sum = [&](const Maybe& actual, const Maybe& expected, const Tensor& terms) {
    if (!actual) return;
    const Tensor squares = detail::sum_rows(terms.square(), actual->numel(), float64);
    const double size = std::sqrt(largest(squares));
    // n terms: each addition rounds a partial sum that is at most the result where they agree.
    const double n = static_cast<double>(terms.numel() / std::max<int64_t>(1, actual->numel()));
    EXPECT_CLOSE(*actual, *expected,
                 {.relative = unit_roundoff(actual->dtype()) + std::sqrt(n) * stats,
                  .absolute = (16 * stats + cast) * size});
  };
  near_sum(kernel.dw, formula.dw, dn * f.x_hat);
  near_sum(kernel.db, formula.db, dn);
  if (c.dy2) {
    near_sum(kernel.dw2, formula.dw2, c.dy2->to(float64) * f.x_hat);
    near_sum(kernel.db2, formula.db2, c.dy2->to(float64));
  }
}

class PeerGrid : public ::testing::TestWithParam<std::vector<PeerCase> (*)()> {};
TEST_P(PeerGrid, IsExact) {
  for (const PeerCase& c : GetParam()()) expect_exact(c);
}

Member plain(NormKind kind, double eps, bool w = true, bool b = false) {
  Member m;
  m.options.kind = kind, m.options.eps = eps, m.w = w, m.b = b;
  return m;
}

/// tests/ops/triton/test_layernorm_gated.py, the skipped LayerNorm with the gate first included.
std::vector<PeerCase> mamba() {
  std::vector<PeerCase> grid;
  for (int flags = 0; flags < 32; ++flags)
    for (int64_t cols : {2048, 4096}) {
      Member m = plain(flags & 1 ? NormKind::rms : NormKind::layer, 1e-5, true, flags & 2);
      if (flags & 4) m.options.group = 64;
      if (flags & 8)
        m.options.gate = flags & 16 ? GateOrder::norm_then_gate : GateOrder::gate_then_norm;
      else if (flags & 16)
        continue;  // no gate, no order
      grid.push_back({m, within_budget(16 * 1024, cols), float16, float32});
    }
  return grid;
}

/// tests/ops/triton/test_layer_norm.py: every feature meets every dtype, features in turns.
std::vector<PeerCase> flash_attention() {
  struct Dtypes {
    DType x;
    int residual;
  };
  std::vector<PeerCase> grid;
  int turn = 0;
  for (int64_t cols : {192, 2048, 2560, 3000, 4096})
    for (Dtypes d : {Dtypes{float16, 1}, {float16, 2}, {float32, 1}, {bfloat16, 1}, {bfloat16, 2}})
      for (DType weights : {float32, float16, bfloat16})
        for (int i = 0; i < 3; ++i, ++turn) {
          const int features = turn * 11 % 64;
          Member m = plain(features & 1 ? NormKind::rms : NormKind::layer, 1e-6, true, true);
          if (features & 2) m.second = 2;
          if (features & 4) m.row_scale = true;
          if (features & 8) m.options.dropout = 0.27, m.options.key = {.key = 9, .ordinal = 2};
          if (features & 16) m.residual = d.residual;
          if (features & 32) m.options.zero_centered = true;
          grid.push_back({m, within_budget(8 * 512, cols), d.x, weights});
        }
  return grid;
}
/// tests/test_dropout_layer_norm.py
std::vector<PeerCase> flash_attention_dropout() {
  std::vector<PeerCase> grid;
  int turn = 0;
  for (int64_t cols :
       {192, 256, 384, 768, 1024, 1280, 1536, 1600, 2048, 2560, 3000, 3072, 4096, 5120, 6144})
    for (DType dtype : {float32, float16, bfloat16}) {
      Member m = plain(turn & 1 ? NormKind::rms : NormKind::layer, 1e-5, true, true);
      m.options.dropout = 0.37, m.options.key = {.key = 4, .ordinal = 1};
      m.residual = turn % 3, m.row_scale = turn & 2;
      ++turn;
      grid.push_back({m, within_budget(4 * 512, cols), dtype, float32});
    }
  return grid;
}

/// tests/test_rmsnorm.py and test_layernorm.py
std::vector<PeerCase> quack() {
  std::vector<PeerCase> grid;
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (int64_t rows : kind == NormKind::rms ? std::vector<int64_t>{1, 199, 8192}
                                              : std::vector<int64_t>{1, 37, 199, 4096})
      for (int64_t cols : {192, 256, 512, 760, 1024, 1128, 2048, 4096, 32768, 131072, 262144})
        for (DType dtype : {bfloat16, float16, float32}) {
          const bool low = (rows + cols) % 3 == 0;
          grid.push_back({plain(kind, 1e-6, (rows + cols) % 5 != 0), within_budget(rows, cols),
                          dtype, low ? bfloat16 : float32});
        }
  Member offset = plain(NormKind::rms, 1e-6);
  offset.options.zero_centered = true;
  grid.push_back({offset, {199, 1024}, bfloat16, float32});
  for (const Shape& qk : {Shape{2, 16, 4, 64}, Shape{1, 1, 32, 128}})
    grid.push_back({plain(NormKind::rms, 1e-6), qk, bfloat16, float32});
  grid.push_back({plain(NormKind::rms, 1e-6), {8, 512}, bfloat16, float32, Layout::sliced});
  for (Layout layout : {Layout::repeated_gradient, Layout::transposed_gradient})
    grid.push_back(
        {plain(NormKind::layer, 1e-6, true, true), {199, 760}, bfloat16, float32, layout});
  for (int residual : {1, 2}) {
    Member m = plain(NormKind::rms, 1e-6);
    m.residual = residual;
    grid.push_back({m, {32, 1024}, bfloat16, float32});
  }
  grid.push_back({plain(NormKind::rms, 1e-6), {0, 1024}, float32, float32});
  return grid;
}

/// test/transformers/test_{rms_norm,layer_norm,fused_add_rms_norm}.py
std::vector<PeerCase> liger() {
  std::vector<PeerCase> grid;
  for (DType dtype : {float32, bfloat16}) {
    for (const Shape& shape :
         {Shape{2, 128, 512}, Shape{5, 123, 123}, Shape{2, 2, 8}, Shape{9, 7, 41}})
      for (int mode = 0; mode < 6; ++mode) {
        Member m = plain(NormKind::rms, 1e-6, mode % 3 != 2);
        if (mode % 3 == 0) m.options.casting = Casting::rounded;  // llama
        if (mode % 3 == 1) m.options.zero_centered = true;        // gemma
        if (mode >= 3) m.residual = 1;                            // fused add
        grid.push_back({m, shape, dtype, dtype});
      }
    for (const Shape& shape :
         {Shape{2, 8, 64}, Shape{4, 16, 128}, Shape{1, 1, 1023}, Shape{3, 7, 256},
          Shape{1, 1, 1500}, Shape{2, 64, 4096}, Shape{2, 77, 1023}, Shape{1, 200, 2050}})
      grid.push_back({plain(NormKind::layer, 1e-6, true, true), shape, dtype, dtype});
  }
  return grid;
}

/// tests/L0/run_fused_layer_norm and contrib/test/layer_norm
std::vector<PeerCase> apex() {
  std::vector<PeerCase> grid;
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (DType dtype : {float32, float16, bfloat16})
      for (int flags = 0; flags < 8; ++flags) {
        Member m = plain(kind, 1e-5, flags & 1, (flags & 1) && kind == NormKind::layer);
        if (flags & 2) m.options.saves = NormSaves::x_hat;  // memory-efficient
        // 16 × [32, 16] is a norm over 512 elements.
        for (Layout layout : {Layout::dense, Layout::transposed, Layout::stepped})
          grid.push_back({m, {16, 512}, dtype, flags & 4 ? float32 : dtype, layout});
        grid.push_back({m, within_budget(65536, 512), dtype, flags & 4 ? float32 : dtype});
      }
  for (int64_t cols :
       {768,   1024,  1536,  2048,  2304,  3072,  3840,  4096,  5120,  6144,  8192,  10240, 12288,
        12800, 14336, 15360, 16384, 18432, 20480, 24576, 25600, 30720, 32768, 40960, 49152, 65536})
    for (DType dtype : {float32, float16})
      grid.push_back(
          {plain(NormKind::layer, 1e-5, true, true), within_budget(512, cols), dtype, dtype});
  return grid;
}

/// tests/cpp/operator/test_normalization.cu, pytorch/test_numerics.py, jax/test_layer.py
std::vector<PeerCase> transformer_engine() {
  std::vector<PeerCase> grid;
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (const auto& [rows, cols] :
         {std::pair{71, 229}, {29, 541}, {768, 6144}, {2048, 12288}, {256, 128}, {128, 256}})
      for (DType dtype : {float32, bfloat16, float16})
        for (int flags = 0; flags < 4; ++flags) {
          Member m = plain(kind, 1e-5, true, kind == NormKind::layer);
          m.options.zero_centered = flags & 1, m.other_out = flags & 2;
          if (flags == 3) m.residual = 1;  // backward with the stream's gradient added
          grid.push_back({m, within_budget(rows, cols), dtype, dtype});
        }
  for (double eps : {1e-1, 1e-3, 1e-5, 1e-7})
    for (NormKind kind : {NormKind::rms, NormKind::layer})
      grid.push_back({plain(kind, eps), {32, 128}, float32, float32});
  return grid;
}

/// python/tests/test_fast.py
std::vector<PeerCase> mlx() {
  std::vector<PeerCase> grid;
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (int64_t cols : {31, 32, 33, 256, 512, 4099, 8192})
      for (DType dtype : {float32, float16, bfloat16})
        for (double eps : {1e-3, 1e-5})
          for (bool w : {false, true})
            grid.push_back({plain(kind, eps, w, w && kind == NormKind::layer),
                            {2, 3, cols},
                            dtype,
                            dtype,
                            cols == 32 ? Layout::sliced : Layout::dense});
  return grid;
}

/// tests/test-backend-ops.cpp
std::vector<PeerCase> ggml() {
  std::vector<PeerCase> grid;
  for (NormKind kind : {NormKind::rms, NormKind::layer, NormKind::l2})
    for (int64_t cols : {33, 64, 132, 260, 1025})
      for (double eps : {0.0, 1e-6, 1e-4, 1e-1, 10.0})
        for (Layout layout : {Layout::dense, Layout::sliced, Layout::transposed})
          grid.push_back({plain(kind, eps, eps != 0), {5, 4, 3, cols}, float32, float32, layout});
  for (int64_t cols : {1, 511, 1025, 8192, 16896}) {
    Member m = plain(NormKind::rms, 1e-6);  // add, norm, multiply
    m.residual = 1;
    grid.push_back({m, {5, 3, cols}, float32, float32});
  }
  return grid;
}

/// tests/modules of flash-linear-attention, by gradients that are not the ones that vanish
std::vector<PeerCase> flash_linear_attention() {
  std::vector<PeerCase> grid;
  for (int64_t cols : {50, 64, 128})
    grid.push_back({plain(NormKind::layer, 1e-5, true, true), {4, 32, cols}, float32, float32});
  for (int64_t cols : {50, 64, 128, 256})
    grid.push_back({plain(NormKind::rms, 0), {4, 32, cols}, float32, float32});
  for (int64_t cols : {64, 128, 512, 1024, 2048})
    for (int64_t groups : {1, 4}) {
      Member m = plain(NormKind::layer, 1e-5, true, true);
      m.options.group = cols / groups;
      grid.push_back({m, {4, 8, cols}, float32, float32});
    }
  for (int64_t rows : {1, 2, 4, 8, 16, 32})
    grid.push_back({plain(NormKind::rms, 1e-5), {1, rows, 64}, bfloat16, float32});
  for (const Shape& shape :
       {Shape{2, 2, 1, 64}, Shape{2, 2, 512, 128}, Shape{2, 2, 16, 1200}, Shape{2, 2, 50, 50}})
    for (NormKind kind : {NormKind::rms, NormKind::layer})
      for (GateActivation activation : {GateActivation::silu, GateActivation::sigmoid}) {
        Member m = plain(kind, 1e-5, true, kind == NormKind::layer);
        m.options.gate = GateOrder::norm_then_gate, m.options.activation = activation;
        grid.push_back({m, shape, bfloat16, float32});
      }
  return grid;
}

INSTANTIATE_TEST_SUITE_P(Mamba, PeerGrid, ::testing::Values(mamba));
INSTANTIATE_TEST_SUITE_P(FlashAttention, PeerGrid,
                         ::testing::Values(flash_attention, flash_attention_dropout));
INSTANTIATE_TEST_SUITE_P(Quack, PeerGrid, ::testing::Values(quack));
INSTANTIATE_TEST_SUITE_P(Liger, PeerGrid, ::testing::Values(liger));
INSTANTIATE_TEST_SUITE_P(Apex, PeerGrid, ::testing::Values(apex));
INSTANTIATE_TEST_SUITE_P(TransformerEngine, PeerGrid, ::testing::Values(transformer_engine));
INSTANTIATE_TEST_SUITE_P(Mlx, PeerGrid, ::testing::Values(mlx));
INSTANTIATE_TEST_SUITE_P(Ggml, PeerGrid, ::testing::Values(ggml));
INSTANTIATE_TEST_SUITE_P(FlashLinearAttention, PeerGrid, ::testing::Values(flash_linear_attention));

/// PyTorch's test_nn.py and OpInfo: gradients of every order in float64 on the device itself.
TEST(PyTorchGrid, GradientsOfBothOrders) {
  for (const Shape& shape : {Shape{1, 2, 3}, Shape{2, 2, 3}, Shape{1}, Shape{0, 3}})
    for (NormKind kind : {NormKind::rms, NormKind::layer})
      for (int affine = 0; affine < 3; ++affine) {
        const NormOptions o{.kind = kind, .eps = 1e-2};
        const Tensor x = randn(shape, float64);
        const Maybe w = affine > 0 ? Maybe(randn({shape.back()}, float64)) : none;
        const Maybe b = affine > 1 ? Maybe(randn({shape.back()}, float64)) : none;
        EXPECT_OK(gradcheck<Norm>(x, w, b, none, none, none, none, none, o));
        EXPECT_OK(gradgradcheck<Norm>(x, w, b, none, none, none, none, none, o));
      }
}

// What no peer's suite contains.

TEST(NoPeersGrid, MeanOverDeviation) {
  for (double mean : {1.0, 1e2, 1e3, 1e4, 1e5, 1e6})
    for (int64_t cols : {7, 769, 4099}) {
      SCOPED_TRACE(format("mean {} cols {}", mean, cols));
      const Tensor x = (randn({3, cols}, float64) + mean).to(float32), dy = randn({3, cols});
      const auto run = [&](DType dtype) {
        const Tensor leaf = x.to(dtype).detach().requires_grad_();
        const Tensor y = layer_norm(leaf);
        return std::pair{y.detach(), grad({y}, {leaf}, {dy.to(dtype)})[0]};
      };
      const auto ours = run(float32), exact = run(float64);
      EXPECT_CLOSE(ours.first, exact.first, {.relative = 1e-6, .absolute = 1e-6});
      EXPECT_CLOSE(ours.second, exact.second, {.relative = 4e-6, .absolute = 4e-6});
    }
}
TEST(NoPeersGrid, WeightsWithZerosAndSigns) {
  Tensor w = randn({64});
  w.slice(0, 0, 64, 3).fill_(0);
  const Tensor x = randn({5, 64}), dy = randn({5, 64});
  for (NormSaves saves : {NormSaves::input, NormSaves::x_hat}) {
    const auto run = [&](DType dtype) {
      const Tensor leaf = x.to(dtype).detach().requires_grad_(),
                   gain = w.to(dtype).detach().requires_grad_();
      return grad({rms_norm(leaf, gain, {.saves = saves})}, {leaf, gain}, {dy.to(dtype)});
    };
    const auto ours = run(float32), exact = run(float64);
    for (size_t i = 0; i < 2; ++i)
      EXPECT_CLOSE(ours[i], exact[i], {.relative = 1e-6, .absolute = 4e-6});
  }
}
TEST(NoPeersGrid, GradientAlongXHatVanishes) {
  const Tensor x = randn({4, 300}, float64);
  for (bool layer : {false, true}) {
    const Tensor leaf = x.detach().requires_grad_();
    const Tensor y =
        layer ? layer_norm(leaf, none, none, {.eps = 0}) : rms_norm(leaf, none, {.eps = 0});
    const Tensor along = layer ? y.detach() + 2 : y.detach();
    EXPECT_CLOSE(grad({y}, {leaf}, {along})[0], zeros_like(x),
                 {.absolute = 300 * unit_roundoff(float64)});
  }
}
TEST(NoPeersGrid, MisalignedRowsHaveTheBitsOfAlignedOnes) {
  for (DType dtype : {float32, bfloat16, float16, float64})
    for (int64_t cols : {64, 769, 4096}) {
      const Tensor x = randn({3, cols}, float64).to(dtype), w = randn({cols}, float64).to(dtype);
      const Tensor shifted = laid_out(x, Layout::misaligned);
      const Tensor b = zeros({cols + 1}, dtype).slice(0, 1, cols + 1);
      EXPECT_SAME_BITS(layer_norm(shifted, w, b), layer_norm(x, w, zeros({cols}, dtype)));
    }
}
TEST(NoPeersGrid, AnySplitOfTheBatchHasTheSameBits) {
  for (DType dtype : {float32, bfloat16})
    for (int64_t cols : {96, 1000, 5000}) {
      const Tensor x = randn({37, cols}).to(dtype), w = randn({cols}),
                   z = randn({37, cols}).to(dtype), dy = randn({37, cols}).to(dtype);
      for (GateOrder order : {GateOrder::norm_then_gate, GateOrder::gate_then_norm}) {
        const auto run = [&](int64_t first, int64_t last) {
          const Tensor leaf = x.slice(0, first, last).detach().requires_grad_(),
                       gate = z.slice(0, first, last).detach().requires_grad_();
          const Tensor y =
              gated_norm(leaf, gate, w, none, {.order = order, .kind = NormKind::layer});
          auto all = grad({y}, {leaf, gate}, {dy.slice(0, first, last)});
          all.push_back(y.detach());
          return all;
        };
        const auto whole = run(0, 37);
        for (auto [first, last] : {std::pair<int64_t, int64_t>{0, 1}, {1, 6}, {6, 37}, {20, 21}}) {
          const auto part = run(first, last);
          for (size_t i = 0; i < whole.size(); ++i)
            EXPECT_SAME_BITS(part[i], whole[i].slice(0, first, last));
        }
      }
    }
}
TEST(NoPeersGrid, NanStaysInItsRowBackwardToo) {
  Tensor x = randn({5, 130});
  const Tensor dy = randn({5, 130});
  const auto dx = [&] {
    const Tensor leaf = x.detach().requires_grad_();
    return grad({layer_norm(leaf, ones({130}))}, {leaf}, {dy})[0];
  };
  const Tensor clean = dx();
  x.slice(0, 2, 3).slice(1, 77, 78).fill_(std::numeric_limits<double>::quiet_NaN());
  const Tensor dirty = dx();
  EXPECT_SAME_BITS(dirty.slice(0, 0, 2), clean.slice(0, 0, 2));
  EXPECT_SAME_BITS(dirty.slice(0, 3, 5), clean.slice(0, 3, 5));
  for (double v : dirty.slice(0, 2, 3).to_vector<double>()) EXPECT_TRUE(std::isnan(v));
}
TEST(NoPeersGrid, GroupsFromOneElementToAll) {
  for (NormKind kind : {NormKind::rms, NormKind::layer, NormKind::l2})
    for (GateOrder gate :
         {GateOrder::no_gate, GateOrder::norm_then_gate, GateOrder::gate_then_norm})
      for (int64_t group : {1, 2, 5, 30, 60})
        for (bool shared : {false, true}) {
          Member m = plain(kind, 1e-3, true, true);
          m.options.group = group, m.options.gate = gate, m.shared = shared;
          expect_exact({m, {7, 60}, float32, float32});
        }
}
TEST(NoPeersGrid, AMillionColumns) {
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (DType dtype : {float32, bfloat16})
      for (int64_t rows : {1, 3})
        expect_exact({plain(kind, 1e-6, true, kind == NormKind::layer),
                      {rows, int64_t{1} << 20},
                      dtype,
                      float32});
}
TEST(NoPeersGrid, MoreThan2To32Elements) {
  if (default_device().is_cpu()) GTEST_SKIP() << "needs 17 GB: on a GPU alone";
  const int64_t cols = 4096, rows = (int64_t{1} << 20) + 3;
  const NoGrad plain;
  const Tensor row = randn({1, cols}).to(bfloat16);  // stride 0: only y takes memory
  const Tensor y = rms_norm(row.expand({rows, cols}));
  for (int64_t i : {int64_t{0}, (int64_t{1} << 20) - 1, rows - 1})
    EXPECT_SAME_BITS(y.slice(0, i, i + 1), rms_norm(row));
}
TEST(NoPeersGrid, GradientsOfMoreThan2To32Elements) {
  if (default_device().is_cpu()) GTEST_SKIP() << "needs 17 GB: on a GPU alone";
  const int64_t cols = 4096, rows = (int64_t{1} << 20) + 3;
  const Tensor row = randn({1, cols}).to(bfloat16), dy = randn({1, cols}).to(bfloat16);
  const auto dx_of = [&](const Tensor& x, const Tensor& d) { return *norm_vjp(x, d, {}, {}).dx; };
  const Tensor dx = dx_of(row.expand({rows, cols}), dy.expand({rows, cols})), one = dx_of(row, dy);
  for (int64_t i : {int64_t{0}, (int64_t{1} << 20) - 1, rows - 1})
    EXPECT_SAME_BITS(dx.slice(0, i, i + 1), one);
}

}  // namespace
}  // namespace norma
