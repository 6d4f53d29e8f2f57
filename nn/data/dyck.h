#pragma once

#include <vector>

#include "norma/nn/data/dataset.h"
#include "norma/nn/data/tasks.h"

namespace norma::nn {

/// Balanced brackets of several kinds, n = length of them, nested at most `depth` deep, each such
/// word as probable as any other. With N(d, r) the ways to end in r brackets from depth d,
///   N(0, 0) = 1,  N(d, r) = kinds · [d < depth] N(d + 1, r − 1) + [d > 0] N(d − 1, r − 1),
/// the best loss is ln N(0, n) / n exactly. inputs are a newline and the word but its last bracket.
class Dyck final : public Dataset {
 public:
  explicit Dyck(const TaskOptions& options);

  int64_t validation_rows() const override { return validation_rows_; }
  std::optional<double> best_loss() const override;
  std::optional<double> own_loss(const Batch&) const override { return best_loss(); }
  Prompt prompt() const override { return {.tokens = {vocabulary().token("\n")}}; }

 protected:
  void draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const override;
  void validation_row(int64_t i, Row row) const override {
    draw_row(Part::validation, 0, 0, i, row);
  }

 private:
  double log_ways(int64_t depth, int64_t left) const;

  int64_t kinds_, depth_, validation_rows_;
  std::vector<double> log_ways_;  // ln N(d, r) at r · (depth + 1) + d
};

}  // namespace norma::nn
