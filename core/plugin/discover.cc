#include "plugin/discover.h"

#include <fnmatch.h>

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "base/environment.h"
#include "base/error.h"
#include "base/file.h"
#include "plugin/manifest.h"

namespace duet {
namespace {

constexpr const char* kFolder = "/duet/plugins-1";  // 1: the major version of the plugin ABI

std::vector<std::string> split(const std::string& list, char separator) {
  std::vector<std::string> out;
  for (size_t at = 0; at <= list.size();) {
    const size_t end = std::min(list.find(separator, at), list.size());
    if (end > at) out.push_back(list.substr(at, end - at));
    at = end + 1;
  }
  return out;
}

class Search {
 public:
  // An entry that someone wrote: everything that is wrong with it is worth a sentence.
  void named(std::string entry, const char* source, bool bare_libraries) {
    while (entry.size() > 1 && entry.back() == '/') entry.pop_back();
    const std::string shown = printable(entry, 300);
    if (entry.front() != '/') return refuse(shown, duet::format("{}: {} takes absolute paths only", shown, source));
    if (is_folder(entry)) return folder(entry);
    if (entry.ends_with(kManifestSuffix)) return add(entry, true);
    if (!is_regular_file(entry)) return refuse(shown, duet::format("{}: no such file or folder ({})", shown, source));
    if (!bare_libraries) return refuse(shown, duet::format("{}: {} takes folders and manifests (*{}); a bare library only from DUET_PLUGIN_PATH", shown, source, kManifestSuffix));
    add(entry, false);
  }

  // All manifests in a folder; one that is missing or closed to us holds none.
  void folder(const std::string& path) {
    std::vector<std::string> found;
    std::error_code ignored;
    for (std::filesystem::directory_iterator at(path, ignored), end; !ignored && at != end; at.increment(ignored))
      if (std::string p = at->path().string(); p.ends_with(kManifestSuffix)) found.push_back(std::move(p));
    std::sort(found.begin(), found.end());
    for (const std::string& p : found) add(p, true);
  }

  std::vector<Candidate> take() { return std::move(found_); }

 private:
  void refuse(const std::string& path, std::string why) { found_.push_back({path, false, std::move(why)}); }
  void add(const std::string& path, bool manifest) {
    std::error_code ignored;  // the same file by another name is no second candidate
    for (const Candidate& c : found_)
      if (c.path == path || (c.refused.empty() && std::filesystem::equivalent(c.path, path, ignored))) return;
    found_.push_back({path, manifest, ""});
  }
  std::vector<Candidate> found_;
};

bool matches_any(const std::string& id, const std::string& globs) {
  const std::vector<std::string> list = split(globs, ',');
  return std::any_of(list.begin(), list.end(), [&](const std::string& g) { return ::fnmatch(g.c_str(), id.c_str(), 0) == 0; });
}

}  // namespace

std::vector<Candidate> discover(const std::string& plugin_path) {
  Search search;
  const std::string replacing = environment("DUET_PLUGIN_PATH");
  if (!plugin_path.empty() || !replacing.empty()) {
    const char* source = plugin_path.empty() ? "DUET_PLUGIN_PATH" : "plugin_path";
    for (const std::string& entry : split(plugin_path.empty() ? replacing : plugin_path, ':')) search.named(entry, source, true);
    return search.take();
  }
  for (const std::string& entry : split(environment("DUET_PLUGIN_ADD"), ':')) search.named(entry, "DUET_PLUGIN_ADD", false);
  search.folder(library_folder() + kFolder);
  std::string data = environment("XDG_DATA_HOME");
  if (data.empty() || data.front() != '/') {  // the XDG specification: a relative one is to be ignored
    const std::string home = environment("HOME");
    data = !home.empty() && home.front() == '/' ? home + "/.local/share" : "";
  }
  if (!data.empty()) search.folder(data + kFolder);
  search.folder(DUET_SYSTEM_LIBRARIES + std::string(kFolder));
  return search.take();
}

std::string deselected(const std::string& id) {
  const std::string select = environment("DUET_PLUGIN_SELECT"), disable = environment("DUET_PLUGIN_DISABLE");
  if (!select.empty() && !matches_any(id, select)) return duet::format("{}: not among DUET_PLUGIN_SELECT={}", id, printable(select));
  if (matches_any(id, disable)) return duet::format("{}: disabled by DUET_PLUGIN_DISABLE={}", id, printable(disable));
  return "";
}

}  // namespace duet
