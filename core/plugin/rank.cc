#include "plugin/rank.h"

#include <tuple>

namespace duet {
namespace {

// Smaller is better.
auto key(const duetp_device_info& d, bool is_reference) {
  const int kind = d.kind == DUETP_KIND_GPU ? 0 : d.kind == DUETP_KIND_INTEGRATED_GPU ? 1 : d.kind == DUETP_KIND_CPU ? 2 : 3;
  return std::tuple(kind, is_reference, ~d.bytes_per_s, ~d.mem_total);
}

}  // namespace

bool better_device(const duetp_device_info& a, bool a_is_reference, const duetp_device_info& b, bool b_is_reference) {
  return key(a, a_is_reference) < key(b, b_is_reference);
}

}  // namespace duet
