// The groups of checks. Each adds its lines to the report.
#pragma once
#include <cstdint>
#include <string>

#include "conform/device.h"
#include "conform/report.h"

namespace conform {

struct Context {
  Device& device;
  Device& reference;
  Report& report;
  uint64_t seed;
  bool quick;         // fewer shapes and lengths
  std::string stage;  // only this one; "" = all
};

// Buffers, transfers, states. Lines "memory" and "state".
void check_memory(Context& x);
// States that store the wkv matrices in f16 and bf16, where the device takes them. Lines "state in f16", "state in bf16".
void check_stored(Context& x);
// Each stage of the plugin's own against the reference. Lines "wkv", "linear r" ...
void check_stages(Context& x);
// The stage that draws tokens, which a device need not have. Line "sample".
void check_sample(Context& x);
// Whole networks over the given rung against the reference, and texts that are handed over in the middle.
void check_network(Context& x, uint32_t rung);

// Closes the device: neither the process nor the host's memory may be left changed. Line "process"; nothing may follow.
void check_process(Context& x);

}  // namespace conform
