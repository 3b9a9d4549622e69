#include "memory_speed.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "runtime.h"

namespace duet {
namespace {

constexpr size_t kWords = size_t{32} << 20;  // 256 MiB of uint64_t, all threads together
constexpr double kSeconds = 0.3;

uint64_t sum(const uint64_t* words, size_t n) {
  uint64_t s[8] = {};  // enough independent sums to keep the loads in flight
  for (size_t i = 0; i + 8 <= n; i += 8) {
    for (size_t j = 0; j < 8; ++j) s[j] += words[i + j];
  }
  return s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
}

// One CPU of each physical core that this process may use; none if the system does not tell.
std::vector<int> cpus_of_cores() {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  if (::sched_getaffinity(0, sizeof mask, &mask) != 0) return {};
  std::set<std::string> cores;
  std::vector<int> cpus;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &mask)) continue;
    std::string siblings;
    std::ifstream file(fmt::format("/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list", cpu));
    if (cores.insert(std::getline(file, siblings) ? siblings : std::to_string(cpu)).second) cpus.push_back(cpu);
  }
  return cpus;
}

// Two threads that are free to move can share a core for seconds, at half the speed.
void stay_on(int cpu) {
  cpu_set_t mask;
  CPU_ZERO(&mask);
  CPU_SET(cpu, &mask);
  ::sched_setaffinity(0, sizeof mask, &mask);
}

}  // namespace

double memory_read_speed(uint32_t threads) {
  const size_t share = kWords / threads;
  const std::vector<int> cpus = cpus_of_cores();
  std::atomic<uint32_t> ready{0};
  std::atomic<uint64_t> bytes{0}, kept{0};
  std::atomic<double> slowest{0};
  std::vector<std::thread> team;
  for (uint32_t t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      if (!cpus.empty()) stay_on(cpus[t % cpus.size()]);
      const auto words = std::make_unique<uint64_t[]>(share);  // touched here, so it lies near this core
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      const double begin = seconds_now();
      uint64_t passes = 0, total = 0;
      double elapsed = 0;
      do {
        total += sum(words.get(), share);
        ++passes;
        elapsed = seconds_now() - begin;
      } while (elapsed < kSeconds);
      kept.fetch_add(total);  // so that the sums are not optimised away
      bytes.fetch_add(passes * share * sizeof(uint64_t));
      double seen = slowest.load();
      while (seen < elapsed && !slowest.compare_exchange_weak(seen, elapsed)) {
      }
    });
  }
  for (std::thread& thread : team) thread.join();
  return kept.load() == 0 ? static_cast<double>(bytes.load()) / slowest.load() : 0;  // the buffers are zero
}

uint32_t physical_cores() { return std::clamp<uint32_t>(static_cast<uint32_t>(cpus_of_cores().size()), 1, 256); }

}  // namespace duet
