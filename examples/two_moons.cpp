// Two moons: two half circles of points that no line divides, told apart by a network with one
// hidden layer and a norm in it. Writes the points and what the network says of the plane as a
// picture in text, and as two_moons.csv for a plotting program.
#include <cmath>
#include <cstdio>
#include <numbers>

#include "norma/norma.h"

using namespace norma;

namespace {

struct Moons {
  Tensor points, labels;  // (n, 2) and (n,) with 0 or 1
};

Moons make_moons(int64_t n) {
  const Tensor noise = randn({n, 2}) * 0.1;
  std::vector<float> points;
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < n; ++i) {
    const double angle = std::numbers::pi * static_cast<double>(i / 2) / static_cast<double>(n / 2);
    const bool lower = i % 2 == 1;
    points.push_back(static_cast<float>(lower ? 1 - std::cos(angle) : std::cos(angle)));
    points.push_back(static_cast<float>(lower ? 0.5 - std::sin(angle) : std::sin(angle)));
    labels.push_back(lower);
  }
  return {from_span<float>(points, Shape{n, 2}) + noise, from_span<int64_t>(labels)};
}

struct Network {
  nn::Linear hidden{{.d_in = 2, .d_out = 16}}, output{{.d_in = 16, .d_out = 2}};
  nn::Norm norm{{.kind = "layer", .dim = 16, .bias = true}};

  Tensor operator()(const Tensor& x) const { return output(silu(norm(hidden(x)))); }
  void visit(nn::Visitor& v) { v("hidden", hidden), v("norm", norm), v("output", output); }
};

double accuracy(const Tensor& logits, const Tensor& labels) {
  return equal(argmax(logits, -1), labels).to(float32).mean().item();
}

/// The plane from (-1.5, -1) to (2.5, 1.5): o and x are the points, shades what the network says.
void draw(const Network& network, const Moons& moons) {
  constexpr int kColumns = 72, kRows = 24;
  std::vector<float> grid;
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kColumns; ++c) {
      grid.push_back(static_cast<float>(-1.5 + 4.0 * c / (kColumns - 1)));
      grid.push_back(static_cast<float>(1.5 - 2.5 * r / (kRows - 1)));
    }
  const Tensor p = softmax(network(from_span<float>(grid, Shape{kRows * kColumns, 2})), -1);
  const auto second = p.select(1, 1).to_vector<float>();
  std::string picture;
  for (float v : second) picture += v < 0.5F ? (v < 0.1F ? ' ' : '.') : (v > 0.9F ? '#' : '+');
  const auto xy = moons.points.to_vector<float>();
  const auto label = moons.labels.to_vector<int>();
  for (size_t i = 0; i < label.size(); ++i) {
    const int c = static_cast<int>(std::lround((xy[2 * i] + 1.5) / 4 * (kColumns - 1)));
    const int r = static_cast<int>(std::lround((1.5 - xy[2 * i + 1]) / 2.5 * (kRows - 1)));
    if (r >= 0 && r < kRows && c >= 0 && c < kColumns)
      picture[static_cast<size_t>(r * kColumns + c)] = label[i] ? 'x' : 'o';
  }
  for (int r = 0; r < kRows; ++r)
    std::printf("%s\n", picture.substr(static_cast<size_t>(r * kColumns), kColumns).c_str());
  std::string csv = "x,y,p\n";
  for (size_t i = 0; i < second.size(); ++i)
    csv += format("{:.4f},{:.4f},{:.4f}\n", grid[2 * i], grid[2 * i + 1], second[i]);
  write_file_atomically("two_moons.csv", csv);
}

}  // namespace

int main() {
  manual_seed(1);
  const Moons moons = make_moons(200);
  Network network;
  nn::AdamW optimizer({{nn::named_parameters(network)}}, {.beta2 = 0.99});
  for (int step = 0; step <= 300; ++step) {
    const Tensor logits = network(moons.points), loss = cross_entropy(logits, moons.labels);
    if (step % 50 == 0)
      print("step {:>3}  loss {:.4f}  right {:.1f} %\n", step, loss.item(),
            100 * accuracy(logits, moons.labels));
    optimizer.zero_grad();
    loss.backward();
    optimizer.step(0.02);
  }
  const NoGrad plain;
  draw(network, moons);
  print(
      "\nThe border between ' ' and '#' bends around both moons: without the hidden layer it would "
      "be a line.\nThe plane's values are in two_moons.csv (x, y, probability of x).\n");
  return accuracy(network(moons.points), moons.labels) > 0.97 ? 0 : 1;
}
