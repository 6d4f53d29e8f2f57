// How exact norms are, ours beside the ways to find a variance and beside other libraries' kernels:
//   ./dev bench exactness [--device cuda]
// makes docs/exactness.md or docs/exactness-gpu.md, by bench/exactness.py, from this program's
//   exactness [--elements LOG2] [--device D] [--peers FILE]... > PAGE   (FILE is read last)
// and bench/peers/exactness.py, which takes the draws that `--only-draw FOLDER` leaves. A peers'
// file has lines `method;kind;dtype;case;cols;largest;mean;wrong`.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <limits>
#include <map>
#include <numbers>
#include <sstream>
#include <string>
#include <vector>

#include "norma/core/autograd.h"
#include "norma/core/cuda/runtime.h"
#include "norma/core/format.h"
#include "norma/core/parallel.h"
#include "norma/core/random.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/norm.h"
#include "norma/ops/view/view.h"

namespace norma {
namespace {

struct Case {
  const char* name;
  double eps;
  /// Element c of a row from normal noise and the row's own; range is the largest finite value of
  /// the dtype and tiny its smallest normal one.
  double (*value)(double noise, int64_t i, int64_t c, double range, double tiny);
};
constexpr Case kCases[] = {
    {"normal", 1e-5, [](double n, int64_t, int64_t, double, double) { return n; }},
    {"mean 1e4, deviation 1", 1e-5,
     [](double n, int64_t, int64_t, double, double) { return 1e4 + n; }},
    {"mean 1e6, deviation 1", 1e-5,
     [](double n, int64_t, int64_t, double range, double) {
       return range < 1e6 ? 6e4 + n : 1e6 + n;
     }},
    {"1e-20", 1e-5, [](double n, int64_t, int64_t, double, double) { return n * 1e-20; }},
    {"1e-20, eps 0", 0, [](double n, int64_t, int64_t, double, double) { return n * 1e-20; }},
    {"subnormal, eps 0", 0,
     [](double n, int64_t, int64_t, double, double tiny) { return n * tiny / 8; }},
    {"near overflow", 1e-5,
     [](double n, int64_t, int64_t, double range, double) {
       return range * std::clamp(n / 6.8, -1.0, 1.0);
     }},
    {"one of 1e4 in 1e-3", 1e-5,
     [](double n, int64_t i, int64_t c, double, double) { return c == i % 7 ? 1e4 : n * 1e-3; }},
    {"constant rows", 1e-5,
     [](double, int64_t i, int64_t, double, double) {
       return 1 + static_cast<double>(i % 1000) / 7;
     }},
    {"alternating ±1e3", 1e-5,
     [](double n, int64_t, int64_t c, double, double) { return (c % 2 ? -1e3 : 1e3) + n; }},
    {"a NaN or Inf in every other row", 1e-5,
     [](double n, int64_t i, int64_t c, double, double) {
       if (i % 2 == 0 || c != i % 3) return n;
       return i % 4 == 1 ? std::numeric_limits<double>::quiet_NaN()
                         : std::numeric_limits<double>::infinity();
     }},
    {"eps 0", 0, [](double n, int64_t, int64_t, double, double) { return n; }},
    {"1e-6, eps 1e-12", 1e-12, [](double n, int64_t, int64_t, double, double) { return n * 1e-6; }},
};
constexpr int64_t kCols[] = {1, 2, 7, 64, 257, 1024, 4096, 65536, 131072};

// The ways, in float32 by 128 lanes as a GPU's block does it.
constexpr int kLanes = 128;
struct Moments {
  float mean = 0, variance = 0;
};
template <class F>
float lanes_sum(int64_t n, const F& f) {
  float sum[kLanes] = {};
  for (int64_t c = 0; c < n; ++c) sum[c % kLanes] += f(c);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int j = 0; j < half; ++j) sum[j] += sum[j + half];
  return sum[0];
}
template <class F>
float pairwise_sum(int64_t first, int64_t n, const F& f) {
  if (n == 1) return f(first);
  return pairwise_sum(first, n / 2, f) + pairwise_sum(first + n / 2, n - n / 2, f);
}
Moments naive(const float* x, int64_t n) {
  const float size = static_cast<float>(n);
  const float mean = lanes_sum(n, [&](int64_t c) { return x[c]; }) / size;
  return {mean, lanes_sum(n, [&](int64_t c) { return x[c] * x[c]; }) / size - mean * mean};
}
Moments two_pass(const float* x, int64_t n) {
  const float size = static_cast<float>(n);
  const float mean = lanes_sum(n, [&](int64_t c) { return x[c]; }) / size;
  return {mean, lanes_sum(n, [&](int64_t c) { return (x[c] - mean) * (x[c] - mean); }) / size};
}
Moments pairwise(const float* x, int64_t n) {
  const float size = static_cast<float>(n);
  const float mean = pairwise_sum(0, n, [&](int64_t c) { return x[c]; }) / size;
  return {mean,
          pairwise_sum(0, n, [&](int64_t c) { return (x[c] - mean) * (x[c] - mean); }) / size};
}
Moments welford(const float* x, int64_t n) {
  float mean[kLanes] = {}, m2[kLanes] = {}, count[kLanes] = {};
  for (int64_t c = 0; c < n; ++c) {
    const auto j = static_cast<size_t>(c % kLanes);
    const float delta = x[c] - mean[j];
    mean[j] += delta / ++count[j];
    m2[j] += delta * (x[c] - mean[j]);
  }
  for (size_t half = kLanes / 2; half > 0; half /= 2)
    for (size_t j = 0; j < half; ++j) {
      const float both = count[j] + count[j + half];
      if (both == 0) continue;
      const float delta = mean[j + half] - mean[j], share = count[j + half] / both;
      m2[j] += m2[j + half] + delta * delta * share * count[j];
      mean[j] += delta * share;
      count[j] = both;
    }
  return {mean[0], m2[0] / static_cast<float>(n)};
}
Moments squares_by_lanes(const float* x, int64_t n) {
  return {0, lanes_sum(n, [&](int64_t c) { return x[c] * x[c]; }) / static_cast<float>(n)};
}
Moments squares_pairwise(const float* x, int64_t n) {
  return {0, pairwise_sum(0, n, [&](int64_t c) { return x[c] * x[c]; }) / static_cast<float>(n)};
}
struct Way {
  const char* name;
  Moments (*moments)(const float*, int64_t);
};
const std::vector<Way>& ways(NormKind kind) {
  static const std::vector<Way> layer{
      {"two-pass", two_pass}, {"Welford", welford}, {"pairwise", pairwise}, {"E[x²]−E[x]²", naive}};
  static const std::vector<Way> rms{{"lanes", squares_by_lanes}, {"pairwise", squares_pairwise}};
  return kind == NormKind::layer ? layer : rms;
}

/// Errors in units, over the elements whose reference is finite; wrong: those that are not what a
/// reference that is NaN or infinite is, or not finite where it is.
struct Errors {
  double largest = 0, sum = 0;
  int64_t count = 0, wrong = 0;
  void add(double error) { largest = std::max(largest, error), sum += error, ++count; }
  void add(const Errors& e) {
    largest = std::max(largest, e.largest), sum += e.sum, count += e.count, wrong += e.wrong;
  }
  double mean() const { return count == 0 ? 0 : sum / static_cast<double>(count); }
};

/// y's errors in units of u (|w x̂| + |w| rstd ρ + |b|) + u² |w| rstd |mean|, ρ the root mean square
/// of what is divided: an ulp of y means nothing where x is close to the mean.
class RowReference {
 public:
  template <class T>
  RowReference(const T* x, int64_t n, NormKind kind, double eps) : c_(static_cast<size_t>(n)) {
    const double size = static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) mean_ += static_cast<double>(static_cast<float>(x[i]));
    mean_ = kind == NormKind::layer ? mean_ / size : 0;
    double squares = 0, rest = 0;
    for (int64_t i = 0; i < n; ++i) {
      c_[static_cast<size_t>(i)] = static_cast<double>(static_cast<float>(x[i])) - mean_;
      rest += c_[static_cast<size_t>(i)];
    }
    rest = kind == NormKind::layer ? rest / size : 0;
    for (double& c : c_) c -= rest, squares += c * c;
    rho_ = std::sqrt(squares / size);
    rstd_ = 1 / std::sqrt(squares / size + eps);
    share_ = std::isfinite(rho_) ? rstd_ * rho_ : 1;
  }
  void compare(double y, int64_t c, double w, double b, double unit, Errors& errors) const {
    const double x_hat = c_[static_cast<size_t>(c)] * rstd_, exact = w * x_hat + b;
    if (!std::isfinite(exact)) {
      errors.wrong += !(std::isnan(exact) ? std::isnan(y) : y == exact);
    } else if (!std::isfinite(y)) {
      ++errors.wrong;
    } else {
      const double scale = unit * (std::abs(w * x_hat) + std::abs(w) * share_ + std::abs(b)) +
                           unit * unit * std::abs(w) * rstd_ * std::abs(mean_);
      errors.add(scale == 0 ? 0 : std::abs(y - exact) / scale);
    }
  }

 private:
  std::vector<double> c_;
  double mean_ = 0, rho_ = 0, rstd_ = 0, share_ = 0;
};

using Key = std::tuple<std::string, std::string, std::string, int64_t>;  // kind dtype case cols
using Table = std::map<Key, std::map<std::string, Errors>>;              // by method

template <class T>
constexpr double largest_of() {
  return std::is_same_v<T, Float16> ? 65504.0 : 3.38e38;
}
template <class T>
constexpr double smallest_of() {
  return std::is_same_v<T, Float16> ? 0x1p-14 : 0x1p-126;
}

/// What all cases and dtypes of a D are made of, theirs and ours: normal noise, w and b.
struct Draws {
  Tensor noise, w, b;
};
Draws draw(int64_t elements, int64_t cols) {
  const int64_t rows = std::clamp<int64_t>(elements / cols, 32, 1'000'000);
  manual_seed(static_cast<uint64_t>(cols) * 31);
  return {randn({rows, cols}, float64, cpu), randn({cols}, float32, cpu),
          randn({cols}, float32, cpu)};
}
/// FOLDER/COLS.noise of doubles, FOLDER/COLS.w and FOLDER/COLS.b of floats.
void write_draws(const std::string& folder, int64_t elements) {
  for (int64_t cols : kCols) {
    const Draws d = draw(elements, cols);
    const auto write = [&](const char* name, const void* data, int64_t bytes) {
      const std::string path = folder + "/" + std::to_string(cols) + "." + name;
      std::ofstream file(path, std::ios::binary);
      file.write(static_cast<const char*>(data), bytes);
      if (!file) throw IOError("exactness: {} must be writable, but is not", path);
    };
    write("noise", d.noise.data(), d.noise.numel() * int64_t{sizeof(double)});
    write("w", d.w.data(), cols * int64_t{sizeof(float)});
    write("b", d.b.data(), cols * int64_t{sizeof(float)});
  }
}

template <class T>
void measure(const Case& test, const std::vector<Draws>& draws, Device device, Table& table) {
  constexpr DType dtype = dtype_of<T>;
  for (const Draws& drawn : draws) {
    const int64_t rows = drawn.noise.size(0), cols = drawn.noise.size(1);
    const Tensor x = empty({rows, cols}, dtype);
    // Of x's dtype, as other libraries want them; RMSNorm has no bias.
    const Tensor w = drawn.w.to(dtype);
    const double* from = drawn.noise.span<double>().data();
    T* to = x.span<T>().data();
    const Split blocks = split(rows, std::max<int64_t>(1, 65536 / cols));
    parallel_for(blocks.blocks, [&](int64_t block) {
      for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i)
        for (int64_t c = 0; c < cols; ++c)
          to[i * cols + c] = static_cast<T>(static_cast<float>(
              test.value(from[i * cols + c], i, c, largest_of<T>(), smallest_of<T>())));
    });
    for (NormKind kind : {NormKind::layer, NormKind::rms}) {
      const Tensor b = kind == NormKind::layer ? drawn.b.to(dtype) : zeros({cols}, dtype, cpu);
      const Tensor wide_w = w.to(float32), wide_b = b.to(float32);
      const auto biased = kind == NormKind::layer ? std::optional(b.to(device)) : none;
      const Tensor y = fused_norm(x.to(device), {.w = w.to(device), .b = biased},
                                  {.kind = kind, .eps = test.eps})
                           .y.to(cpu);
      auto& results = table[{kind == NormKind::layer ? "layer" : "rms",
                             std::string(to_string(dtype)), test.name, cols}];
      std::vector<std::vector<Errors>> parts(static_cast<size_t>(blocks.blocks),
                                             std::vector<Errors>(ways(kind).size() + 1));
      parallel_for(blocks.blocks, [&](int64_t block) {
        auto& errors = parts[static_cast<size_t>(block)];
        std::vector<float> wide(static_cast<size_t>(cols));
        const float *gain = wide_w.span<float>().data(), *bias = wide_b.span<float>().data();
        for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
          const T* row = to + i * cols;
          const RowReference reference(row, cols, kind, test.eps);
          for (int64_t c = 0; c < cols; ++c) {
            wide[static_cast<size_t>(c)] = static_cast<float>(row[c]);
            reference.compare(static_cast<float>(y.span<T>()[static_cast<size_t>(i * cols + c)]), c,
                              gain[c], bias[c], unit_roundoff(dtype), errors[0]);
          }
          for (size_t way = 0; way < ways(kind).size(); ++way) {
            const Moments m = ways(kind)[way].moments(wide.data(), cols);
            const float rstd = 1 / std::sqrt(m.variance + static_cast<float>(test.eps));
            for (int64_t c = 0; c < cols; ++c) {
              const T v = static_cast<T>((wide[static_cast<size_t>(c)] - m.mean) * rstd * gain[c] +
                                         bias[c]);
              reference.compare(static_cast<float>(v), c, gain[c], bias[c], unit_roundoff(dtype),
                                errors[way + 1]);
            }
          }
        }
      });
      for (const auto& part : parts)
        for (size_t way = 0; way < part.size(); ++way)
          results[way == 0 ? "Norma" : ways(kind)[way - 1].name].add(part[way]);
    }
    std::fprintf(stderr, "%s %s %ld\n", std::string(to_string(dtype)).c_str(), test.name,
                 static_cast<long>(cols));
  }
}

/// |dw − exact| in units of 2⁻²³ √Σ terms², over rows of normal data.
struct WeightErrors {
  double plain, precise;
};
WeightErrors measure_weights(int64_t rows, int64_t cols, Device device) {
  manual_seed(static_cast<uint64_t>(cols));
  const Tensor x = randn({rows, cols}, float32, cpu), dy = randn({rows, cols}, float32, cpu);
  const Tensor there = x.to(device), dy_there = dy.to(device);
  const auto dw = [&](bool precise) {
    const Tensor w = ones({cols}, float32, device).requires_grad_();
    layer_norm(there, w, none, {.precise = precise}).backward(dy_there);
    return w.grad().to(cpu);
  };
  const Tensor plain = dw(false), precise = dw(true);
  const Split blocks = split(rows, std::max<int64_t>(1, rows / 64));
  std::vector<std::vector<double>> partial(static_cast<size_t>(blocks.blocks));
  parallel_for(blocks.blocks, [&](int64_t block) {
    auto& sums = partial[static_cast<size_t>(block)];  // of the terms, then of their squares
    sums.resize(static_cast<size_t>(2 * cols));
    for (int64_t i = blocks.begin(block); i < blocks.end(block); ++i) {
      const float *row = x.span<float>().data() + i * cols, *d = dy.span<float>().data() + i * cols;
      double mean = 0, variance = 0;
      for (int64_t c = 0; c < cols; ++c) mean += row[c];
      mean /= static_cast<double>(cols);
      for (int64_t c = 0; c < cols; ++c) variance += (row[c] - mean) * (row[c] - mean);
      const double rstd = 1 / std::sqrt(variance / static_cast<double>(cols) + 1e-5);
      for (int64_t c = 0; c < cols; ++c) {
        const double term = d[c] * (row[c] - mean) * rstd;
        sums[static_cast<size_t>(c)] += term, sums[static_cast<size_t>(cols + c)] += term * term;
      }
    }
  });
  std::vector<double> sum(static_cast<size_t>(cols)), squares(static_cast<size_t>(cols));
  for (const auto& sums : partial)
    for (size_t c = 0; c < sum.size(); ++c) sum[c] += sums[c], squares[c] += sums[sum.size() + c];
  const auto worst = [&](const Tensor& t) {
    double largest = 0;
    for (size_t c = 0; c < sum.size(); ++c)
      largest = std::max(largest,
                         std::abs(t.span<float>()[c] - sum[c]) / (0x1p-23 * std::sqrt(squares[c])));
    return largest;
  };
  return {worst(plain), worst(precise)};
}

void read_peers(const char* path, Table& table, std::vector<std::string>& methods) {
  std::ifstream file(path);
  if (!file) throw IOError("exactness: {} must be readable, but is not", std::string(path));
  std::string line;
  while (std::getline(file, line)) {
    std::vector<std::string> field;
    std::stringstream parts(line);
    for (std::string part; std::getline(parts, part, ';');) field.push_back(part);
    if (field.size() != 8) continue;
    Errors e;
    e.largest = std::stod(field[5]), e.sum = std::stod(field[6]), e.count = 1;
    e.wrong = std::stoll(field[7]);
    table[{field[1], field[2], field[3], std::stoll(field[4])}][field[0]] = e;
    if (std::find(methods.begin(), methods.end(), field[0]) == methods.end())
      methods.push_back(field[0]);
  }
}

std::string cell(const Errors& e) {
  const auto number = [](double v) {
    return v < 10 ? format("{:.2f}", v) : v < 1e4 ? format("{:.0f}", v) : format("{:.0e}", v);
  };
  std::string text = e.count == 0 ? "–" : number(e.largest) + " / " + number(e.mean());
  if (e.wrong > 0) text += " (wrong)";
  return text;
}

/// The worst of all D.
Errors worst_of(const Table& table, const char* kind, DType dtype, const Case& test,
                const std::string& method) {
  Errors worst;
  for (int64_t cols : kCols) {
    const auto row = table.find({kind, std::string(to_string(dtype)), test.name, cols});
    if (row == table.end() || !row->second.contains(method)) continue;
    const Errors& e = row->second.at(method);
    worst.largest = std::max(worst.largest, e.largest);
    worst.sum = std::max(worst.sum, e.mean());
    worst.count = std::max<int64_t>(worst.count, e.count > 0);
    worst.wrong += e.wrong;
  }
  return worst;
}
/// Ours and a peer's over the D that the peer ran: the largest error, and the mean of the D's
/// means, since at the largest D a mean is of few rows.
struct Pair {
  Errors ours, theirs;
};
Pair side_by_side(const Table& table, const char* kind, DType dtype, const Case& test,
                  const std::string& peer) {
  Pair both;
  for (int64_t cols : kCols) {
    const auto& row = table.at({kind, std::string(to_string(dtype)), test.name, cols});
    if (!row.contains(peer)) continue;
    const Errors &ours = row.at("Norma"), &theirs = row.at(peer);
    const bool measured = ours.count > 0;  // a peer's file says 0 where no reference is finite
    const auto take = [&](Errors& all, const Errors& e) {
      all.largest = std::max(all.largest, e.largest);
      all.sum += e.mean(), all.count += measured, all.wrong += e.wrong;
    };
    take(both.ours, ours), take(both.theirs, theirs);
  }
  return both;
}
/// Names the rows in which a peer is more exact: ours may have the larger of 1 unit and 1.25 times
/// its largest error, and 1.05 times its mean. A peer that is wrong somewhere in a row is none.
void print_comparison(const Table& table, const std::vector<std::string>& peers) {
  std::string behind;
  int rows = 0, good = 0;
  for (const char* kind : {"layer", "rms"})
    for (DType dtype : {float32, bfloat16, float16})
      for (const Case& test : kCases) {
        const std::string before = behind;
        for (const std::string& peer : peers) {
          const auto [ours, theirs] = side_by_side(table, kind, dtype, test, peer);
          if (theirs.wrong > 0 || theirs.count == 0) continue;
          if (ours.wrong == 0 && ours.largest <= std::max(1.0, 1.25 * theirs.largest) &&
              ours.mean() <= 1.05 * theirs.mean() + 0.001)
            continue;
          behind +=
              format("\n- {} {}, {}: {:.2f} / {:.3f}, {} {:.2f} / {:.3f}", kind, dtype, test.name,
                     ours.largest, ours.mean(), peer, theirs.largest, theirs.mean());
        }
        ++rows, good += behind == before;
      }
  std::printf(
      "\nOver the D that a peer ran and where it is right: at most the larger of 1 unit and 1.25 "
      "times\n"
      "every peer's largest error, and 1.05 times its mean over those D (and 0.001): %d of %d "
      "rows.%s\n",
      good, rows, behind.c_str());
}

/// One table a kind and dtype: the worst of all D, and ours by D below.
void print_tables(const Table& table, const std::vector<std::string>& peers) {
  for (NormKind kind : {NormKind::layer, NormKind::rms})
    for (DType dtype : {float32, bfloat16, float16}) {
      const std::string kind_name = kind == NormKind::layer ? "layer" : "rms";
      std::vector<std::string> methods{"Norma"};
      for (const Way& way : ways(kind)) methods.push_back(way.name);
      methods.insert(methods.end(), peers.begin(), peers.end());
      std::printf("\n### %s, %s\n\n| case |", kind == NormKind::layer ? "LayerNorm" : "RMSNorm",
                  std::string(to_string(dtype)).c_str());
      for (const std::string& m : methods) std::printf(" %s |", m.c_str());
      std::printf("\n| --- |");
      for (size_t i = 0; i < methods.size(); ++i) std::printf(" --- |");
      for (const Case& test : kCases) {
        std::printf("\n| %s |", test.name);
        for (const std::string& m : methods) {
          const Errors worst = worst_of(table, kind_name.c_str(), dtype, test, m);
          std::printf(" %s |", cell(worst).c_str());
        }
      }
      std::printf("\n");
    }
  std::printf("\n### Norma by D, float32\n\n| case |");
  for (int64_t cols : kCols) std::printf(" %ld |", static_cast<long>(cols));
  std::printf("\n| --- |");
  for (size_t i = 0; i < std::size(kCols); ++i) std::printf(" --- |");
  for (const char* kind : {"layer", "rms"})
    for (const Case& test : kCases) {
      std::printf("\n| %s, %s |", kind, test.name);
      for (int64_t cols : kCols)
        std::printf(" %s |",
                    cell(table.at({kind, "float32", test.name, cols}).at("Norma")).c_str());
    }
  std::printf("\n");
}

constexpr const char* kIntroduction = R"page(# How exact norms are%s

Made by `./dev bench exactness --elements %d%s`, on %s.
Largest and mean error over up to a million
rows of each D in {1, 2, 7, 64, 257, 1024, 4096, 65536, 131072}, 2^%d elements of each and at least 32 rows, the worst D shown, in
the unit

    u (|w x̂| + |w| rstd ρ + |b|) + u² |w| rstd |mean|

with u the dtype's unit roundoff and ρ the root mean square of the row about its mean: half an ulp of a
plain product is at most one unit, and an ulp of y would mean nothing where x is close to the mean. The
reference is float64 on the same rounded inputs; w and b are normal, of x's dtype, and RMSNorm has no b.
"(wrong)": not finite where the reference is, or not the NaN or infinity that the reference is. Means at the
largest D are of few rows, each of whose rstd is rounded one way: they vary by a third from draw to draw.

Norma's LayerNorm sums in a tree, corrects the mean by what its rounding left over and keeps both, and
scales rows whose squares leave float32's range; on a GPU rstd is rounded once. The other columns are float32 in 128 lanes, as a block of
GPU threads does it: two passes, Welford's one pass (Chan's merge), a pairwise tree, and E[x²]−E[x]².
)page";

int run_main(int argc, char** argv) {
  int log2 = 18;
  Device device = cpu;
  std::vector<const char*> peers;
  std::string only_draw;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--elements") log2 = std::stoi(argv[i + 1]);
    if (flag == "--device") device = device_from_string(argv[i + 1]);
    if (flag == "--peers") peers.push_back(argv[i + 1]);
    if (flag == "--only-draw") only_draw = argv[i + 1];
  }
  if (!only_draw.empty()) {
    write_draws(only_draw, int64_t{1} << log2);
    return 0;
  }
  bool here = device.is_cpu();
  if constexpr (kBuiltWithCuda) here = here || detail::cuda_device_count() > 0;
  if (!here) {
    std::fprintf(stderr, "exactness: there is no %s here\n", to_string(device).c_str());
    return 77;
  }
  std::vector<Draws> draws;
  for (int64_t cols : kCols) draws.push_back(draw(int64_t{1} << log2, cols));
  const NoGrad plain;
  Table table;
  std::vector<std::string> methods;
  for (const Case& test : kCases) {
    measure<float>(test, draws, device, table);
    measure<BFloat16>(test, draws, device, table);
    measure<Float16>(test, draws, device, table);
  }
  for (const char* path : peers) read_peers(path, table, methods);
  const std::string on = device.is_cpu() ? "" : " --device " + to_string(device);
  std::string name = to_string(device);
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) name = "an " + detail::cuda_device_name(device);
  std::printf(kIntroduction, device.is_cpu() ? "" : " on a GPU", log2, on.c_str(), name.c_str(),
              log2);
  if (!methods.empty()) {
    std::printf(
        "\nThe last columns are other libraries' kernels on the same machine, by\n"
        "bench/peers/exactness.py, of the same inputs.\n");
    print_comparison(table, methods);
  }
  print_tables(table, methods);

  const EnableGrad recording;
  std::printf(
      "\n### Weight gradients\n\nLargest |dw − exact| of LayerNorm, float32, normal x and dy, in "
      "units of 2^-23 √Σ terms².\n\n| rows | D | default | precise |\n| --- | --- | --- | --- |\n");
  const int64_t rows = std::min<int64_t>(1'000'000, int64_t{1} << (log2 + 2));
  std::vector<int64_t> weights{1, 16, 64};
  if (device.is_cuda()) weights.insert(weights.end(), {1024, 4096});  // 16 GB each of x and dy
  for (int64_t cols : weights) {
    const WeightErrors e = measure_weights(rows, cols, device);
    std::printf("| %ld | %ld | %.2f | %.2f |\n", static_cast<long>(rows), static_cast<long>(cols),
                e.plain, e.precise);
  }
  return 0;
}

}  // namespace
}  // namespace norma

int main(int argc, char** argv) { return norma::run_main(argc, argv); }
