#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "norma/core/tensor.h"

namespace norma::nn {

struct CurvePoint {
  double step, value;
  bool operator==(const CurvePoint&) const = default;
};

/// How one run went.
struct Curve {
  std::string name;
  std::vector<CurvePoint> loss, validation;
};

/// A horizontal line with its label, such as a baseline.
struct CurveLevel {
  std::string label;
  double value;
};

struct CurveOptions {
  std::string title = {};                  ///< empty: the run's name where there is one run
  std::optional<double> best_loss = none;  ///< a line, "best possible"
  std::vector<CurveLevel> levels = {};     ///< further lines
  double smoothing = 0.02;  ///< the running mean's length, a share of the points; 0: none
  bool log_step = false, log_loss = false;
  int width = 1000, height = 600;  ///< pixels
};

/// Reads a run: a CSV file whose first line names its columns, or a folder with metrics.csv in it.
/// Wants `step` and `loss` or `validation`; an empty cell is no point. Its name is the folder's.
/// Throws IOError where the file cannot be read or is not like that.
Curve read_curve(const std::string& path);

/// The running mean of a noisy curve: y_i is the mean of x_j over |j − i| ≤ min(points, i) / 2,
/// as far as there are any. Centred, so that it does not lag behind a falling loss, and narrow at
/// the start, where the loss falls fastest. points ≤ 1: the curve itself.
std::vector<CurvePoint> smoothed(std::span<const CurvePoint> curve, double points);

/// Draws runs into one picture, training pale with its running mean, validation dashed; PNG or SVG
/// by the name's end. The picture appears whole or not at all. Needs gnuplot.
/// Throws IOError where gnuplot is missing or fails, ValueError where nothing is to be drawn.
void draw_curves(std::span<const Curve> runs, const std::string& picture,
                 const CurveOptions& options = {});
/// The same of the runs in these folders or files; equal names become paths.
void draw_curves(const std::vector<std::string>& paths, const std::string& picture,
                 const CurveOptions& options = {});

}  // namespace norma::nn
