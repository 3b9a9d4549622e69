// An operator new that fails when a test says so: for a program of its own, in one file of it. The library's calls find it first.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

// Only the test's own thread allocates while this counts: the library has one thread.
int64_t g_until = -1;  // allocations until one fails; negative: none does
bool g_for_good = false;
int64_t g_live = 0, g_failed = 0;

void* allocate(std::size_t n) noexcept {
  if (g_until == 0) {
    ++g_failed;
    if (!g_for_good) g_until = -1;
    return nullptr;
  }
  if (g_until > 0) --g_until;
  void* p = std::malloc(n > 0 ? n : 1);
  if (p != nullptr) ++g_live;
  return p;
}

void release(void* p) noexcept {
  if (p != nullptr) --g_live;
  std::free(p);
}

}  // namespace

void* operator new(std::size_t n) {
  if (void* p = allocate(n)) return p;
  throw std::bad_alloc();
}
// Who asks for this form does without: sorting, for one. Such a failure is none of the call.
void* operator new(std::size_t n, const std::nothrow_t&) noexcept {
  void* p = std::malloc(n > 0 ? n : 1);
  if (p != nullptr) ++g_live;
  return p;
}
void operator delete(void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { release(p); }
