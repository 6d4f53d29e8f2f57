#include "norma/nn/data/tasks.h"

#include <map>
#include <mutex>
#include <utility>

#include "norma/core/error.h"
#include "norma/nn/data/answers.h"
#include "norma/nn/data/dyck.h"
#include "norma/nn/data/recall.h"

namespace norma::nn {
namespace {

template <class Task>
std::unique_ptr<Dataset> make(const TaskOptions& options) {
  return std::make_unique<Task>(options);
}

struct Table {
  std::mutex mutex;
  std::map<std::string, TaskFactory, std::less<>> tasks = {
      {"addition", make<Addition>}, {"copying", make<Copying>},
      {"dyck", make<Dyck>},         {"induction-heads", make<InductionHeads>},
      {"modular", make<Modular>},   {"mqar", make<Mqar>},
      {"parity", make<Parity>},     {"selective-copying", make<SelectiveCopying>}};
};

Table& table() {
  static Table table;
  return table;
}

std::string joined(const std::vector<std::string>& names) {
  std::string out;
  for (const std::string& name : names) {
    if (!out.empty()) out += ", ";
    out += name;
  }
  return out;
}

}  // namespace

std::unique_ptr<Dataset> make_task(std::string_view name, const TaskOptions& options) {
  TaskFactory factory;
  {
    const std::lock_guard lock(table().mutex);
    const auto found = table().tasks.find(name);
    if (found != table().tasks.end()) factory = found->second;
  }
  if (!factory)
    throw ValueError("task: the name must be one of {}, but is {}", joined(task_names()), name);
  return factory(options);
}

void register_task(std::string name, TaskFactory factory) {
  const std::lock_guard lock(table().mutex);
  const auto added = table().tasks.emplace(std::move(name), std::move(factory));
  if (!added.second)
    throw ValueError("register_task: a name must be new, but {} is taken", added.first->first);
}

std::vector<std::string> task_names() {
  const std::lock_guard lock(table().mutex);
  std::vector<std::string> names;
  for (const auto& entry : table().tasks) names.push_back(entry.first);
  return names;
}

}  // namespace norma::nn
