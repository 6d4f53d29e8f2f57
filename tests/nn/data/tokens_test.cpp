#include "norma/nn/data/tokens.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>

#include "norma/core/error.h"
#include "norma/core/file.h"

namespace norma::nn {
namespace {
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

/// A file of the tokens 1000 … 1000 + n − 1, so that a token tells its position.
class Tokens : public ::testing::Test {
 protected:
  std::string path_ = ::testing::TempDir() + "norma_tokens_" + std::to_string(getpid());
  ~Tokens() override { std::remove(path_.c_str()); }
  void write(int n, std::string_view tail = {}) {
    std::string bytes;
    for (int i = 1000; i < 1000 + n; ++i)
      bytes += static_cast<char>(i & 255), bytes += static_cast<char>(i >> 8);
    write_file_atomically(path_, bytes + std::string(tail));
  }
};

TEST_F(Tokens, RowsAreWindowsOfTheirPart) {
  write(100);
  const TokenDataset data(path_, {.context = 8});
  EXPECT_EQ(data.tokens(), 100);
  EXPECT_EQ(data.vocab_size(), 1152);  // the next multiple of 64 after 1099
  EXPECT_EQ(data.vocabulary().text(), "numbers:1152");
  EXPECT_TRUE(Vocabulary::parse("numbers:1152") == data.vocabulary());
  EXPECT_THAT(data.encode("7 1099"), ElementsAre(7, 1099));
  EXPECT_EQ(data.decode(std::vector<int32_t>{7, 1099}), "7 1099");
  const Batch batch = data.batch(Part::train, 1, 0, 500);
  const auto inputs = batch.inputs.to_vector<int>(), targets = batch.targets.to_vector<int>();
  for (size_t t = 0; t < inputs.size(); ++t) {
    ASSERT_EQ(targets[t], inputs[t] + 1);
    ASSERT_GE(inputs[t], 1000);
    ASSERT_LT(targets[t], 1090);
  }
  EXPECT_EQ(data.validation_rows(), 2);
  EXPECT_THAT(data.validation_batch(0, 2).targets.to_vector<int>(),
              ElementsAre(1091, 1092, 1093, 1094, 1095, 1096, 1097, 1098,  //
                          1099, -1, -1, -1, -1, -1, -1, -1));
}

TEST_F(Tokens, MistakesAreNamed) {
  write(100, "x");
  EXPECT_THAT([&] { TokenDataset{path_}; }, ThrowsMessage<IOError>(HasSubstr("has 201 bytes")));
  write(100);
  EXPECT_THAT([&] { TokenDataset(path_, {.vocab_size = 1050}); },
              ThrowsMessage<ValueError>(HasSubstr("must be below 1050")));
  EXPECT_THAT([&] { TokenDataset(path_, {.context = 90}); },
              ThrowsMessage<ValueError>(HasSubstr("there are 90 and 10")));
}

}  // namespace
}  // namespace norma::nn
