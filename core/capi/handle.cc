#include "capi/handle.h"

#include <pthread.h>

#include <memory>
#include <mutex>
#include <shared_mutex>
#include <vector>

namespace duet {
namespace {

static_assert(sizeof(void*) == 8, "handles are 64 bits: generation 32, index 28, kind 4");

struct Entry {
  Kind kind{};
  uint32_t generation = 0;
  std::shared_ptr<const void> object;
};

struct Table {
  std::shared_mutex mutex;
  std::vector<Entry> entries;
  std::vector<uint32_t> free;
};

Table* new_table();

// Never destroyed: handles may be freed by the destructors of the program's own globals.
Table& table() {
  static Table& t = *new_table();
  return t;
}

// A fork waits until no thread is in the table, else the child would find it locked for good by a thread that it does not have.
Table* new_table() {
  ::pthread_atfork([] { table().mutex.lock(); }, [] { table().mutex.unlock(); },
                   [] { std::construct_at(&table().mutex); });  // the child may not unlock it: to the mutex it is another thread
  return new Table;
}

Entry* entry(Table& t, Kind kind, const void* handle) {
  const auto h = reinterpret_cast<uintptr_t>(handle);
  const auto index = static_cast<size_t>(h >> 4 & 0xfffffff);
  if ((h & 15) != static_cast<uintptr_t>(kind) || index >= t.entries.size()) return nullptr;
  Entry& e = t.entries[index];
  return e.object && e.kind == kind && e.generation == h >> 32 ? &e : nullptr;
}

}  // namespace

void* add_handle(Kind kind, std::shared_ptr<const void> object) {
  Table& t = table();
  std::lock_guard lock(t.mutex);
  if (t.free.empty()) {
    if (t.entries.size() > 0xfffffff) fail(DUET_E_LIMIT, "more than {} live objects", 0xfffffff);
    if (t.free.capacity() <= t.entries.size()) t.free.reserve(2 * t.entries.size() + 16);  // so that a free can never fail
    t.entries.emplace_back();
    t.free.push_back(static_cast<uint32_t>(t.entries.size() - 1));
  }
  const uint32_t index = t.free.back();
  t.free.pop_back();
  Entry& e = t.entries[index];
  e.kind = kind;
  if (++e.generation == 0) e.generation = 1;
  e.object = std::move(object);
  return reinterpret_cast<void*>(uintptr_t{e.generation} << 32 | uintptr_t{index} << 4 | static_cast<uintptr_t>(kind));
}

std::shared_ptr<const void> find_handle(Kind kind, const void* handle) {
  Table& t = table();
  std::shared_lock lock(t.mutex);
  const Entry* e = entry(t, kind, handle);
  return e ? e->object : nullptr;
}

std::shared_ptr<const void> remove_handle(Kind kind, const void* handle) noexcept {
  Table& t = table();
  std::lock_guard lock(t.mutex);
  Entry* e = entry(t, kind, handle);
  if (!e) return nullptr;
  t.free.push_back(static_cast<uint32_t>(e - t.entries.data()));
  return std::move(e->object);  // destroyed by the caller, outside the lock
}

}  // namespace duet
