#include "norma/nn/generate.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "norma/core/autograd.h"
#include "norma/core/random.h"
#include "norma/ops/index/index.h"
#include "norma/ops/view/view.h"

namespace norma::nn {
namespace {

/// The logits of what follows the last of these tokens.
Tensor next_logits(const Transformer& model, const std::vector<int32_t>& tokens) {
  const size_t n = std::min(tokens.size(), static_cast<size_t>(model.options.context));
  const std::span<const int32_t> last(tokens.end() - static_cast<ptrdiff_t>(n), tokens.end());
  const Tensor logits = model(from_span(last, Shape{1, static_cast<int64_t>(n)}));
  return logits.select(1, -1).select(0, 0).to(float64);
}

int32_t choose(const Tensor& logits, const GenerateOptions& o, Generator& generator) {
  const int64_t classes = logits.numel();
  const int64_t k = o.temperature == 0 ? 1 : o.top_k == 0 ? classes : std::min(o.top_k, classes);
  const TopK top = topk(logits, k);
  const auto values = top.values.to_vector<double>();
  const auto indices = top.indices.to_vector<int64_t>();
  if (k == 1) return static_cast<int32_t>(indices[0]);
  std::vector<double> weights;
  double total = 0;
  for (double v : values) {
    weights.push_back(std::exp((v - values[0]) / o.temperature));
    total += weights.back();
  }
  double rest = static_cast<double>(uniform_at(generator.next(), 0)) * total;
  for (size_t i = 0; i < weights.size(); ++i)
    if ((rest -= weights[i]) < 0) return static_cast<int32_t>(indices[i]);
  return static_cast<int32_t>(indices[0]);  // rounding used up the last one
}

}  // namespace

std::vector<int32_t> generate(Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerateOptions& o, const std::function<void(int32_t)>& seen) {
  if (prompt.empty()) throw ValueError("generate: the prompt needs a token or more, but is empty");
  if (!(o.temperature >= 0))
    throw ValueError("generate: temperature must be 0 or more, but is {}", o.temperature);
  if (o.top_k < 0) throw ValueError("generate: top_k must be 0 or more, but is {}", o.top_k);
  const NoGrad plain;
  eval(model);
  Generator generator(o.seed, "sample");
  std::vector<int32_t> tokens = prompt;
  for (int64_t i = 0; i < o.length; ++i) {
    tokens.push_back(choose(next_logits(model, tokens), o, generator));
    if (seen) seen(tokens.back());
    if (o.end && tokens.back() == *o.end) break;
  }
  train(model);
  return {tokens.begin() + static_cast<ptrdiff_t>(prompt.size()), tokens.end()};
}

}  // namespace norma::nn
