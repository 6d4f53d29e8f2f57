#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "norma/core/cuda/side_stream.h"
#include "norma/core/cuda/timer.h"
#include "norma/core/op.h"

namespace norma::nn {

/// Where a step's time goes: while one lives, each op of its thread is timed, by the clock on the
/// processor, by events on a GPU. An op inside another counts for itself, not for the outer one.
class Profiler final : public Observer {
 public:
  explicit Profiler(Device device);
  ~Profiler() override;

  /// A step lies between the two. On a GPU the stream is held up meanwhile until the host is ahead,
  /// so that its launches are no part of the times; the first step tells for how long, and does not
  /// count.
  void begin_step();
  void end_step();
  /// What has passed since the last op or mark was `name`.
  void mark(std::string_view name, double bytes = 0, double calls = 1);

  void applying(const OpInfo& op) override;
  void applied(const OpInfo& op, const Call& call) override;
  void differentiated(const Node& node, const Node::Gradients& gradients) override;

  struct Row {
    std::string name;
    double calls = 0, seconds = 0, bytes = 0;  ///< of a step
  };
  /// The longest first.
  std::vector<Row> rows() const;
  double step_seconds() const;
  /// The rows as text: time, share of the step, calls, bytes (those of the op's arguments and
  /// results, the fewest that it can move) and what they make a second.
  std::string table() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct Mark {
    std::string_view name;
    double calls, bytes;
  };
  norma::detail::OneStream one_after_the_other_;
  Device device_;
  std::shared_ptr<norma::detail::CudaTimer> timer_;  // shared: a CPU build cannot delete one
  std::vector<Mark> marks_;
  std::vector<double> seconds_;  // on the processor
  Clock::time_point last_, begin_;
  double host_seconds_ = 0;  // of the last step
  std::map<std::string, Row, std::less<>> rows_;
  int64_t steps_ = 0;
  bool primed_ = false;
};

}  // namespace norma::nn
