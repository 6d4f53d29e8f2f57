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

/// A sequence that grows: each token is worked through once, with the state that the layers keep.
/// Where the model's context is full, what is left is worked through anew for each token.
class Decoder {
 public:
  Decoder(const LanguageModel& model, const std::vector<int32_t>& prompt)
      : model_(model), tokens_(prompt) {}

  /// The logits of what follows the last token.
  Tensor logits() {
    const auto context = static_cast<size_t>(model_.options.context);
    if (model_.has_limit() && tokens_.size() > context)
      state_ = {}, seen_ = tokens_.size() - context;
    const std::span<const int32_t> fresh(tokens_.data() + seen_, tokens_.size() - seen_);
    const Tensor next = model_.next(
        from_span(fresh, Shape{1, std::ssize(fresh)}).to(model_.wte.weight.device()), state_);
    seen_ = tokens_.size();
    return next.flatten().to(float64);
  }
  void add(int32_t token) { tokens_.push_back(token); }
  const std::vector<int32_t>& tokens() const { return tokens_; }

 private:
  const LanguageModel& model_;
  std::vector<int32_t> tokens_;
  DecodingState state_;
  size_t seen_ = 0;  // tokens that the state holds
};

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

std::vector<int32_t> generate(LanguageModel& model, const std::vector<int32_t>& prompt,
                              const GenerateOptions& o, const std::function<void(int32_t)>& seen) {
  if (prompt.empty()) throw ValueError("generate: the prompt needs a token or more, but is empty");
  if (!(o.temperature >= 0))
    throw ValueError("generate: temperature must be 0 or more, but is {}", o.temperature);
  if (o.top_k < 0) throw ValueError("generate: top_k must be 0 or more, but is {}", o.top_k);
  const NoGrad plain;
  const EvalScope without_dropout(model);
  Generator generator(o.seed, "sample");
  Decoder decoder(model, prompt);
  const std::vector<int32_t>& tokens = decoder.tokens();
  for (int64_t i = 0; i < o.length; ++i) {
    decoder.add(choose(decoder.logits(), o, generator));
    if (seen) seen(tokens.back());
    if (o.end && tokens.back() == *o.end) break;
  }
  return {tokens.begin() + static_cast<ptrdiff_t>(prompt.size()), tokens.end()};
}

}  // namespace norma::nn
