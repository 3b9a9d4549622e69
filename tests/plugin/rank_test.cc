#include "plugin/rank.h"

#include <algorithm>
#include <vector>

#include "support/catch.h"

using namespace duet;

namespace {

struct D {
  char name;
  uint32_t kind;
  uint64_t bandwidth, memory;
  bool reference = false;
};

std::string ranked(std::vector<D> devices) {
  std::stable_sort(devices.begin(), devices.end(), [](const D& a, const D& b) {
    const auto info = [](const D& d) {
      duetp_device_info i{};
      i.kind = d.kind, i.bytes_per_s = d.bandwidth, i.mem_total = d.memory;
      return i;
    };
    return better_device(info(a), a.reference, info(b), b.reference);
  });
  std::string out;
  for (const D& d : devices) out += d.name;
  return out;
}

}  // namespace

TEST_CASE("devices are ranked by kind, bandwidth and memory, the reference last of the CPUs, and equals as they came") {
  CHECK(ranked({{'o', DUETP_KIND_OTHER, 9, 9}, {'c', DUETP_KIND_CPU, 9, 9}, {'i', DUETP_KIND_INTEGRATED_GPU, 1, 1}, {'g', DUETP_KIND_GPU, 0, 0}}) == "gico");
  CHECK(ranked({{'r', DUETP_KIND_CPU, 99, 99, true}, {'c', DUETP_KIND_CPU, 0, 0}, {'o', DUETP_KIND_OTHER, 9, 9}}) == "cro");
  CHECK(ranked({{'a', DUETP_KIND_GPU, 1, 9}, {'b', DUETP_KIND_GPU, 3, 1}, {'c', DUETP_KIND_GPU, 1, 10}, {'d', DUETP_KIND_GPU, 0, 99}}) == "bcad");
  CHECK(ranked({{'a', DUETP_KIND_CPU, 1, 1}, {'b', DUETP_KIND_CPU, 1, 1}, {'c', DUETP_KIND_CPU, 1, 1}}) == "abc");
}
