#include "norma/nn/train_options.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <type_traits>

#include "norma/core/error.h"

namespace norma::nn {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string> field_names() {
  std::vector<std::string> names;
  TrainOptions options;
  visit_fields(options, [&](const char* name, auto&, const char*) { names.emplace_back(name); });
  return names;
}

/// The steps of Levenshtein's distance between two words.
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t changed = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({changed, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

template <class T>
std::string_view kind_of() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_same_v<T, std::string>) return "a text";
  if constexpr (std::is_integral_v<T>) return "a whole number";
  return "a number";
}
template <class T>
bool fits(const Json& value) {
  if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
  if constexpr (std::is_same_v<T, std::string>) return value.is_string();
  if constexpr (std::is_same_v<T, uint64_t>) return value.is_number_unsigned();
  if constexpr (std::is_integral_v<T>) return value.is_number_integer();
  return value.is_number();
}

void require(bool holds, std::string_view name, std::string_view rule, const auto& value) {
  if (!holds) throw ValueError("{}: must be {}, but is {}", name, rule, value);
}
void require_one_of(std::string_view name, const std::string& value,
                    const std::vector<std::string>& known) {
  if (std::find(known.begin(), known.end(), value) != known.end()) return;
  std::string all;
  for (const std::string& k : known) all += (all.empty() ? "" : ", ") + k;
  throw ValueError("{}: must be one of {}, but is {}", name, all, value);
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  size_t fewest = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    const size_t d = distance(word, candidate);
    if (d < fewest) fewest = d, best = candidate;
  }
  return best;
}

std::string to_json(const TrainOptions& options) {
  Json json = Json::object();
  visit_fields(options,
               [&](const char* name, const auto& field, const char*) { json[name] = field; });
  return json.dump(2) + "\n";
}

void set_from_json(TrainOptions& options, std::string_view text, std::string_view where) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::parse_error& error) {
    throw ValueError("{}: must be JSON, but at byte {} it is not", where, error.byte);
  }
  if (!json.is_object())
    throw ValueError("{}: must be a JSON object, but is {}", where, json.type_name());
  size_t known = 0;
  visit_fields(options, [&]<class T>(const char* name, T& field, const char*) {
    const auto found = json.find(name);
    if (found == json.end()) return;
    ++known;
    if (!fits<T>(*found))
      throw ValueError("{}: {} must be {}, but is {}", where, name, kind_of<T>(), found->dump());
    field = found->template get<T>();
  });
  if (known == json.size()) return;
  const auto names = field_names();
  for (const auto& [key, value] : json.items()) {
    if (std::find(names.begin(), names.end(), key) != names.end()) continue;
    const std::string near = nearest(key, names);
    throw ValueError("{}: {} is no setting{}", where, key,
                     near.empty() ? "" : "; did you mean " + near + "?");
  }
}

void require_possible(const TrainOptions& o) {
  if (!o.text.empty() && !o.task.empty())
    throw ValueError(
        "text: a run learns from a text or a task, but both were given; leave one out");
  if (!o.tokens.empty() && (!o.text.empty() || !o.task.empty()))
    throw ValueError(
        "tokens: a run learns from tokens or from {}, but both were given; leave one out",
        o.text.empty() ? "a task" : "a text");
  require(o.context >= 0, "context", "0 or more", o.context);
  require(o.n_layers >= 0, "n_layers", "0 or more", o.n_layers);
  require(o.d_model >= 1, "d_model", "1 or more", o.d_model);
  require(o.d_ff >= 0, "d_ff", "0 or more", o.d_ff);
  if (o.n_heads < 1 || o.d_model % o.n_heads != 0)
    throw ValueError("n_heads: must divide d_model = {}, but is {}", o.d_model, o.n_heads);
  if (o.n_kv_heads < 0 || (o.n_kv_heads > 0 && o.n_heads % o.n_kv_heads != 0))
    throw ValueError("n_kv_heads: must divide n_heads = {}, but is {}", o.n_heads, o.n_kv_heads);
  if (o.positions == "rotary" && o.d_model / o.n_heads % 2 != 0)
    throw ValueError("positions: rotary needs heads of an even size, but d_model / n_heads is {}",
                     o.d_model / o.n_heads);
  require_one_of("mlp", o.mlp, {"gelu", "gelu-tanh", "swiglu"});
  require_one_of("positions", o.positions, {"auto", "learned", "none", "rotary"});
  require_one_of("gate", o.gate, {"auto", "gate-then-norm", "norm-then-gate"});
  require_one_of("gate_norm", o.gate_norm, {"auto", "layer", "none", "rms"});
  require(o.d_state >= 0, "d_state", "0 or more", o.d_state);
  require(o.d_conv >= 2, "d_conv", "2 or more", o.d_conv);
  require(o.expand >= 1, "expand", "1 or more", o.expand);
  require_one_of("optimizer", o.optimizer, {"adamw", "sgd"});
  require_one_of("precision", o.precision, {"fp32", "tf32", "bf16", "fp16"});
  require_one_of("schedule", o.schedule, {"cosine", "linear", "constant"});
  require(o.dropout >= 0 && o.dropout < 1, "dropout", "from 0 to below 1", o.dropout);
  require(o.steps >= 1, "steps", "1 or more", o.steps);
  require(o.batch >= 1, "batch", "1 or more", o.batch);
  if (o.accumulate < 1 || o.batch % o.accumulate != 0)
    throw ValueError("accumulate: must divide batch = {}, but is {}", o.batch, o.accumulate);
  require(o.lr > 0, "lr", "above 0", o.lr);
  require(o.min_lr >= 0 && o.min_lr <= o.lr, "min_lr", "from 0 to lr", o.min_lr);
  require(o.warmup >= 0, "warmup", "0 or more", o.warmup);
  require(o.weight_decay >= 0, "weight_decay", "0 or more", o.weight_decay);
  require(o.beta1 >= 0 && o.beta1 < 1, "beta1", "from 0 to below 1", o.beta1);
  require(o.beta2 >= 0 && o.beta2 < 1, "beta2", "from 0 to below 1", o.beta2);
  require(o.clip >= 0, "clip", "0 or more", o.clip);
  require(o.eval_every >= 1, "eval_every", "1 or more", o.eval_every);
  require(o.checkpoint_every >= 1, "checkpoint_every", "1 or more", o.checkpoint_every);
  if (!o.freeze.empty() && !o.train_only.empty())
    throw ValueError("freeze: cannot be combined with train_only; leave one out");
}

}  // namespace norma::nn
