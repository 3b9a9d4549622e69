// Where plugins are looked for, in order; nothing is opened but folders. docs/plugins.md, discovery:
//   1 plugin_path, else 2 DUET_PLUGIN_PATH (':'-separated files, manifests or folders), else the union of
//   3 DUET_PLUGIN_ADD (manifests or folders), 4 <library folder>/duet/plugins-1, 5 $XDG_DATA_HOME/duet/plugins-1,
//   6 the folder of the system that Duet was built for.
// Absolute paths only; never the working directory. Within a folder by name, so that the order is always the same.
#pragma once
#include <string>
#include <vector>

namespace duet {

struct Candidate {
  std::string path;       // a manifest, or a library that was named itself
  bool manifest = false;
  std::string refused;    // "", or why it is not even looked at
};

std::vector<Candidate> discover(const std::string& plugin_path);

// DUET_PLUGIN_SELECT, DUET_PLUGIN_DISABLE: comma-separated globs on the id. "", or the sentence for why it is left out.
std::string deselected(const std::string& id);

}  // namespace duet
