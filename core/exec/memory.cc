#include "exec/memory.h"

#include <cstdio>

#include "base/error.h"

namespace duet {

uint64_t free_host_memory() {
  std::FILE* info = std::fopen("/proc/meminfo", "re");  // not a stream: those keep failures of memory to themselves
  if (info == nullptr) return 0;
  uint64_t kib = 0;
  char line[128];
  while (std::fgets(line, sizeof line, info)) {
    unsigned long long value = 0;
    if (std::sscanf(line, "MemAvailable: %llu kB", &value) == 1 || std::sscanf(line, "SwapFree: %llu kB", &value) == 1) kib += value;
  }
  std::fclose(info);
  return kib * 1024;
}

uint64_t free_memory(const Device& device) { return device.has(DUETP_CAP_HOST_VISIBLE) ? free_host_memory() : device.free_memory(); }

void check_memory(const std::string& what, uint64_t need, uint64_t have, const Device& device, const char* way_out) {
  if (have != 0 && need > have) fail(DUET_E_MEMORY, "{} {} bytes of memory on {}, but {} are free; {}", what, need, device.spec, have, way_out);
}

}  // namespace duet
