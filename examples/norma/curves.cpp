// norma curves: the curves of several runs in one picture.
#include "norma/nn/curves.h"

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "commands.h"

void add_curves(CLI::App& app) {
  struct Settings {
    std::vector<std::string> runs;
    std::string out = "curves.png";
    norma::nn::CurveOptions options;
  };
  auto s = std::make_shared<Settings>();
  Command curves(app, "curves", "Draw the curves of several runs into one picture.");
  curves.option("runs", s->runs, "folders of runs").required();
  curves.option("--out", s->out, "the picture, .png or .svg").shows_default();
  curves.option("--title", s->options.title, "what stands above it");
  curves.flag("--log-loss", s->options.log_loss, "losses on a logarithmic axis");
  curves.flag("--log-step", s->options.log_step, "steps on a logarithmic axis");
  curves.runs([s] {
    norma::nn::draw_curves(s->runs, s->out, s->options);
    std::printf("%s\n", s->out.c_str());
  });
}
