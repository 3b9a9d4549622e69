// The library's one thread team. Where it has a thread for each physical core of the process's affinity mask, they are pinned
// while they work (fewer float: another team may have chosen the same cores). Threads spin for a moment between runs and
// then sleep; nothing spins while the library is idle.
#pragma once
#include <cstdint>
#include <memory>

namespace duet {

class Team {
 public:
  // 0 = one thread per physical core of the affinity mask; at most 256. More threads than cores are allowed.
  explicit Team(uint32_t n_threads = 0);
  ~Team();
  uint32_t size() const;
  // Runs fn(ctx, i, n) once for each i in [0, n) and returns when all are done; the caller is thread 0. A second caller
  // waits its turn. fn must not throw and must not call run.
  void run(void (*fn)(void* ctx, uint32_t i, uint32_t n), void* ctx);
  // Inside fn only: returns when all n threads have called it.
  void barrier();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace duet
