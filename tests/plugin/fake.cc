// One plugin, compiled in many ways (FAKE=...): each but the good ones is wrong in its own manner. Its constructor leaves
// a line in the file $DUET_TEST_CANARY, so that a test can tell whether any of its code has run.
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "duet_plugin.h"

namespace {

enum Way {
  good, older_minor, newer_minor, two_devices, step_only,                                // taken
  no_note, no_symbol, wrong_major, small_note, sanitizer,                                // refused before anything runs
  missing_dependency, query_null, query_throws, table_major, small_table, null_slot,     // refused by what they say
  bad_id, other_id, open_fails, open_mute, open_throws, open_odd, zero_devices, zero_silent, many_devices, info_throws, no_device,
  small_device, no_ops, no_stage, not_visible, partial_memory, no_rung, misaligned, partial_record, record_claim,
  refuses, stage_fails, stage_throws, stage_aborts                                       // taken, and then
};
constexpr Way way = FAKE;

#define FAKE_TEXT2(x) #x
#define FAKE_TEXT(x) FAKE_TEXT2(x)
[[gnu::constructor]] void canary() {
  const char* path = std::getenv("DUET_TEST_CANARY");
  if (std::FILE* f = path ? std::fopen(path, "a") : nullptr) {
    std::fputs(FAKE_TEXT(FAKE) "\n", f);
    std::fclose(f);
  }
}

struct NewerPlugin {
  duetp_plugin table;
  void* slots_of_tomorrow[4];
};
struct NewerDevice {
  duetp_device table;
  void* slots_of_tomorrow[4];
};

constexpr uint32_t kAbi = way == wrong_major ? (DUETP_MAJOR + 1) << 16 : way == newer_minor ? DUETP_ABI + 7 : DUETP_ABI;
constexpr uint32_t kPluginSize = way == older_minor ? offsetof(duetp_plugin, extension) : way == newer_minor ? sizeof(NewerPlugin) : sizeof(duetp_plugin);
constexpr uint32_t kDeviceSize = way == older_minor ? offsetof(duetp_device, refuses) : way == newer_minor ? sizeof(NewerDevice) : sizeof(duetp_device);

const duetp_host* host;
duetp_ops ops;
NewerDevice device;
NewerPlugin plugin;

constexpr auto ok = [](auto...) { return duet_status{DUET_OK}; };
constexpr auto nothing = [](auto...) {};

duet_status norm_gate(void*, duetp_queue*, const duetp_stage*) {
  if (way == stage_fails) return host->fail(host->self, DUET_E_LIMIT, "no more than three heads");
  if (way == stage_throws) throw std::runtime_error("a stage went wrong");
  if (way == stage_aborts) std::abort();
  return DUET_OK;
}

void fill_memory(duetp_device& d) {
  static char bytes[256];
  d.buffer_new = [](void*, uint64_t, duetp_buffer** out) {
    *out = reinterpret_cast<duetp_buffer*>(bytes);
    return duet_status{DUET_OK};
  };
  if (way == partial_memory) return;
  d.buffer_free = nothing;
  d.buffer_ptr = [](void*, duetp_buffer* b) -> void* { return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(b) + 63) / 64 * 64) + (way == misaligned ? 8 : 0); };
  d.upload = ok, d.download = ok, d.copy = ok;
  d.layer_new = ok, d.layer_export = ok, d.layer_free = nothing;
  d.queue_new = ok, d.queue_wait = ok, d.queue_free = nothing;
  d.state_new = ok, d.state_copy = ok, d.state_export = ok, d.state_import = ok, d.state_free = nothing;
}

duet_status open_plugin(const duetp_host* h, void** self) {
  host = h;
  *self = &plugin;
  if (way == open_fails) return h->fail(h->self, DUET_E_UNSUPPORTED, "the driver is \xff too old");
  if (way == open_mute) return DUET_E_DEVICE;
  if (way == open_odd) return 7;
  if (way == open_throws) throw std::runtime_error("no such luck");
  return DUET_OK;
}

uint32_t device_count(void*) {
  return way == zero_devices || way == zero_silent ? 0 : way == many_devices ? 4'000'000'000u : way == two_devices ? 2 : 1;
}

duet_status device_info(void*, uint32_t, duetp_device_info* io) {
  if (way == info_throws) throw 1;
  for (char& c : io->name) c = 'n';  // not terminated
  io->kind = DUETP_KIND_CPU;
  io->caps = way == not_visible ? 0 : way == record_claim ? DUETP_CAP_HOST_VISIBLE | DUETP_CAP_RECORD : DUETP_CAP_HOST_VISIBLE;
  return DUET_OK;
}

duet_status device_open(void*, uint32_t index, const duetp_device** out) {
  if (way == two_devices && index == 0) return host->fail(host->self, DUET_E_DEVICE, "in use by another process");
  ops.size = sizeof ops;
  if (way != no_stage && way != step_only) ops.norm_gate = norm_gate;
  if (way == step_only) ops.step = ok;
  duetp_device& d = device.table;
  d.size = way == small_device ? 8 : kDeviceSize;
  d.self = &device;
  d.ops = way == no_ops ? nullptr : &ops;
  if (way == partial_memory || way == no_rung || way == misaligned || way == step_only) fill_memory(d);
  if (way == misaligned) ops.step = ok;
  if (way == partial_record) d.record_begin = ok;
  if (way == refuses) d.refuses = [](void*, const duetp_shape*, duet_dtype, uint32_t) -> const char* { return "only models of the colour blue"; };
  if (way != no_device) *out = &d;
  return DUET_OK;
}

const duetp_plugin* table() {
  duetp_plugin& p = plugin.table;
  p.size = way == small_table ? 16 : kPluginSize;
  p.abi = way == table_major ? (DUETP_MAJOR + 1) << 16 : kAbi;
  p.id = way == bad_id ? "Fake!" : way == other_id ? "someone_else" : "fake";
  p.version = "1.2.3";
  p.sanitizer = DUETP_SANITIZER;
  p.open = open_plugin;
  p.close = nothing;
  p.device_count = device_count;
  if (way != null_slot) p.device_info = device_info;
  p.device_open = device_open;
  if (way == zero_devices) p.no_device_reason = [](void*) { return "no card is plugged in"; };
  return &p;
}

}  // namespace

// What DUETP_DEFINE writes, with room for lies. (plugins/minimal uses the real one.)
struct Note {
  uint32_t name_size, size, type;
  char name[8];
  uint32_t desc[4];
};
#if FAKE_NOTE
__attribute__((used, section(".note.duet.plugin"), aligned(4))) static const Note note = {
    5, 16, 1, "Duet", {kAbi, way == small_note ? 16 : kPluginSize, kDeviceSize, way == sanitizer ? DUETP_SANITIZER + 1 : DUETP_SANITIZER}};
#endif

extern "C" FAKE_EXPORT const duetp_plugin* duetp_query(uint32_t host_abi, uint32_t) {
  if (way == query_throws) throw std::runtime_error("ask someone else");
  return way == query_null || host_abi >> 16 != DUETP_MAJOR ? nullptr : table();
}

#ifdef FAKE_NEEDS
extern "C" int fake_dependency();
extern "C" DUETP_EXPORT int fake_needs() { return fake_dependency(); }
#endif
