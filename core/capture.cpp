#include "norma/core/capture.h"

#include <cstdio>
#include <cstdlib>

#include "norma/core/autocast.h"
#include "norma/core/capture_engine.h"
#include "norma/core/cuda/allocator.h"

namespace norma::detail {
namespace {

constexpr size_t kManyKinds = 32;  // of arguments; more are rarely meant, and each is captured

/// Writes the key of arguments and finds their tensors.
class KeyWriter final : public PartVisitor {
 public:
  void tensor(Tensor& t) override {
    if (!t.defined()) return add("absent");
    const TensorSpec spec = t.spec();
    const int64_t head[] = {spec.shape.dim(), static_cast<int64_t>(spec.dtype),
                            static_cast<int64_t>(spec.device.kind), spec.device.index,
                            t.requires_grad()};
    plain(head, sizeof head);
    plain(spec.shape.begin(), sizeof(int64_t) * static_cast<size_t>(spec.shape.dim()));
    tensors.push_back(&t);
  }
  void plain(const void* bytes, size_t n) override {
    key.append(static_cast<const char*>(bytes), n);
  }

  std::string key;
  std::vector<Tensor*> tensors;

 private:
  void add(std::string_view text) { key += text; }
};

/// The place of every tensor among the arguments: "argument 0", "argument 1.2.inputs".
class PathWriter final : public PartVisitor {
 public:
  void tensor(Tensor& t) override {
    if (t.defined()) paths.push_back("argument " + path_);
  }
  void plain(const void*, size_t) override {}
  void enter(std::string_view name) override {
    lengths_.push_back(path_.size());
    if (!path_.empty()) path_ += '.';
    path_ += name;
  }
  void leave() override {
    path_.resize(lengths_.back());
    lengths_.pop_back();
  }
  std::vector<std::string> paths;

 private:
  std::string path_;
  std::vector<size_t> lengths_;
};

class ResultReader final : public PartVisitor {
 public:
  void tensor(Tensor& t) override {
    plain(&(t.defined() ? "t" : "-")[0], 1);
    if (t.defined()) tensors.push_back(&t);
  }
  void plain(const void* bytes, size_t n) override {
    structure.append(static_cast<const char*>(bytes), n);
  }
  std::vector<Tensor*> tensors;
  std::string structure;
};

}  // namespace

CaptureEngine::CaptureEngine() = default;
CaptureEngine::~CaptureEngine() = default;
CaptureEngine::CaptureEngine(CaptureEngine&&) noexcept = default;
CaptureEngine& CaptureEngine::operator=(CaptureEngine&&) noexcept = default;

void CaptureEngine::call(CapturedBody& body) {
  if (captured_call)
    throw GraphError(
        "capture: a captured function must not be called inside another, but is; call the plain "
        "function there");
  KeyWriter key;
  body.visit_arguments(key);
  const int64_t around[] = {is_grad_enabled(), static_cast<int64_t>(Autocast::current())};
  key.plain(around, sizeof around);
  std::unique_ptr<Entry>& owner = entries_[key.key];
  if (!owner) {
    owner = std::make_unique<Entry>();
    const char* checks = std::getenv("NORMA_CHECK_CAPTURE");
    owner->checks = checks && std::string_view(checks) == "1";
    PathWriter paths;
    body.visit_arguments(paths);
    owner->paths = std::move(paths.paths);
    if (entries_.size() == kManyKinds)
      std::fprintf(stderr,
                   "norma: capture: %zu kinds of arguments so far, and each is captured for "
                   "itself; a number that changes from call to call belongs into a tensor\n",
                   kManyKinds);
  }
  Entry& entry = *owner;
  entry.require_gradients_in_place();
  entry.fill_slots(key.tensors);
  if (entry.graph)
    entry.replay(body);
  else
    entry.run(body);
}

std::string CaptureEngine::graph_nodes() const {
  std::string tables;
  if constexpr (kBuiltWithCuda)
    for (const auto& [key, entry] : entries_)
      if (entry->graph) tables += detail::graph_nodes(*entry->graph);
  return tables;
}

namespace {

/// Every tensor of the result becomes a copy without history.
void copy_out(const std::vector<Tensor*>& result) {
  const NoGrad plain;
  for (Tensor* t : result) {
    Tensor copy = empty(t->spec());
    copy_elements(*t, copy);
    *t = copy;
  }
}

}  // namespace

void CaptureEngine::Entry::require_gradients_in_place() const {
  for (const Gradient& g : gradients) {
    const Tensor& grad = static_cast<const Leaf*>(g.leaf.get())->grad;
    if (!grad.defined() || grad.storage().get() != g.storage)
      throw GraphError(
          "capture: gradients must stay where the captured call found them, but that of a {} "
          "leaf was dropped or made anew; call zero_grad() inside the captured function",
          described(g.leaf->outputs[0]));
  }
}

void CaptureEngine::Entry::fill_slots(const std::vector<Tensor*>& arguments) {
  const NoGrad plain;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Tensor& argument = *arguments[i];
    if (!argument.is_leaf())
      throw GraphError(
          "capture: {} must be without history, but {} made it under recording; detach() it "
          "first",
          paths[i], argument.impl().node->name());
    if (i == slots.size()) {  // also where an earlier call threw at this argument
      slots.push_back(empty(argument.spec()));
      if (argument.device().is_cuda()) device = argument.device();
    }
    const Tensor& slot = slots[i];
    copy_elements(argument, slot);
    slot.storage()->bump_version();
    slot.impl().node.reset();
    slot.impl().requires_grad = argument.requires_grad();
    *arguments[i] = slot;
  }
}

void CaptureEngine::Entry::require_slots_free() {
  for (size_t i = 0; i < slots.size(); ++i) {
    const Tensor& slot = slots[i];
    if (slot.impl().use_count() == 1 && slot.storage()->use_count() == 1) continue;
    slots.clear();  // whoever keeps it may have it
    throw GraphError(
        "capture: {} must not be kept after the call, but a tensor or a graph still refers to "
        "it; clone() what is to stay",
        paths[i]);
  }
}

void CaptureEngine::Entry::run(CapturedBody& body) {
  if (calls == 0) first.clear();
  if (calls == 1) trace.clear(), gradients.clear(), outside.clear();
  if (calls > 0 && device.is_cuda() && !on_device.defined())
    on_device = empty({int64_t{kValueBytes}}, bool_, device);
  const bool records = calls > 0 && device.is_cuda() && !checks;

  CapturedCall call(*this);
  std::vector<Tensor> kept;
  const auto work = [&] {
    const CapturedCall::Running running(call);
    if (!records) send_values();
    body.run();
    if (!records) return;
    // The graph's own results: none may be a place that someone else writes to.
    ResultReader parts;
    body.visit_result(parts);
    for (Tensor* t : parts.tensors) {
      if (made_in_captured_call(*t))
        *t = t->detach();
      else
        copy_out({t});
      kept.push_back(*t);
    }
  };
  std::shared_ptr<const CudaGraph> recorded;
  if constexpr (kBuiltWithCuda)
    if (records) {
      empty_cache(device);  // the plain call's memory: the graph has its own
      recorded = record_graph(device, work);
    }
  if (!records) work();

  call.require_whole_trace();
  ResultReader result;
  body.visit_result(result);
  if (calls == 1) result_structure = result.structure;
  if (calls > 1 && result_structure != result.structure)
    throw GraphError(
        "capture: the result must have the same parts at every call, but an optional or a vector "
        "in it differs from the captured call's; make what decides it an argument");
  std::shared_ptr<const void> own = records ? body.keep_result() : nullptr;
  if (!records) copy_out(result.tensors);
  for (const Tensor& slot : slots) slot.impl().node.reset();
  call.require_no_escape(kept);
  require_slots_free();
  if (calls == 1) first.clear();
  ++calls;
  if (!records) return;
  graph = std::move(recorded);
  own_result = std::move(own);
  if constexpr (kBuiltWithCuda) {
    send_values();
    launch_graph(*graph);
  }
  copy_out(result.tensors);
}

void CaptureEngine::Entry::replay(CapturedBody& body) {
  Generator& generator = ambient_generator();
  if (generator.is_ours()) {
    generator.begin_call();
    set_call(generator.state().call);
    generator.end_call();
  }
  for (const Value& value : each_call) value.now(values.data() + value.first);
  if constexpr (kBuiltWithCuda) {
    send_values();
    launch_graph(*graph);
  }
  body.restore_result(own_result.get());
  ResultReader parts;
  body.visit_result(parts);
  copy_out(parts.tensors);
  ++calls;
}

}  // namespace norma::detail
