#pragma once

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <string>
#include <vector>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/norm/norm.h"

namespace norma::testing {

/// One member of the family: its options and which optional tensors it takes.
struct Member {
  NormOptions options;
  bool w = false, b = false;
  bool shared = false;  // weights of one group
  int residual = 0;     // 1: like x, 2: in the statistics' dtype
  bool row_scale = false;
  int second = 0;          // 1: w2, 2: w2 and b2
  bool other_out = false;  // y of another dtype
};

inline std::string to_string(const Member& m) {
  const NormOptions& o = m.options;
  return format(
      "kind {} gate {} activation {} group {} zero-centered {} casting {} variance {} dropout {} "
      "saves {} precise {} w {} b {} shared {} residual {} row_scale {} second {} other_out {}",
      static_cast<int>(o.kind), static_cast<int>(o.gate), static_cast<int>(o.activation), o.group,
      o.zero_centered, static_cast<int>(o.casting), static_cast<int>(o.variance), o.dropout,
      static_cast<int>(o.saves), o.precise, m.w, m.b, m.shared, m.residual, m.row_scale, m.second,
      m.other_out);
}

/// The family's factors and how many values each has.
inline constexpr int kLevels[] = {3, 3, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 3, 2};
inline constexpr int kFactors = static_cast<int>(std::size(kLevels));

inline Member member_of(const std::vector<int>& v, int64_t group) {
  Member m;
  NormOptions& o = m.options;
  o.eps = 1e-3;
  o.kind = static_cast<NormKind>(v[0]);
  o.gate = static_cast<GateOrder>(v[1]);
  o.activation = static_cast<GateActivation>(v[2]);
  if (o.activation == GateActivation::swish) o.beta = 1.5;
  o.group = v[3] ? group : 0;
  o.zero_centered = v[4];
  o.casting = static_cast<Casting>(v[5]);
  o.variance = static_cast<Variance>(v[6]);
  o.dropout = v[7] ? 0.3 : 0;
  o.key = {.key = 7, .call = 0, .ordinal = 3};
  o.saves = static_cast<NormSaves>(v[8]);
  o.precise = v[9];
  m.w = v[10], m.b = v[11], m.shared = v[12], m.residual = v[13], m.row_scale = v[14];
  m.second = v[15], m.other_out = v[16];
  return m;
}
/// Whether the family has such a member, and no other combination is the same one.
inline bool is_member(const Member& m) {
  const NormOptions& o = m.options;
  const bool gated = o.gate != GateOrder::no_gate;
  if (!gated && o.activation != GateActivation::silu) return false;
  if (o.gate == GateOrder::gate_then_norm && o.saves == NormSaves::x_hat) return false;
  if (o.gate == GateOrder::norm_then_gate && m.second) return false;
  if (o.kind != NormKind::layer && o.variance == Variance::welford) return false;
  if (o.zero_centered && !m.w && !m.second) return false;
  return !m.shared || (o.group != 0 && (m.w || m.b || m.second));
}

/// Members in which every two values of two factors that can meet do meet: a greedy choice among
/// random ones. The full product has a few hundred thousand.
inline std::vector<Member> pairwise_members(int64_t group = 3) {
  std::mt19937 random(5);
  std::set<std::pair<int, int>> met;
  const auto pairs = [](const std::vector<int>& v) {
    std::vector<std::pair<int, int>> all;
    for (int a = 0; a < kFactors; ++a)
      for (int b = a + 1; b < kFactors; ++b)
        all.push_back({a * 8 + v[static_cast<size_t>(a)], b * 8 + v[static_cast<size_t>(b)]});
    return all;
  };
  std::vector<Member> members;
  for (int idle = 0; idle < 30;) {
    std::vector<int> best;
    size_t most = 0;
    for (int tries = 0; tries < 200; ++tries) {
      std::vector<int> v;
      for (int levels : kLevels) v.push_back(static_cast<int>(random() % unsigned(levels)));
      if (!is_member(member_of(v, group))) continue;
      size_t fresh = 0;
      for (const auto& pair : pairs(v)) fresh += !met.contains(pair);
      if (fresh > most) most = fresh, best = v;
    }
    if (most == 0) {
      ++idle;
      continue;
    }
    for (const auto& pair : pairs(best)) met.insert(pair);
    members.push_back(member_of(best, group));
  }
  return members;
}

/// Random tensors for a member.
struct NormArguments {
  Tensor x;
  NormInputs in;
  NormOptions options;

  NormArguments(const Member& m, const Shape& shape, DType dtype = float64, DType weights = float64)
      : options(m.options) {
    const auto random = [&](const Shape& s, DType t) { return randn(s, float64).to(t); };
    const int64_t cols = shape.back();
    const Shape weight{m.shared ? m.options.group : cols};
    Shape rows;
    for (int i = 0; i + 1 < shape.dim(); ++i) rows.push_back(shape[i]);
    x = random(shape, dtype);
    if (m.w) in.w = random(weight, weights);
    if (m.b) in.b = random(weight, weights);
    if (m.options.gate != GateOrder::no_gate) in.z = random(shape, dtype);
    if (m.residual) in.residual = random(shape, m.residual == 2 ? stats_dtype(dtype) : dtype);
    if (m.row_scale) in.row_scale = random(rows, float64).abs().to(weights) + 0.5;
    if (m.second) in.w2 = random(weight, weights);
    if (m.second == 2) in.b2 = random(weight, weights);
    if (m.other_out) options.out_dtype = dtype == float32 ? bfloat16 : stats_dtype(dtype);
  }
  std::vector<std::optional<Tensor>*> optional() {
    return {&in.w, &in.b, &in.z, &in.residual, &in.row_scale, &in.w2, &in.b2};
  }
  NormArguments to(DType dtype) const {
    NormArguments a = *this;
    a.x = x.to(dtype);
    for (std::optional<Tensor>* t : a.optional())
      if (*t) *t = (*t)->to(dtype);
    if (a.options.out_dtype) a.options.out_dtype = dtype;
    return a;
  }
  NormResult norm() const { return fused_norm(x, in, options); }
  NormResult definition() const {
    return Norm::define(x, in.w, in.b, in.z, in.residual, in.row_scale, in.w2, in.b2, options);
  }
};

inline std::optional<Tensor> present(const Tensor& t) {
  return t.defined() ? std::optional<Tensor>(t) : none;
}

/// Arguments of the gradient as the forward leaves them, all of it wanted.
struct GradientCase {
  NormArguments a;
  NormResult result;
  Tensor dy;
  std::optional<Tensor> dy2, dh;
  NormBackwardOptions wants;

  GradientCase(const NormArguments& arguments)  // NOLINT: each has one
      : a(arguments) {
    const NoGrad plain;
    result = a.norm();
    const auto like = [](const Tensor& t) { return randn(t.shape(), float64).to(t.dtype()); };
    dy = like(result.y);
    if (result.y2) dy2 = like(*result.y2);
    if (result.h) dh = like(*result.h);
    const auto dtype = [](const std::optional<Tensor>& t) {
      return t ? std::optional(t->dtype()) : std::nullopt;
    };
    wants = {.norm = a.options,
             .x_dtype = a.x.dtype(),
             .dx = a.x.dtype(),
             .dresidual = dtype(a.in.residual),
             .dw = dtype(a.in.w),
             .db = dtype(a.in.b),
             .dz = dtype(a.in.z),
             .drow_scale = dtype(a.in.row_scale),
             .dw2 = dtype(a.in.w2),
             .db2 = dtype(a.in.b2)};
  }
  NormGrads kernel() const {
    return call(apply<NormBackward>, [](const auto& t) { return t; });
  }
  NormGrads formula() const {
    return call(NormBackward::define, [](const auto& t) { return t; });
  }
  /// The formula on the same values in float64.
  NormGrads exact() const {
    GradientCase wide = *this;
    wide.a = a.to(float64);
    for (auto* d : {&wide.wants.dx, &wide.wants.dresidual, &wide.wants.dw, &wide.wants.db,
                    &wide.wants.dz, &wide.wants.drow_scale, &wide.wants.dw2, &wide.wants.db2})
      if (*d) *d = float64;
    return wide.call(NormBackward::define,
                     [](const std::optional<Tensor>& t) -> std::optional<Tensor> {
                       if (!t) return none;
                       return t->to(float64);
                     });
  }

 private:
  template <class F, class To>
  NormGrads call(const F& f, const To& to) const {
    const NoGrad plain;
    return f(*to(std::optional<Tensor>(dy)), to(dy2), to(dh),
             to(result.h ? result.h : std::optional<Tensor>(a.x)), none,
             to(std::optional<Tensor>(a.x)), to(a.in.z), to(a.in.row_scale), to(a.in.w), to(a.in.b),
             to(a.in.w2), to(present(result.mean.value)), to(present(result.mean_rest.value)),
             *to(std::optional<Tensor>(result.rstd.value)), wants);
  }
};

template <class Check>
void for_each_gradient(const NormGrads& actual, const NormGrads& expected, const Check& check) {
  const auto one = [&](const char* what, const std::optional<Tensor>& a,
                       const std::optional<Tensor>& e) {
    SCOPED_TRACE(what);
    ASSERT_EQ(a.has_value(), e.has_value());
    if (a) check(*a, *e);
  };
  one("dx", actual.dx, expected.dx);
  one("dresidual", actual.dresidual, expected.dresidual);
  one("dw", actual.dw, expected.dw);
  one("db", actual.db, expected.db);
  one("dz", actual.dz, expected.dz);
  one("drow_scale", actual.drow_scale, expected.drow_scale);
  one("dw2", actual.dw2, expected.dw2);
  one("db2", actual.db2, expected.db2);
}

}  // namespace norma::testing
