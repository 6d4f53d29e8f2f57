// The parameter grids of other libraries' norm tests, against our kernels. Each peer's sizes,
// dtypes and features are kept; incoming gradients are random with a part along x̂, where a
// misquoted formula shows, and bounds are roundings, not the peers' tolerances (of which some let
// anything in bfloat16 pass). Sizes beyond a budget lose rows, never columns.
#include <cmath>
#include <vector>

#include "norma/core/random.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/rms_norm.h"
#include "ops/norm/exact_norm.h"

namespace norma {
namespace {

using testing::Layout;
using testing::Maybe;
using testing::Member;
using testing::NormCase;
using testing::plain;
using testing::within_budget;

class PeerGrid : public ::testing::TestWithParam<std::vector<NormCase> (*)()> {};
TEST_P(PeerGrid, IsExact) {
  for (const NormCase& c : GetParam()()) testing::expect_exact(c);
}

/// tests/ops/triton/test_layernorm_gated.py, the skipped LayerNorm with the gate first included.
std::vector<NormCase> mamba() {
  std::vector<NormCase> grid;
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
std::vector<NormCase> flash_attention() {
  struct Dtypes {
    DType x;
    int residual;
  };
  std::vector<NormCase> grid;
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
std::vector<NormCase> flash_attention_dropout() {
  std::vector<NormCase> grid;
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
std::vector<NormCase> quack() {
  std::vector<NormCase> grid;
  int turn = 0;
  for (NormKind kind : {NormKind::rms, NormKind::layer})
    for (int64_t rows : kind == NormKind::rms ? std::vector<int64_t>{1, 199, 8192}
                                              : std::vector<int64_t>{1, 37, 199, 4096})
      for (int64_t cols : {192, 256, 512, 760, 1024, 1128, 2048, 4096, 32768, 131072, 262144})
        for (DType dtype : {bfloat16, float16, float32})
          for (int weight = 0; weight < 3; ++weight, ++turn) {  // none, low, wide
            if (cols > 4096 && turn % 4) continue;  // by turns: they take most of the time
            grid.push_back({plain(kind, 1e-6, weight > 0), within_budget(rows, cols), dtype,
                            weight == 1 ? bfloat16 : float32});
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
std::vector<NormCase> liger() {
  std::vector<NormCase> grid;
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
std::vector<NormCase> apex() {
  std::vector<NormCase> grid;
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
std::vector<NormCase> transformer_engine() {
  std::vector<NormCase> grid;
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
std::vector<NormCase> mlx() {
  std::vector<NormCase> grid;
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
std::vector<NormCase> ggml() {
  std::vector<NormCase> grid;
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
std::vector<NormCase> flash_linear_attention() {
  std::vector<NormCase> grid;
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

/// flash-attention's test_layer_norm_linear and flash-linear-attention's norm before a product.
TEST(FlashAttentionGrid, NormThenLinear) {
  for (int64_t cols : {192, 2048, 2560, 3000})
    for (NormKind kind : {NormKind::rms, NormKind::layer})
      for (DType dtype : {float32, bfloat16}) {
        SCOPED_TRACE(format("cols {} kind {} {}", cols, static_cast<int>(kind), dtype));
        const auto random = [&](const Shape& s) { return randn(s).to(dtype); };
        const int64_t rows = within_budget(4 * 512, cols)[0];
        const Tensor x = random({rows, cols}), w = random({cols}), dy = random({rows, 64});
        const Tensor linear = (randn({64, cols}) / std::sqrt(static_cast<double>(cols))).to(dtype);
        const auto run = [&](DType t) {
          const auto leaf = [&](const Tensor& v) { return v.to(t).detach().requires_grad_(); };
          const std::vector<Tensor> in{leaf(x), leaf(w), leaf(linear)};
          const Tensor n =
              kind == NormKind::layer ? layer_norm(in[0], in[1]) : rms_norm(in[0], in[1]);
          const Tensor y = matmul(n, in[2].t());
          auto all = grad({y}, in, {dy.to(t)});
          all.push_back(y.detach());
          return all;
        };
        const auto ours = run(dtype), exact = run(float64);
        // Six deviations of what is rounded before and after the product and, in float32, of a
        // sum's n partial sums; w is at most 4.
        const double n = static_cast<double>(rows), k = static_cast<double>(cols);
        const double size[] = {8, std::sqrt(64 * n), std::sqrt(n), 1}, terms[] = {64, n, n, k};
        for (size_t i = 0; i < ours.size(); ++i) {
          const double roundings =
              unit_roundoff(dtype) + std::sqrt(terms[i]) * unit_roundoff(float32);
          EXPECT_CLOSE(ours[i], exact[i],
                       {.relative = unit_roundoff(dtype), .absolute = 6 * 4 * size[i] * roundings});
        }
      }
}

}  // namespace
}  // namespace norma
