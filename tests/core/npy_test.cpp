#include "norma/core/npy.h"

#include <gtest/gtest.h>
#include <unistd.h>

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

class NpyTest : public ::testing::Test {
 protected:
  NpyTest() : path_(::testing::TempDir() + format("norma_npy_{}.npy", ::getpid())) {}
  ~NpyTest() override { std::filesystem::remove(path_); }

  Tensor load(std::string_view bytes) const {
    write_file_atomically(path_, bytes);
    return load_npy(path_);
  }
  std::string load_message(std::string_view bytes) const {
    try {
      load(bytes);
    } catch (const IOError& e) {
      const std::string message = e.what();
      EXPECT_EQ(message.substr(0, path_.size() + 2), path_ + ": ");
      return message.substr(path_.size() + 2);
    }
    return "nothing was thrown";
  }

  std::string path_;
};

/// A file of version 1.0 without padding, as other writers leave it.
std::string file_of(std::string_view header, std::string_view elements, int version = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += {static_cast<char>(version), '\0', static_cast<char>(header.size() & 0xff),
            static_cast<char>(header.size() >> 8)};
  if (version > 1) bytes.append(2, '\0');
  return bytes.append(header).append(elements);
}

TEST_F(NpyTest, EveryDTypeAndShapeComesBack) {
  manual_seed(1);
  for (DType dtype : {float32, float64, float16, int32, int64, bool_})
    for (const Shape& shape : {Shape{}, Shape{0}, Shape{5}, Shape{2, 3, 4}, Shape{1, 0, 2},
                               Shape{1, 2, 1, 2, 1, 2, 1, 2}}) {
      SCOPED_TRACE(format("{} {}", to_string(dtype), shape));
      Tensor t = empty(shape, dtype);
      t.copy_(randint(0, 2, shape));
      save_npy(path_, t);
      const Tensor back = load_npy(path_);
      EXPECT_EQ(back.spec(), t.spec());
      EXPECT_EQ(back.to_vector<double>(), t.to_vector<double>());
      EXPECT_EQ(read_file(path_).size(), 128 + size_t(t.numel() * size_of(dtype)));
    }
}

TEST_F(NpyTest, BytesAreNumPys) {  // as numpy.save of NumPy 2.4
  save_npy(path_, tensor({1, -2}, float32));
  EXPECT_EQ(read_file(path_),
            "\x93NUMPY\1\0\x76\0{'descr': '<f4', 'fortran_order': False, "
            "'shape': (2,), }"s +
                std::string(60, ' ') + "\n\0\0\x80\x3f\0\0\0\xc0"s);
  save_npy(path_, tensor({1, 0, 1}, bool_));
  EXPECT_EQ(read_file(path_),
            "\x93NUMPY\1\0\x76\0{'descr': '|b1', 'fortran_order': False, "
            "'shape': (3,), }"s +
                std::string(60, ' ') + "\n\1\0\1"s);
}

TEST_F(NpyTest, StridesDoNotShowInTheFile) {
  const Tensor t = arange(6, int32);
  save_npy(path_, detail::raw_view(t, {3, 2}, {1, 3}, 0));
  EXPECT_EQ(load_npy(path_).to_vector<int>(), (std::vector{0, 3, 1, 4, 2, 5}));
}

TEST_F(NpyTest, FortranOrderBecomesStrides) {
  const Tensor t = load(
      file_of("{'descr': '|b1', 'fortran_order': True, 'shape': (2, 3), }\n", "\1\0\0\0\1\1"s));
  EXPECT_EQ(t.shape(), (Shape{2, 3}));
  EXPECT_EQ(t.strides(), (Shape{1, 2}));
  EXPECT_EQ(t.to_vector<int>(), (std::vector{1, 0, 1, 0, 0, 1}));
}

TEST_F(NpyTest, OtherVersionsAndSpellingsAreRead) {
  const std::string elements = "\1\0\0\0\2\0\0\0"s;
  const std::string spellings[] = {"{'descr':'<i4','fortran_order':False,'shape':(2,)}",
                                   "{ 'shape' : (2) , \"descr\": \"<i4\", 'fortran_order': False }",
                                   "{'fortran_order': True, 'shape': (2, ), 'descr': '<i4'}   \n"};
  for (int version : {1, 2, 3})
    for (const std::string& header : spellings)
      EXPECT_EQ(load(file_of(header, elements, version)).to_vector<int>(), (std::vector{1, 2}));
}

TEST_F(NpyTest, BFloat16IsRefusedWithTheMend) {
  try {
    save_npy(path_, zeros({2}, bfloat16));
    ADD_FAILURE() << "nothing was thrown";
  } catch (const DTypeError& e) {
    EXPECT_STREQ(e.what(),
                 "save_npy: the tensor must have a dtype of NumPy's, but is bfloat16; convert it "
                 "to float32, or use save_safetensors");
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(NpyTest, MalformedFilesAreNamed) {
  const struct {
    std::string bytes, message;
  } cases[] = {
      {"", "must begin as an .npy file, with \\x93NUMPY and a version, but does not"},
      {"\x93NUMPX\1\0\0\0"s,
       "must begin as an .npy file, with \\x93NUMPY and a version, but does not"},
      {"\x93NUMPY\4\0\0\0"s, "the .npy version must be 1.0, 2.0 or 3.0, but is 4.0"},
      {"\x93NUMPY\1\0\x10\0{"s,
       "the header must end within the file and have at most 65536 bytes, but has 16"},
      {"\x93NUMPY\2\0\xff\xff"s,
       "the header must end within the file and have at most 65536 bytes, but has 65535"},
      {"\x93NUMPY\2\0\xff\xff\xff\xff"s,
       "the header must end within the file and have at most 65536 bytes, but has 4294967295"},
      {file_of("", ""), "the header must have a dictionary at byte 0, but has: nothing more"},
      {file_of("{'descr", ""), "the header must have the string's end at byte 2, but has: descr"},
      {file_of("{'descr': [('a', '<f4')]}", ""),
       "the header must have a plain dtype at byte 10, but has: [('a', '<f4')]}"},
      {file_of("{'descr': '<f4', 'descr': '<f4'}", ""),
       "the header must have 'descr', 'fortran_order' and 'shape' once each, but 'descr' is "
       "another "
       "or again"},
      {file_of("{'fortran_order': 1}", ""),
       "the header must have True or False at byte 18, but has: 1}"},
      {file_of("{'shape': (-1,)}", ""),
       "the header must have a size below 2^63 at byte 11, but has: -1,)}"},
      {file_of("{'shape': (9223372036854775808,)}", ""),
       "the header must have a size below 2^63 at byte 11, but has: 9223372036854775808,)}"},
      {file_of("{'shape': (1,1,1,1,1,1,1,1,1)}", ""),
       "the header must have at most 8 sizes at byte 27, but has: 1)}"},
      {file_of("{'shape': (1", ""),
       "the header must have a comma or the tuple's end at byte 12, but has: nothing more"},
      {file_of("{'descr': '<f4'} x", ""),
       "the header must have nothing after the dictionary at byte 17, but has: x"},
      {file_of("{'descr': '<f4'}", ""),
       "the header must have 'descr', 'fortran_order' and 'shape', but has only: {'descr': '<f4'}"},
      {file_of("{'descr': '>f4', 'fortran_order': False, 'shape': ()}", "1234"),
       "the elements must be little-endian, but are '>f4'; save "
       "a.astype(a.dtype.newbyteorder('<')) "
       "from NumPy"},
      {file_of("{'descr': '<u2', 'fortran_order': False, 'shape': ()}", "12"),
       "the dtype must be <f4, <f8, <f2, <i4, <i8 or |b1, but is '<u2'; save a.astype of one of "
       "these from NumPy"},
      {file_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "1234567"),
       "the array is float32 of shape (2,), which takes 8 bytes, but the file has 7"},
      {file_of("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", "123456789"),
       "the array is float32 of shape (2,), which takes 8 bytes, but the file has 9"},
      {file_of("{'descr': '<f4', 'fortran_order': True, 'shape': (4294967296, 4294967296)}", ""),
       "the transposed array is float32 of shape (4294967296, 4294967296), which is more than any "
       "memory"},
      {file_of("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 4294967296, 4294967296)}",
               ""),
       "the array is float32 of shape (0, 4294967296, 4294967296), which is more than any memory"},
      {file_of("{'descr': '|b1', 'fortran_order': False, 'shape': (2,)}", "\1\2"),
       "the array must hold bools, 0 or 1, but element 1 is 2"},
  };
  for (const auto& c : cases) EXPECT_EQ(load_message(c.bytes), c.message);
}

TEST_F(NpyTest, AnyChangedByteIsReadOrRefused) {
  save_npy(path_, arange(6));
  testing::expect_any_change_read_or_refused(path_, load_npy);
}

TEST_F(NpyTest, NoPrefixOfAFileIsTakenForTheWhole) {
  save_npy(path_, arange(3));
  const std::string whole = read_file(path_);
  for (size_t length = 0; length < whole.size(); ++length)
    EXPECT_NE(load_message(std::string_view(whole).substr(0, length)), "nothing was thrown");
}

}  // namespace
}  // namespace norma
