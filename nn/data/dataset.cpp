#include "norma/nn/data/dataset.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <utility>

#include "norma/core/error.h"

namespace norma::nn {
namespace {

using Counts = std::unordered_map<int64_t, int64_t>;

/// Σ n ln n: the entropy of counts with sum N is ln N − this / N.
double sum_n_ln_n(const Counts& counts) {
  std::vector<int64_t> sorted;  // hash order must not reach the last bits
  for (const auto& entry : counts) sorted.push_back(entry.second);
  std::sort(sorted.begin(), sorted.end());
  double sum = 0;
  for (int64_t n : sorted) sum += static_cast<double>(n) * std::log(static_cast<double>(n));
  return sum;
}

}  // namespace

int64_t counted_tokens(const Batch& batch) {
  const Tensor here = batch.targets.to(cpu);
  const auto targets = here.span<const int32_t>();
  return std::ssize(targets) - std::count(targets.begin(), targets.end(), kIgnore);
}

Batch only_counted(const Batch& batch) {
  const Tensor here = batch.targets.to(cpu);
  const auto targets = here.span<const int32_t>();
  std::vector<int32_t> found, places;
  for (size_t i = 0; i < targets.size(); ++i) {
    if (targets[i] == kIgnore) continue;
    found.push_back(targets[i]);
    places.push_back(static_cast<int32_t>(i));
  }
  return {batch.inputs, from_span(std::span<const int32_t>(found)),
          from_span(std::span<const int32_t>(places))};
}

Dataset::Dataset(std::string name, Vocabulary vocabulary, int64_t context)
    : name_(std::move(name)), vocabulary_(std::move(vocabulary)), context_(context) {
  if (context < 1)
    throw ValueError("{}: the context must be at least 1 token, but is {}", name_, context);
}

template <class F>
Batch Dataset::rows(int64_t size, const F& write) const {
  Batch batch{.inputs = zeros({size, context_}, int32, cpu),
              .targets = full({size, context_}, kIgnore, int32, cpu)};
  const auto inputs = batch.inputs.span<int32_t>(), targets = batch.targets.span<int32_t>();
  const auto width = static_cast<size_t>(context_);
  for (int64_t i = 0; i < size; ++i) {
    const size_t begin = static_cast<size_t>(i) * width;
    write(i, Row{inputs.subspan(begin, width), targets.subspan(begin, width)});
  }
  return batch;
}

Batch Dataset::batch(Part part, uint64_t seed, int64_t step, int64_t size) const {
  if (size < 1) throw ValueError("{}: a batch must have at least 1 row, but has {}", name_, size);
  if (step < 0) throw ValueError("{}: a step must be 0 or more, but is {}", name_, step);
  return rows(size, [&](int64_t i, Row row) { draw_row(part, seed, step, i, row); });
}

Batch Dataset::validation_batch(int64_t first, int64_t size) const {
  const int64_t end = std::min(first + size, validation_rows());
  if (first < 0 || end <= first)
    throw ValueError("{}: validation rows must lie in 0 … {}, but {} rows from {} are wanted",
                     name_, validation_rows() - 1, size, first);
  return rows(end - first, [&](int64_t i, Row row) { validation_row(first + i, row); });
}

Baselines Dataset::baselines() const {
  constexpr int64_t kRows = 256;
  PairCounts counts;
  for (int64_t first = 0; first < validation_rows(); first += kRows) {
    const Batch batch = validation_batch(first, kRows);
    const auto inputs = batch.inputs.span<const int32_t>();
    const auto targets = batch.targets.span<const int32_t>();
    for (size_t t = 0; t < targets.size(); ++t)
      if (targets[t] != kIgnore) counts.add(inputs[t], targets[t]);
  }
  return counts.entropies();
}

double right_tokens(const Batch& batch, const Tensor& predictions) {
  const Tensor here = batch.targets.to(cpu);
  const auto targets = here.span<const int32_t>();
  const std::vector<int64_t> predicted = predictions.to_vector<int64_t>();
  int64_t right = 0;
  for (size_t t = 0; t < targets.size(); ++t)
    right += targets[t] != kIgnore && targets[t] == predicted[t];
  return static_cast<double>(right);
}

double exact_answers(const Batch& batch, const Tensor& predictions) {
  if (predictions.shape() != batch.targets.shape())
    throw ShapeError("exact_answers: predictions must be like the targets {}, but are {}",
                     batch.targets.shape(), predictions.shape());
  const Tensor here = batch.targets.to(cpu);
  const auto targets = here.span<const int32_t>();
  const std::vector<int64_t> predicted = predictions.to_vector<int64_t>();
  const auto context = static_cast<size_t>(batch.targets.size(1));
  int64_t right = 0;
  for (size_t begin = 0; begin < targets.size(); begin += context) {
    bool exact = true;
    for (size_t t = begin; t < begin + context; ++t)
      exact &= targets[t] == kIgnore || targets[t] == predicted[t];
    right += exact;
  }
  return static_cast<double>(right) / static_cast<double>(batch.targets.size(0));
}

Baselines PairCounts::entropies() const {
  if (pairs_.empty()) return {};
  Counts inputs, targets;
  int64_t total = 0;
  for (const auto& [pair, n] : pairs_) {
    inputs[pair >> 32] += n;
    targets[pair & 0xFFFFFFFF] += n;
    total += n;
  }
  const auto n = static_cast<double>(total);
  return {.unigram = std::log(n) - sum_n_ln_n(targets) / n,
          .bigram = (sum_n_ln_n(inputs) - sum_n_ln_n(pairs_)) / n};
}

}  // namespace norma::nn
