#include "norma/core/capture.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "norma/core/autocast.h"
#include "norma/core/captured_call.h"
#include "norma/core/cuda/allocator.h"
#include "norma/core/cuda/graph.h"
#include "norma/core/op.h"
#include "norma/core/random.h"

namespace norma::detail {

constinit thread_local CapturedCall* captured_call = nullptr;
constinit thread_local int kernel_depth = 0;

namespace {

constexpr size_t kManyKinds = 32;     // of arguments; more are rarely meant, and each is captured
constexpr size_t kValueBytes = 4096;  // for what the host works out for each call, of all kinds
constexpr uint32_t kAbsent = ~uint32_t{0};

std::string described(const TensorSpec& spec) {
  return format("{} {}", to_string(spec.dtype), spec.shape);
}

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

/// One tensor that an operation of the trace saw.
struct Seen {
  const Storage* outside = nullptr;  // made before the call
  uint32_t number = kAbsent;         // the how manyth storage of the call that the trace saw
  TensorSpec spec = {};
  bool requires_grad = false;
  bool operator==(const Seen&) const = default;
};

/// One operation of the trace: an op, or a write in place.
struct Event {
  const OpInfo* op = nullptr;
  std::string_view name = {};
  std::shared_ptr<const void> options = nullptr;
  double value = 0;
  std::vector<Seen> seen = {};
};

}  // namespace

/// What is known of arguments of one kind.
struct CaptureEngine::Entry {
  struct Gradient {
    Ref<Node> leaf;
    const Storage* storage;
  };

  std::vector<Tensor> slots;
  std::vector<std::string> paths;
  Device device = cpu;
  int64_t calls = 0;  // that succeeded
  std::vector<Event> first, trace;
  std::string result_structure;
  std::vector<Gradient> gradients;  // that the trace found and changed in place
  std::unordered_map<const Storage*, Ref<Storage>> outside;  // so that no address is used again
  std::shared_ptr<const CudaGraph> graph;
  std::shared_ptr<const void> own_result;  // the graph's
  bool checks = false;                     // on a GPU too: no graph, every trace is compared

  // What the host works out for each call: the call number, then what value_each_call was given. On
  // a GPU a copy stands in `on_device`.
  struct Value {
    size_t first, bytes;
    std::function<void(void*)> now;
  };
  alignas(16) std::array<std::byte, kValueBytes> values{};
  size_t value_bytes = 16;
  std::vector<Value> each_call;
  Tensor on_device;

  const uint32_t* call_word() const {
    return static_cast<const uint32_t*>(on_device.defined() ? on_device.data() : values.data());
  }
  void set_call(uint32_t call) { std::memcpy(values.data(), &call, sizeof call); }
  void send_values() const {
    if constexpr (kBuiltWithCuda)
      if (on_device.defined()) cuda_write(on_device.data(), values.data(), value_bytes, device);
  }

  void require_gradients_in_place() const {
    for (const Gradient& g : gradients) {
      const Tensor& grad = static_cast<const Leaf*>(g.leaf.get())->grad;
      if (!grad.defined() || grad.storage().get() != g.storage)
        throw GraphError(
            "capture: gradients must stay where the captured call found them, but that of a {} "
            "leaf was dropped or made anew; call zero_grad() inside the captured function",
            described(g.leaf->outputs[0]));
    }
  }

  void fill_slots(const std::vector<Tensor*>& arguments) {
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

  void run(CapturedBody& body);
  void replay(CapturedBody& body);

  void require_slots_free() {
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
};

/// Sees one run of the function: what it makes, and the trace of what it does.
class CapturedCall final : public StorageWatch {
 public:
  explicit CapturedCall(CaptureEngine::Entry& entry) : entry_(entry) {}

  /// Lives while the function runs.
  class Running final : public Observer {
   public:
    explicit Running(CapturedCall& call) : call_(call), ours_(ambient_generator().is_ours()) {
      CaptureEngine::Entry& entry = call.entry_;
      entry.each_call.clear(), entry.value_bytes = 16;
      if (ours_) {
        ambient_generator().begin_call(call.is_replayed() ? entry.call_word() : nullptr);
        entry.set_call(ambient_generator().state().call);
      }
      captured_call = &call;
      call.begin();
    }
    ~Running() override {
      call_.end();
      captured_call = nullptr;
      if (ours_) ambient_generator().end_call();
    }
    void applied(const OpInfo& op, const Call& call) override { call_.applied(op, call); }
    void differentiated(const Node&, const Node::Gradients&) override {}
    void wrote(std::string_view name, const Tensor& target, const Tensor& source,
               double value) override {
      call_.wrote(name, target, source, value);
    }

   private:
    CapturedCall& call_;
    bool ours_;
  };

  bool is_replayed() const { return entry_.calls > 0; }

  void label(const Tensor& t, std::string_view maker) {
    const uint32_t birth = t.storage()->birth();
    if (labels_.size() <= birth) labels_.resize(birth + 1);
    labels_[birth] = {maker, t.spec()};
  }
  const void* value(size_t bytes, std::function<void(void*)> now) {
    if (!entry_.on_device.defined()) return nullptr;
    const size_t first = entry_.value_bytes;
    if (first + bytes > kValueBytes)
      throw GraphError("capture: the values for each call must fit into {} bytes", kValueBytes);
    entry_.value_bytes = (first + bytes + 15) / 16 * 16;
    now(entry_.values.data() + first);
    entry_.each_call.push_back({first, bytes, std::move(now)});
    if (entry_.checks) entry_.send_values();
    return static_cast<const std::byte*>(entry_.on_device.data()) + first;
  }

  void before_each_replay(const Tensor& t, std::function<void()> f) {
    if (entry_.on_device.defined() && !made(*t.storage()) && !is_slot(t))
      entry_.each_call.push_back({0, 0, [f = std::move(f)](void*) { f(); }});
  }

  std::string_view maker(const Tensor& t) const {
    if (!made(*t.storage())) return {};
    const uint32_t birth = t.storage()->birth();
    return birth < labels_.size() ? labels_[birth].maker : std::string_view();
  }

  void applied(const OpInfo& op, const Call& call) {
    bool on_cpu = false;
    for (const Tensor& y : call.outputs) {
      if (!y.defined()) continue;
      if (y.device().is_cuda() && !is_replayed()) entry_.device = y.device();
      on_cpu = on_cpu || y.device().is_cpu();
      if (!made(*y.storage())) continue;
      number_of(*y.storage());
      if (!shares_storage(y, call)) label(y, op.name);
    }
    if (on_cpu) require_no_gpu(op.name);
    Event event{.op = &op, .name = op.name};
    for (const Tensor* t : call.inputs) event.seen.push_back(seen(*t));
    if (op.copy_options && entry_.calls == 1)
      event.options = std::shared_ptr<const void>(
          op.copy_options(call.options),
          [&op](const void* options) { op.free_options(const_cast<void*>(options)); });
    take(std::move(event), call.options);
  }
  void require_capturable(std::string_view name, std::span<const Tensor* const> inputs) const {
    for (const Tensor* t : inputs)
      if (t->defined() && t->device().is_cpu()) require_no_gpu(name);
  }
  void require_drawable(std::string_view where) const {
    if (entry_.on_device.defined())
      throw GraphError(
          "{}: a function captured on {} must work there alone, but random tensors are made on "
          "cpu; draw before the call and pass the tensor, or use dropout()",
          where, entry_.device);
  }
  void wrote(std::string_view name, const Tensor& target, const Tensor& source, double value) {
    if (target.device().is_cpu() || (source.defined() && source.device().is_cpu()))
      require_no_gpu(name);
    if (target.device().is_cuda() && !is_replayed()) entry_.device = target.device();
    Event event{.name = name, .value = value};
    event.seen.push_back(seen(target));
    event.seen.push_back(seen(source));
    take(std::move(event), nullptr);
  }

  void gradient_found(Leaf& leaf) {
    if (entry_.calls != 1) return;
    for (const auto& g : entry_.gradients)
      if (g.leaf.get() == &leaf) return;
    hold(leaf.grad);
    entry_.gradients.push_back({Ref<Node>(&leaf), leaf.grad.storage().get()});
  }

  void require_whole_trace() const {
    if (entry_.calls < 2 || position_ == entry_.trace.size()) return;
    throw GraphError(
        "capture: every call must do what the captured one did, but this one ended where that went "
        "on with {}; make what decides it an argument",
        entry_.trace[position_].name);
  }

  void require_no_escape(const std::vector<Tensor>& kept) const {
    if (!is_replayed()) return;
    const auto stays = [&](const Storage* storage) {
      return std::any_of(kept.begin(), kept.end(),
                         [&](const Tensor& t) { return t.storage().get() == storage; });
    };
    for (size_t i = storages().size(); i-- > 0;) {
      if (!storages()[i] || stays(storages()[i])) continue;
      const Label label = i < labels_.size() ? labels_[i] : Label{};
      if (label.maker == kGradient)
        throw GraphError(
            "capture: a gradient made in the captured function must not outlive the call, but that "
            "of a {} leaf does; call zero_grad() inside, last or first",
            described(label.spec));
      if (label.maker.empty())
        throw GraphError(
            "capture: a tensor made in the captured function must not outlive the call, but one of "
            "{} bytes does; return it, or copy_() it into a tensor from outside",
            storages()[i]->bytes());
      throw GraphError(
          "capture: a tensor made in the captured function must not outlive the call, but a {} "
          "made by {} does; return it, or copy_() it into a tensor from outside",
          described(label.spec), label.maker);
    }
  }

  static constexpr std::string_view kGradient = "backward";

 private:
  struct Label {
    std::string_view maker = {};
    TensorSpec spec = {};
  };

  static bool shares_storage(const Tensor& y, const Call& call) {
    for (const Tensor* x : call.inputs)
      if (x->defined() && x->storage() == y.storage()) return true;
    return false;
  }

  /// What the processor does is not replayed.
  void require_no_gpu(std::string_view name) const {
    if (is_replayed() && entry_.device.is_cuda())
      throw GraphError(
          "{}: a function captured on {} must work there alone, but this is on cpu and would not "
          "be replayed; move what it needs to {} before the call",
          name, entry_.device, entry_.device);
  }

  void hold(const Tensor& t) { entry_.outside.emplace(t.storage().get(), t.storage()); }

  Seen seen(const Tensor& t) {
    if (!t.defined()) return {};
    Seen s{.spec = t.spec(), .requires_grad = t.requires_grad()};
    if (made(*t.storage())) {
      s.number = number_of(*t.storage());
    } else {
      s.outside = t.storage().get();
      if (entry_.calls == 1 && !is_slot(t)) hold(t);
    }
    return s;
  }
  /// Storages of the call are told apart in the order in which the trace sees them. Not by birth:
  /// what a kernel on the processor allocates for itself may depend on the values.
  uint32_t number_of(const Storage& storage) {
    const uint32_t birth = storage.birth();
    if (numbers_.size() <= birth) numbers_.resize(birth + 1, kAbsent);
    if (numbers_[birth] == kAbsent) numbers_[birth] = numbered_++;
    return numbers_[birth];
  }
  bool is_slot(const Tensor& t) const {
    for (const Tensor& slot : entry_.slots)
      if (slot.storage() == t.storage()) return true;
    return false;
  }

  void take(Event event, const void* options) {
    if (entry_.calls == 0) {
      entry_.first.push_back(std::move(event));
    } else if (entry_.calls == 1) {
      find_in_first(event);
      entry_.trace.push_back(std::move(event));
    } else {
      compare(event, options);
      ++position_;
    }
  }

  /// What the first call did once and for all (tables, an optimizer's state) the second may leave
  /// out; but an op that it adds comes from a branch.
  void find_in_first(const Event& event) {
    if (!event.op) return;  // gradients are added to, not made, from the second call on
    for (; position_ < entry_.first.size(); ++position_) {
      const Event& was = entry_.first[position_];
      if (was.op != event.op || was.seen.size() != event.seen.size()) continue;
      bool same = true;
      for (size_t i = 0; i < was.seen.size(); ++i)
        same = same && was.seen[i].spec == event.seen[i].spec;
      if (!same) continue;
      ++position_;
      return;
    }
    throw GraphError(
        "capture: the second call must do what the first did, but it has one more {}; make what "
        "decides it an argument",
        event.name);
  }

  void compare(const Event& now, const void* options) const {
    if (position_ >= entry_.trace.size())
      throw GraphError(
          "capture: every call must do what the captured one did, but this one goes on with {} "
          "where that ended; make what decides it an argument",
          now.name);
    const Event& was = entry_.trace[position_];
    if (was.op != now.op || was.name != now.name || was.seen.size() != now.seen.size())
      throw GraphError(
          "capture: every call must do what the captured one did, but this one does {} where that "
          "did {}; make what decides it an argument",
          now.name, was.name);
    for (size_t i = 0; i < now.seen.size(); ++i) compare(now.name, i, was.seen[i], now.seen[i]);
    if (was.value != now.value)
      throw GraphError(
          "capture: {} must write the same values at every call, but they differ from the captured "
          "call's; pass what changes as an argument or in a tensor",
          now.name);
    if (now.op && now.op->same_options && !now.op->same_options(was.options.get(), options))
      throw GraphError(
          "capture: {} must have the same options at every call, but they differ from the captured "
          "call's; pass what changes as an argument or in a tensor",
          now.name);
  }

  static void compare(std::string_view name, size_t i, const Seen& was, const Seen& now) {
    if (was == now) return;
    if (was.spec != now.spec)
      throw GraphError(
          "capture: {} must see the same shapes at every call, but its input {} is {}, and was {} "
          "in the captured call",
          name, i, described(now.spec), described(was.spec));
    if (was.requires_grad != now.requires_grad)
      throw GraphError(
          "capture: {} must see the same graph at every call, but its input {}, a {}, {} in the "
          "captured call; set requires_grad before the first one",
          name, i, described(now.spec),
          was.requires_grad ? "required a gradient" : "required no gradient");
    throw GraphError(
        "capture: {} must read the same tensors at every call, but its input {}, a {}, was another "
        "one in the captured call; copy_() new values into the old tensor, or make it an argument",
        name, i, described(now.spec));
  }

  CaptureEngine::Entry& entry_;
  std::vector<Label> labels_;      // by birth
  std::vector<uint32_t> numbers_;  // by birth
  uint32_t numbered_ = 0;
  size_t position_ = 0;  // in the trace that this one is compared with
};

bool is_replayed() { return captured_call && captured_call->is_replayed(); }
bool made_in_captured_call(const Tensor& t) {
  return captured_call && captured_call->made(*t.storage());
}

void forbid_host_read_slow(std::string_view where, const Tensor& t) {
  if (kernel_depth > 0 || !captured_call->is_replayed()) return;
  const std::string_view maker = captured_call->maker(t);
  throw GraphError(
      "{}: a captured function must leave values on the device, but this reads a {} {}{}; return "
      "it and read the copy",
      where, described(t.spec()), maker.empty() ? "from outside" : "made by ", maker);
}

void require_capturable(std::string_view name, std::span<const Tensor* const> inputs) {
  captured_call->require_capturable(name, inputs);
}
void require_drawable(std::string_view where) {
  if (captured_call) captured_call->require_drawable(where);
}

bool gradient_stays(Leaf& leaf) {
  if (!captured_call || !leaf.grad.defined() || made_in_captured_call(leaf.grad)) return false;
  captured_call->gradient_found(leaf);
  return true;
}
void label_gradient(const Tensor& grad) {
  if (made_in_captured_call(grad)) captured_call->label(grad, CapturedCall::kGradient);
}

const void* value_each_call(size_t bytes, std::function<void(void*)> now) {
  return captured_call->value(bytes, std::move(now));
}

void before_each_replay(const Tensor& t, std::function<void()> f) {
  if (captured_call) captured_call->before_each_replay(t, std::move(f));
}

OutsideCapturedCall::OutsideCapturedCall() : watch_(StorageWatch::exchange(nullptr)) {
  if constexpr (kBuiltWithCuda) pool_ = exchange_pool(nullptr);
}
OutsideCapturedCall::~OutsideCapturedCall() {
  StorageWatch::exchange(watch_);
  if constexpr (kBuiltWithCuda) exchange_pool(pool_);
}

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
