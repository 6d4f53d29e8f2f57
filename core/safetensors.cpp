#include "norma/core/safetensors.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/core/tensor.h"

namespace norma {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;
using NamedTensors = std::vector<std::pair<std::string, Tensor>>;

constexpr std::string_view kMetadata = "__metadata__";
constexpr int64_t kMaxHeader = 100'000'000;  // as in the reference implementation
constexpr int64_t kLengthBytes = 8;          // of the header's length, in front of it
constexpr int64_t kAlignment = 8;            // of the first element: that of the widest dtype

constexpr std::pair<std::string_view, DType> kDTypes[] = {
    {"F64", float64}, {"F32", float32}, {"F16", float16}, {"BF16", bfloat16},
    {"I64", int64},   {"I32", int32},   {"BOOL", bool_}};

std::string_view name_of(DType dtype) {
  return std::find_if(std::begin(kDTypes), std::end(kDTypes),
                      [=](const auto& entry) { return entry.second == dtype; })
      ->first;
}

void check(const NamedTensors& tensors) {
  std::set<std::string_view> names;
  for (const auto& [name, t] : tensors) {
    if (name == kMetadata)
      throw ValueError("save_safetensors: a tensor must not be named {}, the format's own key",
                       kMetadata);
    if (!names.insert(name).second)
      throw ValueError("save_safetensors: names must differ, but {} comes twice", name);
  }
}

/// Indices of the tensors, the widest elements first: so each lies at a multiple of its width.
std::vector<size_t> aligned_order(const NamedTensors& tensors) {
  std::vector<size_t> order(tensors.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return size_of(tensors[a].second.dtype()) > size_of(tensors[b].second.dtype());
  });
  return order;
}

std::string header_text(const NamedTensors& tensors, const std::vector<size_t>& order,
                        const std::map<std::string, std::string>& metadata) {
  std::vector<int64_t> begins(tensors.size());
  int64_t end = 0;
  for (size_t i : order) {
    begins[i] = end;
    end += tensors[i].second.numel() * size_of(tensors[i].second.dtype());
  }
  OrderedJson::object_t header;  // appended to: looking up 10,000 names one by one takes a second
  if (!metadata.empty()) header.emplace_back(kMetadata, metadata);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, t] = tensors[i];
    const int64_t bytes = t.numel() * size_of(t.dtype());
    header.emplace_back(name, OrderedJson{{"dtype", name_of(t.dtype())},
                                          {"shape", std::span(t.shape().begin(), t.shape().end())},
                                          {"data_offsets", {begins[i], begins[i] + bytes}}});
  }
  std::string text;
  try {
    text = OrderedJson(std::move(header)).dump();
  } catch (const OrderedJson::exception&) {
    throw ValueError("save_safetensors: names and metadata must be UTF-8, but are not");
  }
  const auto past = static_cast<int64_t>(text.size()) % kAlignment;
  return text.append(static_cast<size_t>((kAlignment - past) % kAlignment), ' ');
}

/// The header's length as the file's first eight bytes have it, little-endian.
std::string length_bytes(uint64_t length) {
  std::string bytes;
  for (int i = 0; i < kLengthBytes; ++i) bytes += static_cast<char>(length >> 8 * i & 0xff);
  return bytes;
}

std::string read_header(const InputFile& file) {
  if (file.size() < kLengthBytes)
    throw IOError("{}: must begin with the 8 bytes of its header's length, but has {} bytes",
                  file.path(), file.size());
  const uint64_t length = detail::little_endian(file.read_text(0, kLengthBytes));
  if (length > static_cast<uint64_t>(std::min(kMaxHeader, file.size() - kLengthBytes)))
    throw IOError("{}: the header must end within the file and have at most {} bytes, but has {}",
                  file.path(), kMaxHeader, length);
  return file.read_text(kLengthBytes, static_cast<int64_t>(length));
}

/// Takes a header's JSON apart: an object of flat objects, whose values are texts, numbers and
/// arrays of these, no key twice. Event by event: nlohmann's own tree forgets the order and keeps
/// one of two equal keys, and its callback parser takes half a second for 10,000 tensors.
class HeaderReader final : public Json::json_sax_t {
 public:
  using Entries = std::vector<std::pair<std::string, Json>>;  // in the text's order

  static Entries read(const std::string& path, const std::string& text) {
    HeaderReader reader(path, text);
    Json::sax_parse(text, &reader);
    return std::move(reader.entries_);
  }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t&) override { return false; }  // JSON has none

  bool start_object(size_t) override {
    if (depth_ == 1) entries_.back().second = Json::object();
    if (depth_ > 1) fail_nested();
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ == 0) fail_no_object();
    if (depth_ != 2) fail_nested();
    entries_.back().second[key_] = Json::array();
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool key(string_t& key) override {
    const bool is_new =
        depth_ == 1 ? names_.insert(key).second : !entries_.back().second.contains(key);
    if (!is_new)
      throw IOError("{}: the keys of the header must differ, but {} comes twice", path_, key);
    if (depth_ == 1) entries_.emplace_back(key, nullptr);
    key_ = std::move(key);
    return true;
  }
  bool parse_error(size_t byte, const std::string&, const Json::exception&) override {
    throw IOError("{}: the header must be JSON, but breaks its rules at byte {}", path_, byte);
  }

 private:
  HeaderReader(const std::string& path, const std::string& text) : path_(path), text_(text) {}

  bool put(Json value) {
    if (depth_ == 0) fail_no_object();
    if (depth_ == 1) {
      entries_.back().second = std::move(value);
    } else if (depth_ == 2) {
      entries_.back().second[key_] = std::move(value);
    } else {
      entries_.back().second[key_].push_back(std::move(value));
    }
    return true;
  }
  [[noreturn]] void fail_no_object() const {
    throw IOError("{}: the header must be an object, but is: {}", path_, text_.substr(0, 40));
  }
  [[noreturn]] void fail_nested() const {
    throw IOError("{}: the header must hold flat objects, but {} nests deeper", path_,
                  entries_.back().first);
  }

  const std::string& path_;
  const std::string& text_;
  Entries entries_;
  std::set<std::string> names_;
  std::string key_;
  int depth_ = 0;  // 1 in the header's object, 2 in a tensor's, 3 in an array there
};

struct Entry {
  std::string name;
  DType dtype;
  Shape shape;
  int64_t begin, end;  // bytes, counted from the header's end
};

/// Reads one tensor's entry of the header.
class EntryParser {
 public:
  EntryParser(const std::string& path, const std::string& name, const Json& value)
      : path_(path), name_(name), value_(value) {
    if (!value.is_object() || value.size() != 3) fail("dtype, shape and data_offsets", value);
  }

  Entry parse() const {
    const Json& offsets = field("data_offsets");
    if (!offsets.is_array() || offsets.size() != 2) fail("data_offsets [begin, end]", offsets);
    const Entry entry{name_, dtype(), shape(), natural(offsets[0]), natural(offsets[1])};
    if (entry.begin > entry.end) fail("data_offsets [begin, end] in that order", offsets);
    return entry;
  }

 private:
  const Json& field(const char* key) const {
    const auto found = value_.find(key);
    if (found == value_.end()) fail(key, value_);
    return *found;
  }
  DType dtype() const {
    const Json& name = field("dtype");
    for (auto [text, dtype] : kDTypes)
      if (name == text) return dtype;
    fail("dtype F64, F32, F16, BF16, I64, I32 or BOOL", name);
  }
  Shape shape() const {
    const Json& sizes = field("shape");
    if (!sizes.is_array() || sizes.size() > Shape::kMaxDims)
      fail("a shape of at most 8 sizes", sizes);
    Shape shape;
    for (const Json& size : sizes) shape.push_back(natural(size));
    return shape;
  }
  int64_t natural(const Json& value) const {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > INT64_MAX)
      fail("whole numbers below 2^63", value);
    return value.get<int64_t>();
  }
  [[noreturn]] void fail(std::string_view wanted, const Json& found) const {
    throw IOError("{}: {} must have {}, but has {}", path_, name_, wanted,
                  found.dump().substr(0, 100));
  }

  const std::string& path_;
  const std::string& name_;
  const Json& value_;
};

std::map<std::string, std::string> parse_metadata(const std::string& path, const Json& value) {
  std::map<std::string, std::string> metadata;
  if (!value.is_object()) throw IOError("{}: {} must be an object of texts", path, kMetadata);
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string())
      throw IOError("{}: {} must hold texts, but {} is {}", path, kMetadata, key,
                    text.dump().substr(0, 100));
    metadata.emplace(key, text.get<std::string>());
  }
  return metadata;
}

/// The entries cover the data from 0 to `bytes`, each beginning where the one before ends.
void require_no_holes(const std::string& path, std::vector<Entry> entries, int64_t bytes) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  int64_t end = 0;
  std::string_view before = "the header";
  for (const Entry& entry : entries) {
    if (entry.begin != end)
      throw IOError("{}: {} must begin at byte {}, where {} ends, but begins at {}", path,
                    entry.name, end, before, entry.begin);
    end = entry.end, before = entry.name;
  }
  if (end != bytes)
    throw IOError("{}: the tensors take {} bytes, but {} follow the header", path, end, bytes);
}

}  // namespace

const Tensor& Safetensors::at(std::string_view name) const {
  for (const auto& [key, tensor] : tensors)
    if (key == name) return tensor;
  throw IOError("{}: must have a tensor {}, but has none among its {}", path, name, tensors.size());
}

void save_safetensors(const std::string& path, const NamedTensors& tensors,
                      const std::map<std::string, std::string>& metadata) {
  check(tensors);
  const std::vector<size_t> order = aligned_order(tensors);
  const std::string header = header_text(tensors, order, metadata);
  if (static_cast<int64_t>(header.size()) > kMaxHeader)
    throw ValueError("save_safetensors: names and metadata must take at most {} bytes, but take {}",
                     kMaxHeader, header.size());
  AtomicFile file(path);
  file.write(length_bytes(header.size()));
  file.write(header);
  for (size_t i : order) detail::write_elements(file, tensors[i].second);
  file.commit();
}

Safetensors load_safetensors(const std::string& path) {
  const InputFile file(path);
  const std::string text = read_header(file);
  const int64_t data = kLengthBytes + static_cast<int64_t>(text.size());
  Safetensors result{.tensors = {}, .metadata = {}, .path = path};
  std::vector<Entry> entries;
  for (const auto& [name, value] : HeaderReader::read(path, text)) {
    if (name == kMetadata)
      result.metadata = parse_metadata(path, value);
    else
      entries.push_back(EntryParser(path, name, value).parse());
  }
  require_no_holes(path, entries, file.size() - data);
  for (const Entry& e : entries)
    result.tensors.emplace_back(e.name, detail::read_elements(file, e.name, e.shape, e.dtype,
                                                              data + e.begin, data + e.end));
  return result;
}

}  // namespace norma
