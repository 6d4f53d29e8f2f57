#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace norma::nn {

/// One line of metrics.csv.
struct Metrics {
  int64_t step = 0;
  double loss = 0;                        ///< mean over the step's counted tokens, in nats
  std::optional<double> validation = {};  ///< loss on the validation part
  double grad_norm = 0;                   ///< before clipping
  double lr = 0;
  double tokens_per_second = 0;
};

/// The folder of a run: config.json, metrics.csv, step-N.safetensors (the last two and the best),
/// curves.png. Every file appears whole or not at all, metrics.csv excepted: it grows line by line,
/// and a resumed run cuts it back to its checkpoint.
class RunFolder {
 public:
  /// Makes the folder. IOError where one with a run in it is already there.
  static RunFolder create(const std::string& path);
  /// Opens what create made. IOError where there is no run.
  static RunFolder open(const std::string& path);

  const std::string& path() const { return path_; }
  std::string config_path() const { return path_ + "/config.json"; }
  std::string metrics_path() const { return path_ + "/metrics.csv"; }
  std::string curves_path() const { return path_ + "/curves.png"; }
  std::string checkpoint_path(int64_t step) const;

  /// The steps that have a checkpoint, ascending.
  std::vector<int64_t> checkpoints() const;
  /// Of the latest checkpoint; IOError where there is none yet.
  std::string latest_checkpoint() const;
  /// Removes every checkpoint but the last two and that of step `best`.
  void keep_last_two_and(std::optional<int64_t> best) const;

  /// Appends lines to metrics.csv, which begins with the names of its columns.
  void append(const std::vector<Metrics>& lines) const;
  /// Drops the lines of metrics.csv after `step` and what an interrupted write left.
  void cut_metrics(int64_t step) const;

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace norma::nn
