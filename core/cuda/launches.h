#pragma once

#include <string>
#include <utility>
#include <vector>

namespace norma::detail {

/// "void norma::fill_kernel<float>(norma::FillArgs)" becomes "norma::fill_kernel<float>".
std::string readable_kernel(const char* mangled);

/// While one lives, it writes down the kernels that this thread launches, by readable names.
class LaunchListener {
 public:
  LaunchListener();
  ~LaunchListener();
  LaunchListener(const LaunchListener&) = delete;
  LaunchListener& operator=(const LaunchListener&) = delete;
  const std::vector<std::string>& kernels() const { return kernels_; }
  void heard(std::string kernel) { kernels_.push_back(std::move(kernel)); }

 private:
  std::vector<std::string> kernels_;
  LaunchListener* outer_;
};
/// The one that listens to this thread, or null.
LaunchListener* launch_listener();

}  // namespace norma::detail
