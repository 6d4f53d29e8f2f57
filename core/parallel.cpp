#include "norma/core/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <string_view>
#include <type_traits>

#include "norma/core/error.h"
#include "norma/core/storage.h"

namespace norma {
namespace {

constexpr int kMaxThreads = 1024;
// Ops of a training step follow each other within microseconds; a futex wake takes tens of them.
constexpr auto kSpinTime = std::chrono::microseconds(50);

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits for `ready`, but not longer than kSpinTime; returns whether it came.
template <class Ready>
bool spin_until(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {  // the clock costs about as much as a pause
      if (ready()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

thread_local bool inside_body = false;

struct InsideBody {
  InsideBody() { inside_body = true; }
  ~InsideBody() { inside_body = false; }
};

/// How many of a job's blocks its caller runs is a matter of chance: what they allocate must not
/// count among the storages of a captured call, which are told apart by number.
struct Unwatched {
  StorageWatch* watch = StorageWatch::exchange(nullptr);
  ~Unwatched() { StorageWatch::exchange(watch); }
};

/// One parallel_for; lives on its caller's stack. Each thread begins with a share of its own, of
/// the same part of every job: what it wrote in one op it then mostly finds in its own cache in the
/// next. Who is done helps the others.
struct Job {
  static constexpr int64_t kMostShares = 16;  // beyond, threads have one together
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  int64_t blocks;
  detail::BlockBody call;
  const void* body;
  int64_t shares = 0;
  std::array<Share, kMostShares> share = {};
  std::atomic<bool> failed{false};
  std::exception_ptr error = nullptr;

  void divide(int64_t threads) {
    shares = std::min(threads, kMostShares);
    for (int64_t i = 0; i < shares; ++i) {
      of(i).next.store(i * blocks / shares, std::memory_order_relaxed);
      of(i).end = (i + 1) * blocks / shares;
    }
  }
  void work(int64_t thread) {
    const Unwatched scratch;
    for (int64_t i = 0; i < shares; ++i) work_on(of((thread + i) % shares));
  }

 private:
  Share& of(int64_t i) { return share[static_cast<size_t>(i)]; }
  void work_on(Share& part) {
    for (int64_t block; (block = part.next.fetch_add(1, std::memory_order_relaxed)) < part.end;) {
      try {
        call(body, block);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        for (int64_t i = 0; i < shares; ++i) of(i).next.store(of(i).end, std::memory_order_relaxed);
      }
    }
  }
};

/// Guards the pool's job: a counter of the workers inside, a bit that lets them in, and the job's
/// number, by which a worker enters a job once. All in one word, so that none enters a closed job.
namespace gate {
constexpr uint32_t kCount = (1u << 11) - 1, kOpen = 1u << 11, kJob = 1u << 12;
static_assert(kMaxThreads <= kCount);
constexpr uint32_t job(uint32_t word) { return word / kJob; }
}  // namespace gate

/// Trivially destructible and constant-initialized: static objects may run ops before and after.
class Pool {
 public:
  int threads();
  void resize(int count);
  void run(Job& job);

  // Around fork() and at exit.
  void lock_for_fork();
  void unlock_after_fork();
  void forget_workers();
  void stop_at_exit();

 private:
  static void* worker_main(void* pool);
  bool await_job(uint32_t last_job);
  void help(int64_t number);
  void start();
  void stop();
  void wake(int64_t wanted);
  void await_workers();

  std::mutex mutex_;  // held by whoever runs a job or changes the pool
  std::atomic<int> threads_{0};
  int workers_ = 0;
  std::atomic<int64_t> begun_{0};  // workers that have a number
  bool started_ = false;
  bool ended_ = false;
  std::array<pthread_t, kMaxThreads> handles_{};
  Job* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> gate_{0};  // workers sleep here
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<uint32_t> left_{0};  // the caller sleeps here
};
static_assert(std::is_trivially_destructible_v<Pool>);

constinit Pool pool;

int Pool::threads() {
  int count = threads_.load(std::memory_order_relaxed);
  if (count == 0) {
    int unset = 0;
    count = detail::default_num_threads();
    if (!threads_.compare_exchange_strong(unset, count)) count = unset;
  }
  return count;
}

void Pool::resize(int count) {
  const std::lock_guard lock(mutex_);
  if (started_) stop();
  threads_ = count;
}

void Pool::run(Job& job) {
  const auto run_alone = [&] { job.divide(1), job.work(0); };
  if (inside_body || threads() == 1) return run_alone();
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || ended_) return run_alone();
  if (!started_) start();
  job.divide(workers_ + 1);
  job_ = &job;
  const uint32_t number = gate::job(gate_.load(std::memory_order_relaxed)) + 1;
  gate_.store(number * gate::kJob | gate::kOpen, std::memory_order_release);
  wake(std::min<int64_t>(job.blocks - 1, workers_));
  {
    const InsideBody inside;
    job.work(0);
  }
  await_workers();
}

void Pool::wake(int64_t wanted) {
  if (wanted == workers_) return gate_.notify_all();
  for (int64_t i = 0; i < wanted; ++i) gate_.notify_one();
}

/// Closes the gate and waits until the last worker has left.
void Pool::await_workers() {
  const auto empty = [this] { return (gate_.load(std::memory_order_acquire) & gate::kCount) == 0; };
  gate_.fetch_and(~gate::kOpen, std::memory_order_acq_rel);
  for (;;) {
    const uint32_t left = left_.load();
    if (spin_until(empty)) return;
    left_.wait(left);
  }
}

void* Pool::worker_main(void* argument) {
  Pool& self = *static_cast<Pool*>(argument);
  inside_body = true;  // what a body calls in turn runs inline
  const int64_t number = 1 + self.begun_.fetch_add(1);
  for (uint32_t last_job = 0; self.await_job(last_job);) {
    last_job = gate::job(self.gate_.load(std::memory_order_relaxed));
    self.help(number);
  }
  return nullptr;
}

/// Waits for a job other than the last one; false when the pool stops.
bool Pool::await_job(uint32_t last_job) {
  const auto changed = [&] {
    return gate::job(gate_.load(std::memory_order_relaxed)) != last_job ||
           stopping_.load(std::memory_order_relaxed);
  };
  while (!spin_until(changed)) {
    const uint32_t word = gate_.load();
    if (gate::job(word) == last_job) gate_.wait(word);
  }
  return !stopping_.load();
}

/// Takes part in the present job, if it is still open.
void Pool::help(int64_t number) {
  uint32_t word = gate_.load(std::memory_order_relaxed);
  do {
    if (!(word & gate::kOpen)) return;
  } while (!gate_.compare_exchange_weak(word, word + 1, std::memory_order_acquire,
                                        std::memory_order_relaxed));
  job_->work(number);
  const uint32_t after = gate_.fetch_sub(1, std::memory_order_acq_rel) - 1;
  if ((after & (gate::kOpen | gate::kCount)) == 0) {
    left_.fetch_add(1);
    left_.notify_one();
  }
}

void Pool::start() {
  static const bool prepared = [] {
    pthread_atfork([] { pool.lock_for_fork(); }, [] { pool.unlock_after_fork(); },
                   [] { pool.forget_workers(); });
    return std::atexit([] { pool.stop_at_exit(); }) == 0;
  }();
  static_cast<void>(prepared);
  // Signals such as Ctrl-C belong to the program's own threads.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  stopping_ = false;
  gate_ = 0;
  begun_ = 0;
  const int wanted = threads() - 1;
  // Where the system gives fewer threads, work goes on with those.
  while (workers_ < wanted &&
         pthread_create(&handles_[static_cast<size_t>(workers_)], nullptr, worker_main, this) == 0)
    ++workers_;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  started_ = true;
}

void Pool::stop() {
  stopping_ = true;
  gate_.fetch_add(gate::kJob);
  gate_.notify_all();
  for (int i = 0; i < workers_; ++i) pthread_join(handles_[static_cast<size_t>(i)], nullptr);
  workers_ = 0;
  started_ = false;
}

// A body that forks holds the mutex already (or its caller does); its child can only exec.
void Pool::lock_for_fork() {
  if (!inside_body) mutex_.lock();
}

void Pool::unlock_after_fork() {
  if (!inside_body) mutex_.unlock();
}

/// In the child, where no worker lives; its next job starts new ones.
void Pool::forget_workers() {
  if (inside_body) return;
  workers_ = 0;
  started_ = false;
  mutex_.unlock();
}

/// Later destructors of static objects run their blocks inline. A program that leaves from inside
/// a body, or while another thread is in one, keeps its workers: joining them could wait forever.
void Pool::stop_at_exit() {
  if (inside_body || !mutex_.try_lock()) return;
  if (started_) stop();
  ended_ = true;
  mutex_.unlock();
}

}  // namespace

int num_threads() { return pool.threads(); }

void set_num_threads(int count) {
  if (count < 1 || count > kMaxThreads)
    throw ValueError("set_num_threads: count must be from 1 to {}, but is {}", kMaxThreads, count);
  if (inside_body)
    throw ValueError("set_num_threads: must be called outside parallel_for, but came from a body");
  pool.resize(count);
}

namespace detail {

int default_num_threads() {
  if (const char* text = std::getenv("NORMA_THREADS")) {
    const std::string_view view(text);
    int count = 0;
    const auto [end, failure] = std::from_chars(view.data(), view.data() + view.size(), count);
    if (failure != std::errc() || end != view.data() + view.size() || count < 1 ||
        count > kMaxThreads)
      throw ValueError(
          "NORMA_THREADS: must be a whole number from 1 to {}, but is \"{}\"; unset it to use "
          "every processor",
          kMaxThreads, view);
    return count;
  }
  cpu_set_t processors;
  if (sched_getaffinity(0, sizeof(processors), &processors) != 0) return 1;
  return std::clamp(CPU_COUNT(&processors), 1, kMaxThreads);
}

void run_blocks(int64_t blocks, BlockBody call, const void* body) {
  Job job{.blocks = blocks, .call = call, .body = body};
  pool.run(job);
  if (job.error) std::rethrow_exception(job.error);
}

}  // namespace detail
}  // namespace norma
