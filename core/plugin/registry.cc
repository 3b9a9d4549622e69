#include "plugin/registry.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <mutex>

#include "base/environment.h"
#include "base/error.h"
#include "base/json.h"
#include "plugin/absorb.h"
#include "plugin/discover.h"
#include "plugin/elf_note.h"
#include "plugin/interpose.h"
#include "plugin/load.h"
#include "plugin/manifest.h"
#include "plugin/permissions.h"
#include "plugin/rank.h"

extern "C" const duetp_plugin duet_reference_plugin;  // backends/reference: compiled in

namespace duet {
namespace {

using DevicePointer = std::shared_ptr<const Device>;

// A plugin that was considered, as the report shows it.
struct Considered {
  std::string id, path, reason, version, abi;
  duet_status code = DUET_OK;  // why it was not taken
  bool taken = false, layer = false;
  std::vector<DevicePointer> devices;
};

void close_device(const duetp_device& d) {
  try {
    if (d.size >= kMinDeviceSize && d.close) d.close(d.self);
  } catch (...) {  // it is gone either way
  }
}

bool is_reference(const Device& d) { return d.plugin == "built in"; }

// "validate,trace", the first outermost
std::vector<std::string> parse_layers(const std::string& text) {
  std::vector<std::string> ids;
  for (size_t at = 0; !text.empty() && at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    ids.push_back(text.substr(at, comma - at));
    if (!is_plugin_id(ids.back())) fail(DUET_E_INVALID, "layers \"{}\": expected NAME or NAME,NAME..., such as validate,trace", printable(text));
    if (std::count(ids.begin(), ids.end(), ids.back()) > 1) fail(DUET_E_INVALID, "layers \"{}\": {} stands twice", text, ids.back());
    at = comma + 1;
  }
  return ids;
}

// "cpu", "cpu:1"
struct Spec {
  std::string id;
  uint32_t index = 0;
};

Spec parse_spec(const std::string& text) {
  Spec spec;
  const size_t colon = text.find(':');
  spec.id = text.substr(0, colon);
  const std::string index = colon == std::string::npos ? "0" : text.substr(colon + 1);
  const auto [end, error] = std::from_chars(index.data(), index.data() + index.size(), spec.index);
  if (!is_plugin_id(spec.id) || error != std::errc() || end != index.data() + index.size())
    fail(DUET_E_INVALID, "backend \"{}\": expected NAME or NAME:INDEX, such as cpu or cuda:1", printable(text));
  return spec;
}

}  // namespace

struct Registry::Impl {
  RegistryOptions options;
  Team& team;
  const Log& log;
  std::once_flag opened;
  std::vector<std::unique_ptr<OpenPlugin>> plugins;  // in the order of opening; the reference first
  std::vector<DevicePointer> in_order, ranked;
  std::vector<Interposer> layers;  // of `plugins`
  std::mutex wrapping;
  std::map<DevicePointer, DevicePointer> wrapped;  // a device -> the same with the layers around it
  std::vector<Considered> considered;

  Impl(RegistryOptions o, Team& t, const Log& l) : options(std::move(o)), team(t), log(l) {}
  ~Impl() { close_all(); }
  void close_all() noexcept;
  void open_all();
  void consider(const Candidate& candidate);
  void consider_file(const Candidate& candidate, Considered& c);
  void refuse_repetition(const std::string& id, const std::string& path) const;
  void open_plugin(const duetp_plugin& table, Considered& c);
  DevicePointer find(const Spec& spec) const;
  const Interposer& layer(const std::string& id) const;
  std::vector<const Interposer*> wanted_layers() const;
  DevicePointer with_layers(const DevicePointer& device, const std::vector<const Interposer*>& wanted);
  DevicePointer best(const duetp_shape* shape, duet_dtype weights, const std::vector<const Interposer*>& wanted);
  std::string inventory() const;
};

void Registry::Impl::close_all() noexcept {
  wrapped.clear();
  layers.clear();
  for (auto d = in_order.rbegin(); d != in_order.rend(); ++d) close_device((*d)->table);
  ranked.clear();
  in_order.clear();
  considered.clear();
  while (!plugins.empty()) plugins.pop_back();
}

void Registry::Impl::open_all() {
  const std::vector<Candidate> candidates = discover(options.plugin_path);
  Considered& built_in = considered.emplace_back();
  built_in.path = "built in";
  open_plugin(checked_plugin_table(&duet_reference_plugin, "the reference"), built_in);
  for (const Candidate& candidate : candidates) consider(candidate);
  ranked = in_order;
  std::stable_sort(ranked.begin(), ranked.end(), [](const DevicePointer& a, const DevicePointer& b) { return better_device(a->info, is_reference(*a), b->info, is_reference(*b)); });
}

void Registry::Impl::consider(const Candidate& candidate) {
  Considered& c = considered.emplace_back();
  c.path = candidate.path;
  try {
    consider_file(candidate, c);
    if (c.reason.empty())
      log.debug("{}: taken", c.path);
    else
      log.warn("{}", c.reason);  // one of its devices
  } catch (const Error& e) {
    c.reason = e.what();
    c.code = e.code();
    if (e.code() == DUET_E_UNSUPPORTED || e.code() == DUET_E_EXISTS)
      log.info("{}", c.reason);
    else
      log.warn("{}", c.reason);
  }
}

// First what can be judged without running any of its code.
void Registry::Impl::consider_file(const Candidate& candidate, Considered& c) {
  if (!candidate.refused.empty()) fail(DUET_E_INVALID, "{}", candidate.refused);
  std::string library = candidate.path;
  Manifest manifest;
  if (candidate.manifest) {
    check_permissions(candidate.path);
    manifest = read_manifest(candidate.path);
    c.id = manifest.id;
    library = manifest.library;
    if (const std::string why = deselected(c.id); !why.empty()) fail(DUET_E_UNSUPPORTED, "{}", why);
    refuse_repetition(c.id, c.path);
  }
  check_permissions(library);
  const PluginNote note = read_plugin_note(library);
  c.abi = duet::format("{}.{}", note.abi >> 16, note.abi & 0xffff);
  check_plugin_note(note, library);
  if (candidate.manifest && (note.abi >> 16 != manifest.major || (note.abi & 0xffff) != manifest.minor))
    fail(DUET_E_ABI, "{}: \"abi\" is \"{}.{}\", but {} was made for {}", candidate.path, manifest.major, manifest.minor, library, c.abi);

  const duetp_plugin table = load_plugin_table(library);
  if (candidate.manifest && c.id != table.id) fail(DUET_E_ABI, "{}: \"id\" is \"{}\", but {} calls itself \"{}\"", candidate.path, c.id, library, table.id);
  if (!candidate.manifest) {
    c.id = table.id;
    if (const std::string why = deselected(c.id); !why.empty()) fail(DUET_E_UNSUPPORTED, "{}", why);
    refuse_repetition(c.id, c.path);
  }
  open_plugin(table, c);
}

void Registry::Impl::refuse_repetition(const std::string& id, const std::string& path) const {
  for (const Considered& c : considered)
    if (c.taken && c.id == id) fail(DUET_E_EXISTS, "{}: a plugin with the id \"{}\" was taken already: {}", path, id, c.path);
}

void Registry::Impl::open_plugin(const duetp_plugin& table, Considered& c) {
  c.id = table.id;
  c.version = printable(table.version);
  c.abi = duet::format("{}.{}", table.abi >> 16, table.abi & 0xffff);
  auto plugin = std::make_unique<OpenPlugin>(table, c.path, team, log);
  plugins.reserve(plugins.size() + 1);  // so that nothing can fail between opening a device and keeping it
  if (const auto layer = interposer_of(*plugin)) {
    layers.push_back(*layer);
    plugin->host().be_heard();
    plugins.push_back(std::move(plugin));
    c.layer = c.taken = true;
    return;
  }
  const Device* reference = in_order.empty() ? nullptr : in_order.front().get();
  const uint32_t n = plugin->device_count();
  in_order.reserve(in_order.size() + n);
  duet_status code = DUET_OK;
  for (uint32_t i = 0; i < n; ++i) {
    try {
      const duetp_device_info info = plugin->device_info(i);
      const duetp_device* theirs = plugin->open_device(i);
      auto device = std::make_shared<Device>();
      try {
        *device = absorb(*theirs, info, c.path, reference);
        device->spec = duet::format("{}:{}", c.id, i);
        device->free_memory = [p = plugin.get(), i] { return p->device_info(i).mem_free; };
        c.devices.push_back(device);
      } catch (...) {
        close_device(*theirs);
        throw;
      }
    } catch (const Error& e) {  // its other devices may do
      code = e.code();
      c.reason += duet::format("{}device {}: {}", c.reason.empty() ? "" : "; ", i, e.what());
    }
  }
  if (c.devices.empty()) throw Error(code, c.reason);
  plugins.push_back(std::move(plugin));  // first: a device must not outlive its plugin
  in_order.insert(in_order.end(), c.devices.begin(), c.devices.end());
  c.taken = true;
}

// What there is, and why the rest was not taken: the end of every "not found".
std::string Registry::Impl::inventory() const {
  std::string out = "devices:";
  for (const DevicePointer& d : ranked) out += duet::format(" {} ({})", d->spec, d->info.name);
  for (const Considered& c : considered)
    if (!c.reason.empty()) out += duet::format("; not taken: {}", c.reason);
  return out;
}

DevicePointer Registry::Impl::find(const Spec& spec) const {
  const std::string wanted = duet::format("{}:{}", spec.id, spec.index);
  for (const DevicePointer& d : ranked)
    if (d->spec == wanted) return d;
  for (const Considered& c : considered)
    if (c.id == spec.id && c.code == DUET_E_MEMORY) fail(DUET_E_MEMORY, "backend {}: {}; free memory and create a new library", wanted, c.reason);
  fail(DUET_E_NOT_FOUND, "there is no backend {}; {}", wanted, inventory());
}

const Interposer& Registry::Impl::layer(const std::string& id) const {
  std::string known, refused;
  for (const Interposer& l : layers) {
    if (l.plugin->id() == id) return l;
    known += duet::format(" {}", l.plugin->id());
  }
  for (const Considered& c : considered)
    if (c.id == id && !c.reason.empty()) refused = duet::format("; not taken: {}", c.reason);
  fail(DUET_E_NOT_FOUND, "there is no layer {}; layers:{}{}", id, known.empty() ? " none" : known, refused);
}

std::vector<const Interposer*> Registry::Impl::wanted_layers() const {
  std::vector<const Interposer*> out;
  for (const std::string& id : parse_layers(options.layers.empty() ? environment("DUET_LAYERS") : options.layers)) out.push_back(&layer(id));
  return out;
}

DevicePointer Registry::Impl::with_layers(const DevicePointer& device, const std::vector<const Interposer*>& wanted) {
  if (wanted.empty()) return device;
  const std::lock_guard lock(wrapping);
  DevicePointer& kept = wrapped[device];
  if (kept) return kept;
  DevicePointer d = device;
  for (auto l = wanted.rbegin(); l != wanted.rend(); ++l) d = interpose(d, **l);
  return kept = d;
}

DevicePointer Registry::Impl::best(const duetp_shape* shape, duet_dtype weights, const std::vector<const Interposer*>& wanted) {
  std::string refusals;
  for (const DevicePointer& bare : ranked) {
    std::string why;
    try {
      const DevicePointer d = with_layers(bare, wanted);
      why = shape ? d->refuses(*shape, weights) : "";
      if (why.empty()) return d;
    } catch (const Error& e) {  // a layer that does not fit around it
      if (e.code() != DUET_E_UNSUPPORTED) throw;
      why = e.what();
    }
    refusals += duet::format("; {}: {}", bare->spec, why);
  }
  fail(DUET_E_UNSUPPORTED, "no device can run this model{}", refusals);
}

Registry::Registry(RegistryOptions options, Team& team, const Log& log) : impl_(std::make_unique<Impl>(std::move(options), team, log)) {}
Registry::~Registry() = default;

const std::vector<DevicePointer>& Registry::devices() {
  std::call_once(impl_->opened, [&] {
    try {
      impl_->open_all();
    } catch (...) {  // out of memory: the next call begins anew
      impl_->close_all();
      throw;
    }
  });
  return impl_->ranked;
}

DevicePointer Registry::device(const std::string& named, const duetp_shape* shape, duet_dtype weights) {
  const std::string text = named.empty() ? environment("DUET_BACKEND") : named;
  const std::optional<Spec> spec = text.empty() ? std::nullopt : std::optional(parse_spec(text));
  (void)devices();
  const std::vector<const Interposer*> layers = impl_->wanted_layers();
  if (!spec) return impl_->best(shape, weights, layers);
  DevicePointer d = impl_->with_layers(impl_->find(*spec), layers);
  if (const std::string why = shape ? d->refuses(*shape, weights) : ""; !why.empty()) fail(DUET_E_UNSUPPORTED, "{} cannot run this model: {}", d->spec, why);
  return d;
}

std::string Registry::report() {
  (void)devices();
  Json plugins = Json::array();
  for (const Considered& c : impl_->considered) {
    Json list = Json::array();
    for (const DevicePointer& d : c.devices) list.push_back({{"spec", d->spec}, {"name", d->info.name}});
    plugins.push_back({{"id", c.id}, {"path", c.path}, {"taken", c.taken}, {"layer", c.layer}, {"reason", c.reason}, {"version", c.version}, {"abi", c.abi}, {"devices", list}});
  }
  return Json{{"plugins", plugins}}.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace duet
