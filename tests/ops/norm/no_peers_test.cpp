// What no other library's suite of norm tests contains.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "norma/core/allocator.h"
#include "norma/core/random.h"
#include "norma/ops/norm/gated_norm.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/products.h"
#include "norma/ops/norm/rms_norm.h"
#include "ops/norm/exact_norm.h"

namespace norma {
namespace {

using testing::expect_exact;
using testing::laid_out;
using testing::Layout;
using testing::Member;
using testing::plain;

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
TEST(NoPeersGrid, RstdIsRoundedOnce) {
  // Rows of ±v, of so few bits that sums of squares are exact: what is left is √, 1/ and eps.
  struct Size {
    int64_t cols, values;
  };
  const double roundings = default_device().is_cpu() ? 3 : 0.5001;  // a processor's are plain ones
  for (auto [cols, values] : {Size{64, 128}, {4096, 16}, {131072, 4}})
    for (DType dtype : {float32, bfloat16})
      for (NormKind kind : {NormKind::rms, NormKind::layer})
        for (double eps : {1e-5, 1e-3, 0.7}) {
          SCOPED_TRACE(
              format("cols {} {} kind {} eps {}", cols, dtype, static_cast<int>(kind), eps));
          const Tensor v = arange(values, float32) / static_cast<double>(values) + 1.0;
          Tensor signs = ones({cols});
          signs.slice(0, 1, cols, 2).fill_(-1);
          const Tensor x = (v.unsqueeze(-1) * signs).to(dtype);
          const auto rstd =
              fused_norm(x, {}, {.kind = kind, .eps = eps}).rstd.value.to_vector<double>();
          const auto value = v.to_vector<double>();
          for (size_t i = 0; i < rstd.size(); ++i) {
            const double exact = 1 / std::sqrt(value[i] * value[i] + eps);
            EXPECT_NEAR(rstd[i], exact, roundings * std::exp2(std::ilogb(exact) - 23)) << value[i];
          }
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
/// y, dx and dz of a norm, with a gate where z is defined.
std::vector<Tensor> row_results(NormKind kind, const Tensor& x, const Tensor& z, const Tensor& w,
                                const Tensor& dy, GateOrder order) {
  const Tensor leaf = x.detach().requires_grad_();
  if (order == GateOrder::no_gate) {
    const Tensor y = kind == NormKind::layer ? layer_norm(leaf, w) : rms_norm(leaf, w);
    return {y.detach(), grad({y}, {leaf}, {dy})[0]};
  }
  const Tensor gate = z.detach().requires_grad_();
  const Tensor y = gated_norm(leaf, gate, w, none, {.order = order, .kind = kind});
  const auto d = grad({y}, {leaf, gate}, {dy});
  return {y.detach(), d[0], d[1]};
}
constexpr GateOrder kOrders[] = {GateOrder::no_gate, GateOrder::norm_then_gate,
                                 GateOrder::gate_then_norm};

TEST(NoPeersGrid, MisalignedRowsHaveTheBitsOfAlignedOnes) {
  for (DType dtype : {float32, bfloat16, float16, float64})
    for (int64_t cols : {64, 769, 4096})
      for (GateOrder order : kOrders) {
        SCOPED_TRACE(format("{} cols {} gate {}", dtype, cols, static_cast<int>(order)));
        const auto random = [&] { return randn({3, cols}, float64).to(dtype); };
        const Tensor x = random(), z = random(), dy = random();
        const Tensor wide = randn({cols + 1}, float64).to(dtype), w = wide.slice(0, 1, cols + 1);
        const auto off = [](const Tensor& t) { return laid_out(t, Layout::misaligned); };
        const auto shifted = row_results(NormKind::layer, off(x), off(z), w, off(dy), order);
        const auto dense = row_results(NormKind::layer, x, z, w.clone(), dy, order);
        for (size_t i = 0; i < dense.size(); ++i) EXPECT_SAME_BITS(shifted[i], dense[i]);
      }
}
TEST(NoPeersGrid, MisalignedRowsAreExact) {
  for (DType dtype : {float32, bfloat16})
    for (int64_t cols : {64, 769, 4096})
      for (GateOrder order : kOrders) {
        Member m = plain(NormKind::layer, 1e-5, true, true);
        m.options.gate = order, m.residual = order == GateOrder::no_gate;
        expect_exact({m, {5, cols}, dtype, float32, Layout::misaligned});
      }
}
TEST(NoPeersGrid, AnySplitOfTheBatchHasTheSameBits) {
  // On a GPU, batches of which a plan takes one row, a few and many.
  const bool on_cpu = default_device().is_cpu();
  for (DType dtype : {float32, bfloat16})
    for (int64_t cols : {96, 1000, on_cpu ? 4096 : 16384, 5000})
      for (NormKind kind : {NormKind::rms, NormKind::layer})
        for (GateOrder order : kOrders) {
          SCOPED_TRACE(format("{} cols {} kind {} gate {}", dtype, cols, static_cast<int>(kind),
                              static_cast<int>(order)));
          const int64_t rows = on_cpu ? 37 : std::min<int64_t>(3000, (1 << 22) / cols);
          const std::pair<int64_t, int64_t> parts[] = {
              {0, 1}, {1, 6}, {6, rows}, {20, 21}, {rows / 2, rows - 1}, {rows - 17, rows}};
          const auto random = [&] { return randn({rows, cols}).to(dtype); };
          const Tensor x = random(), z = random(), dy = random(), w = randn({cols});
          const auto whole = row_results(kind, x, z, w, dy, order);
          for (auto [first, last] : parts) {
            const auto cut = [first = first, last = last](const Tensor& t) {
              return t.slice(0, first, last);
            };
            const auto part = row_results(kind, cut(x), cut(z), w, cut(dy), order);
            for (size_t i = 0; i < whole.size(); ++i) EXPECT_SAME_BITS(part[i], cut(whole[i]));
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
TEST(NoPeersGrid, RowsMoreThan2To32ElementsApart) {
  // Memory of which only two rows are ever touched.
  const int64_t cols = 768, apart = (int64_t{1} << 32) / cols + 1;
  const auto spread = [&](const Tensor& t) {
    const Tensor wide =
        empty({apart + 1, cols}, t.dtype(), t.device()).slice(0, 0, apart + 1, apart);
    wide.copy_(t);
    return wide;
  };
  const auto random = [&] { return randn({2, cols}).to(bfloat16); };
  const Tensor x = random(), z = random(), dy = random(), w = randn({cols});
  for (GateOrder order : kOrders) {
    SCOPED_TRACE(static_cast<int>(order));
    const auto dense = row_results(NormKind::layer, x, z, w, dy, order);
    std::vector<Tensor> far;
    try {
      far = row_results(NormKind::layer, spread(x), z, w, spread(dy), order);
    } catch (const OutOfMemory&) {
      GTEST_SKIP() << "needs 17 GB of addresses, and a system that gives them";
    }
    for (size_t i = 0; i < dense.size(); ++i) EXPECT_SAME_BITS(far[i], dense[i]);
  }
}
TEST(NoPeersGrid, MoreThan2To32Elements) {
  if (default_device().is_cpu()) GTEST_SKIP() << "needs 35 GB: on a GPU alone";
  struct Size {
    int64_t rows, cols;
  };
  const NoGrad off;
  for (auto [rows, cols] : {Size{(1 << 20) + 3, 4096}, Size{(1 << 15) + 1, 131072}}) {
    SCOPED_TRACE(cols);
    // All rows are alike but the last, so that the weight's gradient is known.
    const auto random = [&, cols = cols] { return randn({1, cols}).to(bfloat16); };
    const Tensor row = random(), last = random(), w = randn({cols});
    const auto of_rows = [&, rows = rows, cols = cols](const Tensor& first) {
      const Tensor all = first.expand({rows, cols}).contiguous();
      all.slice(0, rows - 1, rows).copy_(last);
      return all;
    };
    const Tensor x = of_rows(row), d_row = random(), dy = of_rows(d_row);
    const Tensor y = rms_norm(x, w);
    const NormGrads all = norm_vjp(x, dy, {.w = w}), one = norm_vjp(row, d_row, {.w = w}),
                    end = norm_vjp(last, last, {.w = w});
    for (int64_t i : {int64_t{0}, rows / 2, rows - 2}) {
      EXPECT_SAME_BITS(y.slice(0, i, i + 1), rms_norm(row, w));
      EXPECT_SAME_BITS(all.dx->slice(0, i, i + 1), *one.dx);
    }
    EXPECT_SAME_BITS(y.slice(0, rows - 1, rows), rms_norm(last, w));
    EXPECT_SAME_BITS(all.dx->slice(0, rows - 1, rows), *end.dx);
    // Equal terms round to the same side: a unit for each of the terms that one sum takes, 2^13.
    const auto wide = [](const Tensor& t) { return t.to(float64); };
    EXPECT_CLOSE(*all.dw, wide(*one.dw) * static_cast<double>(rows - 1) + wide(*end.dw),
                 {.relative = 0x1p13 * unit_roundoff(float32), .absolute = 1});
  }
}

}  // namespace
}  // namespace norma
