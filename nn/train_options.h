#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace norma::nn {

/// Everything that decides a training run. Each field is a flag of `norma train` (`n_layers` is
/// --n-layers) and a key of config.json.
struct TrainOptions {
  // What to learn from: a file, or a generated task; with neither, the grammar.
  std::string text = {};
  std::string task = {};
  int64_t task_length = 0, task_symbols = 0, task_items = 0;  ///< 0: the task's own
  std::string tokens = {};
  int64_t context = 0;  ///< 0: 64 for a text, what a row takes for a task

  // The model.
  std::string model = "transformer";
  int64_t n_layers = 4;
  int64_t n_heads = 4;
  int64_t n_kv_heads = 0;  ///< 0: as many as n_heads
  int64_t d_model = 128;
  int64_t d_ff = 0;  ///< 0: four times d_model
  std::string norm = "rms";
  std::string placement = "pre";
  std::string mlp = "gelu";
  std::string positions = "auto";
  double dropout = 0;
  bool qk_norm = false;
  bool tie = true;
  bool wide_stream = false;
  int64_t d_state = 0;  ///< 0: 16 for mamba1, 128 for mamba2 and mamba3
  int64_t d_conv = 4;
  int64_t expand = 2;
  int64_t head_dim = 64;
  int64_t n_groups = 1;
  std::string gate = "auto";
  std::string gate_norm = "auto";
  int64_t norm_groups = 0;
  double rope_fraction = 0.5;
  bool selective = true;

  // The optimization.
  int64_t steps = 1400;
  int64_t batch = 12;
  int64_t accumulate = 1;
  std::string optimizer = "adamw";
  double lr = 1e-3;
  double min_lr = 1e-4;
  int64_t warmup = 100;
  std::string schedule = "cosine";
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double clip = 1;
  std::string freeze = {};
  std::string train_only = {};
  bool decay_gains = false;
  uint64_t seed = 1;
  std::string device = "best";
  std::string precision = "fp32";

  // What is written down, and when.
  int64_t eval_every = 250;
  int64_t checkpoint_every = 500;

  bool operator==(const TrainOptions&) const = default;
};

/// visit(name, field, help) for each field, in their order: flags, JSON and help come from here.
template <class Options, class Visit>
void visit_fields(Options& o, const Visit& visit) {
  visit("text", o.text, "a file to learn, byte by byte; its last tenth validates");
  visit("task", o.task,
        "a generated task: addition, copying, dyck, induction-heads, modular, mqar, parity, "
        "selective-copying");
  visit("task_length", o.task_length, "tokens that the task draws; 0: the task's own");
  visit("task_symbols", o.task_symbols, "different tokens of the task; 0: the task's own");
  visit("task_items", o.task_items, "letters, pairs or digits of the task; 0: the task's own");
  visit("tokens", o.tokens, "a file to learn that holds tokens already, each two bytes");
  visit("context", o.context, "tokens a row; 0: 64 for a text, what a row takes for a task");
  visit("model", o.model,
        "what a layer is: transformer, mamba1, mamba2, mamba3, hybrid, or runs of sub-layers as in "
        "mamba2:3,attention+mlp:1");
  visit("n_layers", o.n_layers, "blocks");
  visit("n_heads", o.n_heads, "attention heads; must divide d_model");
  visit("n_kv_heads", o.n_kv_heads, "key and value heads; must divide n_heads; 0: n_heads");
  visit("d_model", o.d_model, "width of the residual stream");
  visit("d_ff", o.d_ff, "width inside the MLP; 0: 4 d_model");
  visit("norm", o.norm, "norm by name: rms, layer, none");
  visit("placement", o.placement,
        "where the norms stand: pre, post, sandwich, parallel, residual-dual, or one for each run "
        "of layers, as in pre:3,post:1");
  visit("mlp", o.mlp, "gelu, gelu-tanh (GPT-2's, fused) or swiglu");
  visit("positions", o.positions,
        "learned, rotary, none, or auto: none with Mamba blocks, learned otherwise");
  visit("dropout", o.dropout, "probability with which an activation is dropped");
  visit("qk_norm", o.qk_norm, "a norm on queries and keys");
  visit("tie", o.tie, "one matrix for embedding and output");
  visit("wide_stream", o.wide_stream,
        "the residual stream in float32 where --precision is bf16 or fp16");
  visit("d_state", o.d_state, "Mamba: state of a channel; 0: 16 for mamba1, 128 for the others");
  visit("d_conv", o.d_conv, "Mamba: taps of the convolution");
  visit("expand", o.expand, "Mamba: inner width over d_model");
  visit("head_dim", o.head_dim, "mamba2, mamba3: width of a head; must divide expand * d_model");
  visit("n_groups", o.n_groups, "mamba2, mamba3: groups of heads that share B and C");
  visit("gate", o.gate,
        "the blocks' norm: gate-then-norm, norm-then-gate, or auto: mamba2 the first, mamba3 the "
        "second");
  visit("gate_norm", o.gate_norm,
        "the blocks' norm: rms, layer, none, or auto: rms for mamba2, none for mamba3");
  visit("norm_groups", o.norm_groups,
        "the blocks' norm: groups of channels; 0: n_groups for mamba2, a head each for mamba3");
  visit("rope_fraction", o.rope_fraction, "mamba3: the part of B and C that turns");
  visit("selective", o.selective, "mamba1: false makes dt, B and C constant");
  visit("steps", o.steps, "optimizer steps");
  visit("batch", o.batch, "rows a step");
  visit("accumulate", o.accumulate, "parts that a step's batch is cut into");
  visit("optimizer", o.optimizer, "adamw or sgd");
  visit("lr", o.lr, "largest learning rate");
  visit("min_lr", o.min_lr, "learning rate at the end of the schedule");
  visit("warmup", o.warmup, "steps over which the learning rate rises");
  visit("schedule", o.schedule, "cosine, linear or constant");
  visit("weight_decay", o.weight_decay, "decoupled decay, of matrices only");
  visit("beta1", o.beta1, "AdamW's first, or SGD's momentum");
  visit("beta2", o.beta2, "AdamW's second");
  visit("clip", o.clip, "largest gradient norm; 0: no clipping");
  visit("freeze", o.freeze, "pattern of parameters that stay, such as *norm*");
  visit("train_only", o.train_only, "pattern of the only parameters that are trained");
  visit("decay_gains", o.decay_gains, "decay the norms' gains too");
  visit("seed", o.seed, "of weights, data and dropout");
  visit("device", o.device, "cpu, cuda, cuda:N, or best: a GPU where there is one");
  visit("precision", o.precision, "fp32, tf32, bf16 or fp16: what products are rounded to");
  visit("eval_every", o.eval_every, "steps between validations");
  visit("checkpoint_every", o.checkpoint_every,
        "steps between checkpoints; the best validation so far has one too");
}

/// The options as JSON, one key a line, in their order.
std::string to_json(const TrainOptions& options);
/// Sets what the JSON object names and leaves the rest. `where` stands in errors: ValueError for
/// what is no object, for an unknown key (naming the nearest one) and for a value of another type.
void set_from_json(TrainOptions& options, std::string_view json, std::string_view where);
/// ValueError for settings that no run can have, naming the mend.
void require_possible(const TrainOptions& options);
/// The known word with the fewest letters to change, or "" where none is near: for error messages.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace norma::nn
