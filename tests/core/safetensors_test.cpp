#include "norma/core/safetensors.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/core/random.h"
#include "norma/core/tensor.h"
#include "testing/damage.h"

namespace norma {
namespace {
using namespace std::string_literals;
using Named = std::vector<std::pair<std::string, Tensor>>;

constexpr DType kAllDTypes[] = {bool_, int32, float16, float64, bfloat16, int64, float32};

class SafetensorsTest : public ::testing::Test {
 protected:
  SafetensorsTest() : path_(::testing::TempDir() + format("norma_{}.safetensors", ::getpid())) {}
  ~SafetensorsTest() override { std::filesystem::remove(path_); }

  std::string load_message(std::string_view bytes) const {
    write_file_atomically(path_, bytes);
    try {
      load_safetensors(path_);
    } catch (const IOError& e) {
      const std::string message = e.what();
      EXPECT_EQ(message.substr(0, path_.size() + 2), path_ + ": ");
      return message.substr(path_.size() + 2);
    }
    return "nothing was thrown";
  }

  std::string path_;
};

std::string file_of(std::string_view header, std::string_view elements = {}) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(header.size() >> 8 * i & 0xff);
  return bytes.append(header).append(elements);
}

Named one_of_each() {
  manual_seed(4);
  Named tensors;
  for (DType dtype : kAllDTypes)
    for (const Shape& shape : {Shape{}, Shape{3}, Shape{2, 0}, Shape{2, 5}}) {
      Tensor t = empty(shape, dtype);
      t.copy_(randint(0, dtype == bool_ ? 2 : 100, shape));
      tensors.emplace_back(format("h.{}.{}", to_string(dtype), shape), t);
    }
  return tensors;
}

TEST_F(SafetensorsTest, EveryDTypeComesBackInOrder) {
  const Named tensors = one_of_each();
  const std::map<std::string, std::string> metadata = {{"config", "{\"a\": \"ü\\n\"}"}, {"", ""}};
  save_safetensors(path_, tensors, metadata);
  const Safetensors back = load_safetensors(path_);
  EXPECT_EQ(back.metadata, metadata);
  ASSERT_EQ(back.tensors.size(), tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto& [name, t] = tensors[i];
    SCOPED_TRACE(name);
    EXPECT_EQ(back.tensors[i].first, name);
    EXPECT_EQ(back.tensors[i].second.spec(), t.spec());
    EXPECT_EQ(back.tensors[i].second.to_vector<double>(), t.to_vector<double>());
  }
  EXPECT_TRUE(back.at("h.bool.(3,)").is_same(back.tensors[1].second));
}

TEST(Safetensors, ReadsWhatThePythonPackageWrote) {
  const Safetensors file =
      load_safetensors(std::string(NORMA_GOLDEN_DIR) + "/core/python_package.safetensors");
  EXPECT_EQ(file.tensors.size(), 9u);
  for (DType dtype : kAllDTypes) {
    SCOPED_TRACE(to_string(dtype));
    const Tensor& t = file.at(to_string(dtype));
    EXPECT_EQ(t.spec(), (TensorSpec{Shape{2, 3}, dtype}));
    for (int64_t i = 0; i < 6; ++i)
      EXPECT_EQ(t.to_vector<double>()[static_cast<size_t>(i)],
                static_cast<double>(dtype == bool_ ? i % 2 : i));
  }
  EXPECT_EQ(file.at("scalar").item(), 3.5);
  EXPECT_EQ(file.at("empty").shape(), Shape({0, 4}));
  EXPECT_EQ(file.metadata,
            (std::map<std::string, std::string>{{"made by", "the package"}, {"ü", "\"\n"}}));
}

TEST_F(SafetensorsTest, BytesAreAsTheFormatSays) {
  save_safetensors(path_, {{"b", tensor({1, 0, 1}, bool_)}, {"w", tensor({1, -2}, bfloat16)}},
                   {{"k", "v"}});
  EXPECT_EQ(read_file(path_),
            file_of("{\"__metadata__\":{\"k\":\"v\"},"
                    "\"b\":{\"dtype\":\"BOOL\",\"shape\":[3],\"data_offsets\":[4,7]},"
                    "\"w\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[0,4]}}" +
                        std::string(2, ' '),
                    "\x80\x3f\0\xc0\1\0\1"s));
}

TEST_F(SafetensorsTest, NothingAtAllIsAFileToo) {
  save_safetensors(path_, {});
  EXPECT_EQ(read_file(path_), file_of("{}      "));
  EXPECT_TRUE(load_safetensors(path_).tensors.empty());
}

TEST_F(SafetensorsTest, StridesDoNotShowInTheFile) {
  save_safetensors(path_, {{"t", detail::raw_view(arange(6, int32), {3, 2}, {1, 3}, 0)}});
  const Tensor t = load_safetensors(path_).at("t");
  EXPECT_TRUE(t.is_dense());
  EXPECT_EQ(t.to_vector<int>(), (std::vector{0, 3, 1, 4, 2, 5}));
}

template <class F>
std::string value_message(const F& f) {
  try {
    f();
  } catch (const ValueError& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST_F(SafetensorsTest, WhatTheFormatCannotHoldIsRefused) {
  const Tensor t = ones({1});
  EXPECT_EQ(value_message([&] {
              save_safetensors(path_, {{"a", t}, {"b", t}, {"a", t}});
            }),
            "save_safetensors: names must differ, but a comes twice");
  EXPECT_EQ(value_message([&] {
              save_safetensors(path_, {{"__metadata__", t}});
            }),
            "save_safetensors: a tensor must not be named __metadata__, the format's own key");
  EXPECT_EQ(value_message([&] {
              save_safetensors(path_, {{"\xff", t}});
            }),
            "save_safetensors: names and metadata must be UTF-8, but are not");
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(SafetensorsTest, AnAbsentNameIsNamed) {
  save_safetensors(path_, {{"a", ones({1})}});
  try {
    load_safetensors(path_).at("b");
    ADD_FAILURE() << "nothing was thrown";
  } catch (const IOError& e) {
    EXPECT_EQ(e.what(), path_ + ": must have a tensor b, but has none among its 1");
  }
}

/// Headers with a tensor "t", and with a "u" behind it.
std::string entry(std::string_view dtype, std::string_view shape, std::string_view offsets) {
  return format("{{\"t\":{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":{}}}}}", dtype, shape,
                offsets);
}
std::string two_entries(std::string_view first, std::string_view second) {
  return format(
      "{{\"t\":{{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":{}}},"
      "\"u\":{{\"dtype\":\"BOOL\",\"shape\":[2],\"data_offsets\":{}}}}}",
      first, second);
}

TEST_F(SafetensorsTest, MalformedFilesAreNamed) {
  const struct {
    std::string bytes, message;
  } cases[] = {
      {"1234567", "must begin with the 8 bytes of its header's length, but has 7 bytes"},
      {"\x03\0\0\0\0\0\0\0{}"s,
       "the header must end within the file and have at most 100000000 bytes, but has 3"},
      {std::string(8, '\xff') + "{}",
       "the header must end within the file and have at most 100000000 bytes, but has "
       "18446744073709551615"},
      {file_of("{\"t\":"), "the header must be JSON, but breaks its rules at byte 6"},
      {file_of("{\"\xff\":1}"), "the header must be JSON, but breaks its rules at byte 3"},
      {file_of("[1]"), "the header must be an object, but is: [1]"},
      {file_of("[[[[[1]]]]]"), "the header must be an object, but is: [[[[[1]]]]]"},
      {file_of("{\"t\":{\"a\":{}}}"), "the header must hold flat objects, but t nests deeper"},
      {file_of("{\"t\":[]}"), "the header must hold flat objects, but t nests deeper"},
      {file_of("{\"t\":{\"a\":[[]]}}"), "the header must hold flat objects, but t nests deeper"},
      {file_of("{\"t\":{\"a\":[{}]}}"), "the header must hold flat objects, but t nests deeper"},
      {file_of("{} {}"), "the header must be JSON, but breaks its rules at byte 4"},
      {file_of(""), "the header must be JSON, but breaks its rules at byte 1"},
      {file_of("true"), "the header must be an object, but is: true"},
      {file_of("{\"t\":1}"), "t must have dtype, shape and data_offsets, but has 1"},
      {file_of("{\"t\":{\"dtype\":\"F32\"}}"),
       "t must have dtype, shape and data_offsets, but has {\"dtype\":\"F32\"}"},
      {file_of("{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}"),
       "the keys of the header must differ, but dtype comes twice"},
      {file_of("{\"t\":{\"a\":1},\"t\":{\"a\":1}}"),
       "the keys of the header must differ, but t comes twice"},
      {file_of("{\"t\":{\"dtype\":\"F32\",\"shape\":[],\"x\":0}}"),
       "t must have data_offsets, but has {\"dtype\":\"F32\",\"shape\":[],\"x\":0}"},
      {file_of(entry("U8", "[1]", "[0,1]"), "1"),
       "t must have dtype F64, F32, F16, BF16, I64, I32 or BOOL, but has \"U8\""},
      {file_of(entry("F32", "7", "[0,4]")), "t must have a shape of at most 8 sizes, but has 7"},
      {file_of(entry("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]")),
       "t must have a shape of at most 8 sizes, but has [1,1,1,1,1,1,1,1,1]"},
      {file_of(entry("F32", "[-1]", "[0,4]")), "t must have whole numbers below 2^63, but has -1"},
      {file_of(entry("F32", "[1.0]", "[0,4]")),
       "t must have whole numbers below 2^63, but has 1.0"},
      {file_of(entry("F32", "[9223372036854775808]", "[0,4]")),
       "t must have whole numbers below 2^63, but has 9223372036854775808"},
      {file_of(entry("F32", "[1]", "[0]")), "t must have data_offsets [begin, end], but has [0]"},
      {file_of(entry("F32", "[1]", "[4,0]")),
       "t must have data_offsets [begin, end] in that order, but has [4,0]"},
      {file_of(entry("F32", "[1]", "[4,8]"), "12345678"),
       "t must begin at byte 0, where the header ends, but begins at 4"},
      {file_of(two_entries("[0,2]", "[1,3]"), "123"),
       "u must begin at byte 2, where t ends, but begins at 1"},
      {file_of(two_entries("[3,5]", "[0,2]"), "12345"),
       "t must begin at byte 2, where u ends, but begins at 3"},
      {file_of(entry("F32", "[1]", "[0,4]"), "123"),
       "the tensors take 4 bytes, but 3 follow the header"},
      {file_of(entry("F32", "[1]", "[0,4]"), "12345"),
       "the tensors take 4 bytes, but 5 follow the header"},
      {file_of(entry("F32", "[2]", "[0,4]"), "1234"),
       "t is float32 of shape (2,), which takes 8 bytes, but the file has 4"},
      {file_of(entry("F32", "[4294967296,4294967296]", "[0,0]")),
       "t is float32 of shape (4294967296, 4294967296), which is more than any memory"},
      {file_of(entry("BOOL", "[1]", "[0,1]"), "\2"),
       "t must hold bools, 0 or 1, but element 0 is 2"},
      {file_of("{\"__metadata__\":1}"), "__metadata__ must be an object of texts"},
      {file_of("{\"__metadata__\":{\"a\":1}}"), "__metadata__ must hold texts, but a is 1"},
  };
  for (const auto& c : cases) EXPECT_EQ(load_message(c.bytes), c.message);
}

TEST_F(SafetensorsTest, AnyChangedByteIsReadOrRefused) {
  save_safetensors(path_, {{"a", ones({2})}, {"b", ones({3}, bool_)}}, {{"k", "v"}});
  testing::expect_any_change_read_or_refused(path_, load_safetensors);
}

TEST_F(SafetensorsTest, NoPrefixOfAFileIsTakenForTheWhole) {
  save_safetensors(path_, {{"a", ones({2})}, {"b", ones({3}, bool_)}}, {{"k", "v"}});
  const std::string whole = read_file(path_);
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_NE(load_message(std::string_view(whole).substr(0, length)), "nothing was thrown");
}

/// What the script prints; it sees the path as sys.argv[1].
std::string python(const std::string& script, const std::string& path) {
  std::FILE* pipe = ::popen(format("python3 -c '{}' '{}' 2>&1", script, path).c_str(), "r");
  std::string out;
  char part[4096];
  while (size_t n = std::fread(part, 1, sizeof part, pipe)) out.append(part, n);
  ::pclose(pipe);
  return out;
}

TEST_F(SafetensorsTest, ThePythonPackageReadsWhatIsWritten) {
  if (python("import safetensors; print(1)", "") != "1\n")
    GTEST_SKIP() << "python3 has no package safetensors";
  const Named tensors = one_of_each();
  save_safetensors(path_, tensors, {{"k", "v"}});
  std::string expected;
  constexpr std::string_view kNames[] = {"F32", "F64", "BF16", "F16", "I32", "I64", "BOOL"};
  std::map<std::string, std::string> lines;  // by name, as the script sorts them
  for (const auto& [name, t] : tensors) {
    std::string sizes, hex;
    for (int64_t size : t.shape()) sizes += format("{},", size);
    const auto* bytes = static_cast<const unsigned char*>(t.data());
    for (int64_t i = 0; i < t.numel() * size_of(t.dtype()); ++i) hex += format("{:02x}", bytes[i]);
    lines[name] = format("{} {} {} {}\n", name, kNames[size_t(t.dtype())], sizes, hex);
  }
  for (const auto& [name, line] : lines) expected += line;
  EXPECT_EQ(python("import sys, safetensors\n"
                   "data = open(sys.argv[1], \"rb\").read()\n"
                   "for name, t in sorted(safetensors.deserialize(data)):\n"
                   "  print(name, t[\"dtype\"], \"\".join(f\"{n},\" for n in t[\"shape\"]), "
                   "bytes(t[\"data\"]).hex())",
                   path_),
            expected);
}

TEST_F(SafetensorsTest, WhatThePythonPackageWritesIsRead) {
  if (python("import numpy, safetensors; print(1)", "") != "1\n")
    GTEST_SKIP() << "python3 has no packages safetensors and numpy";
  EXPECT_EQ(python("import sys, numpy, safetensors.numpy\n"
                   "safetensors.numpy.save_file({\"f\": numpy.arange(6, dtype=\"f2\").reshape(2, 3)"
                   ", \"d\": numpy.full((), 0.5), \"b\": numpy.array([True, False])"
                   ", \"i\": numpy.array([-5], \"i8\")}, sys.argv[1], {\"k\": \"v\"})",
                   path_),
            "");
  const Safetensors file = load_safetensors(path_);
  EXPECT_EQ(file.tensors.size(), 4u);
  EXPECT_EQ(file.metadata, (std::map<std::string, std::string>{{"k", "v"}}));
  EXPECT_EQ(file.at("f").spec(), (TensorSpec{{2, 3}, float16, cpu}));
  EXPECT_EQ(file.at("f").to_vector<int>(), (std::vector{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(file.at("d").item(), 0.5);
  EXPECT_EQ(file.at("b").to_vector<int>(), (std::vector{1, 0}));
  EXPECT_EQ(file.at("i").to_vector<int>(), (std::vector{-5}));
}

}  // namespace
}  // namespace norma
