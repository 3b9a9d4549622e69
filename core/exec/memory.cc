#include "exec/memory.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "exec/cgroup.h"

namespace duet {

uint64_t free_host_memory(const std::string& proc, const std::string& cgroups) {
  const CgroupRoom room = cgroup_room(proc, cgroups);
  std::FILE* info = std::fopen((proc + "/meminfo").c_str(), "re");  // not a stream: those keep failures of memory to themselves
  if (info == nullptr) return 0;
  unsigned long long available = 0, swap = 0;  // KiB
  char line[128];
  while (std::fgets(line, sizeof line, info))
    if (std::sscanf(line, "MemAvailable: %llu kB", &available) != 1) std::sscanf(line, "SwapFree: %llu kB", &swap);
  std::fclose(info);
  if (available == 0) return 0;
  return std::max<uint64_t>(1, std::min<uint64_t>(available * 1024, room.memory) + std::min<uint64_t>(swap * 1024, room.swap));
}

uint64_t free_memory(const Device& device) { return device.has(DUETP_CAP_HOST_VISIBLE) ? free_host_memory() : device.free_memory(); }

void check_memory(const std::string& what, uint64_t need, uint64_t have, const Device& device, const char* way_out) {
  if (have != 0 && need > have) fail(DUET_E_MEMORY, "{} {} bytes of memory on {}, but {} are free; {}", what, need, device.spec, have, way_out);
}

}  // namespace duet
