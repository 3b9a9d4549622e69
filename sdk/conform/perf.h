// How fast a device is, beside the time in which its memory would move the same bytes.
#pragma once
#include "conform/device.h"

namespace conform {

struct Measure {
  Device& device;
  std::string stage;  // only this one; "" = all
  uint32_t rung;      // only this one; 0 = all
  uint64_t seed;
  bool quick;  // the smaller model only
  bool json;
};

// Prints a line for each stage and rung, model, dtype and run; returns the exit code.
int measure(const Measure& x);

}  // namespace conform
