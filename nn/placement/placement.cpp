#include "norma/nn/placement/placement.h"

#include "norma/core/format.h"
#include "norma/nn/layer_runs.h"
#include "norma/ops/elementwise/binary.h"

namespace norma::nn {
namespace {

/// The norm before a sub-layer, or behind it: ln_1, ln_2_post.
std::string before(int64_t sublayer) { return "ln_" + std::to_string(sublayer + 1); }
std::string after(int64_t sublayer) { return before(sublayer) + "_post"; }

void norms_before(Parts& parts, const LayerInfo& info, const MakeNorm& make) {
  for (int64_t i = 0; i < info.n_sublayers; ++i) parts.add(before(i), make());
}
void final_norm(Parts& stack, const MakeNorm& make) { stack.add("ln_f", make()); }
Tensor read_through_final_norm(Residual& r, const Parts& stack) { return stack["ln_f"](r.main); }

Placement pre() {
  return {.prepare = norms_before,
          .prepare_stack = final_norm,
          .apply = [](Residual& r, const Sublayer& f, int i, const Parts& parts,
                      const LayerInfo&) { r.main.add(f(parts[before(i)](r.main))); },
          .final = read_through_final_norm};
}

Placement post() {
  return {.prepare = norms_before,
          .apply = [](Residual& r, const Sublayer& f, int i, const Parts& parts, const LayerInfo&) {
            r.main.add(f(r.main.read()));
            r.main.set(parts[before(i)](r.main));
          }};
}

Placement sandwich() {
  return {
      .prepare =
          [](Parts& parts, const LayerInfo& info, const MakeNorm& make) {
            norms_before(parts, info, make);
            for (int64_t i = 0; i < info.n_sublayers; ++i) parts.add(after(i), make());
          },
      .prepare_stack = final_norm,
      .apply = [](Residual& r, const Sublayer& f, int i, const Parts& parts,
                  const LayerInfo&) { r.main.add(parts[after(i)](f(parts[before(i)](r.main)))); },
      .final = read_through_final_norm};
}

Placement parallel() {
  return {.prepare = [](Parts& parts, const LayerInfo&,
                        const MakeNorm& make) { parts.add("ln_1", make()); },
          .prepare_stack = final_norm,
          .block =
              [](Residual& r, std::span<const Sublayer> sublayers, const Parts& parts,
                 const LayerInfo&) {
                const Tensor n = parts["ln_1"](r.main);
                for (const Sublayer& f : sublayers) r.main.add(f(n));
              },
          .final = read_through_final_norm};
}

Placement residual_dual() {
  return {.prepare = norms_before,
          .prepare_stack = final_norm,
          .begin =
              [](const Tensor& x, const Parts&) {
                return Residual{{x}, {{x}}};
              },
          .apply =
              [](Residual& r, const Sublayer& f, int i, const Parts& parts, const LayerInfo&) {
                const Tensor branch = f(r.main.read());
                r.main.add(branch);
                r.main.set(parts[before(i)](r.main));
                r.more[0].add(branch);
              },
          .final = [](Residual& r,
                      const Parts& stack) { return r.main.read() + stack["ln_f"](r.more[0]); },
          .more_streams = 1};
}

// Ours stand in the table itself: an archive drops what only registers itself.
std::map<std::string, Placement, std::less<>>& table() {
  static auto* placements =
      new std::map<std::string, Placement, std::less<>>{{"pre", pre()},
                                                        {"post", post()},
                                                        {"sandwich", sandwich()},
                                                        {"parallel", parallel()},
                                                        {"residual-dual", residual_dual()}};
  return *placements;
}

}  // namespace

const Norm& Parts::operator[](std::string_view name) const {
  for (const auto& [key, norm] : norms_)
    if (key == name) return norm;
  throw GraphError("placement: prepare must make the norm {}, but made none of that name", name);
}

const Placement& placement(std::string_view name) {
  const auto found = table().find(name);
  if (found != table().end()) return found->second;
  std::string known;
  for (const std::string& n : placement_names()) known += (known.empty() ? "" : ", ") + n;
  throw ValueError("placement: must be one of {}, but is {}", known, name);
}
void register_placement(std::string name, Placement p) {
  if (!table().emplace(name, std::move(p)).second)
    throw ValueError("register_placement: the name must be new, but {} is taken", name);
}
std::vector<std::string> placement_names() {
  std::vector<std::string> names;
  for (const auto& [name, p] : table()) names.push_back(name);
  return names;
}

std::vector<const Placement*> placements(std::string_view text, int64_t n_layers) {
  std::vector<const Placement*> layers;
  for (const LayerRun& run : layer_runs("placement", "name", text, n_layers))
    layers.insert(layers.end(), static_cast<size_t>(run.layers), &placement(run.name));
  for (const Placement* p : layers)
    if (p->more_streams != layers[0]->more_streams)
      throw ValueError("placement: all layers must carry the same streams, but those of {} do not",
                       text);
  return layers;
}

}  // namespace norma::nn
