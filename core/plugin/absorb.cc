#include "plugin/absorb.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "plugin/elf_note.h"
#include "plugin/host.h"
#include "plugin/slots.h"

namespace duet {
namespace {

constexpr size_t kAlignment = 64;

// True if all memory slots are filled, false if none is.
bool has_memory(const duetp_device& t, const std::string& who) {
  const char *given = nullptr, *missing = nullptr;
  for_memory_slots([&]<auto slot>(const char* name) { (t.*slot ? given : missing) = name; });
  if (given && missing) fail(DUET_E_ABI, "{}: provides {} but not {}; the memory slots come all together or not at all", who, given, missing);
  return given != nullptr;
}

void check_recording(const duetp_device& t, uint64_t caps, bool memory, const std::string& who) {
  const int n = (t.record_begin != nullptr) + (t.record_end != nullptr) + (t.record_run != nullptr) + (t.record_free != nullptr);
  if (n != 0 && n != 4) fail(DUET_E_ABI, "{}: provides {} of the four record_* slots; they come all together or not at all", who, n);
  if (n == 4 && !memory) fail(DUET_E_ABI, "{}: provides record_* without memory slots; a device on the host's memory runs each stage at once", who);
  if ((n == 4) != ((caps & DUETP_CAP_RECORD) != 0)) fail(DUET_E_ABI, "{}: DUETP_CAP_RECORD and the record_* slots contradict each other", who);
}

// A pointer that the CPU is to use must suit its widest loads.
void check_alignment(const Device& d, const std::string& who) {
  duetp_buffer* b = nullptr;
  check_plugin(d, call_plugin(who, "buffer_new", [&] { return d.table.buffer_new(d.memory_self, 192, &b); }));
  const void* p = call_plugin(who, "buffer_ptr", [&] { return d.table.buffer_ptr(d.memory_self, b); });
  call_plugin(who, "buffer_free", [&] { d.table.buffer_free(d.memory_self, b); });
  if (p == nullptr || reinterpret_cast<uintptr_t>(p) % kAlignment != 0)
    fail(DUET_E_DEVICE, "{}: buffer_ptr gave {}; a host-visible buffer must be aligned to {} bytes", who, p, kAlignment);
}

}  // namespace

Device absorb(const duetp_device& theirs, const duetp_device_info& info, const std::string& who, const Device* reference) {
  if (theirs.size < kMinDeviceSize) fail(DUET_E_ABI, "{}: its device table has {} bytes, less than the {} of the first version", who, theirs.size, kMinDeviceSize);
  if (theirs.ops == nullptr || theirs.ops->size < 2 * sizeof(uint32_t)) fail(DUET_E_ABI, "{}: its device has no table of stages", who);
  Device d;
  d.plugin = who;
  d.info = info;
  std::memcpy(&d.table, &theirs, std::min<size_t>(theirs.size, sizeof d.table));
  duetp_ops ops{};
  std::memcpy(&ops, theirs.ops, std::min<size_t>(theirs.ops->size, sizeof ops));
  d.table.size = sizeof d.table;
  d.table.ops = nullptr;  // the stages below are the only way to them
  d.layers = ops.layers;
  d.step = ops.step;
  int n_stages = 0, n_all = 0;
  for_stages([&]<auto stage, auto slot>(const char*) {
    ++n_all;
    if (ops.*slot) d.*stage = {ops.*slot, d.table.self}, ++n_stages;
  });

  if (ops.sample) d.sample = {ops.sample, d.table.self};
  d.own_stages = n_stages == n_all;
  const bool memory = has_memory(d.table, who);
  check_recording(d.table, info.caps, memory, who);
  if (memory) {
    d.memory_self = d.table.self;
    if (!d.own_stages && !d.step && !(d.layers && ops.embed && ops.head))
      fail(DUET_E_ABI, "{}: implements no rung of the ladder: all nine stages (it has {}), or layers with embed and head, or step", who, n_stages);
    if (d.has(DUETP_CAP_HOST_VISIBLE)) check_alignment(d, who);
    return d;
  }
  if (!d.has(DUETP_CAP_HOST_VISIBLE)) fail(DUET_E_ABI, "{}: leaves the memory slots empty without DUETP_CAP_HOST_VISIBLE", who);
  if (n_stages == 0 && !d.layers && !d.step) fail(DUET_E_ABI, "{}: implements no stage at all", who);
  if (reference == nullptr) fail(DUET_E_INTERNAL, "{}: the reference must have memory of its own", who);
  for_memory_slots([&]<auto slot>(const char*) { d.table.*slot = reference->table.*slot; });
  d.table.layer_prepare = nullptr;  // the reference has nothing to do there
  d.memory_self = reference->memory_self;
  d.f32_states = d.wkv.fn || d.layers || d.step;
  d.info.caps |= DUETP_CAP_BORROWS_WEIGHTS;  // as the reference's layers do
  for_stages([&]<auto stage, auto slot>(const char*) {
    if (!(d.*stage).fn) d.*stage = reference->*stage;
  });
  return d;
}

std::string Device::refuses(const duetp_shape& shape, duet_dtype weights) const {
  if (table.refuses == nullptr) return "";
  const uint32_t rung = step ? 3 : layers ? 2 : 1;  // the widest is the one that runs
  const char* why = call_plugin(spec, "refuses", [&] { return table.refuses(table.self, &shape, weights, rung); });
  if (why == nullptr) return "";
  const std::string reason = printable({why, ::strnlen(why, 512)}, 500);
  return reason.empty() ? "the plugin refuses and gives no reason" : reason;
}

void check_plugin(const Device& device, duet_status code) {
  if (code != DUET_OK) fail_plugin(device.spec.empty() ? device.plugin : device.spec, code);
}

}  // namespace duet
