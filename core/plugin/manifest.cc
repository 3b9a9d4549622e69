#include "plugin/manifest.h"

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "duet_plugin.h"
#include "plugin/elf_note.h"

namespace duet {
namespace {

constexpr uint64_t kMaxManifest = 64 << 10;

const Json& member(const Json& object, const char* key, const std::string& path) {
  const auto at = object.find(key);
  if (at == object.end()) fail(DUET_E_FORMAT, "{}: the key \"{}\" is missing", path, key);
  return *at;
}

std::string text(const Json& object, const char* key, const std::string& path) {
  const Json& value = member(object, key, path);
  if (!value.is_string()) fail(DUET_E_FORMAT, "{}: \"{}\" must be a string, found {}", path, key, printable(value.dump(-1, ' ', true), 40));
  return value.get<std::string>();
}

// "1.0"
bool parse_version(const std::string& s, uint32_t& major, uint32_t& minor) {
  const char* end = s.data() + s.size();
  const auto a = std::from_chars(s.data(), end, major);
  if (a.ec != std::errc() || a.ptr == end || *a.ptr != '.') return false;
  const auto b = std::from_chars(a.ptr + 1, end, minor);
  return b.ec == std::errc() && b.ptr == end;
}

}  // namespace

bool is_plugin_id(const std::string& id) {
  return !id.empty() && id.size() <= 31 && std::all_of(id.begin(), id.end(), [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; });
}

Manifest read_manifest(const std::string& path) {
  const Json json = parse_json(read_file(path, kMaxManifest), path);
  if (!json.is_object()) fail(DUET_E_FORMAT, "{}: a manifest is a JSON object", path);
  const Json& format = member(json, "format", path);
  if (!format.is_number_integer() || format != 1) fail(DUET_E_FORMAT, "{}: \"format\" must be 1, found {}", path, printable(format.dump(-1, ' ', true), 40));

  Manifest m;
  m.id = text(json, "id", path);
  if (!is_plugin_id(m.id)) fail(DUET_E_FORMAT, "{}: \"id\" is \"{}\"; it must be 1 to 31 of a-z, 0-9 and _", path, printable(m.id));
  const std::string library = text(json, "library", path);
  if (library.empty() || library == "." || library == ".." || library.find_first_of(std::string("/\0", 2)) != std::string::npos)
    fail(DUET_E_FORMAT, "{}: \"library\" is \"{}\"; it must be the bare name of a file beside the manifest", path, printable(library));
  m.library = folder_of(path) + "/" + library;
  const std::string abi = text(json, "abi", path), arch = text(json, "arch", path);
  if (!parse_version(abi, m.major, m.minor)) fail(DUET_E_FORMAT, "{}: \"abi\" is \"{}\"; it must read like \"{}.{}\"", path, printable(abi), DUETP_MAJOR, DUETP_MINOR);
  if (m.major != DUETP_MAJOR) fail(DUET_E_ABI, "{}: made for plugin ABI {}, this Duet speaks {}.{}; get the plugin for this version", path, abi, DUETP_MAJOR, DUETP_MINOR);
  if (arch != kHostArch) fail(DUET_E_UNSUPPORTED, "{}: made for {}, this machine is {}", path, printable(arch), kHostArch);
  return m;
}

}  // namespace duet
