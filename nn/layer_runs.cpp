#include "norma/nn/layer_runs.h"

#include <algorithm>
#include <charconv>

#include "norma/core/error.h"

namespace norma::nn {
namespace {

LayerRun parsed(std::string_view where, std::string_view what, std::string_view run,
                int64_t n_layers) {
  const size_t colon = run.find(':');
  if (colon == run.npos) return {run, n_layers};
  const std::string_view digits = run.substr(colon + 1);
  int64_t layers = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), layers);
  if (error != std::errc() || end != digits.data() + digits.size() || layers < 0)
    throw ValueError("{}: a run must be {}:layers, but is {}", where, what, run);
  return {run.substr(0, colon), layers};
}

}  // namespace

std::vector<LayerRun> layer_runs(std::string_view where, std::string_view what,
                                 std::string_view text, int64_t n_layers) {
  std::vector<LayerRun> runs;
  int64_t left = n_layers;  // below 0 once there are too many
  for (std::string_view rest = text; !rest.empty();) {
    const std::string_view run = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(run.size() + 1, rest.size()));
    runs.push_back(parsed(where, what, run, n_layers));
    left = left < runs.back().layers ? -1 : left - runs.back().layers;
  }
  if (left != 0)
    throw ValueError("{}: the runs of {} must add up to n_layers = {}, but do not", where, text,
                     n_layers);
  return runs;
}

}  // namespace norma::nn
