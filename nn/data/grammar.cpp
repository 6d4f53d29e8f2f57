#include "norma/nn/data/grammar.h"

#include <cmath>
#include <limits>
#include <utility>

#include "norma/core/error.h"

namespace norma::nn {

std::string_view english_grammar() {
  return R"(
S   -> NPs VPs (.6) | NPp VPp (.4)
NPs -> Ds Ns (.5) | Ds A Ns (.3) | Ds Ns PP (.2)
NPp -> Dp Np (.5) | Dp A Np (.3) | Dp Np PP (.2)
NP  -> NPs (.6) | NPp (.4)
PP  -> near NP (.5) | under NP (.3) | with NP (.2)
VPs -> VIs (.4) | VTs NP (.6)
VPp -> VIp (.4) | VTp NP (.6)
Ds  -> the (.5) | a (.3) | every (.2)
Dp  -> the (.6) | some (.4)
A   -> small (.4) | green (.3) | quiet (.2) | hungry (.1)
Ns  -> dog (.3) | king (.25) | child (.2) | robin (.15) | sailor (.1)
Np  -> dogs (.3) | kings (.25) | children (.2) | robins (.15) | sailors (.1)
VIs -> sleeps | sings
VIp -> sleep | sing
VTs -> sees (.5) | follows (.3) | hears (.2)
VTp -> see (.5) | follow (.3) | hear (.2)
)";
}

GrammarDataset::GrammarDataset(const GrammarOptions& options)
    : GrammarDataset(options,
                     Grammar(options.notation.empty() ? english_grammar() : options.notation)) {}

GrammarDataset::GrammarDataset(const GrammarOptions& options, Grammar grammar)
    : Dataset("grammar", Vocabulary::of_bytes(grammar.bytes()), options.context),
      options_(options),
      grammar_(std::move(grammar)),
      moments_(grammar_.moments(options.context)) {
  if (moments_.probability < 0.01)
    throw ValueError(
        "grammar: the context must hold at least one sentence in a hundred, but {} bytes hold "
        "{:.2g} % of them; the shortest takes {}",
        options.context, 100 * moments_.probability, grammar_.shortest());
  if (options.validation_rows < 1)
    throw ValueError("grammar: the validation part must have at least 1 row, but has {}",
                     options.validation_rows);
}

std::optional<double> GrammarDataset::best_loss() const {
  return moments_.entropy / moments_.mean_bytes;
}

std::optional<double> GrammarDataset::own_loss(const Batch& batch) const {
  const auto targets = batch.targets.span<const int32_t>();
  const auto width = static_cast<size_t>(batch.targets.size(1));
  double nats = 0;
  for (size_t begin = 0; begin < targets.size(); begin += width)
    nats -= log_probability(decode(targets.subspan(begin, width)));
  return nats / static_cast<double>(counted_tokens(batch));
}

Prompt GrammarDataset::prompt() const {
  const int32_t newline = vocabulary().token("\n");
  return {.tokens = {newline}, .end = newline};
}

double GrammarDataset::log_probability(std::string_view sentence) const {
  if (std::ssize(sentence) > context()) return -std::numeric_limits<double>::infinity();
  return grammar_.log_probability(sentence) - std::log(moments_.probability);
}

void GrammarDataset::draw_row(Part part, uint64_t seed, int64_t step, int64_t i, Row row) const {
  Draws draws(part, seed, step, i);
  int32_t before = vocabulary().token("\n");
  size_t t = 0;
  for (int32_t token : encode(grammar_.draw(draws, context()))) {
    row.inputs[t] = std::exchange(before, token);
    row.targets[t++] = token;
  }
}

void GrammarDataset::validation_row(int64_t i, Row row) const {
  draw_row(Part::validation, 0, 0, i, row);
}

}  // namespace norma::nn
