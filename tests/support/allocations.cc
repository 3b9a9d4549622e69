#include "support/allocations.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<size_t> now{0}, peak{0};

}  // namespace

void* operator new(size_t n) {
  void* p = std::malloc(n > 0 ? n : 1);
  if (p == nullptr) throw std::bad_alloc();
  const size_t total = now += malloc_usable_size(p);
  for (size_t most = peak; most < total && !peak.compare_exchange_weak(most, total);) continue;
  return p;
}

void operator delete(void* p) noexcept {
  if (p == nullptr) return;
  now -= malloc_usable_size(p);
  std::free(p);
}

void operator delete(void* p, size_t) noexcept { operator delete(p); }

size_t peak_allocated(const std::function<void()>& call) {
  const size_t before = now;
  peak = before;
  call();
  return peak - before;
}
