#include "plugin/load.h"

#include <dlfcn.h>

#include <algorithm>
#include <boost/dll/shared_library.hpp>
#include <cstring>
#include <new>
#include <type_traits>

#include "plugin/elf_note.h"
#include "plugin/manifest.h"
#include "plugin/registry.h"

namespace duet {
namespace {

constexpr uint32_t kMaxDevices = 64;

// What the system's loader said, without Boost's wording around it.
std::string loader_reason(const std::string& what) {
  constexpr std::string_view mark = "dlerror system message: ";
  const size_t from = what.find(mark), to = what.rfind(')');
  return from == std::string::npos || to == std::string::npos ? what : what.substr(from + mark.size(), to - from - mark.size());
}

}  // namespace

duetp_plugin checked_plugin_table(const duetp_plugin* theirs, const std::string& who) {
  if (theirs == nullptr) fail(DUET_E_ABI, "{}: {} gave no table for plugin ABI {}.{}", who, DUETP_QUERY_NAME, DUETP_MAJOR, DUETP_MINOR);
  if (theirs->size < kMinPluginSize) fail(DUET_E_ABI, "{}: its table has {} bytes, less than the {} of the first version", who, theirs->size, kMinPluginSize);
  duetp_plugin table{};
  std::memcpy(&table, theirs, std::min<size_t>(theirs->size, sizeof table));
  check_plugin_note({table.abi, table.size, kMinDeviceSize, table.sanitizer}, who);  // a note may have been copied from elsewhere
  if (table.id == nullptr || ::strnlen(table.id, 32) == 32 || !is_plugin_id(table.id)) fail(DUET_E_ABI, "{}: its id is not 1 to 31 of a-z, 0-9 and _", who);
  const auto need = [&](bool there, const char* slot) {
    if (!there) fail(DUET_E_ABI, "{}: its table has no {}", who, slot);
  };
  need(table.open, "open");
  need(table.close, "close");
  need(table.device_count, "device_count");
  need(table.device_info, "device_info");
  need(table.device_open, "device_open");
  if (table.version == nullptr) table.version = "";
  return table;
}

duetp_plugin load_plugin_table(const std::string& library) {
  namespace load_mode = boost::dll::load_mode;
  constexpr auto mode = static_cast<load_mode::type>(load_mode::rtld_now | load_mode::rtld_local | RTLD_NODELETE);
  boost::dll::shared_library opened;
  try {
    opened.load(library, mode);
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception& e) {
    fail(DUET_E_FORMAT, "{}: cannot be loaded: {}", library, printable(loader_reason(e.what()), 300));
  }
  if (!opened.has(DUETP_QUERY_NAME)) fail(DUET_E_FORMAT, "{}: does not export {}; DUETP_DEFINE (duet_plugin.h) writes it", library, DUETP_QUERY_NAME);
  const auto& query = opened.get<std::remove_pointer_t<duetp_query_fn>>(DUETP_QUERY_NAME);
  return checked_plugin_table(call_plugin(library, DUETP_QUERY_NAME, [&] { return query(DUETP_ABI, 0); }), library);
}

OpenPlugin::OpenPlugin(const duetp_plugin& table, std::string path, Team& team, const Log& log)
    : table_(table), path_(std::move(path)), host_(table.id, team, log) {
  const duet_status status = call_plugin(path_, "open", [&] { return table_.open(host_.table(), &self_); });
  if (status != DUET_OK) fail_plugin(path_, status);
}

OpenPlugin::~OpenPlugin() {
  try {
    table_.close(self_);
  } catch (...) {  // it is gone either way
  }
}

uint32_t OpenPlugin::device_count() const {
  const uint32_t n = call_plugin(path_, "device_count", [&] { return table_.device_count(self_); });
  if (n > kMaxDevices) fail(DUET_E_DEVICE, "{}: reports {} devices, more than the {} that are possible", path_, n, kMaxDevices);
  if (n > 0) return n;
  const char* reason = table_.no_device_reason ? call_plugin(path_, "no_device_reason", [&] { return table_.no_device_reason(self_); }) : nullptr;
  fail(DUET_E_UNSUPPORTED, "{}: finds no device{}{}", path_, reason ? ": " : "", reason ? printable({reason, ::strnlen(reason, 512)}, 500) : "");
}

duetp_device_info OpenPlugin::device_info(uint32_t index) const {
  duetp_device_info info{};
  info.size = sizeof info;
  const std::lock_guard lock(asking_);
  const duet_status status = call_plugin(path_, "device_info", [&] { return table_.device_info(self_, index, &info); });
  if (status != DUET_OK) fail_plugin(path_, status);
  info.size = sizeof info;
  const auto clean = [](char(&text)[64]) {  // terminated, valid UTF-8
    const std::string s = printable({text, ::strnlen(text, sizeof text)}, sizeof text).substr(0, sizeof text - 1);
    std::memset(text, 0, sizeof text);
    std::memcpy(text, s.data(), s.size());
  };
  clean(info.id);
  clean(info.name);
  if (info.kind > DUETP_KIND_OTHER) info.kind = DUETP_KIND_OTHER;
  return info;
}

const duetp_device* OpenPlugin::open_device(uint32_t index) const {
  const duetp_device* device = nullptr;
  const duet_status status = call_plugin(path_, "device_open", [&] { return table_.device_open(self_, index, &device); });
  if (status != DUET_OK) fail_plugin(path_, status);
  if (device == nullptr) fail(DUET_E_DEVICE, "{}: device_open succeeded but gave no device", path_);
  return device;
}

const void* OpenPlugin::extension(const char* id) const {
  return table_.extension ? call_plugin(path_, "extension", [&] { return table_.extension(self_, id); }) : nullptr;
}

}  // namespace duet
