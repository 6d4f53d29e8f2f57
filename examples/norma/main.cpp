// norma: trains small language models, generates from them, measures them.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "commands.h"
#include "norma/core/error.h"
#include "norma/core/version.h"
#include "norma/nn/train_options.h"

Command::Command(CLI::App& app, const std::string& name, const std::string& help)
    : command_(app.add_subcommand(name, help)) {}
template <class T>
Command& Command::option(const std::string& name, T& field, const std::string& help) {
  last_ = command_->add_option(name, field, help);
  return *this;
}
template Command& Command::option(const std::string&, std::string&, const std::string&);
template Command& Command::option(const std::string&, std::vector<std::string>&,
                                  const std::string&);
template Command& Command::option(const std::string&, int&, const std::string&);
template Command& Command::option(const std::string&, int64_t&, const std::string&);
template Command& Command::option(const std::string&, uint64_t&, const std::string&);
template Command& Command::option(const std::string&, double&, const std::string&);
template Command& Command::option(const std::string&, bool&, const std::string&);
Command& Command::flag(const std::string& name, bool& field, const std::string& help) {
  last_ = command_->add_flag(name, field, help);
  return *this;
}
Command& Command::required() {
  last_->required();
  return *this;
}
Command& Command::shows_default() {
  last_->capture_default_str();
  return *this;
}
Command& Command::group(const std::string& name) {
  last_->group(name);
  return *this;
}
std::function<bool()> Command::given() const {
  return [option = last_] { return option->count() > 0; };
}
void Command::runs(std::function<void()> f) { command_->callback(std::move(f)); }

namespace {

/// Names the flag that an unknown one was probably meant to be.
void suggest_flag(const CLI::App& app, int argc, char** argv) {
  for (const CLI::App* command : app.get_subcommands()) {
    std::vector<std::string> known;
    for (const CLI::Option* option : command->get_options())
      for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
    for (int i = 1; i < argc; ++i) {
      const std::string given = std::string(argv[i]).substr(0, std::string(argv[i]).find('='));
      if (!given.starts_with("--") || std::find(known.begin(), known.end(), given) != known.end())
        continue;
      const std::string near = norma::nn::nearest(given, known);
      if (!near.empty())
        std::fprintf(stderr, "%s is no flag; did you mean %s?\n", given.c_str(), near.c_str());
    }
  }
}

/// What stands where a command should: says which there are, and the one it was meant to be.
void name_commands(const CLI::App& app, const std::string& given) {
  std::vector<std::string> known;
  std::string all;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    known.push_back(command->get_name());
    all += (all.empty() ? "" : ", ") + known.back();
  }
  const std::string near = norma::nn::nearest(given, known);
  std::fprintf(stderr, "norma: the command must be one of %s, but is %s%s\n", all.c_str(),
               given.c_str(), near.empty() ? "" : ("; did you mean " + near + "?").c_str());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Trains small language models in which normalization is first-class.", "norma");
  app.set_version_flag("--version", "norma " NORMA_VERSION);
  app.require_subcommand(1);
  add_train(app);
  add_sample(app);
  add_eval(app);
  add_curves(app);
  add_tasks(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError& error) {
    suggest_flag(app, argc, argv);
    return app.exit(error);
  } catch (const CLI::ParseError& error) {
    if (argc > 1 && argv[1][0] != '-' && app.get_subcommands().empty()) {
      name_commands(app, argv[1]);
      return 1;
    }
    return app.exit(error);
  } catch (const std::exception& error) {  // the library's own, and what memory and files throw
    std::fprintf(stderr, "norma: %s\n", error.what());
    return 1;
  }
  return 0;
}
