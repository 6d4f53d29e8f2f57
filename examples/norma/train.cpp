// norma train: a run in a folder, which can be stopped and gone on with.
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>

#include "commands.h"
#include "norma/core/error.h"
#include "norma/core/file.h"
#include "norma/core/format.h"
#include "norma/core/parallel.h"
#include "norma/nn/curves.h"
#include "norma/nn/data/grammar.h"
#include "norma/nn/generate.h"
#include "norma/nn/run_folder.h"
#include "norma/nn/trainer.h"

namespace {

using namespace norma;
using namespace norma::nn;

// The first Ctrl-C, or SIGTERM as a scheduler sends it, ends the run after its step; the second
// ends the program at once.
volatile std::sig_atomic_t interrupted = 0;
void on_interrupt(int) {
  if (interrupted) _exit(130);
  interrupted = 1;
}

constexpr int64_t kValidationRows = 2048;  // enough while training; all of them at the end

struct TrainSettings {
  TrainOptions options;
  std::string out, resume, config;
  int threads = 0;
  bool profile = false;
};

/// What the user called: ./dev says so of itself.
const char* called() {
  const char* name = std::getenv("NORMA_CALLED_AS");
  return name ? name : "norma";
}

std::string default_folder(const TrainOptions& o) {
  const std::time_t now = std::time(nullptr);
  char date[32];
  std::strftime(date, sizeof date, "%Y%m%d-%H%M%S", std::localtime(&now));
  const std::string& file = o.text.empty() ? o.tokens : o.text;
  const size_t slash = file.rfind('/');
  const std::string data = !file.empty()     ? file.substr(slash == file.npos ? 0 : slash + 1)
                           : !o.task.empty() ? o.task
                                             : "grammar";
  return "runs/" + data.substr(0, data.find('.')) + "-" + date;
}

/// "1 h 02 min", "3 min 10 s", "45 s"
std::string duration(double seconds) {
  const int64_t s = std::lround(seconds);
  if (s >= 3600) return format("{} h {:02d} min", s / 3600, s / 60 % 60);
  if (s >= 60) return format("{} min {:02d} s", s / 60, s % 60);
  return format("{} s", s);
}

/// Prints the run as it goes: in place on a terminal, a line now and then elsewhere.
class Progress {
 public:
  Progress(const Trainer& trainer)
      : trainer_(trainer),
        best_(trainer.dataset().best_loss()),
        live_(isatty(1)),
        begin_(Clock::now()),
        shown_(begin_),
        first_step_(trainer.steps_done()) {}

  double tokens_per_second() const { return rate_; }

  void step(const StepReport& report) {
    tokens_ += report.tokens;
    unread_.push_back(report);  // until something is printed nobody waits for a GPU
    const Clock::time_point now = Clock::now();
    const double since = seconds(shown_, now);
    if (since > 0) rate_ = rate_ > 0 && since < 0.1 ? rate_ : static_cast<double>(tokens_) / since;
    if (since < (live_ ? 0.2 : 5) && !trainer_.finished()) return;
    for (const StepReport& r : unread_)
      smoothed_ = smoothed_ < 0 ? r.loss : 0.95 * smoothed_ + 0.05 * r.loss;
    unread_.clear();
    // On a GPU the step is done now, after the wait for its loss.
    rate_ = static_cast<double>(tokens_) / seconds(shown_, Clock::now());
    show(report, Clock::now());
    shown_ = Clock::now();
    tokens_ = 0;
  }
  void validated(const Evaluation& e) {
    clear();
    std::string line =
        format("step {:>6}  validation {:.4f} ± {:.4f}", trainer_.steps_done(), e.loss, e.error);
    if (e.gap) line += format("  {:+.4f} from the best possible", *e.gap);
    if (e.exact) line += format("  {:.1f} % answered right", 100 * *e.exact);
    std::printf("%s\n", line.c_str());
    std::fflush(stdout);
    last_validation_ = e.loss;
    // Its time is no training time.
    shown_ = Clock::now();
    tokens_ = 0;
  }
  void clear() const {
    if (live_) std::printf("\r\033[K");
  }

 private:
  using Clock = std::chrono::steady_clock;
  static double seconds(Clock::time_point a, Clock::time_point b) {
    return std::chrono::duration<double>(b - a).count();
  }
  void show(const StepReport& report, Clock::time_point now) {
    const int64_t done = trainer_.steps_done(), all = trainer_.options().steps;
    const double a_step = seconds(begin_, now) / static_cast<double>(done - first_step_);
    std::string line = format("step {:>6}/{}  loss {:.4f}", done, all, smoothed_);
    if (best_) line += format(" (best possible {:.4f})", *best_);
    if (last_validation_ > 0) line += format("  validation {:.4f}", last_validation_);
    line += format("  gradient {:.2f}  {:.0f} tokens/s  {} left", double{report.grad_norm}, rate_,
                   duration(a_step * static_cast<double>(all - done)));
    clear();
    std::printf("%s%s", line.c_str(), live_ ? "" : "\n");
    std::fflush(stdout);
  }

  const Trainer& trainer_;
  std::optional<double> best_;
  bool live_;
  Clock::time_point begin_, shown_;
  int64_t first_step_, tokens_ = 0;
  std::vector<StepReport> unread_;
  double smoothed_ = -1, rate_ = 0, last_validation_ = 0;
};

/// "cuda:0", "cpu with 8 threads", and why not on a GPU where this build could use one.
std::string where(Device device) {
  if (device.is_cuda()) return to_string(device);
  std::string text = format("cpu with {} threads", num_threads());
  if (kBuiltWithCuda && Device::best().is_cpu()) text += ", since no GPU was found";
  return text;
}

void describe(Trainer& trainer, const RunFolder& run) {
  const Dataset& data = trainer.dataset();
  const TrainOptions& o = trainer.options();
  std::printf("%s", format("{}: {} tokens of vocabulary, {} a row\n", data.name(),
                           data.vocab_size(), data.context())
                        .c_str());
  const Baselines baselines = data.baselines();
  std::printf(
      "%s",
      format("knowing only frequencies loses {:.4f} (single tokens) or {:.4f} (pairs) a token",
             baselines.unigram, baselines.bigram)
          .c_str());
  if (const auto best = data.best_loss())
    std::printf("%s", format("; the best possible is {:.4f}", *best).c_str());
  std::printf(
      "%s", format("\n{} layers of {} norm, placement {}: {} parameters, {} on {}\nrun {}\n",
                   o.n_layers, o.norm, o.placement, count_parameters(trainer.model()), o.precision,
                   where(trainer.device()), run.path())
                .c_str());
  std::fflush(stdout);  // whoever watches a file sees that it has begun
}

void print_sample(Trainer& trainer) {
  const Prompt prompt = trainer.dataset().prompt();
  std::printf("a sample:\n");
  std::string text;
  for (uint64_t seed = 1; seed <= (prompt.end ? 3 : 1); ++seed) {
    const auto tokens =
        generate(trainer.model(), prompt.tokens,
                 {.length = 300, .temperature = 0.8, .seed = seed, .end = prompt.end});
    text += trainer.dataset().decode(tokens);
    if (!text.empty() && text.back() != '\n') text += '\n';
  }
  std::printf("%s", text.c_str());
}

void draw(const Trainer& trainer, const RunFolder& run) {
  const Baselines b = trainer.dataset().baselines();
  try {
    draw_curves(std::vector<std::string>{run.path()}, run.curves_path(),
                {.best_loss = trainer.dataset().best_loss(),
                 .levels = {{"knowing single tokens", b.unigram}, {"knowing pairs", b.bigram}}});
    std::printf("curves: %s\n", run.curves_path().c_str());
  } catch (const Error& error) {  // gnuplot is missing, or no loss is finite
    std::printf("no picture of the curves: %s\n", error.what());
  }
}

/// A step's line of metrics, once its loss is read.
struct Line {
  StepReport report;
  Metrics metrics;
};

void save(const Trainer& trainer, const RunFolder& run, std::vector<Line>& lines) {
  std::vector<Metrics> read;
  for (Line& line : lines) {
    line.metrics.loss = line.report.loss;
    line.metrics.grad_norm = line.report.grad_norm;
    read.push_back(line.metrics);
  }
  run.append(read);
  lines.clear();
  trainer.save(run.checkpoint_path(trainer.steps_done()));
  run.keep_last_two_and(trainer.best_step());
}

void train_until_done(Trainer& trainer, const RunFolder& run) {
  Progress progress(trainer);
  std::vector<Line> lines;
  const TrainOptions& o = trainer.options();
  while (!trainer.finished() && !interrupted) {
    const StepReport report = trainer.step();
    const int64_t step = trainer.steps_done();
    progress.step(report);
    Metrics line{.step = step, .lr = report.lr, .tokens_per_second = progress.tokens_per_second()};
    bool best = false;
    if (step % o.eval_every == 0 || trainer.finished()) {
      const Evaluation e = trainer.validate(trainer.finished() ? 0 : kValidationRows);
      line.validation = e.loss;
      best = trainer.best_step() == step;
      progress.validated(e);
    }
    lines.push_back({report, line});
    if (step % o.checkpoint_every == 0 || best || trainer.finished()) save(trainer, run, lines);
  }
  progress.clear();
  if (!trainer.finished()) {
    save(trainer, run, lines);
    std::printf("stopped after step %lld; go on with: %s train --resume %s\n",
                static_cast<long long>(trainer.steps_done()), called(), run.path().c_str());
    return;
  }
  draw(trainer, run);
  print_sample(trainer);
  std::printf("generate more: %s sample %s --prompt TEXT\n", called(), run.path().c_str());
}

/// Where the time of a step goes; nothing is written down.
void profile(Trainer& trainer) {
  constexpr int kSteps = 10;
  {
    Profiler warm_up(trainer.device());
    for (int i = 0; i < 3; ++i) trainer.profiled_step(warm_up);
  }
  Profiler profiler(trainer.device());
  for (int i = 0; i <= kSteps; ++i) trainer.profiled_step(profiler);
  std::printf(
      "%s",
      format("{} steps on {}\n{}", kSteps, where(trainer.device()), profiler.table()).c_str());
}

void run_train(TrainSettings& s) {
  if (s.threads != 0) set_num_threads(s.threads);
  for (int signal : {SIGINT, SIGTERM}) std::signal(signal, on_interrupt);
  std::unique_ptr<Trainer> trainer;
  if (!s.resume.empty()) {
    const RunFolder run = RunFolder::open(s.resume);
    trainer = Trainer::resume(run.latest_checkpoint());
    if (trainer->made_elsewhere())
      std::printf("this run was made by %s: it goes on, but not to the last bit\n",
                  trainer->made_elsewhere()->c_str());
    run.cut_metrics(trainer->steps_done());
    describe(*trainer, run);
    if (trainer->finished())
      std::printf("all its %lld steps are done\n", static_cast<long long>(trainer->steps_done()));
    else
      std::printf("going on after step %lld\n", static_cast<long long>(trainer->steps_done()));
    return train_until_done(*trainer, run);
  }
  trainer = std::make_unique<Trainer>(s.options);
  if (s.profile) return profile(*trainer);
  const RunFolder run = RunFolder::create(s.out.empty() ? default_folder(s.options) : s.out);
  write_file_atomically(run.config_path(), to_json(s.options));
  describe(*trainer, run);
  train_until_done(*trainer, run);
}

std::string flag_of(std::string name) {
  for (char& c : name)
    if (c == '_') c = '-';
  return "--" + name;
}

/// Sets the fields whose flag was given.
void copy_given(TrainOptions& given, const std::vector<std::function<bool()>>& flags,
                TrainOptions& target) {
  size_t i = 0;
  visit_fields(given, [&]<class T>(const char* name, const T& from, const char*) {
    if (!flags[i++]()) return;
    visit_fields(target, [&]<class U>(std::string_view other, U& to, const char*) {
      if constexpr (std::is_same_v<T, U>)
        if (other == name) to = from;
    });
  });
}

/// A run goes on as it began: a setting beside --resume would be passed over in silence.
void require_no_setting(const TrainSettings& s, const TrainOptions& given,
                        const std::vector<std::function<bool()>>& flags) {
  std::string first = !s.out.empty()      ? "--out"
                      : !s.config.empty() ? "--config"
                      : s.profile         ? "--profile"
                                          : "";
  size_t i = 0;
  visit_fields(given, [&](const char* name, const auto&, const char*) {
    if (flags[i++]() && first.empty()) first = flag_of(name);
  });
  if (!first.empty())
    throw ValueError(
        "resume: a run goes on with its own settings, but {} was given; leave it out, or begin a "
        "new run by --config {}/config.json and what shall differ",
        first, s.resume);
}

}  // namespace

void add_train(CLI::App& app) {
  auto settings = std::make_shared<TrainSettings>();
  Command train(
      app, "train",
      "Train a language model: on generated sentences whose best possible loss is known, on "
      "--text FILE, or on --task NAME.");
  train.option("--out", settings->out, "the run's folder; default: runs/DATA-DATE");
  train.option("--resume", settings->resume,
               "go on with the run in this folder, with its own settings");
  train.option("--config", settings->config,
               "settings from a JSON file such as a run's config.json; flags override it");
  train.option("--threads", settings->threads, "threads; 0: all processors");
  train.flag("--profile", settings->profile,
             "time, bytes and share of each op in ten steps, and no run");
  // Flags go into options of their own, so that a configuration file does not override them.
  auto given = std::make_shared<TrainOptions>();
  auto flags = std::make_shared<std::vector<std::function<bool()>>>();
  visit_fields(*given, [&](const char* name, auto& field, const char* help) {
    flags->push_back(
        train.option(flag_of(name), field, help).shows_default().group("Settings").given());
  });
  train.runs([=] {
    TrainSettings& s = *settings;
    if (!s.resume.empty()) require_no_setting(s, *given, *flags);
    if (!s.config.empty()) set_from_json(s.options, read_file(s.config), s.config);
    copy_given(*given, *flags, s.options);
    run_train(s);
  });
}
