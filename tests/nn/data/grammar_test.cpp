#include "norma/nn/data/grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "norma/core/error.h"

namespace norma::nn {
namespace {
using ::testing::ThrowsMessage;

constexpr double kUnitRoundoff = 0x1p-53;

// Nouns agree with verbs, and "of" makes sentences of any length.
constexpr std::string_view kTiny = R"(
S -> N V (.7) | M W (.3)
N -> a (1) | a of M (3)
M -> bb (2) | bb of N (.5)
V -> is
W -> be
)";

/// Every sentence of kTiny of at most max_bytes with its probability, written out by hand.
std::map<std::string, double> tiny_sentences(size_t max_bytes) {
  std::map<std::string, double> all;
  const double stop_n = 1.0 / 4, stop_m = 2 / 2.5;
  for (const auto& [start, verb, p_start] :
       {std::tuple{'N', "is", 0.7}, std::tuple{'M', "be", 0.3}}) {
    std::string text;
    double p = p_start;
    for (char symbol = start; text.size() < max_bytes; symbol = symbol == 'N' ? 'M' : 'N') {
      const double stop = symbol == 'N' ? stop_n : stop_m;
      text += symbol == 'N' ? "a " : "bb ";
      const std::string sentence = text + verb + ".\n";
      if (sentence.size() <= max_bytes) all[sentence] = p * stop;
      p *= 1 - stop;
      text += "of ";
    }
  }
  return all;
}

TEST(Grammar, MomentsAreThoseOfAllSentencesWrittenOut) {
  const Grammar grammar(kTiny);
  for (size_t max_bytes : {6u, 7u, 12u, 40u, 200u}) {
    SCOPED_TRACE(max_bytes);
    double sum = 0, p_ln_p = 0, bytes = 0;
    for (const auto& [sentence, p] : tiny_sentences(max_bytes))
      sum += p, p_ln_p += p * std::log(p), bytes += p * static_cast<double>(sentence.size());
    const SentenceMoments m = grammar.moments(static_cast<int64_t>(max_bytes));
    // Every sum is of one sign. A probability has at most two roundings a word, one more a sum
    // over lengths, a logarithm's error counts as one: fewer than 4 a byte in all.
    const double relative = 4 * static_cast<double>(max_bytes) * kUnitRoundoff;
    EXPECT_NEAR(m.probability, sum, relative * sum);
    EXPECT_NEAR(m.entropy, std::log(sum) - p_ln_p / sum, relative * (1 - p_ln_p / sum));
    EXPECT_NEAR(m.mean_bytes, bytes / sum, relative * bytes / sum);
  }
}

TEST(Grammar, ProbabilitiesOfAllSentencesSumToOne) {
  const GrammarDataset data({.context = 60, .notation = std::string(kTiny)});
  double sum = 0;
  const auto sentences = tiny_sentences(60);
  for (const auto& entry : sentences) sum += std::exp(data.log_probability(entry.first));
  // exp turns the absolute error of a logarithm (below 60 here) into a relative one.
  EXPECT_NEAR(sum, 1, 60 * 4 * kUnitRoundoff);
}

TEST(Grammar, LogProbabilityIsTheProductOfTheChoices) {
  const Grammar grammar(kTiny);
  for (const auto& [sentence, p] : tiny_sentences(60))
    EXPECT_NEAR(grammar.log_probability(sentence), std::log(p), 60 * 4 * kUnitRoundoff) << sentence;
  for (const char* wrong : {"a be.\n", "a is.", "a is\n", "a  is.\n", " a is.\n", "a of is.\n",
                            "is.\n", ".\n", "", "a is a is.\n", "A is.\n"})
    EXPECT_EQ(grammar.log_probability(wrong), -HUGE_VAL) << wrong;
}

TEST(Grammar, AmbiguousSentenceHasTheSumOfItsDerivations) {
  const Grammar grammar("S -> a B (1) | A b (3)\nA -> a\nB -> b");
  EXPECT_EQ(grammar.log_probability("a b.\n"), 0);
}

TEST(Grammar, EntropyOfUnboundedEnglishIsItsClosedForm) {
  const auto h = [](std::initializer_list<double> p) {
    double sum = 0;
    for (double q : p) sum -= q * std::log(q);
    return sum;
  };
  // A symbol's entropy is that of its choice and the expected sum of its parts'.
  const double noun = h({.3, .25, .2, .15, .1}), adjective = .3 * h({.4, .3, .2, .1});
  const double single = h({.5, .3, .2}) + h({.5, .3, .2}) + noun + adjective;
  const double plural = h({.5, .3, .2}) + h({.6, .4}) + noun + adjective;
  const double own = .6 * single + .4 * plural + h({.6, .4});  // NP = own + .2 (h(PP) + NP)
  const double preposition = h({.5, .3, .2}), np = (own + .2 * preposition) / .8;
  const double tail = .2 * (preposition + np);
  const double vp = h({.4, .6}) + .4 * std::log(2) + .6 * (h({.5, .3, .2}) + np);
  const double sentence = h({.6, .4}) + .6 * single + .4 * plural + tail + vp;
  const SentenceMoments m = Grammar(english_grammar()).moments(600);
  // What is longer than 600 bytes: fewer than one in 10¹² (each further phrase, of at least 8
  // bytes, has probability .2); the sums have one sign and fewer than 4 roundings a byte.
  EXPECT_NEAR(m.probability, 1, 2400 * kUnitRoundoff);
  EXPECT_NEAR(m.entropy, sentence, 2400 * kUnitRoundoff * sentence);
  EXPECT_NEAR(m.entropy, 11.0161, 5e-5);  // known to these digits from another program
}

TEST(Grammar, DrawnSentencesHaveTheComputedEntropyAndLength) {
  for (int64_t context : {48, 128}) {  // 48: one sentence in eight is drawn again
    SCOPED_TRACE(context);
    const GrammarDataset data({.context = context});
    double sum = 0, squares = 0, bytes = 0, bytes_squared = 0;
    constexpr int64_t n = 20'000;
    for (int64_t i = 0; i < n; ++i) {
      Draws draws(Part::train, 11, 0, i);
      const std::string sentence = data.grammar().draw(draws, context);
      ASSERT_LE(std::ssize(sentence), context);
      const double nats = -data.log_probability(sentence);
      const auto length = static_cast<double>(sentence.size());
      sum += nats, squares += nats * nats, bytes += length, bytes_squared += length * length;
    }
    // The entropy is the mean of −ln p; its standard error is the sample's. Five of them.
    const auto error = [&](double s, double s2) {
      return std::sqrt((s2 / n - (s / n) * (s / n)) / n);
    };
    EXPECT_NEAR(sum / n, data.moments().entropy, 5 * error(sum, squares));
    EXPECT_NEAR(bytes / n, data.moments().mean_bytes, 5 * error(bytes, bytes_squared));
  }
}

TEST(Grammar, RowIsOneSentenceBehindANewline) {
  const GrammarDataset data;
  const Batch batch = data.batch(Part::train, 1, 2, 50);
  const auto inputs = batch.inputs.span<const int32_t>(),
             targets = batch.targets.span<const int32_t>();
  for (size_t begin = 0; begin < inputs.size(); begin += 128) {
    const std::string sentence = data.decode(targets.subspan(begin, 128));
    EXPECT_TRUE(std::isfinite(data.log_probability(sentence))) << sentence;
    EXPECT_EQ("\n" + sentence, data.decode(inputs.subspan(begin, sentence.size())) + "\n");
    for (size_t t = sentence.size(); t < 128; ++t) EXPECT_EQ(targets[begin + t], kIgnore);
  }
}

TEST(Grammar, OwnLossIsTheSentencesLogProbabilityAByte) {
  const GrammarDataset data;
  const Batch batch = data.validation_batch(0, 3);
  double nats = 0, bytes = 0;
  for (size_t i = 0; i < 3; ++i) {
    const std::string text = data.decode(batch.targets.span<const int32_t>().subspan(i * 128, 128));
    nats -= data.log_probability(text), bytes += static_cast<double>(text.size());
  }
  EXPECT_EQ(data.own_loss(batch), nats / bytes);
}

TEST(Grammar, LossesStandInTheirOrder) {
  const GrammarDataset data;
  const Baselines b = data.baselines();
  EXPECT_LT(*data.best_loss(), b.bigram);
  EXPECT_LT(b.bigram, b.unigram);
}

TEST(Grammar, MistakesAreNamed) {
  const auto expect = [](const char* notation, const std::string& message) {
    EXPECT_THAT([&] { Grammar{notation}; }, ThrowsMessage<ValueError>(message)) << notation;
  };
  expect("", "grammar: there must be a symbol, but there is none");
  expect("S a b", "grammar: a line must read `symbol -> parts (weight) | …`, but is `S a b`");
  expect("S -> a\nS -> b", "grammar: a symbol must have one line, but S has two");
  expect("S -> a | (2)", "grammar: each alternative of S must have a part, but one is empty");
  expect("S -> a |", "grammar: each alternative of S must have a part, but one is empty");
  expect("S -> ", "grammar: each alternative of S must have a part, but one is empty");
  expect("S -> a (-1)", "grammar: a weight of S must be a positive number, but is (-1)");
  expect("S -> A b\nA -> c | S d",
         "grammar: no symbol may begin with itself, but S does; write it right-recursive");
  expect("S -> a S", "grammar: every symbol must come to an end, but S never does");
  EXPECT_THAT([] { GrammarDataset({.context = 13}); },
              ThrowsMessage<ValueError>(
                  "grammar: the context must hold at least one sentence in a hundred, but 13 bytes "
                  "hold 0.54 % of them; the shortest takes 13"));
  EXPECT_THAT([] { GrammarDataset({.validation_rows = 0}); },
              ThrowsMessage<ValueError>(
                  "grammar: the validation part must have at least 1 row, but has 0"));
}
}  // namespace
}  // namespace norma::nn
