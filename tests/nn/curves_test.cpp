#include "norma/nn/curves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/nn/gnuplot.h"

namespace norma::nn {
namespace {
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;
namespace fs = std::filesystem;

/// A folder of its own for each test, away when it ends.
class Curves : public ::testing::Test {
 protected:
  Curves() { fs::create_directories(folder_); }
  ~Curves() override { fs::remove_all(folder_); }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string run(const std::string& name, std::string_view csv) const {
    fs::create_directories(folder_ / name);
    write_file_atomically(path(name + "/metrics.csv"), csv);
    return path(name);
  }
  static bool has_gnuplot() {
    try {
      return !gnuplot("set terminal svg\nplot 1").empty();
    } catch (const IOError&) {
      return false;
    }
  }

 private:
  fs::path folder_ = fs::path(::testing::TempDir()) /
                     (std::string("norma_curves_") +
                      ::testing::UnitTest::GetInstance()->current_test_info()->name() +
                      std::to_string(::getpid()));
};

std::vector<CurvePoint> points(std::initializer_list<double> values) {
  std::vector<CurvePoint> out;
  for (double v : values) out.push_back({static_cast<double>(out.size()), v});
  return out;
}

TEST_F(Curves, RunIsReadByTheNamesOfItsColumns) {
  const Curve c =
      read_curve(run("pre", "validation,lr,step,loss\n,0.1,1,3.5\r\n2.5,,2,3e-1\n,,3\n"));
  EXPECT_EQ(c.name, "pre");
  EXPECT_THAT(c.loss, ElementsAre(CurvePoint{1, 3.5}, CurvePoint{2, 0.3}));
  EXPECT_THAT(c.validation, ElementsAre(CurvePoint{2, 2.5}));
  EXPECT_EQ(read_curve(path("pre/metrics.csv")).name, "pre");
  EXPECT_EQ(read_curve(path("pre/")).name, "pre");
}

TEST_F(Curves, LossThatIsNotFiniteIsNoPoint) {
  const Curve c = read_curve(run("diverged", "step,loss\n1,3\n2,nan\n3,inf\n4,2\n"));
  EXPECT_THAT(c.loss, ElementsAre(CurvePoint{1, 3}, CurvePoint{4, 2}));
}

TEST_F(Curves, BrokenRunsAreNamed) {
  EXPECT_THAT([&] { read_curve(run("a", "step,rate\n1,2\n")); },
              ThrowsMessage<IOError>(path("a/metrics.csv") +
                                     ": a run must have columns step and loss or validation, but "
                                     "has step,rate"));
  EXPECT_THAT([&] { read_curve(run("b", "step,loss\n1,2\n2,much\n")); },
              ThrowsMessage<IOError>(path("b/metrics.csv") +
                                     ":3: a cell must be a number or empty, but is much"));
  EXPECT_THAT([&] { read_curve(path("none.csv")); },
              ThrowsMessage<IOError>(StartsWith(path("none.csv"))));
}

TEST_F(Curves, RunningMeanDoesNotLagBehindALine) {
  std::vector<CurvePoint> line;
  for (int i = 0; i < 50; ++i) line.push_back({double(i), 100.0 - i});
  const std::vector<CurvePoint> mean = smoothed(line, 8);
  for (size_t i = 0; i < 46; ++i) EXPECT_EQ(mean[i], line[i]);  // whole numbers: exact
  EXPECT_EQ(mean[49].value, 53);                                // of 55 … 51: ends one-sided
  EXPECT_EQ(smoothed(line, 1), line);
}

TEST_F(Curves, RunningMeanIsTheMeanOfTheWindow) {
  EXPECT_EQ(smoothed(points({4, 1, 1, 7, 1, 4}), 2), points({4, 1, 3, 3, 4, 2.5}));
}

TEST_F(Curves, PngHasItsSize) {
  if (!has_gnuplot()) GTEST_SKIP() << "needs gnuplot";
  draw_curves({run("pre", "step,loss,validation\n1,3,\n2,2,2.5\n")}, path("loss.png"),
              {.best_loss = 1, .width = 640, .height = 480});
  const std::string png = read_file(path("loss.png"));
  EXPECT_THAT(png, StartsWith("\x89PNG\r\n"));
  EXPECT_EQ(png.substr(16, 8), std::string("\0\0\x02\x80\0\0\x01\xE0", 8));  // the header's
}

TEST_F(Curves, SvgNamesRunsAndLevels) {
  if (!has_gnuplot()) GTEST_SKIP() << "needs gnuplot";
  const char* csv = "step,loss,validation\n0,3,\n1,0,\n2,2,2.5\n";  // 0s: none on a log axis
  draw_curves({run("it's_$(a)", csv), run("post", csv)}, path("loss.svg"),
              {.title = "two\nruns",
               .best_loss = 1.25,
               .levels = {{"unigram", 2.75}},
               .log_step = true,
               .log_loss = true});
  const std::string svg = read_file(path("loss.svg"));
  for (const char* text :
       {"_$(a)", ">post<", "two runs", ">best possible<", ">1.25<", ">unigram<", ">validation<"})
    EXPECT_THAT(svg, HasSubstr(text));
}

TEST_F(Curves, EqualNamesBecomePaths) {
  if (!has_gnuplot()) GTEST_SKIP() << "needs gnuplot";
  draw_curves({run("x/pre", "step,loss\n1,2\n2,1\n"), run("y/pre", "step,validation\n1,2\n")},
              path("loss.svg"));
  const std::string svg = read_file(path("loss.svg"));
  EXPECT_THAT(svg, HasSubstr("x/pre"));
  EXPECT_THAT(svg, HasSubstr("y/pre"));
}

TEST_F(Curves, OnePointIsDrawn) {
  if (!has_gnuplot()) GTEST_SKIP() << "needs gnuplot";
  draw_curves({run("short", "step,loss\n0,3\n")}, path("loss.png"), {.log_loss = true});
  EXPECT_TRUE(fs::exists(path("loss.png")));
}

TEST_F(Curves, NothingToDrawIsNamed) {
  EXPECT_THAT(
      [&] { draw_curves({run("empty", "step,loss\n")}, path("loss.png")); },
      ThrowsMessage<ValueError>("curves: there must be a point to draw, but the runs have none"));
  EXPECT_THAT([&] { draw_curves({run("a", "step,loss\n1,2\n")}, "loss.gif"); },
              ThrowsMessage<ValueError>(
                  "curves: a picture's name must end in .png or .svg, but is loss.gif"));
}

TEST_F(Curves, MissingGnuplotIsNamedWithItsPackage) {
  const std::string before = std::getenv("PATH");
  ::setenv("PATH", path("").c_str(), 1);
  EXPECT_THAT([&] { draw_curves({run("a", "step,loss\n1,2\n")}, path("loss.png")); },
              ThrowsMessage<IOError>("gnuplot: must be installed to draw pictures, but is not; "
                                     "apt-get install gnuplot-nox"));
  ::setenv("PATH", before.c_str(), 1);
  EXPECT_FALSE(fs::exists(path("loss.png")));
}

TEST_F(Curves, BrokenScriptIsNamedWithItsFirstComplaint) {
  if (!has_gnuplot()) GTEST_SKIP() << "needs gnuplot";
  EXPECT_THAT([] { gnuplot("plot nowhere"); },
              ThrowsMessage<IOError>(::testing::AllOf(
                  StartsWith("gnuplot: must draw the picture, but: "), Not(HasSubstr("\n")))));
}
}  // namespace
}  // namespace norma::nn
