#pragma once

#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "norma/core/capture.h"
#include "norma/core/captured_call.h"
#include "norma/core/cuda/graph.h"
#include "norma/core/op.h"
#include "norma/core/random.h"

// How captured functions work inside: capture.cpp runs, records and replays them, captured_call.cpp
// watches a run and compares its trace with the captured one's.
namespace norma::detail {

constexpr size_t kValueBytes = 4096;  // for what the host works out for each call, of all kinds
constexpr uint32_t kAbsent = ~uint32_t{0};

std::string described(const TensorSpec& spec);  ///< float32 (2, 3)

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

  /// Puts the arguments' values, and the slots themselves, in the arguments' places.
  void fill_slots(const std::vector<Tensor*>& arguments);
  void require_slots_free();
  void require_gradients_in_place() const;
  void run(CapturedBody& body);  ///< the function itself; from the second call on a GPU recorded
  void replay(CapturedBody& body);
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

  // What happened.
  void applied(const OpInfo& op, const Call& call);
  void wrote(std::string_view name, const Tensor& target, const Tensor& source, double value);
  void gradient_found(Leaf& leaf);

  // For errors: which op made a tensor of the call, empty where none did.
  void label(const Tensor& t, std::string_view maker);
  std::string_view maker(const Tensor& t) const;

  // As in captured_call.h.
  const void* value(size_t bytes, std::function<void(void*)> now);
  void before_each_replay(const Tensor& t, std::function<void()> f);
  void require_capturable(std::string_view name, std::span<const Tensor* const> inputs) const;
  void require_drawable(std::string_view where) const;

  // After it ran: it did all that the captured one did, and nothing of it lives on but `kept`.
  void require_whole_trace() const;
  void require_no_escape(const std::vector<Tensor>& kept) const;

  static constexpr std::string_view kGradient = "backward";

 private:
  struct Label {
    std::string_view maker = {};
    TensorSpec spec = {};
  };

  static bool shares_storage(const Tensor& y, const Call& call);
  void require_no_gpu(std::string_view name) const;  ///< what the processor does is not replayed

  void hold(const Tensor& t) { entry_.outside.emplace(t.storage().get(), t.storage()); }

  Seen seen(const Tensor& t);
  /// Storages of the call are told apart in the order in which the trace sees them. Not by birth:
  /// what a kernel on the processor allocates for itself may depend on the values.
  uint32_t number_of(const Storage& storage);
  bool is_slot(const Tensor& t) const;

  void take(Event event, const void* options);

  /// What the first call did once and for all (tables, an optimizer's state) the second may leave
  /// out; but an op that it adds comes from a branch.
  void find_in_first(const Event& event);
  void compare(const Event& now, const void* options) const;
  static void compare(std::string_view name, size_t i, const Seen& was, const Seen& now);

  CaptureEngine::Entry& entry_;
  std::vector<Label> labels_;      // by birth
  std::vector<uint32_t> numbers_;  // by birth
  uint32_t numbered_ = 0;
  size_t position_ = 0;  // in the trace that this one is compared with
};

}  // namespace norma::detail
