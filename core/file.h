#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "norma/core/dtype.h"
#include "norma/core/shape.h"

namespace norma {

class Tensor;

/// All of a file's bytes; pipes and /proc work too. Throws IOError naming the path.
std::string read_file(const std::string& path);

/// A regular file open for reading at any offset.
class InputFile {
 public:
  explicit InputFile(std::string path);  ///< IOError where it cannot be opened or is no file
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }  ///< in bytes, when it was opened
  /// Fills `out` with the bytes from `offset`; IOError where the file ends before.
  void read(int64_t offset, std::span<std::byte> out) const;
  std::string read_text(int64_t offset, int64_t length) const;  ///< the same, as text

 private:
  std::string path_;
  int fd_ = -1;
  int64_t size_ = 0;
};

/// Writes a file that appears whole or not at all, also across a power cut: the bytes go to a
/// temporary file in the same folder (".norma-<process>-<count>.tmp"), which commit() syncs and
/// renames over `path`. Replaces a symbolic link itself, not what it points to. Until commit() has
/// returned, `path` is as it was; without commit() the temporary is removed.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);  ///< IOError where the folder takes no file
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  const std::string& path() const { return path_; }
  /// Appends. IOError naming the path, the bytes wanted, those written and the system's reason.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view bytes) { write(std::as_bytes(std::span(bytes))); }
  /// Syncs the bytes, puts the file in its place and syncs the folder; once, as the last call.
  void commit();

 private:
  void open_temporary();
  void close_temporary();

  std::string path_, name_, temporary_;
  int folder_ = -1;  // held open: a relative path keeps its meaning when the process moves
  int fd_ = -1;
};

/// Makes `bytes` the whole content of `path`, as AtomicFile does.
void write_file_atomically(const std::string& path, std::string_view bytes);

// What the formats of tensors share; elements lie row-major and little-endian.
namespace detail {
/// The number that up to eight bytes are, the lowest first.
uint64_t little_endian(std::string_view bytes);
/// The tensor whose elements are the bytes from `begin` to `end`. IOError naming the path and
/// `what` where these are not as many as the shape needs, or a bool is neither 0 nor 1.
Tensor read_elements(const InputFile& file, std::string_view what, const Shape& shape, DType dtype,
                     int64_t begin, int64_t end);
/// Appends the elements of a tensor on the CPU, of any strides.
void write_elements(AtomicFile& file, const Tensor& t);
}  // namespace detail

}  // namespace norma
