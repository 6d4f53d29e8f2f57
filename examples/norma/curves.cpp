// norma curves: the curves of several runs in one picture.
#include "norma/nn/curves.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"

namespace fs = std::filesystem;

void add_curves(CLI::App& app) {
  struct Settings {
    std::vector<std::string> runs;
    std::string out = "curves.png";
    norma::nn::CurveOptions options;
  };
  auto s = std::make_shared<Settings>();
  Command curves(app, "curves", "Draw the curves of several runs into one picture.");
  curves.option("runs", s->runs, "folders of runs, or files like their metrics.csv").required();
  curves.option("--out", s->out, "the picture, .png or .svg").shows_default();
  curves.option("--title", s->options.title, "what stands above it");
  curves.flag("--log-loss", s->options.log_loss, "losses on a logarithmic axis");
  curves.flag("--log-step", s->options.log_step, "steps on a logarithmic axis");
  curves.runs([s] {
    // runs/* also names runs that have just begun, and the folder of the tasks.
    std::vector<std::string> begun;
    for (const std::string& run : s->runs) {
      if (fs::is_directory(run) && !fs::exists(fs::path(run) / "metrics.csv"))
        std::fprintf(stderr, "%s: left out, it has no metrics.csv\n", run.c_str());
      else
        begun.push_back(run);
    }
    norma::nn::draw_curves(begun, s->out, s->options);
    std::printf("%s\n", s->out.c_str());
  });
}
