#include "norma/nn/gnuplot.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <memory>
#include <system_error>

#include "norma/core/error.h"

extern "C" char** environ;

namespace norma::nn {
namespace {

/// A nameless file: unlike a pipe it can neither fill up nor raise SIGPIPE.
class Scratch {
 public:
  Scratch() : file_(std::tmpfile()) {
    if (!file_)
      throw IOError("gnuplot: a temporary file must open, but: {}",
                    std::generic_category().message(errno));
  }
  explicit Scratch(std::string_view content) : Scratch() {
    if (std::fwrite(content.data(), 1, content.size(), file_.get()) != content.size() ||
        std::fflush(file_.get()) != 0)
      throw IOError("gnuplot: the script must go to a temporary file, but: {}",
                    std::generic_category().message(errno));
    std::rewind(file_.get());
  }
  int descriptor() const { return ::fileno(file_.get()); }
  std::string content() const {
    std::rewind(file_.get());
    std::string all;
    char piece[1 << 14];
    while (const size_t n = std::fread(piece, 1, sizeof piece, file_.get())) all.append(piece, n);
    return all;
  }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, Close> file_;
};

/// Starts gnuplot in a process group of its own, so that Ctrl-C leaves the picture whole.
pid_t start(const Scratch& in, const Scratch& out, const Scratch& complaints) {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_init(&files);
  posix_spawnattr_init(&attributes);
  posix_spawn_file_actions_adddup2(&files, in.descriptor(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&files, out.descriptor(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&files, complaints.descriptor(), STDERR_FILENO);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  char name[] = "gnuplot", defaults[] = "--default-settings";
  char* arguments[] = {name, defaults, nullptr};
  pid_t child = 0;
  const int failed = ::posix_spawnp(&child, name, &files, &attributes, arguments, environ);
  posix_spawn_file_actions_destroy(&files);
  posix_spawnattr_destroy(&attributes);
  if (failed == ENOENT)
    throw IOError(
        "gnuplot: must be installed to draw pictures, but is not; apt-get install gnuplot-nox");
  if (failed != 0)
    throw IOError("gnuplot: must start, but: {}", std::generic_category().message(failed));
  return child;
}

/// Its first line that is not empty and does not only point at a column.
std::string first_complaint(const std::string& text) {
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    if (line.find_first_not_of(" \t^") != line.npos && !line.starts_with("gnuplot>")) return line;
    at = end + 1;
  }
  return "it gave no reason";
}

}  // namespace

std::string gnuplot(const std::string& script) {
  const Scratch in(script), out, complaints;
  const pid_t child = start(in, out, complaints);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) continue;
  std::string drawn = out.content();
  if (status != 0 || drawn.empty())
    throw IOError("gnuplot: must draw the picture, but: {}", first_complaint(complaints.content()));
  return drawn;
}

std::string gnuplot_quoted(std::string_view text) {
  std::string out = "'";
  for (char c : text) {
    if (c == '\'') out += '\'';
    out += c == '\n' || c == '\r' ? ' ' : c;
  }
  return out + "'";
}

}  // namespace norma::nn
