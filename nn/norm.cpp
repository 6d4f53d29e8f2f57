#include "norma/nn/norm.h"

#include <map>

#include "norma/ops/elementwise/binary.h"
#include "norma/ops/norm/layer_norm.h"
#include "norma/ops/norm/norm.h"
#include "norma/ops/norm/rms_norm.h"

namespace norma::nn {
namespace {

class RmsNorm final : public NormModule {
 public:
  explicit RmsNorm(const NormSpec& s)
      : weight_(ones({s.dim})), options_{.eps = s.eps > 0 ? s.eps : 1e-6} {}
  Tensor forward(const Tensor& x) const override { return rms_norm(x, weight_, options_); }
  Sum add_forward(const Tensor& x, const Tensor& residual) const override {
    const Added added = add_rms_norm(x, residual, weight_, options_);
    return {added.y, added.h};
  }
  Sum pass_forward(const Tensor& x) const override {
    const NormResult r = fused_norm(x, {.w = weight_},
                                    {.kind = NormKind::rms, .eps = options_.eps, .passes_x = true});
    return {r.y, *r.h};
  }
  void visit(Visitor& v) override { v("weight", weight_); }

 private:
  Parameter weight_;
  RmsNormOptions options_;
};

class LayerNorm final : public NormModule {
 public:
  explicit LayerNorm(const NormSpec& s)
      : weight_(ones({s.dim})), options_{.eps = s.eps > 0 ? s.eps : 1e-5} {
    if (s.bias) bias_ = Parameter(zeros({s.dim}));
  }
  Tensor forward(const Tensor& x) const override {
    return layer_norm(x, weight_, bias(), options_);
  }
  Sum add_forward(const Tensor& x, const Tensor& residual) const override {
    const Added added = add_layer_norm(x, residual, weight_, bias(), options_);
    return {added.y, added.h};
  }
  Sum pass_forward(const Tensor& x) const override {
    const NormResult r =
        fused_norm(x, {.w = weight_, .b = bias()},
                   {.kind = NormKind::layer, .eps = options_.eps, .passes_x = true});
    return {r.y, *r.h};
  }
  void visit(Visitor& v) override { v("weight", weight_), v("bias", bias_); }

 private:
  std::optional<Tensor> bias() const {
    return bias_.defined() ? std::optional<Tensor>(bias_) : none;
  }
  Parameter weight_, bias_;
  LayerNormOptions options_;
};

/// What a network does without: the baseline of an experiment.
class NoNorm final : public NormModule {
 public:
  Tensor forward(const Tensor& x) const override { return x; }
};

// Ours stand in the table itself: an archive drops what only registers itself.
std::map<std::string, NormFactory>& table() {
  static auto* norms = new std::map<std::string, NormFactory>{
      {"rms", [](const NormSpec& s) { return std::make_unique<RmsNorm>(s); }},
      {"layer", [](const NormSpec& s) { return std::make_unique<LayerNorm>(s); }},
      {"none", [](const NormSpec&) { return std::make_unique<NoNorm>(); }}};
  return *norms;
}

}  // namespace

NormModule::Sum NormModule::add_forward(const Tensor& x, const Tensor& residual) const {
  const Tensor h = x + residual;
  return {forward(h), h};
}

void register_norm(std::string kind, NormFactory factory) {
  if (!table().emplace(kind, std::move(factory)).second)
    throw ValueError("register_norm: the name must be new, but {} is taken", kind);
}
std::vector<std::string> norm_kinds() {
  std::vector<std::string> kinds;
  for (const auto& [kind, factory] : table()) kinds.push_back(kind);
  return kinds;
}

Norm::Norm(const NormSpec& norm_spec) : spec(norm_spec) {
  const auto found = table().find(spec.kind);
  if (found == table().end()) {
    std::string known;
    for (const std::string& kind : norm_kinds()) known += (known.empty() ? "" : ", ") + kind;
    throw ValueError("norm: must be one of {}, but is {}", known, spec.kind);
  }
  module = found->second(spec);
}

Tensor Norm::operator()(Stream& stream) const {
  auto [y, h] = stream.pending ? module->add_forward(*stream.pending, stream.value)
                               : module->pass_forward(stream.value);
  stream.set(h);
  return y;
}

void Stream::add(const Tensor& branch) {
  read();
  pending = branch;
}
const Tensor& Stream::read() {
  if (pending) set(value + *pending);
  return value;
}

}  // namespace norma::nn
