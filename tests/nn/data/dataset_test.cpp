#include "norma/nn/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "norma/core/error.h"
#include "norma/nn/data/draws.h"

namespace norma::nn {
namespace {
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::ThrowsMessage;

/// Rows of random letters, each target the letter itself; the last place is padding.
class Letters : public Dataset {
 public:
  Letters() : Dataset("letters", Vocabulary::of_bytes("abcd"), 3) {}
  int64_t validation_rows() const override { return 5; }
  Prompt prompt() const override { return {.tokens = {0}}; }

 protected:
  void draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const override {
    Draws draws(part, seed, step, i);
    for (size_t t = 0; t < 2; ++t)
      row.inputs[t] = row.targets[t] = static_cast<int32_t>(draws.below(4));
  }
  void validation_row(int64_t i, Row row) const override {
    row.inputs[0] = row.targets[0] = static_cast<int32_t>(i % 4);
  }
};

std::vector<int> tokens(const Tensor& t) { return t.to_vector<int>(); }

TEST(Dataset, BatchIsAFunctionOfItsArguments) {
  const Letters data;
  const Batch small = data.batch(Part::train, 1, 7, 40), large = data.batch(Part::train, 1, 7, 80);
  EXPECT_EQ(small.inputs.shape(), (Shape{40, 3}));
  std::vector<int> head = tokens(large.inputs);
  head.resize(120);
  EXPECT_EQ(tokens(small.inputs), head);
  // 80 random letters each: two of these agree once in 4⁸⁰.
  for (const Batch& other : {data.batch(Part::train, 2, 7, 40), data.batch(Part::train, 1, 8, 40),
                             data.batch(Part::train, 1, (int64_t{1} << 32) + 7, 40),
                             data.batch(Part::validation, 1, 7, 40)})
    EXPECT_NE(tokens(other.inputs), tokens(small.inputs));
}

TEST(Dataset, PaddingIsIgnored) {
  const Batch batch = Letters().batch(Part::train, 0, 0, 6);
  EXPECT_EQ(counted_tokens(batch), 12);
  for (size_t i = 2; i < 18; i += 3) {
    EXPECT_EQ(tokens(batch.inputs)[i], 0);
    EXPECT_EQ(tokens(batch.targets)[i], kIgnore);
  }
}

TEST(Dataset, CountedTargetsKeepTheirPlaces) {
  const Batch batch = Letters().batch(Part::train, 0, 0, 3), counted = only_counted(batch);
  const std::vector<int> all = tokens(batch.targets);
  EXPECT_THAT(tokens(*counted.places), ElementsAre(0, 1, 3, 4, 6, 7));
  EXPECT_THAT(tokens(counted.targets), ElementsAre(all[0], all[1], all[3], all[4], all[6], all[7]));
  EXPECT_EQ(counted_tokens(counted), 6);
  EXPECT_EQ(tokens(counted.inputs), tokens(batch.inputs));
}

TEST(Dataset, ValidationRowsFollowOnWithoutOverlap) {
  const Letters data;
  EXPECT_THAT(tokens(data.validation_batch(0, 3).targets),
              ElementsAre(0, -1, -1, 1, -1, -1, 2, -1, -1));
  EXPECT_THAT(tokens(data.validation_batch(3, 3).targets), ElementsAre(3, -1, -1, 0, -1, -1));
}

TEST(Dataset, BaselinesAreTheEntropiesOfTheValidationPart) {
  const Baselines b = Letters().baselines();  // tokens 0 1 2 3 0, each its own input
  // Three roundings of numbers below 10.
  EXPECT_NEAR(b.unigram, 2 * 0.4 * std::log(5.0 / 2) / 2 + 0.6 * std::log(5.0), 30 * 0x1p-53);
  EXPECT_NEAR(b.bigram, 0, 30 * 0x1p-53);
  PairCounts counts;
  counts.add(0, 0);
  counts.add(0, 1);
  counts.add(1, 0);
  EXPECT_NEAR(counts.entropies().bigram, 2.0 / 3 * std::log(2.0), 30 * 0x1p-53);
}

TEST(Dataset, DrawsAreEvenAndEndBelowTheirLimit) {
  Draws draws(Part::train, 3, 0, 0);
  std::vector<int> counts(7);
  constexpr int kDraws = 70'000;
  for (int i = 0; i < kDraws; ++i) ++counts.at(static_cast<size_t>(draws.below(7)));
  // Binomial with mean 10⁴ and σ = √(n p (1 − p)); five of them.
  for (int n : counts) EXPECT_NEAR(n, kDraws / 7, 5 * std::sqrt(kDraws * 6.0 / 49));
}

TEST(Dataset, AnAnswerIsRightAsAWhole) {
  const std::vector<int32_t> targets = {-1, 1, 2, -1, 1, 2}, predicted = {9, 1, 2, 1, 1, 1};
  const Batch batch{zeros({2, 3}, int32, cpu), from_span<int32_t>(targets, Shape{2, 3}).to(cpu)};
  EXPECT_EQ(exact_answers(batch, from_span<int32_t>(predicted, Shape{2, 3})), 0.5);
  EXPECT_THAT(
      [&] {
        exact_answers(batch, zeros({2, 2}, int32));
      },
      ThrowsMessage<ShapeError>(
          "exact_answers: predictions must be like the targets (2, 3), but are (2, 2)"));
}

TEST(Dataset, ImpossibleBatchesAreNamed) {
  const Letters data;
  EXPECT_THAT([&] { data.batch(Part::train, 0, 0, 0); },
              ThrowsMessage<ValueError>("letters: a batch must have at least 1 row, but has 0"));
  EXPECT_THAT([&] { data.batch(Part::train, 0, -1, 1); },
              ThrowsMessage<ValueError>("letters: a step must be 0 or more, but is -1"));
  EXPECT_THAT([&] { data.validation_batch(5, 2); },
              ThrowsMessage<ValueError>(
                  "letters: validation rows must lie in 0 … 4, but 2 rows from 5 are wanted"));
}
}  // namespace
}  // namespace norma::nn
