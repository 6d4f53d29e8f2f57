#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace norma::nn {

/// So many layers, one after another, of one name.
struct LayerRun {
  std::string_view name;
  int64_t layers = 0;
};

/// The runs of "pre:4,post:2"; a name alone stands for all n_layers. `where` and `what`, the kind
/// of name, stand in errors: ValueError for a count that is none, and where the runs do not add up.
std::vector<LayerRun> layer_runs(std::string_view where, std::string_view what,
                                 std::string_view text, int64_t n_layers);

}  // namespace norma::nn
