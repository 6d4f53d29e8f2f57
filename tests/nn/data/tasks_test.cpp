#include "norma/nn/data/tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>

#include "norma/core/error.h"

namespace norma::nn {
namespace {
using ::testing::ElementsAre;
using ::testing::ThrowsMessage;

/// The inputs and the counted targets of each row, as text.
std::vector<std::pair<std::string, std::string>> texts(const Dataset& data, const Batch& batch) {
  const auto inputs = batch.inputs.span<const int32_t>();
  const auto targets = batch.targets.span<const int32_t>();
  const auto width = static_cast<size_t>(data.context());
  std::vector<std::pair<std::string, std::string>> out;
  for (size_t begin = 0; begin < inputs.size(); begin += width)
    out.emplace_back(data.decode(inputs.subspan(begin, width)),
                     data.decode(targets.subspan(begin, width)));
  return out;
}

TEST(Tasks, CopyingAsksForTheLettersAgain) {
  const auto data = make_task("copying", {.length = 6, .symbols = 4});
  EXPECT_EQ(data->context(), 12);
  EXPECT_EQ(data->vocab_size(), 5);
  for (const auto& [input, answer] : texts(*data, data->batch(Part::train, 1, 0, 100))) {
    EXPECT_EQ(answer.size(), 6u);
    EXPECT_EQ(input, answer + "|" + answer.substr(0, 5));
  }
}

TEST(Tasks, SelectiveCopyingAsksForTheLettersAmongTheNoise) {
  const auto data = make_task("selective-copying", {.length = 20, .symbols = 8, .items = 5});
  EXPECT_EQ(data->context(), 25);
  EXPECT_EQ(data->vocab_size(), 10);
  for (const auto& [input, answer] : texts(*data, data->batch(Part::train, 1, 0, 100))) {
    std::string letters = input.substr(0, 20);
    std::erase(letters, '.');
    EXPECT_EQ(answer, letters);
    EXPECT_EQ(input.substr(20), "|||||");
  }
}

TEST(Tasks, InductionHeadsAskForWhatStoodBehindTheMark) {
  const auto data = make_task("induction-heads", {.length = 32, .symbols = 16});
  EXPECT_EQ(data->vocab_size(), 17);
  for (const auto& [input, answer] : texts(*data, data->batch(Part::train, 1, 0, 100))) {
    EXPECT_EQ(std::count(input.begin(), input.end(), '$'), 2);
    EXPECT_EQ(input.back(), '$');
    EXPECT_EQ(answer, std::string(1, input[input.find('$') + 1]));
  }
}

TEST(Tasks, MqarAsksForValuesByTheirKeys) {
  const auto data = make_task("mqar", {.length = 64, .symbols = 256, .items = 6});
  const Batch batch = data->batch(Part::train, 1, 0, 50);
  const auto inputs = batch.inputs.span<const int32_t>(),
             targets = batch.targets.span<const int32_t>();
  for (size_t row = 0; row < 50; ++row) {
    std::map<int32_t, int32_t> value_of;
    int asked = 0;
    for (size_t i = 0; i < 12; i += 2) value_of[inputs[row * 64 + i]] = inputs[row * 64 + i + 1];
    EXPECT_EQ(value_of.size(), 6u);
    for (size_t t = 0; t < 64; ++t) {
      const int32_t key = inputs[row * 64 + t], answer = targets[row * 64 + t];
      if (answer == kIgnore) continue;
      ++asked;
      EXPECT_GE(t, 12u);
      EXPECT_EQ(value_of.at(key), answer);
    }
    EXPECT_EQ(asked, 6);
  }
}

TEST(Tasks, AdditionAsksForTheSumFromItsLastDigit) {
  const auto data = make_task("addition", {.items = 2});
  for (const auto& [input, answer] : texts(*data, data->batch(Part::train, 1, 0, 100))) {
    const int sum = std::stoi(input.substr(0, 2)) + std::stoi(input.substr(3, 2));
    std::string digits = std::to_string(1000 + sum).substr(1);
    std::reverse(digits.begin(), digits.end());
    EXPECT_EQ(answer, digits);
    EXPECT_EQ(input.substr(2, 1) + input.substr(5, 1), "+=");
    EXPECT_EQ(input.substr(6), digits.substr(0, 2));
  }
}

TEST(Tasks, ParityAsksForTheSumOfTheBits) {
  const auto data = make_task("parity", {.length = 11});
  std::map<std::string, int> answers;
  for (const auto& [input, answer] : texts(*data, data->batch(Part::train, 1, 0, 1000))) {
    EXPECT_EQ(input.substr(11), "=");
    EXPECT_EQ(answer, std::count(input.begin(), input.end(), '1') % 2 ? "1" : "0") << input;
    ++answers[answer];
  }
  EXPECT_NEAR(answers["0"], 500, 5 * std::sqrt(1000 * 0.25));  // binomial
}

TEST(Tasks, ModularAsksForTheSum) {
  const auto data = make_task("modular", {.modulus = 13});
  EXPECT_EQ(data->context(), 4);
  for (const auto& [input, answer] : texts(*data, data->batch(Part::train, 1, 0, 200))) {
    int a = 0, b = 0;
    ASSERT_EQ(std::sscanf(input.c_str(), "%d + %d =", &a, &b), 2) << input;
    EXPECT_EQ(answer, std::to_string((a + b) % 13));
  }
}

TEST(Tasks, TrainingAndValidationShareNoQuestion) {
  const std::pair<const char*, TaskOptions> tasks[] = {{"copying", {.length = 5, .symbols = 4}},
                                                       {"parity", {.length = 10}},
                                                       {"modular", {.modulus = 32}}};
  for (const auto& [name, options] : tasks) {
    SCOPED_TRACE(name);
    const auto data = make_task(name, options);
    std::set<std::string> training, validation;  // of 1024 questions in all
    for (const auto& row : texts(*data, data->batch(Part::train, 1, 0, 20'000)))
      training.insert(row.first);
    for (const auto& batch : {data->batch(Part::validation, 1, 0, 20'000),
                              data->validation_batch(0, data->validation_rows())})
      for (const auto& row : texts(*data, batch)) validation.insert(row.first);
    // Each question comes about 20 times in training: e⁻²⁰ · 1024 of missing any.
    EXPECT_EQ(training.size() + validation.size(), 1024u);
    for (const std::string& question : validation) EXPECT_FALSE(training.contains(question));
    EXPECT_GT(validation.size(), 60u);
  }
}

TEST(Tasks, ModularValidatesEveryOtherPairOnce) {
  const auto data = make_task("modular", {.modulus = 7, .train_share = 0.4});
  EXPECT_EQ(data->validation_rows(), 49 - 19);
  std::set<std::string> seen;
  for (const auto& row : texts(*data, data->validation_batch(0, 100))) seen.insert(row.first);
  EXPECT_EQ(seen.size(), 30u);
}

TEST(Tasks, PromptIsAQuestion) {
  const auto data = make_task("copying", {.length = 5});
  const auto row = texts(*data, data->validation_batch(0, 1))[0];
  EXPECT_EQ(data->decode(data->prompt().tokens), row.second + "|");
  EXPECT_TRUE(data->has_answers());
  EXPECT_EQ(data->best_loss(), 0);
}

/// Every balanced word of n brackets, by trying all.
std::set<std::string> dyck_words(int n, size_t kinds, size_t depth) {
  const std::string brackets = std::string("()[]{}<>").substr(0, 2 * kinds);
  std::set<std::string> words = {""}, balanced;
  for (int t = 0; t < n; ++t) {
    std::set<std::string> longer;
    for (const std::string& word : words)
      for (char c : brackets) longer.insert(word + c);
    words = longer;
  }
  for (const std::string& word : words) {
    std::string open;
    bool good = true;
    for (char c : word) {
      const size_t at = brackets.find(c);
      if (at % 2 == 0) {
        open += c;
      } else if (good &= !open.empty() && open.back() == brackets[at - 1]; good) {
        open.pop_back();
      }
      good &= open.size() <= depth;
    }
    if (good && open.empty()) balanced.insert(word);
  }
  return balanced;
}

TEST(Tasks, DyckDrawsEachBalancedWordAlikeAndKnowsTheirNumber) {
  const auto data = make_task("dyck", {.length = 8, .kinds = 2, .depth = 2});
  const std::set<std::string> words = dyck_words(8, 2, 2);
  const auto n = static_cast<double>(words.size());
  // 8 sums of logarithms below 8, a handful of roundings each.
  EXPECT_NEAR(*data->best_loss(), std::log(n) / 8, 8 * 8 * 5 * 0x1p-53);
  constexpr int kDraws = 50'000;
  std::map<std::string, int> drawn;
  for (const auto& [input, word] : texts(*data, data->batch(Part::train, 3, 0, kDraws))) {
    EXPECT_EQ(input, std::string("\n").append(word, 0, 7));
    ++drawn[word];
  }
  EXPECT_EQ(drawn.size(), words.size());
  for (const auto& [word, count] : drawn) {
    EXPECT_TRUE(words.contains(word)) << word;
    // Binomial; five standard deviations.
    EXPECT_NEAR(count, kDraws / n, 5 * std::sqrt(kDraws / n)) << word;
  }
}

TEST(Tasks, DyckCountsWordsThatNoIntegerHolds) {
  const auto data = make_task("dyck", {.length = 2000, .kinds = 4, .depth = 1});
  // Depth 1: a thousand free choices of a kind. 2000 roundings at most in sums of one sign.
  EXPECT_NEAR(*data->best_loss(), std::log(4.0) / 2, 2000 * 0x1p-53);
  EXPECT_EQ(data->batch(Part::train, 1, 0, 1).targets.shape(), (Shape{1, 2000}));
}

TEST(Tasks, TasksOfOnesOwnStandInTheTable) {
  static const auto mine = [](const TaskOptions& o) { return make_task("parity", o); };
  register_task("my-parity", mine);
  EXPECT_EQ(make_task("my-parity", {.length = 20})->context(), 21);
  EXPECT_THAT(task_names(), ElementsAre("addition", "copying", "dyck", "induction-heads", "modular",
                                        "mqar", "my-parity", "parity", "selective-copying"));
  EXPECT_THAT([] { register_task("dyck", mine); },
              ThrowsMessage<ValueError>("register_task: a name must be new, but dyck is taken"));
}

TEST(Tasks, MistakesAreNamed) {
  const auto expect = [](const char* name, const TaskOptions& options, const std::string& message) {
    EXPECT_THAT([&] { make_task(name, options); }, ThrowsMessage<ValueError>(message));
  };
  expect("copying", {.symbols = 27}, "copying: there must be 1 to 26 symbols, but there are 27");
  expect("copying", {.length = 3},
         "copying: there must be at least 1024 questions, but 3 symbols of 8 kinds make fewer; "
         "raise the length");
  expect("parity", {.length = -2}, "parity: the context must be at least 1 token, but is -1");
  expect("parity", {.validation_rows = 0},
         "parity: the validation part must have at least 1 row, but has 0");
  expect("modular", {.modulus = 1}, "modular: the modulus must be 2 to 1000, but is 1");
  expect("modular", {.modulus = 5, .train_share = 1},
         "modular: train_share must leave pairs on both sides, but is 1 of 25");
  expect("dyck", {.kinds = 5}, "dyck: there must be 1 to 4 kinds of brackets, but there are 5");
  expect("dyck", {.length = 7}, "dyck: the length must be even, but is 7");
  expect("dyck", {.depth = 0}, "dyck: the depth must be at least 1, but is 0");
  EXPECT_THAT([] { make_task("sorting"); }, ThrowsMessage<ValueError>(::testing::MatchesRegex(
                                                "task: the name must be one of addition, copying, "
                                                "dyck, .*parity, selective-copying, but is "
                                                "sorting")));
}
}  // namespace
}  // namespace norma::nn
