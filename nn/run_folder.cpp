#include "norma/nn/run_folder.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/core/format.h"

namespace norma::nn {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kHeader = "step,loss,validation,grad_norm,lr,tokens_per_second\n";
constexpr std::string_view kPrefix = "step-", kSuffix = ".safetensors";

/// The step in a checkpoint's name, if it is one.
std::optional<int64_t> step_of(std::string_view name) {
  if (name.size() <= kPrefix.size() + kSuffix.size() || !name.starts_with(kPrefix) ||
      !name.ends_with(kSuffix))
    return std::nullopt;
  const std::string_view digits =
      name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), step);
  if (error != std::errc() || end != digits.end()) return std::nullopt;
  return step;
}

std::string line_of(const Metrics& m) {
  const std::string validation = m.validation ? format("{:.6f}", *m.validation) : "";
  return format("{},{:.6f},{},{:.6f},{:.6e},{:.0f}\n", m.step, m.loss, validation, m.grad_norm,
                m.lr, m.tokens_per_second);
}

}  // namespace

RunFolder RunFolder::create(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw IOError("{}: the run's folder cannot be made: {}", path, error.message());
  RunFolder folder(path);
  if (fs::exists(folder.config_path()))
    throw IOError(
        "{}: the folder must be new, but holds a run; go on with it by --resume {} or "
        "name another by --out",
        path, path);
  return folder;
}

RunFolder RunFolder::open(const std::string& path) {
  RunFolder folder(path);
  if (!fs::exists(folder.config_path()))
    throw IOError("{}: the folder must hold a run, but has no config.json", path);
  return folder;
}

std::string RunFolder::checkpoint_path(int64_t step) const {
  return format("{}/{}{:06d}{}", path_, kPrefix, step, kSuffix);
}

std::vector<int64_t> RunFolder::checkpoints() const {
  std::vector<int64_t> steps;
  for (const auto& entry : fs::directory_iterator(path_))
    if (const auto step = step_of(entry.path().filename().string())) steps.push_back(*step);
  std::sort(steps.begin(), steps.end());
  return steps;
}

std::string RunFolder::latest_checkpoint() const {
  const auto steps = checkpoints();
  if (steps.empty())
    throw IOError("{}: the run must have a checkpoint, but stopped before its first one", path_);
  return checkpoint_path(steps.back());
}

void RunFolder::keep_last_two_and(std::optional<int64_t> best) const {
  const auto steps = checkpoints();
  for (size_t i = 0; i + 2 < steps.size(); ++i)
    if (steps[i] != best) fs::remove(checkpoint_path(steps[i]));
}

void RunFolder::append(const std::vector<Metrics>& lines) const {
  std::string text = fs::exists(metrics_path()) ? "" : std::string(kHeader);
  for (const Metrics& m : lines) text += line_of(m);
  std::FILE* file = std::fopen(metrics_path().c_str(), "a");
  const bool written = file && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (!file || std::fclose(file) != 0 || !written)
    throw IOError("{}: {} lines could not be added; is the disk full?", metrics_path(),
                  lines.size());
}

void RunFolder::cut_metrics(int64_t step) const {
  if (!fs::exists(metrics_path())) return;
  const std::string text = read_file(metrics_path());
  std::string kept(kHeader);
  size_t begin = std::min(text.find('\n'), text.size());
  while (begin + 1 < text.size()) {
    const size_t end = text.find('\n', begin + 1);
    if (end == text.npos) break;  // a line cut short
    const std::string line = text.substr(begin + 1, end - begin);
    int64_t at = 0;
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), at);
    if (parsed.ec != std::errc() || at > step) break;
    kept += line;
    begin = end;
  }
  write_file_atomically(metrics_path(), kept);
}

}  // namespace norma::nn
