#include "norma/nn/curves.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <sstream>
#include <string_view>
#include <utility>

#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/nn/gnuplot.h"

namespace norma::nn {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> cells_of(std::string line) {
  if (line.ends_with('\r')) line.pop_back();
  std::vector<std::string> cells;
  std::istringstream stream(line);
  for (std::string cell; std::getline(stream, cell, ',');) cells.push_back(cell);
  return cells;
}

/// The number in a cell; none where it is empty, missing or not finite.
std::optional<double> number_in(const std::vector<std::string>& cells, size_t column,
                                const std::string& where) {
  if (column >= cells.size() || cells[column].empty()) return none;
  const std::string& cell = cells[column];
  double value = 0;
  const auto read = std::from_chars(cell.data(), cell.data() + cell.size(), value);
  if (read.ec != std::errc{} || read.ptr != cell.data() + cell.size())
    throw IOError("{}: a cell must be a number or empty, but is {}", where, cell);
  return std::isfinite(value) ? std::optional(value) : none;
}

std::string name_of(const fs::path& csv) {
  const std::string folder = fs::absolute(csv).lexically_normal().parent_path().filename().string();
  return csv.filename() == "metrics.csv" && !folder.empty() ? folder : csv.stem().string();
}

// Okabe and Ito's colours, which most colour-blind readers tell apart; the darkest ones first.
constexpr std::array<const char*, 7> kColours = {"0072B2", "D55E00", "009E73", "CC79A7",
                                                 "E69F00", "56B4E9", "000000"};

const char* colour_of(size_t run) { return kColours[run % kColours.size()]; }

struct Bounds {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void include(double value) { low = std::min(low, value), high = std::max(high, value); }
  void include(std::span<const CurvePoint> curve) {
    for (const CurvePoint& p : curve) include(p.value);
  }
};

/// A run as it is drawn: at most kPoints of each curve, so that an SVG stays small.
struct Drawn {
  std::vector<CurvePoint> raw, mean, validation;
};

std::vector<CurvePoint> thinned(std::span<const CurvePoint> curve) {
  constexpr size_t kPoints = 2000;
  const size_t every = curve.size() / kPoints + 1;
  std::vector<CurvePoint> out;
  for (size_t i = 0; i < curve.size(); ++i)
    if (i % every == 0 || i + 1 == curve.size()) out.push_back(curve[i]);
  return out;
}

/// Where a logarithmic axis has no place for zero.
std::vector<CurvePoint> drawable(std::span<const CurvePoint> curve, const CurveOptions& options) {
  std::vector<CurvePoint> out;
  for (const CurvePoint& p : curve)
    if ((p.step > 0 || !options.log_step) && (p.value > 0 || !options.log_loss)) out.push_back(p);
  return out;
}

Drawn prepared(const Curve& run, const CurveOptions& options) {
  const auto loss = drawable(run.loss, options);
  const double points = options.smoothing * static_cast<double>(loss.size());
  return {.raw = thinned(loss),
          .mean = thinned(smoothed(loss, points)),
          .validation = thinned(drawable(run.validation, options))};
}

void write_points(std::string& script, const std::string& name,
                  const std::vector<CurvePoint>& points) {
  script += "$" + name + " << END\n";
  for (const CurvePoint& p : points) script += format("{} {}\n", p.step, p.value);
  script += "END\n";
}

std::vector<CurveLevel> levels_of(const CurveOptions& options) {
  std::vector<CurveLevel> levels = options.levels;
  if (options.best_loss) levels.push_back({"best possible", *options.best_loss});
  std::erase_if(levels, [&](const CurveLevel& l) {
    return !std::isfinite(l.value) || (options.log_loss && l.value <= 0);
  });
  return levels;
}

std::string terminal_for(const std::string& picture, const CurveOptions& o) {
  const std::string size = format("size {},{} font 'sans,12'\n", o.width, o.height);
  const std::string background = " background rgb 'white' ";
  if (picture.ends_with(".svg")) return "set terminal svg" + background + size;
  if (!picture.ends_with(".png"))
    throw ValueError("curves: a picture's name must end in .png or .svg, but is {}", picture);
  return "if (strstrt(GPVAL_TERMINALS, 'pngcairo') > 0) {\n set terminal pngcairo" + background +
         size + "} else {\n set terminal png truecolor" + background + size + "}\n";
}

/// Labels at 1, 2, 3 and 5 times the powers of ten: a loss seldom spans a decade.
std::string log_labels(const Bounds& y) {
  std::string labels;
  for (double power = std::pow(10, std::floor(std::log10(y.low))); power <= y.high; power *= 10)
    for (int digit : {1, 2, 3, 5})
      labels +=
          format("{}'{:.6g}' {:.6g}", labels.empty() ? "" : ", ", power * digit, power * digit);
  return "set ytics (" + labels + ")\n";
}

/// Space around what matters; the noise of single steps may leave the picture.
std::string ranges_for(const std::vector<Drawn>& runs, const std::vector<CurveLevel>& levels,
                       const CurveOptions& o) {
  Bounds y;
  double last = 0;
  for (const Drawn& run : runs) {
    for (const auto* curve : {&run.mean, &run.validation}) {
      y.include(*curve);
      if (!curve->empty()) last = std::max(last, curve->back().step);
    }
  }
  for (const CurveLevel& level : levels) y.include(level.value);
  std::string script;
  if (last > 1) script += format("set xrange [{}:{}]\n", o.log_step ? 1 : 0, last);
  if (y.low == y.high) return script;  // gnuplot knows how to show one value
  constexpr double kRoom = 0.05;
  if (o.log_loss) {
    const double room = std::pow(y.high / y.low, kRoom);
    return script + log_labels(y) + format("set yrange [{}:{}]\n", y.low / room, y.high * room);
  }
  const double room = kRoom * (y.high - y.low);
  return script + format("set yrange [{}:{}]\n", y.low - room, y.high + room);
}

std::string frame_for(const std::string& title, const CurveOptions& o) {
  std::string script =
      "set border 3 lw 1 lc rgb '#555555'\n"
      "set tics nomirror out scale 0.6 textcolor rgb '#333333'\n"
      "set grid lt 1 lw 1 lc rgb '#E8E8E8'\n"
      "set key noenhanced spacing 1.3 samplen 2.5 opaque fillcolor rgb 'white'\n"
      "set xlabel 'step'\n"
      "set ylabel 'loss (nats a token)'\n";
  if (!title.empty()) script += "set title " + gnuplot_quoted(title) + " font ',14' noenhanced\n";
  script += o.log_step ? "set key bottom left\nset logscale x\n" : "set key top right\n";
  if (o.log_loss) script += "set logscale y\n";
  return script;
}

/// Dashed lines across, their labels right of the frame, where no curve runs into them.
std::string script_of(const std::vector<CurveLevel>& levels) {
  std::string script;
  size_t widest = 4;
  for (const CurveLevel& level : levels) {
    const std::string value = format("{:.4g}", level.value);
    widest = std::max({widest, level.label.size() + 1, value.size() + 1});
    script += format(
        "set arrow from graph 0, first {0} to graph 1, first {0} nohead "
        "dt (8,5) lw 1.2 lc rgb '#777777' back\n",
        level.value);
    for (const auto& [text, lift] : {std::pair{level.label, 0.5}, std::pair{value, -0.5}})
      script += "set label " + gnuplot_quoted(text) +
                format(
                    " at graph 1.01, first {} left offset 0,{} font ',10' noenhanced "
                    "textcolor rgb '#555555'\n",
                    level.value, lift);
  }
  return script + format("set rmargin {}\n", widest);
}

/// The lines of one picture; several runs share one entry for their dashed lines.
std::string plot_of(const std::vector<Drawn>& drawn, std::span<const Curve> runs) {
  constexpr const char* kValidation = "with linespoints lw 2 dt (6,3) pt 7 ps 0.6";
  const bool one = drawn.size() == 1;
  std::vector<std::string> lines;
  for (size_t i = 0; i < drawn.size(); ++i)
    if (drawn[i].raw != drawn[i].mean)
      lines.push_back(format("$raw{} with lines lw 1 lc rgb '#C0{}' notitle", i, colour_of(i)));
  for (size_t i = 0; i < drawn.size(); ++i) {
    if (!drawn[i].mean.empty() || !one)
      lines.push_back(format("{} with lines lw 2 lc rgb '#{}' title {}",
                             drawn[i].mean.empty() ? "NaN" : format("$mean{}", i), colour_of(i),
                             gnuplot_quoted(one ? "training" : runs[i].name)));
    if (!drawn[i].validation.empty())
      lines.push_back(format("$validation{} {} lc rgb '#{}' {}", i, kValidation,
                             colour_of(one ? 1 : i), one ? "title 'validation'" : "notitle"));
  }
  if (!one) lines.push_back(format("NaN {} lc rgb '#777777' title 'validation'", kValidation));
  std::string plot = "plot ";
  for (const std::string& line : lines) plot += line + ", \\\n  ";
  plot.resize(plot.size() - std::string_view(", \\\n  ").size());
  return plot + "\n";
}

}  // namespace

Curve read_curve(const std::string& path) {
  const fs::path csv = fs::is_directory(path) ? fs::path(path) / "metrics.csv" : fs::path(path);
  std::istringstream lines(read_file(csv.string()));
  std::string line;
  std::getline(lines, line);
  const std::vector<std::string> header = cells_of(line);
  const auto column = [&](std::string_view name) {
    return static_cast<size_t>(std::find(header.begin(), header.end(), name) - header.begin());
  };
  const size_t step = column("step"), loss = column("loss"), validation = column("validation");
  if (step == header.size() || (loss == header.size() && validation == header.size()))
    throw IOError("{}: a run must have columns step and loss or validation, but has {}",
                  csv.string(), line.empty() ? "none" : line);
  Curve run{.name = name_of(csv), .loss = {}, .validation = {}};
  for (int64_t number = 2; std::getline(lines, line); ++number) {
    const std::vector<std::string> cells = cells_of(line);
    const std::string where = format("{}:{}", csv.string(), number);
    const auto at = number_in(cells, step, where);
    const auto add = [&](size_t from, std::vector<CurvePoint>& to) {
      if (const auto value = number_in(cells, from, where); at && value)
        to.push_back({*at, *value});
    };
    if (loss < header.size()) add(loss, run.loss);
    if (validation < header.size()) add(validation, run.validation);
  }
  return run;
}

std::vector<CurvePoint> smoothed(std::span<const CurvePoint> curve, double points) {
  const auto n = std::ssize(curve);
  std::vector<CurvePoint> out(curve.begin(), curve.end());
  for (int64_t i = 0; i < n; ++i) {
    const auto half = static_cast<int64_t>(std::min(points, static_cast<double>(i)) / 2);
    const int64_t begin = i - half, end = std::min(n, i + half + 1);
    double sum = 0;
    for (const CurvePoint& p :
         curve.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)))
      sum += p.value;
    out[static_cast<size_t>(i)].value = sum / static_cast<double>(end - begin);
  }
  return out;
}

void draw_curves(std::span<const Curve> runs, const std::string& picture,
                 const CurveOptions& options) {
  std::string script = terminal_for(picture, options);
  std::vector<Drawn> drawn;
  bool any = false;
  for (const Curve& run : runs) {
    const Drawn& d = drawn.emplace_back(prepared(run, options));
    any |= !d.raw.empty() || !d.validation.empty();
    const std::string number = std::to_string(drawn.size() - 1);
    write_points(script, "raw" + number, d.raw);
    write_points(script, "mean" + number, d.mean);
    write_points(script, "validation" + number, d.validation);
  }
  if (!any) throw ValueError("curves: there must be a point to draw, but the runs have none");
  const std::vector<CurveLevel> levels = levels_of(options);
  const std::string title =
      options.title.empty() && runs.size() == 1 ? runs[0].name : options.title;
  script += frame_for(title, options) + ranges_for(drawn, levels, options) + script_of(levels) +
            plot_of(drawn, runs);
  write_file_atomically(picture, gnuplot(script));
}

void draw_curves(const std::vector<std::string>& paths, const std::string& picture,
                 const CurveOptions& options) {
  std::vector<Curve> runs;
  std::map<std::string, int> uses;
  for (const std::string& path : paths) ++uses[runs.emplace_back(read_curve(path)).name];
  for (size_t i = 0; i < paths.size(); ++i)
    if (uses[runs[i].name] > 1) runs[i].name = paths[i];
  draw_curves(runs, picture, options);
}

}  // namespace norma::nn
