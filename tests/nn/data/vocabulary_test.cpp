#include "norma/nn/data/vocabulary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "norma/core/error.h"

namespace norma::nn {
namespace {
using ::testing::ElementsAre;
using ::testing::ThrowsMessage;

TEST(Vocabulary, BytesStandOnceInAscendingOrder) {
  const Vocabulary v = Vocabulary::of_bytes("banana\n");
  EXPECT_EQ(v.size(), 4);
  EXPECT_EQ(v.text(), "bytes:\\nabn");
  EXPECT_THAT(v.encode("nab\n"), ElementsAre(3, 1, 2, 0));
}

TEST(Vocabulary, DecodeUndoesEncodeAndLeavesOutIgnoredTargets) {
  const Vocabulary bytes = Vocabulary::of_bytes("hello world");
  EXPECT_EQ(bytes.decode(bytes.encode("low hold")), "low hold");
  const Vocabulary words = Vocabulary::of_words({"12", "+", "="});
  EXPECT_THAT(words.encode(" 12 +  12\n="), ElementsAre(0, 1, 0, 2));
  const std::vector<int32_t> tokens = {0, -1, 1, 0};
  EXPECT_EQ(words.decode(tokens), "12 + 12");
}

TEST(Vocabulary, ParseUndoesTextForEveryByte) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const Vocabulary bytes = Vocabulary::of_bytes(all);
  EXPECT_EQ(bytes.size(), 256);
  EXPECT_EQ(Vocabulary::parse(bytes.text()), bytes);
  for (char c : bytes.text()) EXPECT_TRUE(c >= 0x20 && c < 0x7F);
  const Vocabulary words = Vocabulary::of_words({"a\\b", "é", "="});
  EXPECT_EQ(words.text(), "words:a\\\\b \\xc3\\xa9 =");
  EXPECT_EQ(Vocabulary::parse(words.text()), words);
}

TEST(Vocabulary, MistakesAreNamed) {
  const Vocabulary v = Vocabulary::of_bytes("abc");
  EXPECT_THAT([&] { v.encode("ab\n"); },
              ThrowsMessage<ValueError>("encode: each byte must be among the 3 of the vocabulary, "
                                        "but '\\n' at position 2 is not"));
  EXPECT_THAT([&] { v.symbol(3); },
              ThrowsMessage<ValueError>("vocabulary: a token must lie in 0 … 2, but is 3"));
  EXPECT_THAT([&] { v.token("d"); },
              ThrowsMessage<ValueError>("vocabulary: a symbol must be one of the 3, but is 'd'"));
  EXPECT_THAT([] { Vocabulary::of_words({"1"}).encode("1 2"); },
              ThrowsMessage<ValueError>("encode: each word must be among the 1 of the vocabulary, "
                                        "but '2' at position 2 is not"));
  EXPECT_THAT([] { Vocabulary::of_words({"a b"}); },
              ThrowsMessage<ValueError>(
                  "vocabulary: a word must be without spaces and not empty, but is 'a b'"));
  EXPECT_THAT(
      [] { Vocabulary::parse("bytes:aa"); },
      ThrowsMessage<ValueError>("vocabulary: each symbol must stand once, but 'a' stands twice"));
  for (const char* text : {"abc", "bytes:\\q", "bytes:\\x4", "bytes:\\"}) {
    SCOPED_TRACE(text);
    EXPECT_THROW(Vocabulary::parse(text), ValueError);
  }
}
}  // namespace
}  // namespace norma::nn
