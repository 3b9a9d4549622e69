// From a library on disk to an opened plugin. From here on its code runs.
#pragma once
#include <memory>
#include <mutex>
#include <string>

#include "duet_plugin.h"
#include "plugin/host.h"

namespace duet {

// The table of the library's duetp_query, copied and checked. The library stays loaded for ever: its threads, its
// thread-local destructors and its driver may outlive every use that we know of.
// DUET_E_FORMAT: cannot be loaded, no symbol; DUET_E_ABI: another version; DUET_E_DEVICE: it threw, or its table has holes.
duetp_plugin load_plugin_table(const std::string& library);
// The same checks for a table that is compiled in.
duetp_plugin checked_plugin_table(const duetp_plugin* theirs, const std::string& who);

// A plugin between open and close.
class OpenPlugin {
 public:
  OpenPlugin(const duetp_plugin& table, std::string path, Team& team, const Log& log);
  OpenPlugin(const OpenPlugin&) = delete;
  OpenPlugin& operator=(const OpenPlugin&) = delete;
  ~OpenPlugin();

  uint32_t device_count() const;  // at least 1, or DUET_E_UNSUPPORTED with the plugin's reason
  duetp_device_info device_info(uint32_t index) const;  // [any-thread]
  const duetp_device* open_device(uint32_t index) const;
  const void* extension(const char* id) const;  // NULL if it has none
  void* self() const { return self_; }
  Host& host() { return host_; }
  const std::string& path() const { return path_; }
  std::string id() const { return table_.id; }

 private:
  duetp_plugin table_;
  std::string path_;
  Host host_;
  mutable std::mutex asking_;  // for device_info
  void* self_ = nullptr;
};

}  // namespace duet
