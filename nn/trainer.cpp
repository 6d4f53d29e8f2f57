#include "norma/nn/trainer.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>

#include "norma/core/autograd.h"
#include "norma/core/cuda/runtime.h"
#include "norma/core/format.h"
#include "norma/core/random.h"
#include "norma/core/safetensors.h"
#include "norma/core/version.h"
#include "norma/nn/data/grammar.h"
#include "norma/nn/data/tasks.h"
#include "norma/nn/data/text.h"
#include "norma/nn/data/tokens.h"
#include "norma/ops/cross_entropy/cross_entropy.h"
#include "norma/ops/elementwise/compare.h"
#include "norma/ops/matmul/matmul.h"
#include "norma/ops/reduce/reduce.h"
#include "norma/ops/view/view.h"

namespace norma::nn {
namespace {

constexpr int64_t kEvaluationRows = 64;  // a batch of them

/// A batch goes to a GPU through pinned memory, so that nobody waits for what the GPU does before.
Tensor on_device(const Tensor& t, Device device) {
  if (device.is_cpu()) return t;
  const Tensor pinned = empty_pinned(t.shape(), t.dtype());
  pinned.copy_(t);
  return pinned.to(device);
}

std::string processor_model() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line))
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}
std::string maker(Device device) {
  std::string name = processor_model();
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) name = norma::detail::cuda_device_name(device);
  return std::string("norma ") + NORMA_VERSION + " on " + name;
}

std::unique_ptr<Optimizer> make_optimizer(const TrainOptions& o, LanguageModel& model) {
  std::vector<NamedTensor> trained;
  for (const NamedTensor& p : named_parameters(model))
    if (p.tensor.requires_grad()) trained.push_back(p);
  const auto groups = decay_groups(trained, o.weight_decay, o.decay_gains);
  if (o.optimizer == "sgd") return std::make_unique<Sgd>(groups, SgdOptions{.momentum = o.beta1});
  return std::make_unique<AdamW>(groups, AdamwOptions{.beta1 = o.beta1, .beta2 = o.beta2});
}

ScheduleKind schedule_kind(const std::string& name) {
  if (name == "linear") return ScheduleKind::linear;
  return name == "constant" ? ScheduleKind::constant : ScheduleKind::cosine;
}

Positions positions_of(const std::string& name) {
  if (name == "rotary") return Positions::rotary;
  if (name == "none") return Positions::none;
  return name == "learned" ? Positions::learned : Positions::auto_;
}

std::optional<GateOrder> gate_of(const std::string& name) {
  if (name == "auto") return none;
  return name == "norm-then-gate" ? GateOrder::norm_then_gate : GateOrder::gate_then_norm;
}

// Metadata is text; numbers go through these, exactly.
std::string to_text(double value) { return format("{:.17g}", value); }
const std::string& text_of(const Safetensors& file, const std::string& key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end())
    throw IOError("{}: must be a checkpoint of norma, but has no {}", file.path, key);
  return found->second;
}
template <class T>
T number(const Safetensors& file, const std::string& key) {
  T value{};
  const std::string& text = text_of(file, key);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw IOError("{}: {} must be a number, but is {}", file.path, key, text);
  return value;
}

CheckpointInfo info_of(const Safetensors& file) {
  CheckpointInfo info;
  info.step = number<int64_t>(file, "step");
  set_from_json(info.options, text_of(file, "options"), file.path);
  info.vocabulary = text_of(file, "vocabulary");
  info.made_by = text_of(file, "made_by");
  if (file.metadata.contains("best_step")) {
    info.best_step = number<int64_t>(file, "best_step");
    info.best_loss = number<double>(file, "best_loss");
  }
  return info;
}

/// The tensors whose names begin with `prefix`, without it.
std::vector<std::pair<std::string, Tensor>> part(const Safetensors& file, std::string_view prefix) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const auto& [name, tensor] : file.tensors)
    if (name.starts_with(prefix)) tensors.emplace_back(name.substr(prefix.size()), tensor);
  return tensors;
}

}  // namespace

std::unique_ptr<Dataset> make_dataset(const TrainOptions& o, const std::string& vocabulary) {
  if (!o.tokens.empty())
    return std::make_unique<TokenDataset>(
        o.tokens,
        TokenOptions{.context = o.context == 0 ? 64 : o.context,
                     .vocab_size = vocabulary.empty() ? 0 : Vocabulary::parse(vocabulary).size()});
  if (!o.text.empty())
    return std::make_unique<TextDataset>(TextDataset::open(
        o.text, {.context = o.context == 0 ? 64 : o.context, .vocabulary = vocabulary}));
  if (!o.task.empty() && o.task != "grammar") {
    TaskOptions settings{.length = o.task_length, .items = o.task_items};
    if (o.task_symbols > 0) settings.symbols = o.task_symbols;
    auto task = make_task(o.task, settings);
    if (o.context != 0 && o.context != task->context())
      throw ValueError(
          "context: the task {} takes {} tokens a row, but context is {}; leave it out", o.task,
          task->context(), o.context);
    return task;
  }
  GrammarOptions grammar;
  if (o.context > 0) grammar.context = o.context;
  return std::make_unique<GrammarDataset>(grammar);
}

LanguageModelOptions model_options(const TrainOptions& o, const Dataset& dataset) {
  return model_options(o, dataset.vocab_size(), dataset.context());
}
LanguageModelOptions model_options(const TrainOptions& o, int64_t vocab_size, int64_t context) {
  return {.vocab_size = vocab_size,
          .context = context,
          .n_layers = o.n_layers,
          .n_heads = o.n_heads,
          .n_kv_heads = o.n_kv_heads,
          .d_model = o.d_model,
          .d_ff = o.d_ff,
          .norm = o.norm,
          .placement = o.placement,
          .mlp = o.mlp == "swiglu"      ? MlpKind::swiglu
                 : o.mlp == "gelu-tanh" ? MlpKind::gelu_tanh
                                        : MlpKind::gelu,
          .positions = positions_of(o.positions),
          .dropout = o.dropout,
          .qk_norm = o.qk_norm,
          .tie = o.tie,
          .wide_stream = o.wide_stream,
          .layers = o.model,
          .mamba = {.d_state = o.d_state,
                    .d_conv = o.d_conv,
                    .expand = o.expand,
                    .head_dim = o.head_dim,
                    .n_groups = o.n_groups,
                    .gate = gate_of(o.gate),
                    .norm = o.gate_norm,
                    .norm_groups = o.norm_groups,
                    .rope_fraction = o.rope_fraction,
                    .selective = o.selective}};
}

Evaluation evaluate(LanguageModel& model, const Dataset& dataset, int64_t rows) {
  const NoGrad plain;
  const EvalScope without_dropout(model);
  const Device device = parameters(model).front().device();
  const int64_t all = dataset.validation_rows(), n = rows == 0 ? all : std::min(rows, all);
  std::vector<double> losses, counts;
  double own = 0, exact = 0, right = 0;
  bool has_own = true;
  for (int64_t first = 0; first < n; first += kEvaluationRows) {
    const Batch batch = dataset.validation_batch(first, std::min(kEvaluationRows, n - first));
    const Tensor logits = model(batch.inputs.to(device));
    const Tensor each = cross_entropy(logits, batch.targets.to(device),
                                      {.ignore_index = kIgnore, .reduction = LossReduction::each});
    const auto loss = each.to(float64).sum(-1).to_vector<double>();
    const auto counted = not_equal(batch.targets, kIgnore).sum(-1).to_vector<double>();
    losses.insert(losses.end(), loss.begin(), loss.end());
    counts.insert(counts.end(), counted.begin(), counted.end());
    if (const auto ideal = dataset.own_loss(batch))
      own += *ideal * static_cast<double>(counted_tokens(batch));
    else
      has_own = false;
    if (dataset.has_answers()) {
      const Tensor predicted = argmax(logits, -1);
      exact += exact_answers(batch, predicted) * static_cast<double>(loss.size());
      right += right_tokens(batch, predicted);
    }
  }
  Evaluation e;
  double total = 0, tokens = 0, squares = 0;
  for (size_t i = 0; i < losses.size(); ++i) total += losses[i], tokens += counts[i];
  e.loss = total / tokens;
  for (size_t i = 0; i < losses.size(); ++i) {
    const double off = losses[i] - e.loss * counts[i];
    squares += off * off;
  }
  e.error = std::sqrt(squares) / tokens;
  e.tokens = static_cast<int64_t>(tokens);
  if (has_own) e.gap = e.loss - own / tokens;
  if (dataset.has_answers()) {
    e.exact = exact / static_cast<double>(losses.size());
    e.right = right / tokens;
  }
  return e;
}

Trainer::Trainer(const TrainOptions& options) : Trainer(options, std::string()) {}

Later::operator double() const {
  double sum = 0;
  for (const Tensor& part : parts) sum += part.item();
  return sum;
}

Trainer::Trainer(const TrainOptions& options, const std::string& vocabulary)
    : options_(options),
      device_(device_from_string(options.device)),
      gather_([this](const Batch& b, const Tensor& counted) { return gather(b, counted); }),
      update_([this] { return update(); }),
      gather_and_update_([this](const Batch& b) { return gather_and_update(b); }) {
  require_possible(options_);
  dataset_ = make_dataset(options_, vocabulary);
  manual_seed(options_.seed);
  model_ = std::make_unique<LanguageModel>(model_options(options_, *dataset_));
  if (device_.is_cuda()) to(*model_, device_);
  const auto named = named_parameters(*model_);
  if (!options_.freeze.empty()) freeze(named, options_.freeze);
  if (!options_.train_only.empty()) freeze(named, options_.train_only, true);
  optimizer_ = make_optimizer(options_, *model_);
  if (options_.precision == "fp16") optimizer_->use_loss_scaling();
  schedule_ = {.kind = schedule_kind(options_.schedule),
               .lr = options_.lr,
               .min_lr = options_.min_lr,
               .warmup = options_.warmup,
               .steps = options_.steps};
}

Tensor Trainer::gather(const Batch& batch, const std::optional<Tensor>& counted) const {
  // Nobody else holds the logits, so that their memory may take their gradient.
  Tensor loss = cross_entropy((*model_)(batch.inputs, batch.places), batch.targets,
                              {.ignore_index = kIgnore,
                               .reduction = counted ? LossReduction::sum : LossReduction::mean,
                               .in_place = true});
  if (counted) loss = loss / counted->to(loss.dtype());
  optimizer_->scaled(loss).backward();
  return loss;
}

Tensor Trainer::update(Profiler* profiler) {
  const Tensor norm = optimizer_->clip(options_.clip);
  if (profiler) profiler->mark("gradient norm");
  optimizer_->step();
  if (profiler) profiler->mark("optimizer");
  optimizer_->zero_grad();
  return norm;
}

Batch Trainer::part_of(const Batch& batch, int64_t first, int64_t rows) const {
  Batch part{batch.inputs.slice(0, first, first + rows),
             batch.targets.slice(0, first, first + rows)};
  if (dataset_->has_answers()) part = only_counted(part);
  return {on_device(part.inputs, device_), on_device(part.targets, device_),
          part.places ? std::optional(on_device(*part.places, device_)) : none};
}

Trainer::Losses Trainer::gather_and_update(const Batch& batch) {
  const Tensor loss = gather(batch, none);
  return {loss, update()};
}

PrecisionScope::PrecisionScope(const std::string& precision)
    : autocast_(precision == "bf16"   ? bfloat16
                : precision == "fp16" ? float16
                                      : float32),
      tf32_before_(is_tf32_allowed()) {
  allow_tf32(precision == "tf32");
}
PrecisionScope::~PrecisionScope() { allow_tf32(tf32_before_); }

namespace {
/// A number on the device.
Tensor divisor(int64_t counted, Device device) {
  return full({}, static_cast<double>(std::max<int64_t>(1, counted)), float32, device);
}
}  // namespace

void Trainer::profiled_step(Profiler& profiler) {
  const PrecisionScope precision(options_.precision);
  const int64_t rows = options_.batch / options_.accumulate;
  profiler.begin_step();
  const Batch batch = dataset_->batch(Part::train, options_.seed, step_, options_.batch);
  optimizer_->set_lr(schedule_.at(step_));
  std::vector<Batch> parts;
  for (int64_t first = 0; first < options_.batch; first += rows)
    parts.push_back(part_of(batch, first, rows));
  std::optional<Tensor> counted;
  if (options_.accumulate > 1) counted = divisor(counted_tokens(batch), device_);
  profiler.mark("data");
  for (const Batch& part : parts) gather(part, counted);
  update(&profiler);
  profiler.end_step();
  ++step_;
}

StepReport Trainer::step() {
  const PrecisionScope precision(options_.precision);
  const Batch batch = dataset_->batch(Part::train, options_.seed, step_, options_.batch);
  const int64_t counted = counted_tokens(batch), rows = options_.batch / options_.accumulate;
  StepReport report{.lr = schedule_.at(step_), .tokens = counted};
  optimizer_->set_lr(report.lr);
  if (options_.accumulate == 1) {
    const Losses losses = gather_and_update_(part_of(batch, 0, rows));
    report.loss = {{losses.loss}};
    report.grad_norm = {{losses.grad_norm}};
  } else {
    const Tensor all = divisor(counted, device_);
    for (int64_t first = 0; first < options_.batch; first += rows)
      report.loss.parts.push_back(gather_(part_of(batch, first, rows), all));
    report.grad_norm = {{update_()}};
  }
  ++step_;
  return report;
}

std::string Trainer::graph_nodes() const {
  return gather_.graph_nodes() + update_.graph_nodes() + gather_and_update_.graph_nodes();
}

Evaluation Trainer::validate(int64_t rows) {
  const PrecisionScope precision(options_.precision);
  const Evaluation e = evaluate(*model_, *dataset_, rows);
  if (!best_step_ || e.loss < best_loss_) best_step_ = step_, best_loss_ = e.loss;
  return e;
}

void Trainer::save(const std::string& checkpoint) const {
  const NoGrad plain;
  std::vector<std::pair<std::string, Tensor>> tensors;
  for (const NamedTensor& t : state_dict(*model_))
    tensors.emplace_back("model." + t.name, t.tensor.to(cpu));
  for (const auto& [name, tensor] : optimizer_->state())
    tensors.emplace_back("optimizer." + name, tensor.to(cpu));
  const GeneratorState& random = ambient_generator().state();
  std::map<std::string, std::string> metadata{
      {"step", std::to_string(step_)},
      {"options", to_json(options_)},
      {"vocabulary", dataset_->vocabulary().text()},
      {"made_by", maker(device_)},
      {"optimizer_steps", std::to_string(optimizer_->steps())},
      {"random_key", std::to_string(random.key)},
      {"random_ordinal", std::to_string(random.ordinal)},
      {"random_calls", std::to_string(random.calls)}};
  if (best_step_) {
    metadata["best_step"] = std::to_string(*best_step_);
    metadata["best_loss"] = to_text(best_loss_);
  }
  save_safetensors(checkpoint, tensors, metadata);
}

std::unique_ptr<Trainer> Trainer::resume(const std::string& checkpoint) {
  const Safetensors file = load_safetensors(checkpoint);
  const CheckpointInfo info = info_of(file);
  std::unique_ptr<Trainer> trainer(new Trainer(
      info.options,
      info.options.text.empty() && info.options.tokens.empty() ? std::string() : info.vocabulary));
  load_state_dict(*trainer->model_, part(file, "model."), checkpoint);
  trainer->optimizer_->load_state(part(file, "optimizer."),
                                  number<int64_t>(file, "optimizer_steps"), checkpoint);
  ambient_generator().set_state({.key = number<uint64_t>(file, "random_key"),
                                 .ordinal = number<uint32_t>(file, "random_ordinal"),
                                 .calls = number<uint32_t>(file, "random_calls")});
  trainer->step_ = info.step;
  trainer->best_step_ = info.best_step;
  trainer->best_loss_ = info.best_loss;
  if (info.made_by != maker(trainer->device_)) trainer->made_elsewhere_ = info.made_by;
  return trainer;
}

LoadedModel load_model(const std::string& checkpoint) {
  const Safetensors file = load_safetensors(checkpoint);
  LoadedModel loaded{info_of(file), nullptr, {}};
  loaded.vocabulary = Vocabulary::parse(loaded.info.vocabulary);
  const auto weights = part(file, "model.");
  // The context is in the weights where positions are learned; only a text or task knows it
  // otherwise.
  LanguageModelOptions options = [&] {
    TrainOptions o = loaded.info.options;
    if (!o.tokens.empty())
      return model_options(o, loaded.vocabulary.size(), o.context == 0 ? 64 : o.context);
    if (o.text.empty()) return model_options(o, *make_dataset(o));
    const TextDataset stand_in("a text", std::string(4096, loaded.vocabulary.symbol(0)[0]),
                               {.context = o.context == 0 ? 64 : o.context,
                                .train_share = 0,
                                .vocabulary = loaded.info.vocabulary});
    return model_options(o, stand_in);
  }();
  loaded.model = std::make_unique<LanguageModel>(options);
  load_state_dict(*loaded.model, weights, checkpoint);
  return loaded;
}

}  // namespace norma::nn
