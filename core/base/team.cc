#include "base/team.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "base/error.h"

namespace duet {
namespace {

constexpr uint32_t kMaxThreads = 256;
constexpr auto kSpin = std::chrono::microseconds(50);

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Waits until `value` differs from `old`: spins for a moment where each thread has a core of its own, then sleeps.
void wait_while(const std::atomic<uint32_t>& value, uint32_t old, bool spin) {
  if (spin) {
    const auto give_up = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int i = 0; i < 64; ++i) {
        if (value.load(std::memory_order_acquire) != old) return;
        relax();
      }
    } while (std::chrono::steady_clock::now() < give_up);
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

// What the kernel says about the core of a CPU: the list of its hardware threads. Empty where it says nothing.
std::string siblings(int cpu) {
  const std::string path = duet::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu);
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  char text[256];
  const ssize_t n = ::read(fd, text, sizeof text);
  ::close(fd);
  return n > 0 ? std::string(text, static_cast<size_t>(n)) : std::string();
}

// The affinity mask of this thread. A machine with more CPUs than cpu_set_t holds reads as "unknown".
bool affinity(cpu_set_t& mask) {
  CPU_ZERO(&mask);
  return ::sched_getaffinity(0, sizeof mask, &mask) == 0;
}

// One CPU for each physical core of the mask
std::vector<int> cores() {
  std::vector<int> out;
  cpu_set_t mask;
  if (!affinity(mask)) return out;
  std::set<std::string> seen;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    const std::string core = siblings(cpu);
    if (core.empty() || seen.insert(core).second) out.push_back(cpu);
  }
  return out;
}

void pin(int cpu) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  ::sched_setaffinity(0, sizeof mask, &mask);  // refused: the thread floats, which is slower and as right
}

// Threads that start meanwhile have all signals blocked.
class NoSignals {
 public:
  NoSignals() {
    sigset_t all;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~NoSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

struct Team::Impl {
  const pid_t process = ::getpid();
  uint32_t n = 1;
  std::vector<int> cpus;  // [n] where the team takes every core, else empty
  std::vector<std::thread> workers;
  std::mutex turn;  // of the callers of run

  void (*fn)(void*, uint32_t, uint32_t) = nullptr;  // NULL ends the workers; written before `round` moves on
  void* ctx = nullptr;
  alignas(64) std::atomic<uint32_t> round{0};    // moves on when there is work
  alignas(64) std::atomic<uint32_t> running{0};  // workers that have not finished this round
  alignas(64) std::atomic<uint32_t> arrived{0};  // at the barrier
  alignas(64) std::atomic<uint32_t> passed{0};   // barriers so far

  bool spins = false;  // each thread can have a core of its own

  void work(uint32_t i) {
    if (!cpus.empty()) pin(cpus[i]);
    for (uint32_t seen = 0;; ++seen) {
      wait_while(round, seen, spins);
      if (fn == nullptr) return;
      fn(ctx, i, n);
      if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
    }
  }

  void start_round(void (*f)(void*, uint32_t, uint32_t), void* c) {
    fn = f;
    ctx = c;
    running.store(n - 1, std::memory_order_relaxed);
    round.fetch_add(1, std::memory_order_release);
    round.notify_all();
  }

  void stop() {
    start_round(nullptr, nullptr);
    for (std::thread& t : workers) t.join();
  }
};

Team::Team(uint32_t n_threads) : impl_(std::make_unique<Impl>()) {
  if (n_threads > kMaxThreads) fail(DUET_E_LIMIT, "{} threads asked for; at most {} are allowed", n_threads, kMaxThreads);
  const std::vector<int> all = cores();
  const uint32_t n_cores = all.empty() ? std::max(1u, std::thread::hardware_concurrency()) : static_cast<uint32_t>(all.size());
  impl_->n = n_threads ? n_threads : std::min(n_cores, kMaxThreads);
  impl_->spins = impl_->n <= all.size();
  if (impl_->n == all.size()) impl_->cpus = all;  // fewer threads float: another team may have chosen the same cores
  impl_->workers.reserve(impl_->n - 1);
  const NoSignals none;  // the application's signals are for its own threads
  try {
    for (uint32_t i = 1; i < impl_->n; ++i) impl_->workers.emplace_back([impl = impl_.get(), i] { impl->work(i); });
  } catch (const std::system_error& e) {
    const size_t started = impl_->workers.size() + 1;
    impl_->stop();
    fail(DUET_E_LIMIT, "thread {} of {} could not be started: {}; ask for fewer threads", started + 1, impl_->n, e.what());
  } catch (...) {
    impl_->stop();
    throw;
  }
}

Team::~Team() {
  if (::getpid() == impl_->process)
    impl_->stop();
  else
    (void)impl_.release();  // a forked child: its copy of the team has no threads to join
}

uint32_t Team::size() const { return impl_->n; }

void Team::run(void (*fn)(void* ctx, uint32_t i, uint32_t n), void* ctx) {
  Impl& t = *impl_;
  const std::lock_guard lock(t.turn);
  if (t.n == 1) return fn(ctx, 0, 1);
  cpu_set_t before;
  const bool pinned = !t.cpus.empty() && affinity(before);
  if (pinned) pin(t.cpus[0]);
  t.start_round(fn, ctx);
  fn(ctx, 0, t.n);
  for (uint32_t left; (left = t.running.load(std::memory_order_acquire)) != 0;) wait_while(t.running, left, t.spins);
  if (pinned) ::sched_setaffinity(0, sizeof before, &before);
}

void Team::barrier() {
  Impl& t = *impl_;
  if (t.n == 1) return;
  const uint32_t now = t.passed.load(std::memory_order_relaxed);  // cannot move before this thread has arrived
  if (t.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < t.n) return wait_while(t.passed, now, t.spins);
  t.arrived.store(0, std::memory_order_relaxed);
  t.passed.fetch_add(1, std::memory_order_release);
  t.passed.notify_all();
}

}  // namespace duet
