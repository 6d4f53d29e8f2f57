#include "norma/nn/data/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <set>

#include "norma/core/error.h"
#include "norma/core/file.h"

namespace norma::nn {
namespace {
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

/// 256 different bytes, so that a byte tells its position.
std::string all_bytes() {
  std::string text;
  for (int byte = 0; byte < 256; ++byte) text += static_cast<char>(byte);
  return text;
}

TEST(Text, VocabularyIsTheBytesOfTheText) {
  const TextDataset data("poem", "the cat\nthe hat\n", {.context = 4});
  EXPECT_EQ(data.vocabulary().text(), "bytes:\\n aceht");
  EXPECT_EQ(data.decode(data.encode("chat\n")), "chat\n");
  EXPECT_THAT(data.prompt().tokens, ElementsAre(0));
}

TEST(Text, PartsAreTheFirstNineTenthsAndTheTail) {
  const TextDataset data("bytes", all_bytes(), {.context = 8});
  EXPECT_EQ(data.train_bytes(), 230);
  std::set<int> trained, validated;
  for (const auto& [part, seen] :
       {std::pair{Part::train, &trained}, std::pair{Part::validation, &validated}}) {
    const Batch batch = data.batch(part, 5, 0, 4000);
    const auto inputs = batch.inputs.to_vector<int>(), targets = batch.targets.to_vector<int>();
    for (size_t t = 0; t < inputs.size(); ++t) {
      ASSERT_EQ(targets[t], inputs[t] + 1);
      seen->insert(inputs[t]);
    }
  }
  // Byte 0 comes from one start of 222: e⁻¹⁸ of all seeds miss it in 4000 draws.
  EXPECT_EQ(trained.size(), 229u);
  EXPECT_EQ(*trained.rbegin(), 228);
  EXPECT_EQ(*validated.begin(), 230);
  EXPECT_EQ(validated.size(), 25u);
}

TEST(Text, ValidationCountsEachByteButTheFirstOnce) {
  for (int64_t context : {1, 5, 8, 25}) {
    SCOPED_TRACE(context);
    const TextDataset data("bytes", all_bytes(), {.context = context});
    std::vector<int> counted;
    for (int64_t first = 0; first < data.validation_rows(); first += 2)
      for (int target : data.validation_batch(first, 2).targets.to_vector<int>())
        if (target != kIgnore) counted.push_back(target);
    ASSERT_EQ(counted.size(), 25u);
    for (size_t i = 0; i < 25; ++i) EXPECT_EQ(counted[i], 231 + static_cast<int>(i));
  }
}

TEST(Text, BaselinesAreTheEntropiesOfTheWholeText) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += "ab";
  const Baselines b = TextDataset("ab", text + "a", {.context = 2}).baselines();
  EXPECT_NEAR(b.unigram, std::log(2.0), 30 * 0x1p-53);  // three roundings of numbers below 10
  EXPECT_NEAR(b.bigram, 0, 30 * 0x1p-53);
}

TEST(Text, AnotherTextTakesTheVocabularyTrainedOn) {
  const TextDataset trained("one", "hello world, hello", {.context = 4});
  const TextDataset other("two", "led",
                          {.train_share = 0, .vocabulary = trained.vocabulary().text()});
  EXPECT_EQ(other.vocabulary(), trained.vocabulary());
  EXPECT_EQ(counted_tokens(other.validation_batch(0, 1)), 2);
  EXPECT_THAT([&] { other.batch(Part::train, 0, 0, 1); },
              ThrowsMessage<ValueError>(
                  "two: a text with train_share 0 has nothing to train on, but a row is wanted"));
  EXPECT_THAT([&] { TextDataset("two", "let", {.vocabulary = trained.vocabulary().text()}); },
              ThrowsMessage<ValueError>(HasSubstr("two: a text must have more bytes to train on")));
  EXPECT_THAT(
      [&] {
        TextDataset("two", "let", {.train_share = 0, .vocabulary = trained.vocabulary().text()});
      },
      ThrowsMessage<ValueError>(
          "two: each byte must be among the 9 of the vocabulary, but byte 2, 0x74, is not; "
          "give a text like the one trained on"));
}

TEST(Text, UnfittingTextsAreNamed) {
  const std::string path = ::testing::TempDir() + "norma_text_" + std::to_string(::getpid());
  const auto open = [&](const std::string& text) {
    write_file_atomically(path, text);
    return TextDataset::open(path, {.context = 64});
  };
  EXPECT_EQ(open(std::string(100, 'a')).name(), path);
  EXPECT_THAT(
      [&] { open(""); },
      ThrowsMessage<ValueError>(path + ": a text must hold bytes, but is empty; give another"));
  EXPECT_THAT([&] { open(std::string(70, 'a')); },
              ThrowsMessage<ValueError>(
                  path + ": a text must have more bytes to train on than the context of 64 and 2 "
                         "to validate on, but has 63 and 7; give a longer text or a shorter "
                         "context"));
  std::remove(path.c_str());
  EXPECT_THAT([&] { TextDataset::open(path); }, ThrowsMessage<IOError>(HasSubstr(path)));
  EXPECT_THAT([] { TextDataset("a", "abc", {.train_share = 1}); },
              ThrowsMessage<ValueError>("a: train_share must be from 0 to below 1, but is 1"));
  EXPECT_THAT(
      [] { TextDataset("a", "abc", {.vocabulary = "words:a b"}); },
      ThrowsMessage<ValueError>("a: the vocabulary of a text must be of bytes, but is of words"));
}
}  // namespace
}  // namespace norma::nn
