#pragma once

#include <functional>
#include <string>

namespace CLI {  // NOLINT: the library's own name
class App;
class Option;
}  // namespace CLI

/// One sub-command and its flags. CLI11 stays behind it, in one file: it takes longer to compile
/// than a command does.
class Command {
 public:
  Command(CLI::App& app, const std::string& name, const std::string& help);

  /// A flag "--name" with a value, or an argument "name", that goes into `field`, which must live
  /// until the command ran. Text, numbers, booleans and lists of text.
  template <class T>
  Command& option(const std::string& name, T& field, const std::string& help);
  /// A flag without a value.
  Command& flag(const std::string& name, bool& field, const std::string& help);
  // Of the option before.
  Command& required();
  Command& shows_default();
  Command& group(const std::string& name);
  /// Tells, once the command runs, whether the option before was given.
  std::function<bool()> given() const;

  void runs(std::function<void()> f);

 private:
  CLI::App* command_;
  CLI::Option* last_ = nullptr;
};

// The sub-commands of the program norma. Each adds itself and its flags to the command line.
void add_train(CLI::App& app);
void add_sample(CLI::App& app);
void add_eval(CLI::App& app);
void add_curves(CLI::App& app);
void add_tasks(CLI::App& app);
