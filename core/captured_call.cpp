#include "norma/core/captured_call.h"

#include <algorithm>

#include "norma/core/capture_engine.h"
#include "norma/core/cuda/allocator.h"

namespace norma::detail {

constinit thread_local CapturedCall* captured_call = nullptr;
constinit thread_local int kernel_depth = 0;

std::string described(const TensorSpec& spec) {
  return format("{} {}", to_string(spec.dtype), spec.shape);
}

void CapturedCall::label(const Tensor& t, std::string_view maker) {
  const uint32_t birth = t.storage()->birth();
  if (labels_.size() <= birth) labels_.resize(birth + 1);
  labels_[birth] = {maker, t.spec()};
}

const void* CapturedCall::value(size_t bytes, std::function<void(void*)> now) {
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

void CapturedCall::before_each_replay(const Tensor& t, std::function<void()> f) {
  if (entry_.on_device.defined() && !made(*t.storage()) && !is_slot(t))
    entry_.each_call.push_back({0, 0, [f = std::move(f)](void*) { f(); }});
}

std::string_view CapturedCall::maker(const Tensor& t) const {
  if (!made(*t.storage())) return {};
  const uint32_t birth = t.storage()->birth();
  return birth < labels_.size() ? labels_[birth].maker : std::string_view();
}

void CapturedCall::applied(const OpInfo& op, const Call& call) {
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

void CapturedCall::require_capturable(std::string_view name,
                                      std::span<const Tensor* const> inputs) const {
  for (const Tensor* t : inputs)
    if (t->defined() && t->device().is_cpu()) require_no_gpu(name);
}

void CapturedCall::require_drawable(std::string_view where) const {
  if (entry_.on_device.defined())
    throw GraphError(
        "{}: a function captured on {} must work there alone, but random tensors are made on "
        "cpu; draw before the call and pass the tensor, or use dropout()",
        where, entry_.device);
}

void CapturedCall::wrote(std::string_view name, const Tensor& target, const Tensor& source,
                         double value) {
  if (target.device().is_cpu() || (source.defined() && source.device().is_cpu()))
    require_no_gpu(name);
  if (target.device().is_cuda() && !is_replayed()) entry_.device = target.device();
  Event event{.name = name, .value = value};
  event.seen.push_back(seen(target));
  event.seen.push_back(seen(source));
  take(std::move(event), nullptr);
}

void CapturedCall::gradient_found(Leaf& leaf) {
  if (entry_.calls != 1) return;
  for (const auto& g : entry_.gradients)
    if (g.leaf.get() == &leaf) return;
  hold(leaf.grad);
  entry_.gradients.push_back({Ref<Node>(&leaf), leaf.grad.storage().get()});
}

void CapturedCall::require_whole_trace() const {
  if (entry_.calls < 2 || position_ == entry_.trace.size()) return;
  throw GraphError(
      "capture: every call must do what the captured one did, but this one ended where that went "
      "on with {}; make what decides it an argument",
      entry_.trace[position_].name);
}

void CapturedCall::require_no_escape(const std::vector<Tensor>& kept) const {
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

void CapturedCall::require_no_gpu(std::string_view name) const {
  if (is_replayed() && entry_.device.is_cuda())
    throw GraphError(
        "{}: a function captured on {} must work there alone, but this is on cpu and would not "
        "be replayed; move what it needs to {} before the call",
        name, entry_.device, entry_.device);
}

Seen CapturedCall::seen(const Tensor& t) {
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

uint32_t CapturedCall::number_of(const Storage& storage) {
  const uint32_t birth = storage.birth();
  if (numbers_.size() <= birth) numbers_.resize(birth + 1, kAbsent);
  if (numbers_[birth] == kAbsent) numbers_[birth] = numbered_++;
  return numbers_[birth];
}

bool CapturedCall::is_slot(const Tensor& t) const {
  for (const Tensor& slot : entry_.slots)
    if (slot.storage() == t.storage()) return true;
  return false;
}

void CapturedCall::take(Event event, const void* options) {
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

void CapturedCall::find_in_first(const Event& event) {
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

void CapturedCall::compare(const Event& now, const void* options) const {
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

void CapturedCall::compare(std::string_view name, size_t i, const Seen& was, const Seen& now) {
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

bool CapturedCall::shares_storage(const Tensor& y, const Call& call) {
  for (const Tensor* x : call.inputs)
    if (x->defined() && x->storage() == y.storage()) return true;
  return false;
}

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

}  // namespace norma::detail
