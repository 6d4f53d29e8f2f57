#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <unsupported/Eigen/SpecialFunctions>

namespace norma::detail {

/// y = f(x…) on runs of 32 elements as Eigen arrays of that fixed size. Eigen takes the ends of a
/// longer array one by one, with functions that round differently: here an element's bits depend
/// neither on its place nor on its address.
template <class Acc, class F, class... X>
void map_packets(int64_t n, Acc* y, const F& f, const X*... x) {
  using Packet = Eigen::Array<Acc, 32, 1>;
  constexpr int64_t kSize = Packet::SizeAtCompileTime;
  int64_t i = 0;
  for (; i + kSize <= n; i += kSize)
    Eigen::Map<Packet>(y + i) = f(Eigen::Map<const Packet>(x + i)...);
  if (i == n) return;
  const auto padded = [&](const Acc* from) {
    Packet packet = Packet::Zero();
    std::copy_n(from + i, n - i, packet.data());
    return packet;
  };
  const Packet last = f(padded(x)...);
  std::copy_n(last.data(), n - i, y + i);
}

/// An array, not an expression: what is built on it must be evaluated before it goes.
/// eˣ with results below the smallest normal number as 0: Eigen's for double stops at 5e-309. In
/// two steps, since Eigen 3.4 takes no expression with a choice in it by packets.
template <class X>
auto exp_of(const X& x) {
  using Acc = typename X::Scalar;
  constexpr Acc lowest = std::is_same_v<Acc, double> ? Acc(-708) : Acc(-87);
  const auto& v = x.eval();
  auto e = v.exp().eval();
  for (int i = 0; i < e.size(); ++i) e[i] = v[i] < lowest ? Acc(0) : e[i];
  return e;
}

}  // namespace norma::detail
