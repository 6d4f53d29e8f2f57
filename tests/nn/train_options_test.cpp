#include "norma/nn/train_options.h"

#include "testing/compare.h"

namespace norma::nn {
namespace {

TEST(TrainOptions, JsonGivesThemBack) {
  TrainOptions options{.text = "a \"quoted\" name", .n_layers = 7, .lr = 0.1, .seed = ~uint64_t{0}};
  options.tie = false;
  TrainOptions read;
  set_from_json(read, to_json(options), "config.json");
  EXPECT_EQ(read, options);
}

TEST(TrainOptions, WhatJsonLeavesOutStays) {
  TrainOptions options;
  set_from_json(options, R"({"d_model": 64})", "config.json");
  EXPECT_EQ(options, TrainOptions{.d_model = 64});
}

TEST(TrainOptions, MistakesInJsonAreNamed) {
  TrainOptions o;
  EXPECT_THROW_MSG(set_from_json(o, "{", "run.json"), ValueError,
                   "run.json: must be JSON, but at byte 2 it is not");
  EXPECT_THROW_MSG(set_from_json(o, "[]", "run.json"), ValueError,
                   "run.json: must be a JSON object, but is array");
  EXPECT_THROW_MSG(set_from_json(o, R"({"n_layer": 3})", "run.json"), ValueError,
                   "run.json: n_layer is no setting; did you mean n_layers?");
  EXPECT_THROW_MSG(set_from_json(o, R"({"zebra crossing": 3})", "run.json"), ValueError,
                   "run.json: zebra crossing is no setting");
  EXPECT_THROW_MSG(set_from_json(o, R"({"lr": "fast"})", "run.json"), ValueError,
                   "run.json: lr must be a number, but is \"fast\"");
  EXPECT_THROW_MSG(set_from_json(o, R"({"steps": 1.5})", "run.json"), ValueError,
                   "run.json: steps must be a whole number, but is 1.5");
}

TEST(TrainOptions, ImpossibleSettingsNameTheMend) {
  require_possible(TrainOptions{});
  EXPECT_THROW_MSG(require_possible({.n_heads = 3, .d_model = 100}), ValueError,
                   "n_heads: must divide d_model = 100, but is 3");
  EXPECT_THROW_MSG(require_possible({.text = "a", .task = "dyck"}), ValueError,
                   "text: a run learns from a text or a task, but both were given; leave one out");
  EXPECT_THROW_MSG(require_possible({.batch = 12, .accumulate = 5}), ValueError,
                   "accumulate: must divide batch = 12, but is 5");
  EXPECT_THROW_MSG(require_possible({.schedule = "cosin"}), ValueError,
                   "schedule: must be one of cosine, linear, constant, but is cosin");
  EXPECT_THROW_MSG(require_possible({.dropout = 1}), ValueError,
                   "dropout: must be from 0 to below 1, but is 1");
}

}  // namespace
}  // namespace norma::nn
