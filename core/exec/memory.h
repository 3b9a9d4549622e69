// What a device has left, asked before anything large is made: a system that promises more memory than it has would end the
// process half-way.
#pragma once
#include <cstdint>
#include <string>

#include "plugin/registry.h"

namespace duet {

// Memory that this process could still have, swap included: what the system has and control groups (exec/cgroup.h) leave, at
// least 1; 0 = unknown. Other folders are for tests.
uint64_t free_host_memory(const std::string& proc = "/proc", const std::string& cgroups = "/sys/fs/cgroup");
// Memory for what the device makes itself: the host's, where the CPU can read it. 0 = unknown.
uint64_t free_memory(const Device& device);

// DUET_E_MEMORY unless `have` is `need` or more, or unknown: "a state of 5 slots needs 9 bytes of memory on cpu:0, but 8
// are free; create fewer slots", of which the first words are `what` and the last ones `way_out`
void check_memory(const std::string& what, uint64_t need, uint64_t have, const Device& device, const char* way_out);

}  // namespace duet
