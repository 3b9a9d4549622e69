// In place of backends/gpu/port.h: a kernel runs on the CPU, block after block, each thread of a block as a fiber that goes on to
// the next barrier in its turn. The turns come in another order in every round, so that a result that depends on the order shows.
// Shuffles count as barriers: all threads of a block must come to them.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(n)

namespace duet_gpu {

using Stream = int;
using Error = int;
constexpr Error kSuccess = 0;

struct dim3 {
  uint32_t x, y, z;
  constexpr dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
inline dim3 threadIdx, blockIdx;

inline void let_next_start() {}
inline void wait_for_inputs() {}

// One block of threads.
class Block {
 public:
  static Block*& now() {
    static Block* b = nullptr;
    return b;
  }
  Block(uint32_t n, const std::function<void()>& kernel) : kernel_(kernel), fibers_(n), exchange(n) {
    constexpr size_t kStack = 64 << 10;
    static std::vector<char> stacks;
    stacks.resize(std::max(stacks.size(), n * kStack));
    now() = this;
    for (Fiber& f : fibers_) {
      ::getcontext(&f.context);
      f.context.uc_stack.ss_sp = stacks.data() + static_cast<size_t>(&f - fibers_.data()) * kStack;
      f.context.uc_stack.ss_size = kStack;
      ::makecontext(&f.context, run, 0);
    }
    std::vector<uint32_t> turns(n);
    for (uint32_t i = 0; i < n; ++i) turns[i] = i;
    static std::mt19937 random(1);
    while (!turns.empty()) {
      std::shuffle(turns.begin(), turns.end(), random);
      for (const uint32_t i : turns) {
        threadIdx.x = current_ = i;
        resume(fibers_[i]);
      }
      std::erase_if(turns, [this](uint32_t i) { return fibers_[i].done; });
    }
  }
  void barrier() {
    if (::_setjmp(fibers_[current_].place) == 0) ::_longjmp(home_, 1);
  }

 private:
  struct Fiber {
    ucontext_t context;  // only to begin with: a swapcontext asks the system for its signal mask, and takes ten times as long as a jump
    jmp_buf place;
    bool begun = false, done = false;
  };
  void resume(Fiber& f) {
    if (::_setjmp(home_) != 0) return;
    if (f.begun) ::_longjmp(f.place, 1);
    f.begun = true;
    ::setcontext(&f.context);
  }
  static void run() {
    now()->kernel_();
    now()->fibers_[now()->current_].done = true;
    ::_longjmp(now()->home_, 1);
  }
  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;
  jmp_buf home_;
  uint32_t current_ = 0;

 public:
  std::vector<uint64_t> exchange;
};

inline void __syncthreads() { Block::now()->barrier(); }
template <class T>
T shuffled(T v, uint32_t from) {
  static_assert(sizeof(T) <= 8);
  std::vector<uint64_t>& all = Block::now()->exchange;
  std::memcpy(&all[threadIdx.x], &v, sizeof v);
  __syncthreads();
  std::memcpy(&v, &all[from], sizeof v);
  __syncthreads();
  return v;
}
template <class T>
T __shfl_xor_sync(uint32_t, T v, int d) {
  return shuffled(v, threadIdx.x ^ static_cast<uint32_t>(d));
}
template <class T>
T __shfl_up_sync(uint32_t, T v, uint32_t d) {
  return shuffled(v, threadIdx.x % 32 >= d ? threadIdx.x - d : threadIdx.x);
}
template <class T>
T atomicAdd(T* to, T v) {
  return std::exchange(*to, *to + v);
}

using std::exp, std::fmin, std::log, std::min;
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }

template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t, Stream, Arguments&&... arguments) {
  const std::function<void()> body = [&] { kernel(arguments...); };
  for (uint32_t y = 0; y < grid.y; ++y)
    for (uint32_t x = 0; x < grid.x; ++x) {
      blockIdx = dim3(x, y);
      Block(block.x, body);
    }
  return kSuccess;
}

}  // namespace duet_gpu
