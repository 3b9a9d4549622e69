#include "exec/cgroup.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>

namespace duet {
namespace {

using Number = std::optional<uint64_t>;

// Calls f(line) until it returns true. Not a stream: those keep failures of memory to themselves.
template <class F>
void find_line(const std::string& path, F&& f) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "re"), [](std::FILE* open) { return std::fclose(open); });
  char line[8192];  // more than the longest path
  while (file && std::fgets(line, sizeof line, file.get()) && !f(std::string_view(line, std::strcspn(line, "\n")))) {
  }
}

// The number in the file's first line that begins with `key`. None: "max", and what version 1 writes for it, nearly 2^63
Number number(const std::string& path, std::string_view key = "") {
  Number found;
  find_line(path, [&](std::string_view line) {
    if (!line.starts_with(key)) return false;
    uint64_t n = 0;
    const char* const end = line.data() + line.size();
    if (const auto r = std::from_chars(line.data() + key.size(), end, n); r.ec == std::errc() && r.ptr == end && n < uint64_t{1} << 62) found = n;
    return true;
  });
  return found;
}

uint64_t left(uint64_t limit, uint64_t usage) { return limit - std::min(limit, usage); }

// Usage that the system gives up before it kills anybody: both lists of files' pages, as in MemAvailable. With the inactive one
// alone, a model that was read twice would be in the way of its own next load. `file` or `cache` count shared memory too.
uint64_t file_cache(const std::string& group, const std::string& prefix) {
  return number(group + "/memory.stat", prefix + "inactive_file ").value_or(0) + number(group + "/memory.stat", prefix + "active_file ").value_or(0);
}

// `prefix` of the numbers in memory.stat that are, as the usage is, of the groups below too. False: no limit
bool narrow(const std::string& group, const char* limit_file, const char* usage_file, const char* prefix, uint64_t& room) {
  const Number limit = number(group + limit_file), usage = number(group + usage_file);
  if (!limit || !usage) return false;
  room = std::min(room, left(*limit, left(*usage, file_cache(group, prefix))));
  return true;
}

void narrow_v2(const std::string& group, CgroupRoom& room) {
  narrow(group, "/memory.max", "/memory.current", "", room.memory);
  const Number limit = number(group + "/memory.swap.max"), usage = number(group + "/memory.swap.current");
  if (limit && usage) room.swap = std::min(room.swap, left(*limit, *usage));
}

// No swap where memory is limited: not every kernel counts it here, and other settings may keep a group from it.
void narrow_v1(const std::string& group, CgroupRoom& room) {
  if (narrow(group, "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_", room.memory)) room.swap = 0;
}

}  // namespace

CgroupRoom cgroup_room(const std::string& proc, const std::string& mount) {
  CgroupRoom room;
  find_line(proc + "/self/cgroup", [&](std::string_view line) {  // "0::/path" or "4:cpu,memory:/path"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == line.npos) return false;
    const std::string controllers = "," + std::string(line.substr(first + 1, second - first - 1)) + ",", path(line.substr(second + 1));
    const bool v2 = controllers == ",,";
    if ((!v2 && controllers.find(",memory,") == controllers.npos) || !path.starts_with('/')) return false;
    // Upwards to the root of the mount. In a container the path may be the host's, of which nothing is below the mount: its root
    // is the container's own group then.
    const std::string root = v2 ? mount : mount + "/memory";
    for (std::string group = root + path; group.size() >= root.size(); group.resize(group.rfind('/')))
      v2 ? narrow_v2(group, room) : narrow_v1(group, room);
    return false;
  });
  return room;
}

}  // namespace duet
