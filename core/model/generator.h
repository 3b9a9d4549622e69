// What the two generators of weights share: numbers that depend on a key and a counter alone, and work cut into slices.
#pragma once
#include <sched.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace duet {

// The finaliser of splitmix64
inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58'476d'1ce4'e5b9u;
  x = (x ^ x >> 27) * 0x94d0'49bb'1331'11ebu;
  return x ^ x >> 31;
}
// The stream of one tensor, and its i-th 64 bits
inline uint64_t tensor_key(uint64_t seed, uint32_t id, uint32_t layer) { return mix(mix(seed + 0x9e37'79b9'7f4a'7c15u) ^ (uint64_t{layer} << 32 | id)); }
inline uint64_t draw(uint64_t key, uint64_t i) { return mix(key + i * 0x9e37'79b9'7f4a'7c15u); }
inline double unit(uint64_t bits) { return (static_cast<double>(bits >> 11) + 0.5) * 0x1p-53; }  // in (0,1)

// The processors that this thread may run on.
inline uint64_t n_processors() {
  cpu_set_t mask;
  const int n = ::sched_getaffinity(0, sizeof mask, &mask) == 0 ? CPU_COUNT(&mask) : static_cast<int>(std::thread::hardware_concurrency());
  return static_cast<uint64_t>(std::max(1, n));
}

// Runs f(begin, end) for slices of [0, n), each a multiple of `granule` long but the last, on a thread for each processor.
// What f computes for an index must not depend on the slice.
template <class F>
void in_slices(uint64_t n, uint64_t granule, const F& f) {
  const uint64_t n_granules = (n + granule - 1) / granule;
  const uint64_t n_slices = std::clamp<uint64_t>(n_granules, 1, n_processors());
  std::vector<std::exception_ptr> failures(n_slices);
  const auto run = [&](uint64_t slice) {
    const auto start = [&](uint64_t i) { return std::min(n, n_granules * i / n_slices * granule); };
    try {
      f(start(slice), start(slice + 1));
    } catch (...) {
      failures[slice] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> threads;
    threads.reserve(n_slices);
    uint64_t slice = 1;
    try {
      for (; slice < n_slices; ++slice) threads.emplace_back(run, slice);
    } catch (const std::system_error&) {  // no more threads to be had: the rest is done here
      for (; slice < n_slices; ++slice) run(slice);
    }
    run(0);
  }
  for (const std::exception_ptr& e : failures)
    if (e) std::rethrow_exception(e);
}

}  // namespace duet
