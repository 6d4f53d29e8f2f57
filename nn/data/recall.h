#pragma once

#include "norma/nn/data/answers.h"

namespace norma::nn {

// Tasks that the papers on state-space models use: what must be kept, and where it is asked for,
// depends on the content.

/// `length` places of noise, among them `items` letters, then as many markers, at which the letters
/// are asked for in their order (Gu & Dao 2023, arXiv:2312.00752, section 4.1.1): only a model that
/// chooses by content what it keeps can do it.
class SelectiveCopying final : public AnswerTask {
 public:
  explicit SelectiveCopying(const TaskOptions& options);

 protected:
  void draw(Part part, Draws& draws, Row row) const override;

 private:
  int64_t length_, items_, symbols_;
};

/// Random letters, one of them behind the only `$`; a second `$` at the end asks for it (Gu & Dao
/// 2023, section 4.1.2; Olsson et al. 2022, arXiv:2209.11895).
class InductionHeads final : public AnswerTask {
 public:
  explicit InductionHeads(const TaskOptions& options);

 protected:
  void draw(Part part, Draws& draws, Row row) const override;

 private:
  int64_t symbols_;
};

/// Multi-query associative recall (Arora et al. 2023, arXiv:2312.04927): `items` keys with their
/// values, then the keys again at distances drawn from a power law, at which the values are asked
/// for. Keys are tokens 1 … V/2 − 1, values V/2 … V − 1, token 0 stands elsewhere.
class Mqar final : public AnswerTask {
 public:
  explicit Mqar(const TaskOptions& options);

 protected:
  void draw(Part part, Draws& draws, Row row) const override;

 private:
  int64_t pairs_;
  std::vector<double> weights_;  // of each place that a query may stand in
};

/// "57+68=521": two numbers of `items` digits and their sum, the last digit first, as carries go.
class Addition final : public AnswerTask {
 public:
  explicit Addition(const TaskOptions& options);

 protected:
  void draw(Part part, Draws& draws, Row row) const override;

 private:
  int64_t digits_;
};

}  // namespace norma::nn
