// norma: trains small language models, generates from them, measures them.
#include <cstdio>

#include "commands.h"
#include "norma/core/error.h"
#include "norma/core/version.h"

int main(int argc, char** argv) {
  CLI::App app("Trains small language models in which normalization is first-class.", "norma");
  app.set_version_flag("--version", "norma " NORMA_VERSION);
  app.require_subcommand(1);
  add_train(app);
  add_sample(app);
  add_eval(app);
  add_curves(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const norma::Error& error) {
    std::fprintf(stderr, "norma: %s\n", error.what());
    return 1;
  }
  return 0;
}
