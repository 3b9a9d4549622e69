// A plugin's device under test. All memory is reached through the device's own slots: the CPU may not be able to read it.
#pragma once
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "conform/host.h"
#include "plugin/registry.h"

namespace conform {

// How a stage is named in code: conform::Stage s = &duet::Device::wkv
using Stage = duet::Device::Stage duet::Device::*;

// The reference backend's table, which is compiled in.
const duetp_plugin& reference_plugin();

// One device of a plugin with one queue. Gaps of a device on the host's memory are filled from the reference, as Duet does.
// Every call that fails throws a std::runtime_error with the plugin's sentence.
class Device {
 public:
  explicit Device(const duetp_plugin& plugin, uint32_t n_threads = 2, uint32_t index = 0);
  ~Device() { close(); }
  // Ends device and plugin early; returns how many of the host's allocations the plugin has kept.
  long close();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  void check(duet_status status);
  std::string said();  // the sentence of the call that has just failed
  void wait() { check(device_.table.queue_wait(self(), queue_)); }
  // Enqueues one stage; it has run after wait(), or in a recording not at all.
  void run(Stage stage, const duetp_stage& a) { check((device_.*stage)(queue_, a)); }
  void run(duetp_step_fn fn, const duetp_step& a) { check(fn(device_.table.self, queue_, &a)); }

  Host& host() { return host_; }
  const duet::Device& slots() const { return device_; }
  const duetp_device* operator->() const { return &device_.table; }
  void* self() const { return device_.memory_self; }  // first argument of the memory, queue and recording slots
  duetp_queue* queue() const { return queue_; }
  bool records() const { return device_.records(); }
  bool offers(Stage stage) const;         // the plugin's own code computes it
  bool offers_all_stages() const;
  bool offers_rung(uint32_t rung) const;  // 1: all nine stages, its own or the reference's beside at least one of its own
  std::string refuses(const duetp_shape& shape, duet_dtype weights, uint32_t rung) const;  // "" if it does not

  // Buffers are kept for the next of the same size, because some devices are slow to give memory.
  duetp_buffer* take_buffer(uint64_t bytes);
  void give_buffer(uint64_t bytes, duetp_buffer* b) { free_buffers_[bytes].push_back(b); }

 private:
  std::unique_ptr<Device> filler_;  // the reference; none for the reference itself
  Host host_;
  const duetp_plugin plugin_;
  void* plugin_self_ = nullptr;
  duet::Device device_;
  duetp_queue* queue_ = nullptr;
  std::map<uint64_t, std::vector<duetp_buffer*>> free_buffers_;
};

// Device memory between two canaries, filled with NaN (all bits set, which is NaN in every float type).
class Memory {
 public:
  Memory(Device& d, std::string name, size_t bytes, duet_dtype dtype);
  ~Memory() { device_.give_buffer(total(), buffer_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  duetp_ref ref() const { return {buffer_, kCanary, dtype_, 0}; }
  duet_dtype dtype() const { return dtype_; }
  void write(const void* data, size_t n) { device_.check(device_->upload(device_.self(), device_.queue(), ref(), data, n)); }
  std::vector<unsigned char> read();  // throws when a canary was touched

 private:
  static constexpr size_t kCanary = 256;
  size_t total() const { return bytes_ + 2 * kCanary; }

  Device& device_;
  std::string name_;
  size_t bytes_;
  duet_dtype dtype_;
  duetp_buffer* buffer_ = nullptr;
};

}  // namespace conform
