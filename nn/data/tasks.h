#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "norma/nn/data/dataset.h"

namespace norma::nn {

/// Settings of all tasks; each reads those that concern it.
struct TaskOptions {
  /// copying, parity: symbols; dyck: brackets; selective-copying, induction-heads, mqar: places;
  /// 0: 16, 12, 32, 24, 48, 64
  int64_t length = 0;
  int64_t symbols = 8;   ///< different letters or, for mqar, tokens
  int64_t items = 0;     ///< selective-copying: letters; mqar: pairs; addition: digits; 0: 6, 4, 3
  int64_t modulus = 97;  ///< modular
  int64_t kinds = 2;     ///< dyck: of brackets, at most 4
  int64_t depth = 4;     ///< dyck: of the deepest nesting
  double train_share = 0.5;        ///< modular: of all pairs
  int64_t validation_rows = 1024;  ///< all but modular, which validates on every other pair
};

using TaskFactory = std::function<std::unique_ptr<Dataset>(const TaskOptions&)>;

/// A generated task by name; its context is what one row takes. Ours:
///   copying   "bdac…|bdac…": letters, then the same again. Best loss 0.
///   modular   "12 + 95 = 10": a + b mod p, a token a number. Best loss 0.
///   parity    "0110…=1": whether the ones are odd in number. Best loss 0.
///   selective-copying  "..b..a|" asks for b, a: letters among noise. Best loss 0.
///   induction-heads    "ca$bdac$" asks for b: what stood behind the mark. Best loss 0.
///   mqar      "3 7 5 9 … 5" asks for 9: values by their keys. Best loss 0.
///   addition  "57+68=521": a sum, its last digit first. Best loss 0.
///   dyck      "([]())…": balanced brackets. Best loss ln(how many there are) / length.
/// Of all but dyck only the answer counts; training and validation share no question, those of mqar
/// hardly one.
/// Throws ValueError for an unknown name and for settings that the task cannot have.
std::unique_ptr<Dataset> make_task(std::string_view name, const TaskOptions& options = {});
/// Adds a task of one's own. Throws ValueError where the name is taken.
void register_task(std::string name, TaskFactory factory);
std::vector<std::string> task_names();  ///< in alphabetic order

}  // namespace norma::nn
