#include "norma/core/npy.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>
#include <utility>

#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr int64_t kNpyAlignment = 64;         // of the first element, so that it can be mapped
constexpr int64_t kMaxNpyHeader = 64 * 1024;  // 8 sizes need 300 bytes; NumPy refuses 10,000

constexpr std::pair<std::string_view, DType> kDescriptions[] = {{"<f4", float32}, {"<f8", float64},
                                                                {"<f2", float16}, {"<i4", int32},
                                                                {"<i8", int64},   {"|b1", bool_}};

std::string_view description_of(DType dtype) {
  for (auto [text, d] : kDescriptions)
    if (d == dtype) return text;
  throw DTypeError(
      "save_npy: the tensor must have a dtype of NumPy's, but is {}; convert it to float32, or use "
      "save_safetensors",
      to_string(dtype));
}

DType dtype_of_description(const std::string& path, std::string_view description) {
  for (auto [text, d] : kDescriptions)
    if (text == description) return d;
  if (description.substr(0, 1) == ">")
    throw IOError(
        "{}: the elements must be little-endian, but are '{}'; save a.astype(a.dtype.newbyteorder"
        "('<')) from NumPy",
        path, description);
  throw IOError(
      "{}: the dtype must be <f4, <f8, <f2, <i4, <i8 or |b1, but is '{}'; save a.astype of one of "
      "these from NumPy",
      path, description);
}

struct Header {
  std::string description;
  bool fortran_order = false;
  Shape shape;
};

/// Reads the Python dictionary of a header, {'descr': '<f4', 'fortran_order': False, 'shape':
/// (3,)}.
class HeaderParser {
 public:
  HeaderParser(const std::string& path, std::string_view text) : path_(path), text_(text) {}

  Header parse() {
    expect('{', "a dictionary");
    while (!accept('}')) {
      const std::string key = string("a key");
      expect(':', "a colon");
      value_of(key);
      if (!accept(',')) {
        expect('}', "a comma or the dictionary's end");
        break;
      }
    }
    skip_space();
    if (at_ < text_.size()) fail("nothing after the dictionary");
    if (!description_ || !fortran_order_ || !shape_)
      throw IOError("{}: the header must have {}, but has only: {}", path_,
                    "'descr', 'fortran_order' and 'shape'", text_.substr(0, 200));
    return {*description_, *fortran_order_, *shape_};
  }

 private:
  void value_of(const std::string& key) {
    if (key == "descr" && !description_) {
      description_ = string("a plain dtype");
    } else if (key == "fortran_order" && !fortran_order_) {
      fortran_order_ = boolean();
    } else if (key == "shape" && !shape_) {
      shape_ = shape();
    } else {
      throw IOError("{}: the header must have {} once each, but '{}' is another or again", path_,
                    "'descr', 'fortran_order' and 'shape'", key);
    }
  }

  void skip_space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
  }
  bool accept(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  void expect(char c, std::string_view what) {
    if (!accept(c)) fail(what);
  }
  bool accept_word(std::string_view word) {
    skip_space();
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  std::string string(std::string_view what) {
    const char quote = accept('"') ? '"' : '\'';
    if (quote == '\'') expect(quote, what);
    const size_t end = text_.find(quote, at_);
    if (end == std::string_view::npos) fail("the string's end");
    const size_t begin = std::exchange(at_, end + 1);
    return std::string(text_.substr(begin, end - begin));
  }
  bool boolean() {
    const bool yes = accept_word("True");
    if (!yes && !accept_word("False")) fail("True or False");
    return yes;
  }
  Shape shape() {
    Shape shape;
    expect('(', "a tuple of sizes");
    while (!accept(')')) {
      if (shape.dim() == Shape::kMaxDims) fail("at most 8 sizes");
      shape.push_back(size());
      if (!accept(',')) {
        expect(')', "a comma or the tuple's end");
        break;
      }
    }
    return shape;
  }
  int64_t size() {
    skip_space();
    uint64_t value = 0;  // unsigned: no sign is read
    const char* const first = text_.data() + at_;
    const auto [end, error] = std::from_chars(first, text_.data() + text_.size(), value);
    if (error != std::errc() || value > INT64_MAX) fail("a size below 2^63");
    at_ += static_cast<size_t>(end - first);
    return static_cast<int64_t>(value);
  }

  [[noreturn]] void fail(std::string_view wanted) const {
    throw IOError("{}: the header must have {} at byte {}, but has: {}", path_, wanted, at_,
                  at_ < text_.size() ? text_.substr(at_, 40) : "nothing more");
  }

  const std::string& path_;
  std::string_view text_;
  size_t at_ = 0;
  std::optional<std::string> description_;
  std::optional<bool> fortran_order_;
  std::optional<Shape> shape_;
};

struct Extent {
  int64_t begin, length;  // of the header's text
};

Extent find_header(const InputFile& file) {
  const std::string start = file.read_text(0, std::min<int64_t>(file.size(), 12));
  if (start.size() < 10 || start.substr(0, 6) != kMagic)
    throw IOError("{}: must begin as an .npy file, with \\x93NUMPY and a version, but does not",
                  file.path());
  const int major = static_cast<unsigned char>(start[6]);
  const int minor = static_cast<unsigned char>(start[7]);
  if (major < 1 || major > 3 || minor != 0)
    throw IOError("{}: the .npy version must be 1.0, 2.0 or 3.0, but is {}.{}", file.path(), major,
                  minor);
  const int64_t width = major == 1 ? 2 : 4, begin = 8 + width;
  const auto length =  // of four bytes at most
      static_cast<int64_t>(detail::little_endian(std::string_view(start).substr(8, size_t(width))));
  if (length > std::min(kMaxNpyHeader, file.size() - begin))
    throw IOError("{}: the header must end within the file and have at most {} bytes, but has {}",
                  file.path(), kMaxNpyHeader, length);
  return {begin, length};
}

/// The tensor of the reversed shape, seen with its dimensions the other way round.
Tensor in_fortran_order(const Tensor& reversed) {
  Shape shape, strides;
  for (int i = reversed.dim() - 1; i >= 0; --i) {
    shape.push_back(reversed.shape()[i]);
    strides.push_back(reversed.strides()[i]);
  }
  return detail::raw_view(reversed, shape, strides, 0);
}

std::string header_text(const Tensor& t) {
  std::string text = format("{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}",
                            description_of(t.dtype()), t.shape());
  const auto unpadded = static_cast<int64_t>(kMagic.size() + 4 + text.size() + 1);
  text.append(static_cast<size_t>((kNpyAlignment - unpadded % kNpyAlignment) % kNpyAlignment), ' ');
  return text + '\n';
}

}  // namespace

void save_npy(const std::string& path, const Tensor& t) {
  const std::string header = header_text(t);
  AtomicFile file(path);
  file.write(kMagic);
  const char version_and_length[] = {1, 0, static_cast<char>(header.size() & 0xff),
                                     static_cast<char>(header.size() >> 8)};
  file.write(std::string_view(version_and_length, 4));
  file.write(header);
  detail::write_elements(file, t);
  file.commit();
}

Tensor load_npy(const std::string& path) {
  const InputFile file(path);
  const Extent extent = find_header(file);
  const std::string text = file.read_text(extent.begin, extent.length);
  const Header header = HeaderParser(path, text).parse();
  const DType dtype = dtype_of_description(path, header.description);
  const int64_t begin = extent.begin + extent.length;
  if (!header.fortran_order)
    return detail::read_elements(file, "the array", header.shape, dtype, begin, file.size());
  Shape reversed = header.shape;
  std::reverse(&reversed[0], &reversed[0] + reversed.dim());
  return in_fortran_order(
      detail::read_elements(file, "the transposed array", reversed, dtype, begin, file.size()));
}

}  // namespace norma
