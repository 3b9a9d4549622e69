// Finds plugins, judges them without running them, opens the good ones, and remembers why the others were not taken.
// The order of the work is the order of the files: discover -> manifest -> elf_note -> load -> absorb -> rank.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/log.h"
#include "base/team.h"
#include "duet_plugin.h"

namespace duet {

// A device as the host uses it: the plugin's table copied into a zeroed one, with every gap filled. On a device without
// memory of its own, the memory slots and the missing stages are the reference backend's, each with its own `self`.
struct Device {
  struct Stage {
    duetp_stage_fn fn = nullptr;
    void* self = nullptr;
    duet_status operator()(duetp_queue* q, const duetp_stage& a) const { return fn(self, q, &a); }
  };
  std::string spec;    // "cpu:0"
  std::string plugin;  // path, or "built in"
  duetp_device_info info{};                  // as it was when the device was opened
  std::function<uint64_t()> free_memory;     // bytes now, as the plugin says; 0 = unknown. [any-thread]
  duetp_device table{};          // zero-filled copy; every memory slot is filled, record_* all or none
  void* memory_self = nullptr;   // first argument of buffer_*, upload .. state_*, record_*
  Stage embed, shift_mix, linear, lowrank, wkv_prepare, wkv, norm_gate, channel_mix, head;
  Stage sample;                                    // may be absent
  duetp_step_fn layers = nullptr, step = nullptr;  // with table.self
  bool own_stages = false;                         // all nine are the plugin's
  bool f32_states = false;                         // it computes wkv on the host's states, which it knows in f32 only
  bool has(uint64_t cap) const { return (info.caps & cap) == cap; }
  bool records() const { return table.record_begin != nullptr; }
  // "" if it can, else the plugin's sentence
  std::string refuses(const duetp_shape& shape, duet_dtype weights) const;
};

// Throws the Error for a failed call of a plugin: the sentence the plugin gave to duetp_host.fail, or one with the code.
[[noreturn]] void fail_plugin(const std::string& who, duet_status code);
void check_plugin(const Device& device, duet_status code);  // nothing on DUET_OK

struct RegistryOptions {
  std::string plugin_path;  // replaces the search; else the environment's (docs/plugins.md, discovery)
  std::string layers;       // "validate,trace": around the devices that device() gives, the first outermost; "" = DUET_LAYERS
};

class Registry {
 public:
  Registry(RegistryOptions options, Team& team, const Log& log);
  ~Registry();  // closes devices and plugins in reverse order; never unloads a library
  // All devices, ranked best first, without layers; opens every acceptable plugin on the first call. [any-thread]
  const std::vector<std::shared_ptr<const Device>>& devices();
  // "cpu", "cpu:0", "reference" ...; "" = DUET_BACKEND, else the best whose refuses() is empty for this shape and dtype.
  // DUET_E_NOT_FOUND lists what there is and why the rest was not taken; DUET_E_INVALID for a malformed spec. With the
  // interposing layers around it: the same object whenever it is asked for.
  std::shared_ptr<const Device> device(const std::string& spec, const duetp_shape* shape, duet_dtype weights);
  std::string report();  // JSON of duet_library_report

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace duet
