// Plugins report facts; the order in which devices are tried is decided here.
#pragma once
#include "duet_plugin.h"

namespace duet {

// A discrete GPU before an integrated one, before a CPU, before anything else; then bandwidth, then memory. The reference
// is the last of the CPUs: it is there to be right, not to be fast. A strict weak order, for std::stable_sort.
bool better_device(const duetp_device_info& a, bool a_is_reference, const duetp_device_info& b, bool b_is_reference);

}  // namespace duet
