#include "norma/core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <limits>
#include <optional>
#include <system_error>
#include <utility>

#include "norma/core/error.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {

std::string reason(int error) { return std::generic_category().message(error); }

/// Calls f() again where a signal came in between.
template <class F>
auto uninterrupted(const F& f) {
  auto result = f();
  while (result < 0 && errno == EINTR) result = f();
  return result;
}

int open_to_read(const std::string& path) {
  const int fd = uninterrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); });
  if (fd < 0) throw IOError("{}: must be a file to read, but: {}", path, reason(errno));
  return fd;
}

/// Closes a descriptor at the end of its scope.
struct Closing {
  int fd;
  ~Closing() { ::close(fd); }
};

}  // namespace

std::string read_file(const std::string& path) {
  const Closing file{open_to_read(path)};
  struct stat status {};
  ::fstat(file.fd, &status);  // a hint only: what is in /proc says 0
  std::string bytes;
  size_t filled = 0;
  bytes.resize(static_cast<size_t>(std::max<off_t>(status.st_size, 0)) + 1);
  for (;;) {
    if (filled == bytes.size()) bytes.resize(2 * bytes.size());
    const ssize_t n = uninterrupted(
        [&] { return ::read(file.fd, bytes.data() + filled, bytes.size() - filled); });
    if (n < 0) throw IOError("{}: must be a file to read, but: {}", path, reason(errno));
    if (n == 0) break;
    filled += static_cast<size_t>(n);
  }
  bytes.resize(filled);
  return bytes;
}

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  // Not blocking: opening a pipe that nobody writes to would wait for ever.
  fd_ = uninterrupted([&] { return ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); });
  struct stat status {};
  if (fd_ < 0 || ::fstat(fd_, &status) != 0) {
    const int error = errno;
    if (fd_ >= 0) ::close(fd_);
    throw IOError("{}: must be a file to read, but: {}", path_, reason(error));
  }
  if (!S_ISREG(status.st_mode)) {
    ::close(fd_);
    throw IOError("{}: must be a regular file, but is a {}", path_,
                  S_ISDIR(status.st_mode) ? "folder" : "pipe, socket or device");
  }
  size_ = status.st_size;
}

InputFile::~InputFile() { ::close(fd_); }

void InputFile::read(int64_t offset, std::span<std::byte> out) const {
  size_t filled = 0;
  while (filled < out.size()) {
    const ssize_t n = uninterrupted([&] {
      return ::pread(fd_, out.data() + filled, out.size() - filled,
                     offset + static_cast<off_t>(filled));
    });
    if (n <= 0)
      throw IOError("{}: {} bytes must follow byte {}, but only {} do: {}", path_, out.size(),
                    offset, filled, n < 0 ? reason(errno) : "the file ends there");
    filled += static_cast<size_t>(n);
  }
}

std::string InputFile::read_text(int64_t offset, int64_t length) const {
  std::string text(static_cast<size_t>(length), '\0');
  read(offset, std::as_writable_bytes(std::span(text)));
  return text;
}

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  const size_t slash = path_.rfind('/');
  name_ = slash == std::string::npos ? path_ : path_.substr(slash + 1);
  if (name_.empty()) throw IOError("{}: must name a file, but ends in no name", path_);
  std::string folder = ".";
  if (slash != std::string::npos) folder = path_.substr(0, std::max<size_t>(slash, 1));
  folder_ =
      uninterrupted([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  if (folder_ < 0)
    throw IOError("{}: the folder {} must exist and be readable, but: {}", path_, folder,
                  reason(errno));
  open_temporary();
}

void AtomicFile::open_temporary() {
  static std::atomic<uint64_t> count = 0;
  do {  // a crashed process of the same number may have left one
    temporary_ = format(".norma-{}-{}.tmp", ::getpid(), count.fetch_add(1));
    fd_ = uninterrupted([&] {
      return ::openat(folder_, temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    });
  } while (fd_ < 0 && errno == EEXIST);
  if (fd_ >= 0) return;
  const int error = errno;
  ::close(folder_);
  throw IOError("{}: its folder must take the temporary file {}, but: {}", path_, temporary_,
                reason(error));
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlinkat(folder_, temporary_.c_str(), 0);
  ::close(folder_);
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t n =
        uninterrupted([&] { return ::write(fd_, bytes.data() + written, bytes.size() - written); });
    if (n < 0)
      throw IOError("{}: {} bytes were to be written, but only {} could be: {}", path_,
                    bytes.size(), written, reason(errno));
    written += static_cast<size_t>(n);
  }
}

void AtomicFile::close_temporary() {
  // Not again after EINTR: the descriptor is gone, and its number may be another thread's by now.
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 && errno != EINTR)
    throw IOError("{}: must be closed, but: {}", path_, reason(errno));
}

void AtomicFile::commit() {
  if (uninterrupted([&] { return ::fsync(fd_); }) != 0)
    throw IOError("{}: must be synced to the disk, but: {}", path_, reason(errno));
  close_temporary();
  if (::renameat(folder_, temporary_.c_str(), folder_, name_.c_str()) != 0)
    throw IOError("{}: must be replaced by the finished file, but: {}", path_, reason(errno));
  temporary_.clear();
  // EINVAL: a file system that cannot sync a folder.
  if (uninterrupted([&] { return ::fsync(folder_); }) != 0 && errno != EINVAL)
    throw IOError("{}: is in its place, but its folder could not be synced: {}", path_,
                  reason(errno));
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

namespace detail {
namespace {

static_assert(std::endian::native == std::endian::little, "files hold little-endian elements");

/// None where a tensor of that shape has more bytes than can be counted. Sizes of 0 count as 1:
/// the strides of an empty tensor must be countable too.
std::optional<int64_t> countable_bytes(const Shape& shape, DType dtype) {
  int64_t room = std::numeric_limits<int64_t>::max() / size_of(dtype);
  for (int64_t size : shape) room /= std::max<int64_t>(size, 1);
  if (room == 0) return none;
  return shape.numel() * size_of(dtype);
}

}  // namespace

uint64_t little_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

Tensor read_elements(const InputFile& file, std::string_view what, const Shape& shape, DType dtype,
                     int64_t begin, int64_t end) {
  const auto bytes = countable_bytes(shape, dtype);
  if (!bytes)
    throw IOError("{}: {} is {} of shape {}, which is more than any memory", file.path(), what,
                  to_string(dtype), shape);
  if (end - begin != *bytes)
    throw IOError("{}: {} is {} of shape {}, which takes {} bytes, but the file has {}",
                  file.path(), what, to_string(dtype), shape, *bytes, end - begin);
  Tensor t = empty(shape, dtype);
  const std::span elements(static_cast<std::byte*>(t.data()), static_cast<size_t>(*bytes));
  file.read(begin, elements);
  if (dtype != bool_) return t;
  const auto bad =
      std::find_if(elements.begin(), elements.end(), [](std::byte b) { return b > std::byte{1}; });
  if (bad != elements.end())
    throw IOError("{}: {} must hold bools, 0 or 1, but element {} is {}", file.path(), what,
                  bad - elements.begin(), std::to_integer<int>(*bad));
  return t;
}

void write_elements(AtomicFile& file, const Tensor& t) {
  const Tensor d = dense(t).detach().to(cpu);
  file.write(std::span(static_cast<const std::byte*>(d.data()),
                       static_cast<size_t>(d.numel() * size_of(d.dtype()))));
}

}  // namespace detail
}  // namespace norma
