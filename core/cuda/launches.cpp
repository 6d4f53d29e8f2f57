#include "norma/core/cuda/launches.h"

#include <cxxabi.h>

#include <cstdlib>
#include <utility>

namespace norma::detail {
namespace {

thread_local constinit LaunchListener* listening = nullptr;

}  // namespace

std::string readable_kernel(const char* mangled) {
  int status = 0;
  char* demangled = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 ? demangled : mangled;
  std::free(demangled);
  if (name.starts_with("void ")) name.erase(0, 5);
  int depth = 0;  // of < >, within which a ( may stand too
  for (size_t i = 0; i < name.size(); ++i) {
    if (name[i] == '<') ++depth;
    if (name[i] == '>') --depth;
    if (name[i] == '(' && depth == 0 && name.compare(i, 11, "(anonymous ") != 0) {
      name.resize(i);
      break;
    }
  }
  return name;
}

LaunchListener::LaunchListener() : outer_(std::exchange(listening, this)) {}
LaunchListener::~LaunchListener() { listening = outer_; }
LaunchListener* launch_listener() { return listening; }

}  // namespace norma::detail
