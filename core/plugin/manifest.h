// `<id>.duet.json`, which stands beside a plugin's library and says what it is before anything is opened.
#pragma once
#include <cstdint>
#include <string>

namespace duet {

struct Manifest {
  std::string id;       // [a-z0-9_]{1,31}
  std::string library;  // absolute: a file in the manifest's own folder
  uint32_t major = 0, minor = 0;  // of the plugin ABI
};

constexpr const char* kManifestSuffix = ".duet.json";

// DUET_E_FORMAT: not a manifest; DUET_E_ABI: of another major version; DUET_E_UNSUPPORTED: for another kind of machine.
Manifest read_manifest(const std::string& path);

bool is_plugin_id(const std::string& id);

}  // namespace duet
