// Makes a host's Device of a plugin's table: copied by size, checked for completeness, gaps filled from the reference.
#pragma once
#include <string>

#include "plugin/registry.h"

namespace duet {

// `who` for messages. `reference` fills the gaps of a device without memory of its own; NULL while absorbing the reference.
// DUET_E_ABI: the table is too small or incomplete; DUET_E_DEVICE: its buffers are not aligned. `theirs` is not closed.
Device absorb(const duetp_device& theirs, const duetp_device_info& info, const std::string& who, const Device* reference);

}  // namespace duet
