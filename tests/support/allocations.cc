#include "support/allocations.h"

#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<size_t> now{0}, peak{0};

}  // namespace

// The nothrow form too: under the address sanitizer it would else be the sanitizer's, and not match our delete.
void* operator new(size_t n, const std::nothrow_t&) noexcept {
  void* p = std::malloc(n > 0 ? n : 1);
  if (p == nullptr) return nullptr;
  const size_t total = now += malloc_usable_size(p);
  for (size_t most = peak; most < total && !peak.compare_exchange_weak(most, total);) continue;
  return p;
}

void* operator new(size_t n) {
  void* p = operator new(n, std::nothrow);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

void operator delete(void* p) noexcept {
  if (p == nullptr) return;
  now -= malloc_usable_size(p);
  std::free(p);
}

void operator delete(void* p, size_t) noexcept { operator delete(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { operator delete(p); }

size_t peak_allocated(const std::function<void()>& call) {
  const size_t before = now;
  peak = before;
  call();
  return peak - before;
}
