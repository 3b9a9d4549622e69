// What control groups leave this process: the limit of a container is one, and whoever passes it is killed.
#pragma once
#include <cstdint>
#include <string>

namespace duet {

// Bytes that the process could still have; UINT64_MAX = no limit.
struct CgroupRoom {
  uint64_t memory = UINT64_MAX, swap = UINT64_MAX;
};

// The least that the process's own group and those around it leave. `proc` and `mount`: /proc and /sys/fs/cgroup, or absolute
// paths of folders like them. Version 2, or the controller `memory` of version 1. What is missing or garbled limits nothing.
CgroupRoom cgroup_room(const std::string& proc, const std::string& mount);

}  // namespace duet
