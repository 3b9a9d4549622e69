// Free memory as the host and its control groups say, in folders like /proc and /sys/fs/cgroup.
#include "exec/memory.h"

#include <filesystem>
#include <string>

#include "formats/expect.h"

using namespace duet;

namespace {

constexpr uint64_t kAvailable = 8000 * 1024, kSwap = 3000 * 1024;

// A host with that much, and no control groups
class Host {
 public:
  explicit Host(const char* groups_of_process = nullptr) {
    write("proc/meminfo", "MemTotal:       16000 kB\nMemFree:         1000 kB\nMemAvailable:    8000 kB\nSwapTotal:       4000 kB\nSwapFree:        3000 kB\n");
    if (groups_of_process != nullptr) write("proc/self/cgroup", groups_of_process);
  }
  const Host& write(const std::string& name, const std::string& content) const {
    std::filesystem::create_directories(std::filesystem::path(folder_ / name).parent_path());
    folder_.write(name, content);
    return *this;
  }
  // Both kinds of groups; the last three numbers are of memory.stat
  const Host& v2(const std::string& group, const std::string& limit, uint64_t usage, uint64_t inactive = 0, uint64_t active = 0, uint64_t file = 0) const {
    write(group + "/memory.max", limit + "\n").write(group + "/memory.current", fmt::format("{}\n", usage));
    return write(group + "/memory.stat", fmt::format("file {}\ninactive_anon 7\nactive_anon 9\ninactive_file {}\nactive_file {}\n", file, inactive, active));
  }
  const Host& v1(const std::string& group, const std::string& limit, uint64_t usage, uint64_t inactive = 0, uint64_t active = 0, uint64_t file = 0) const {
    write(group + "/memory.limit_in_bytes", limit + "\n").write(group + "/memory.usage_in_bytes", fmt::format("{}\n", usage));
    return write(group + "/memory.stat", fmt::format("inactive_file {0}\nactive_file {0}\ntotal_cache {0}\ntotal_inactive_file {1}\ntotal_active_file {2}\n", file, inactive,
                                                     active));
  }
  const Host& swap(const std::string& group, const std::string& limit, uint64_t usage) const {
    return write(group + "/memory.swap.max", limit + "\n").write(group + "/memory.swap.current", fmt::format("{}\n", usage));
  }
  uint64_t free() const { return free_host_memory(folder_ / "proc", folder_ / "cgroup"); }

 private:
  Folder folder_;
};

}  // namespace

TEST_CASE("free memory without limits is what the system says") {
  CHECK(Host().free() == kAvailable + kSwap);
  CHECK(Host("0::/a\n").free() == kAvailable + kSwap);
  CHECK(Host("0::/a\n").v2("cgroup/a", "max", 5).swap("cgroup/a", "max", 5).free() == kAvailable + kSwap);
  CHECK(Host("4:memory:/\n").v1("cgroup/memory", "9223372036854771712", 5).free() == kAvailable + kSwap);
  CHECK(Host("0::/a\n").v2("cgroup/a", "100000000", 5).free() == kAvailable + kSwap);  // more than there is
  CHECK(Host("0::/a\n").v2("cgroup/b", "1000", 5).free() == kAvailable + kSwap);       // another's
  CHECK(Host("3:name=memory:/a\n2:cpu:/a\n").v1("cgroup/memory/a", "1000", 5).free() == kAvailable + kSwap);
  CHECK(free_host_memory() > 0);  // this machine's
}

TEST_CASE("free memory in control groups of version 2") {
  const Host host("0::/a/b/c\n");
  host.v2("cgroup/a/b/c", "max", 100);
  CHECK(host.v2("cgroup/a/b", "1000000", 300000, 20000, 4000, 77777).free() == 724000 + kSwap);  // an ancestor's
  CHECK(host.v2("cgroup/a", "900000", 400000, 10).free() == 500010 + kSwap);                     // the least
  CHECK(host.swap("cgroup/a/b", "5000", 2000).free() == 500010 + 3000);
  CHECK(host.swap("cgroup/a/b/c", "0", 0).free() == 500010);
  CHECK(host.v2("cgroup/a/b", "1000", 5000, 10).free() == 1);  // full: nothing, which is not unknown
  CHECK(host.v2("cgroup/a/b", "1000", 500, 5000).free() == 1000);
  CHECK(host.v2("cgroup/a/b", "max", 0).v2("cgroup/a", "max", 0).free() == kAvailable);  // no swap even so
}

TEST_CASE("free memory in control groups of version 1 and of both") {
  const Host host("9:name=systemd:/\n4:cpu,memory:/a/b\n1:cpuset:/\n0::/x\n");
  host.v2("cgroup/unified/x", "7", 5);  // has no memory controller
  CHECK(host.v1("cgroup/memory/a/b", "9223372036854771712", 100).free() == kAvailable + kSwap);
  CHECK(host.v1("cgroup/memory/a", "1000000", 300000, 20000, 4000, 77777).free() == 724000);  // no swap is counted
  CHECK(host.v1("cgroup/memory", "900000", 400000).free() == 500000);
  CHECK(host.v1("cgroup/memory/a/b", "1000", 5000).free() == 1);
}

TEST_CASE("free memory in a container whose path is the host's: the root of the mount counts") {
  CHECK(Host("0::/docker/0123\n").v2("cgroup", "1000", 400, 10).swap("cgroup", "50", 20).free() == 640);
  CHECK(Host("4:memory:/docker/0123 (deleted)\n").v1("cgroup/memory", "1000", 400, 10).free() == 610);
  CHECK(Host("0::/../a\n").v2("cgroup", "1000", 400).swap("cgroup", "0", 0).free() == 600);
}

TEST_CASE("what is garbled or missing limits nothing") {
  for (const char* line : {"", "\n", ":", "0:", "0::", "0::a", "::", "0:memory", "\xff\xfe:\x01:/a\n", "4:memoryx:/a\n"}) {
    INFO(line);
    CHECK(Host(line).v2("cgroup", "1000", 5).v1("cgroup/memory", "1000", 5).free() == kAvailable + kSwap);
  }
  CHECK(Host(("0::/" + std::string(20000, 'a') + "\n").c_str()).free() == kAvailable + kSwap);
  for (const char* limit : {"", "\n", "maximum", "-1", " 5", "5 5", "5x", "0x5", "99999999999999999999999", "18446744073709551615", "\xff"}) {
    INFO(limit);
    CHECK(Host("0::/a\n").v2("cgroup/a", limit, 5).free() == kAvailable + kSwap);
    CHECK(Host("4:memory:/a\n").v1("cgroup/memory/a", limit, 5).free() == kAvailable + kSwap);
  }
  CHECK(Host("0::/a\n").write("cgroup/a/memory.max", "1000\n").free() == kAvailable + kSwap);  // no usage
  CHECK(Host("0::/a\n").write("cgroup/a/memory.max/folder", "").free() == kAvailable + kSwap);
  const Host host("0::/a\n");
  CHECK(host.v2("cgroup/a", "1000", 400).write("cgroup/a/memory.stat", "inactive_file\nactive_file x\n").free() == 600 + kSwap);
  CHECK(host.write("cgroup/a/memory.stat", std::string(100000, 'x')).free() == 600 + kSwap);
  CHECK(host.write("proc/meminfo", "garbage\n").free() == 0);  // unknown
}
