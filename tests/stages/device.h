// A plugin's device under test, on a small host of its own: no registry, no manifest, just the table.
#pragma once
#include <dlfcn.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "base/team.h"
#include "duet_plugin.h"

namespace stages {

class Host {
 public:
  explicit Host(uint32_t n_threads) : team_(n_threads) {
    table_.size = sizeof table_;
    table_.abi = DUETP_ABI;
    table_.self = this;
    table_.alloc = [](void* self, size_t bytes, size_t align) -> void* {
      void* p = nullptr;
      if (bytes > static_cast<Host*>(self)->memory_limit) return nullptr;
      return ::posix_memalign(&p, align < sizeof p ? sizeof p : align, bytes) == 0 ? p : nullptr;
    };
    table_.free = [](void*, void* p) { ::free(p); };
    table_.log = [](void*, int32_t, const char*) {};
    table_.fail = [](void* self, duet_status code, const char* text) {
      static_cast<Host*>(self)->sentence = text;
      return code;
    };
    table_.option = [](void*, const char* key) -> const char* { return std::string_view(key) == "isa" ? std::getenv("DUET_CPU_ISA") : nullptr; };
    table_.team_size = [](void* self) { return static_cast<Host*>(self)->team_.size(); };
    table_.team = [](void* self, void (*fn)(void*, uint32_t, uint32_t), void* ctx) { static_cast<Host*>(self)->team_.run(fn, ctx); };
    table_.barrier = [](void* self) { static_cast<Host*>(self)->team_.barrier(); };
    table_.extension = [](void*, const char*) -> const void* { return nullptr; };
  }
  Host(const Host&) = delete;
  Host& operator=(const Host&) = delete;

  const duetp_host* table() const { return &table_; }
  std::string sentence;             // of the last failure
  size_t memory_limit = SIZE_MAX;   // of one allocation

 private:
  duet::Team team_;
  duetp_host table_{};
};

// The plugin of a shared object; it stays loaded, as it does in Duet.
inline const duetp_plugin* load_plugin(const char* file) {
  void* library = ::dlopen(file, RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(::dlerror());
  const auto query = reinterpret_cast<duetp_query_fn>(::dlsym(library, DUETP_QUERY_NAME));
  const duetp_plugin* p = query ? query(DUETP_ABI, 0) : nullptr;
  if (!p) throw std::runtime_error(std::string(file) + ": no plugin of this ABI");
  return p;
}

// Device 0 with one queue. Every call that fails throws its sentence.
class Device {
 public:
  explicit Device(const duetp_plugin* plugin, uint32_t n_threads = 2) : host_(n_threads), plugin_(plugin) {
    check(plugin_->open(host_.table(), &self_));
    check(plugin_->device_open(self_, 0, &table_));
    check(table_->queue_new(table_->self, &queue_));
  }
  ~Device() {
    table_->queue_free(table_->self, queue_);
    if (table_->close) table_->close(table_->self);
    plugin_->close(self_);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void check(duet_status status) const {
    if (status != DUET_OK) throw std::runtime_error("status " + std::to_string(status) + ": " + host_.sentence);
  }
  void wait() { check(table_->queue_wait(table_->self, queue_)); }

  Host& host() { return host_; }
  const duetp_device* operator->() const { return table_; }
  void* self() const { return table_->self; }
  duetp_queue* queue() const { return queue_; }
  bool records() const { return table_->record_begin != nullptr; }

 private:
  Host host_;
  const duetp_plugin* plugin_;
  void* self_ = nullptr;
  const duetp_device* table_ = nullptr;
  duetp_queue* queue_ = nullptr;
};

// Device memory between two canaries, filled with NaN (all bits set, which is NaN in every float type).
class Memory {
 public:
  Memory(Device& d, size_t bytes, duet_dtype dtype) : device_(d), bytes_(bytes), dtype_(dtype) {
    const std::vector<unsigned char> fill(total(), 0xff);
    d.check(d->buffer_new(d.self(), fill.size(), &buffer_));
    d.check(d->upload(d.self(), d.queue(), {buffer_, 0, dtype, 0}, fill.data(), fill.size()));
  }
  ~Memory() { device_->buffer_free(device_.self(), buffer_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  duetp_ref ref() const { return {buffer_, kCanary, dtype_, 0}; }
  duet_dtype dtype() const { return dtype_; }
  void write(const void* data, size_t n) { device_.check(device_->upload(device_.self(), device_.queue(), ref(), data, n)); }
  std::vector<unsigned char> read() {  // throws when a canary was touched
    std::vector<unsigned char> all(total());
    device_.check(device_->download(device_.self(), device_.queue(), all.data(), {buffer_, 0, dtype_, 0}, all.size()));
    device_.wait();
    for (size_t i = 0; i < all.size(); ++i)
      if ((i < kCanary || i >= kCanary + bytes_) && all[i] != 0xff) throw std::runtime_error("a stage wrote outside its output");
    return {all.begin() + kCanary, all.begin() + kCanary + static_cast<std::ptrdiff_t>(bytes_)};
  }

 private:
  static constexpr size_t kCanary = 256;
  size_t total() const { return bytes_ + 2 * kCanary; }

  Device& device_;
  size_t bytes_;
  duet_dtype dtype_;
  duetp_buffer* buffer_ = nullptr;
};

}  // namespace stages
