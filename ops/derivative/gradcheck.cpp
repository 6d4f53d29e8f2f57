#include "norma/ops/derivative/gradcheck.h"

#include <algorithm>
#include <cmath>

#include "norma/core/random.h"
#include "norma/ops/elementwise/binary.h"
#include "norma/ops/reduce/reduce.h"

namespace norma {
namespace {

bool is_checked(const Tensor& t) { return t.dtype() == float64; }

/// Private dense copies: they are changed element by element.
std::vector<Tensor> own_copies(const std::vector<Tensor>& inputs) {
  std::vector<Tensor> copies;
  for (const Tensor& t : inputs) {
    const Tensor copy = t.detach().clone();
    if (is_checked(t)) copy.requires_grad_();
    copies.push_back(copy);
  }
  return copies;
}

/// Whether a result without history is left out (a returned statistic) or must be constant.
enum class WithoutHistory { left_out, constant };

/// Random weights for each result that counts; absent for the others.
std::vector<std::optional<Tensor>> random_weights(const std::vector<Tensor>& results, uint64_t seed,
                                                  WithoutHistory without) {
  std::vector<std::optional<Tensor>> weights;
  for (uint32_t i = 0; i < results.size(); ++i) {
    const Tensor& y = results[i];
    if (!is_floating(y.dtype()) || (!y.requires_grad() && without == WithoutHistory::left_out)) {
      weights.emplace_back();
      continue;
    }
    const Tensor r = empty(y.shape(), float64);
    fill_normal(RandomKey{.key = seed, .ordinal = i}, r.span<double>().data(), r.numel());
    weights.emplace_back(r.to(y.dtype()).to(y.device()));
  }
  return weights;
}

/// Σ r ⊙ (upper − lower): subtracting the results first cancels what the step does not move.
double weighted_difference(const std::vector<Tensor>& upper, const std::vector<Tensor>& lower,
                           const std::vector<std::optional<Tensor>>& weights) {
  double total = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    if (weights[i]) total += ((upper[i] - lower[i]) * *weights[i]).sum().item();
  return total;
}

Shape index_of(const Shape& shape, int64_t element) {
  Shape index = shape;
  for (int i = shape.dim() - 1; i >= 0; --i) {
    index[i] = element % shape[i];
    element /= shape[i];
  }
  return index;
}

struct Worst {
  double difference = -1, numeric = 0, analytic = 0;
  size_t input = 0;
  int64_t element = 0;
};

GradcheckReport report_on(const Worst& worst, int64_t checked, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& o) {
  if (checked == 0) return {.passed = true, .text = "nothing to check: no elements", .worst = 0};
  GradcheckReport report;
  report.passed = worst.difference <= o.tolerance;  // false for NaN
  report.worst = worst.difference;
  report.text = format(
      "{}; {} elements checked, the worst is input {} at {}: numeric {:.10g}, analytic {:.10g}, "
      "relative difference {:.3g} (tolerance {:.3g})",
      report.passed ? "gradients agree" : "gradients differ", checked, worst.input,
      index_of(inputs[worst.input].shape(), worst.element), worst.numeric, worst.analytic,
      worst.difference, o.tolerance);
  return report;
}

/// The gradients of Σ weights ⊙ results in `wanted`: zeros from results without history.
std::vector<Tensor> analytic_gradients(const std::vector<Tensor>& results,
                                       const std::vector<std::optional<Tensor>>& weights,
                                       const std::vector<Tensor>& wanted) {
  std::vector<Tensor> outputs;
  std::vector<std::optional<Tensor>> present;
  for (size_t i = 0; i < results.size(); ++i)
    if (weights[i] && results[i].requires_grad())
      outputs.push_back(results[i]), present.push_back(weights[i]);
  if (!outputs.empty()) return grad(outputs, wanted, present);
  std::vector<Tensor> zero;
  for (const Tensor& t : wanted) zero.push_back(zeros_like(t));
  return zero;
}

GradcheckReport check(const TensorFunction& f, const std::vector<Tensor>& inputs,
                      const GradcheckOptions& o, WithoutHistory without) {
  if (std::none_of(inputs.begin(), inputs.end(), is_checked))
    throw DTypeError("gradcheck: at least one input must be float64, but none is");
  const std::vector<Tensor> x = own_copies(inputs);
  std::vector<Tensor> wanted;
  for (const Tensor& t : x)
    if (is_checked(t)) wanted.push_back(t);
  std::vector<Tensor> results;
  {
    const EnableGrad recording;
    results = f(x);
  }
  const auto weights = random_weights(results, o.seed, without);
  if (std::none_of(weights.begin(), weights.end(), [](const auto& r) { return r.has_value(); }))
    throw GraphError("gradcheck: a result must depend on an input, but none does");
  const std::vector<Tensor> gradients = analytic_gradients(results, weights, wanted);

  const NoGrad plain;
  Worst worst;
  int64_t checked = 0;
  size_t next = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (!is_checked(x[i])) continue;
    const std::vector<double> analytic = gradients[next++].to_vector<double>();
    const std::vector<double> values = x[i].to_vector<double>();
    const auto set = [&](int64_t e, double value) {
      norma::detail::raw_view(x[i], {}, {}, x[i].offset() + e).fill_(value);
    };
    for (int64_t e = 0; e < x[i].numel(); ++e, ++checked) {
      const double value = values[static_cast<size_t>(e)],
                   h = o.step * std::max(1.0, std::abs(value));
      // What f returns may be a view of x: clones keep the upper values.
      set(e, value + h);
      std::vector<Tensor> upper;
      for (const Tensor& t : f(x)) upper.push_back(t.clone());
      set(e, value - h);
      const std::vector<Tensor> lower = f(x);
      const double numeric = weighted_difference(upper, lower, weights) / (2 * h);
      set(e, value);
      const double a = analytic[static_cast<size_t>(e)];
      const double scale = std::max({1.0, std::abs(numeric), std::abs(a)});
      const double difference = std::abs(numeric - a) / scale;
      if (!(difference <= worst.difference) && !std::isnan(worst.difference))
        worst = {difference, numeric, a, i, e};
    }
  }
  return report_on(worst, checked, inputs, o);
}

}  // namespace

std::string to_string(const GradcheckReport& report) { return report.text; }

GradcheckReport gradcheck(const TensorFunction& f, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& o) {
  return check(f, inputs, o, WithoutHistory::left_out);
}

GradcheckReport gradgradcheck(const TensorFunction& f, const std::vector<Tensor>& inputs,
                              const GradcheckOptions& o) {
  std::vector<Tensor> results;
  {
    const EnableGrad recording;
    results = f(own_copies(inputs));
  }
  const auto weights = random_weights(results, o.seed + 1, WithoutHistory::left_out);
  std::vector<Tensor> both = inputs;
  for (const auto& r : weights)
    if (r) both.push_back(*r);
  const size_t n = inputs.size();
  const auto gradient = [&](const std::vector<Tensor>& x_and_dy) {
    const EnableGrad recording;
    std::vector<Tensor> x(x_and_dy.begin(), x_and_dy.begin() + static_cast<ptrdiff_t>(n)), wanted;
    for (Tensor& t : x) {
      if (!is_checked(t)) continue;
      if (!t.requires_grad()) t = t.detach().requires_grad_();
      wanted.push_back(t);
    }
    const std::vector<Tensor> y = f(x);
    std::vector<Tensor> outputs;
    std::vector<std::optional<Tensor>> dy;
    size_t next = n;
    for (size_t i = 0; i < y.size(); ++i)
      if (weights[i]) outputs.push_back(y[i]), dy.emplace_back(x_and_dy[next++]);
    return grad(outputs, wanted, dy, {.create_graph = true});
  };
  return check(gradient, both, o, WithoutHistory::constant);
}

}  // namespace norma
