// Puts an interposing layer (duet_interpose.h) around a device.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "duet_interpose.h"
#include "plugin/load.h"
#include "plugin/registry.h"

namespace duet {

// What makes a plugin a layer: its interposer, copied and checked.
struct Interposer {
  const OpenPlugin* plugin = nullptr;
  duetp_interposer table{};
};

// nullopt if the plugin is none; DUET_E_ABI if it is a broken one.
std::optional<Interposer> interposer_of(const OpenPlugin& plugin);

// A device of the same name whose slots are the layer's where it fills them, and `below`'s elsewhere. Keeps `below` alive;
// closes the layer's part with itself. DUET_E_UNSUPPORTED: the layer wants stages, and the device runs wider rungs only.
std::shared_ptr<const Device> interpose(std::shared_ptr<const Device> below, const Interposer& layer);

}  // namespace duet
