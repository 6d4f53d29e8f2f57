#include "norma/nn/profiler.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "norma/core/format.h"

namespace norma::nn {
namespace {

constexpr std::string_view kViews[] = {"expand", "permute", "reshape", "slice", "split"};
bool is_view(const OpInfo& op, const Call& call) {
  if (std::find(std::begin(kViews), std::end(kViews), op.name) == std::end(kViews)) return false;
  for (const Tensor& y : call.outputs)  // a reshape may copy
    if (y.defined() && y.storage() != call.inputs[0]->storage()) return false;
  return true;
}
double bytes_of(const Call& call) {
  double bytes = 0;
  const auto add = [&](const Tensor& t) {
    if (t.defined()) bytes += static_cast<double>(t.numel() * size_of(t.dtype()));
  };
  for (const Tensor* t : call.inputs) add(*t);
  for (const Tensor& t : call.outputs) add(t);
  return bytes;
}

}  // namespace

Profiler::Profiler(Device device) : device_(device), last_(Clock::now()), begin_(last_) {
  if constexpr (kBuiltWithCuda)
    if (device.is_cuda()) timer_ = std::make_shared<norma::detail::CudaTimer>(device);
}
Profiler::~Profiler() = default;

void Profiler::begin_step() {
  synchronize(device_);
  begin_ = last_ = Clock::now();
  if constexpr (kBuiltWithCuda)
    if (timer_) timer_->delay(1.2 * host_seconds_), timer_->mark();
}

void Profiler::mark(std::string_view name, double bytes, double calls) {
  marks_.push_back({name, calls, bytes});
  if constexpr (kBuiltWithCuda)
    if (timer_) return timer_->mark();
  const Clock::time_point now = Clock::now();
  seconds_.push_back(std::chrono::duration<double>(now - last_).count());
  last_ = now;
}

void Profiler::applying(const OpInfo&) {
  // What the op around this one has done up to here is its own.
  if (current_op() != kNoOp) mark(current_op(), 0, 0);
}
void Profiler::applied(const OpInfo& op, const Call& call) {
  if (!is_view(op, call)) mark(op.name, bytes_of(call));
}
void Profiler::differentiated(const Node& node, const Node::Gradients&) {
  // What a node does beyond its ops: sums of gradients that meet, on the processor also the sweep.
  if (device_.is_cpu() || node.inputs.empty()) mark("(engine)");
}

void Profiler::end_step() {
  host_seconds_ = std::chrono::duration<double>(Clock::now() - begin_).count();
  if constexpr (kBuiltWithCuda)
    if (timer_) seconds_ = timer_->take();
  const bool counts = device_.is_cpu() || primed_;  // the first tells how far ahead to get
  primed_ = true;
  for (size_t i = 0; counts && i < marks_.size(); ++i) {
    Row& row = rows_[std::string(marks_[i].name)];
    row.calls += marks_[i].calls, row.seconds += seconds_[i], row.bytes += marks_[i].bytes;
  }
  marks_.clear();
  seconds_.clear();
  steps_ += counts;
}

std::vector<Profiler::Row> Profiler::rows() const {
  std::vector<Row> rows;
  const double steps = std::max<double>(1, static_cast<double>(steps_));
  for (const auto& [name, row] : rows_)
    rows.push_back({name, row.calls / steps, row.seconds / steps, row.bytes / steps});
  std::sort(rows.begin(), rows.end(),
            [](const Row& a, const Row& b) { return a.seconds > b.seconds; });
  return rows;
}

double Profiler::step_seconds() const {
  double sum = 0;
  for (const Row& row : rows()) sum += row.seconds;
  return sum;
}

std::string Profiler::table() const {
  const double whole = step_seconds();
  std::string text = format("{:<28} {:>10} {:>7} {:>7} {:>10} {:>9}\n", "op", "ms a step", "share",
                            "calls", "MB", "GB/s");
  for (const Row& r : rows())
    text += format("{:<28} {:>10.3f} {:>6.1f}% {:>7.0f} {:>10.1f} {:>9.0f}\n", r.name,
                   1e3 * r.seconds, 100 * r.seconds / whole, r.calls, r.bytes / 1e6,
                   r.seconds > 0 ? r.bytes / r.seconds / 1e9 : 0);
  text += format("{:<28} {:>10.3f}\n", "a step", 1e3 * whole);
  return text;
}

}  // namespace norma::nn
