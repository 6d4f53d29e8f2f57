#include "norma/nn/data/dyck.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "norma/core/error.h"
#include "norma/nn/data/draws.h"

namespace norma::nn {
namespace {

constexpr std::string_view kBrackets = "()[]{}<>";
constexpr double kNone = -std::numeric_limits<double>::infinity();

Vocabulary brackets(int64_t kinds) {
  if (kinds < 1 || kinds > 4)
    throw ValueError("dyck: there must be 1 to 4 kinds of brackets, but there are {}", kinds);
  return Vocabulary::of_bytes(std::string(kBrackets.substr(0, static_cast<size_t>(2 * kinds))) +
                              '\n');
}

/// ln(eᵃ + eᵇ).
double log_sum(double a, double b) {
  const double high = std::max(a, b), low = std::min(a, b);
  return low == kNone ? high : high + std::log1p(std::exp(low - high));
}

}  // namespace

Dyck::Dyck(const TaskOptions& options)
    : Dataset("dyck", brackets(options.kinds), options.length == 0 ? 32 : options.length),
      kinds_(options.kinds),
      depth_(options.depth),
      validation_rows_(options.validation_rows) {
  if (context() % 2 != 0) throw ValueError("dyck: the length must be even, but is {}", context());
  if (depth_ < 1) throw ValueError("dyck: the depth must be at least 1, but is {}", depth_);
  if (validation_rows_ < 1)
    throw ValueError("dyck: the validation part must have at least 1 row, but has {}",
                     validation_rows_);
  depth_ = std::min(depth_, context() / 2);
  log_ways_.reserve(static_cast<size_t>((context() + 1) * (depth_ + 1)));
  for (int64_t d = 0; d <= depth_; ++d) log_ways_.push_back(d == 0 ? 0 : kNone);
  for (int64_t r = 1; r <= context(); ++r)
    for (int64_t d = 0; d <= depth_; ++d)
      log_ways_.push_back(
          log_sum(std::log(kinds_) + log_ways(d + 1, r - 1), log_ways(d - 1, r - 1)));
}

double Dyck::log_ways(int64_t depth, int64_t left) const {
  if (depth < 0 || depth > depth_) return kNone;
  return log_ways_[static_cast<size_t>(left * (depth_ + 1) + depth)];
}

std::optional<double> Dyck::best_loss() const {
  return log_ways(0, context()) / static_cast<double>(context());
}

void Dyck::draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const {
  Draws draws(part, seed, step, i);
  std::vector<int64_t> open;  // the kinds that wait for their closing bracket
  int32_t before = vocabulary().token("\n");
  for (int64_t left = context(); left > 0; --left) {
    const auto t = static_cast<size_t>(context() - left);
    const auto depth = std::ssize(open);
    const double ways_open = std::log(kinds_) + log_ways(depth + 1, left - 1);
    const bool opens = draws.uniform() < std::exp(ways_open - log_ways(depth, left));
    if (opens) open.push_back(draws.below(kinds_));
    const auto bracket = static_cast<size_t>(2 * open.back() + (opens ? 0 : 1));
    if (!opens) open.pop_back();
    row.inputs[t] = before;
    row.targets[t] = before = vocabulary().token(kBrackets.substr(bracket, 1));
  }
}

}  // namespace norma::nn
