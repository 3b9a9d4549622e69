#include "plugin/interpose.h"

#include <algorithm>
#include <cstring>

#include "plugin/elf_note.h"
#include "plugin/slots.h"

namespace duet {
namespace {

// The `self` of a table whose slots go to `above` where that fills them, and to `below` elsewhere.
struct Side {
  const Device* below;
  duetp_device above{};
  duetp_ops above_ops{};
};

// Calls of such a table. A device's parts have one self each: memory and recording, the rest, and every stage.
template <auto slot>
struct Memory;
template <class Result, class... A, Result (*duetp_device::*slot)(void*, A...)>
struct Memory<slot> {
  static Result call(void* self, A... a) {
    const Side& s = *static_cast<const Side*>(self);
    return s.above.*slot ? (s.above.*slot)(s.above.self, a...) : (s.below->table.*slot)(s.below->memory_self, a...);
  }
};
template <auto slot>
struct Query;
template <class Result, class... A, Result (*duetp_device::*slot)(void*, A...)>
struct Query<slot> {
  static Result call(void* self, A... a) {
    const Side& s = *static_cast<const Side*>(self);
    return s.above.*slot ? (s.above.*slot)(s.above.self, a...) : (s.below->table.*slot)(s.below->table.self, a...);
  }
};
// A layer may borrow what the device below has copied, so nothing of it may go.
duet_status prepare(void* self, duetp_layer* l, duet_mode mode, uint64_t* copied) {
  const duet_status status = Memory<&duetp_device::layer_prepare>::call(self, l, mode, copied);
  *copied = 0;
  return status;
}
template <auto stage, auto slot>
duet_status call_stage(void* self, duetp_queue* q, const duetp_stage* a) {
  const Side& s = *static_cast<const Side*>(self);
  return s.above_ops.*slot ? (s.above_ops.*slot)(s.above.self, q, a) : (s.below->*stage)(q, *a);
}
template <auto step, auto slot>
duet_status call_step(void* self, duetp_queue* q, const duetp_step* a) {
  const Side& s = *static_cast<const Side*>(self);
  return s.above_ops.*slot ? (s.above_ops.*slot)(s.above.self, q, a) : (s.below->*step)(s.below->table.self, q, a);
}

// The tables of a side: a slot is there if above or below has it.
void fill(Side& side, duetp_device& t, duetp_ops& ops) {
  const Device& below = *side.below;
  t.size = sizeof t;
  t.self = &side;
  t.ops = &ops;
  const auto memory = [&]<auto slot>(const char*) {
    if (side.above.*slot || below.table.*slot) t.*slot = Memory<slot>::call;
  };
  for_memory_slots(memory);
  for_record_slots(memory);
  if (side.above.layer_prepare || below.table.layer_prepare) t.layer_prepare = prepare;
  const auto query = [&]<auto slot>() {
    if (side.above.*slot || below.table.*slot) t.*slot = Query<slot>::call;
  };
  query.operator()<&duetp_device::saved_bytes>();
  query.operator()<&duetp_device::refuses>();
  ops.size = sizeof ops;
  for_stages([&]<auto stage, auto slot>(const char*) {
    if (side.above_ops.*slot || (below.*stage).fn) ops.*slot = call_stage<stage, slot>;
  });
  if (side.above_ops.sample || below.sample.fn) ops.sample = call_stage<&Device::sample, &duetp_ops::sample>;
  if (side.above_ops.layers || below.layers) ops.layers = call_step<&Device::layers, &duetp_ops::layers>;
  if (side.above_ops.step || below.step) ops.step = call_step<&Device::step, &duetp_ops::step>;
}

// One layer around one device. `device` is what the host uses, `bare` what the layer sees.
struct Link {
  Link(std::shared_ptr<const Device> b, const Interposer& layer) : below(std::move(b)), bare{below.get()}, around{below.get()} {
    const std::string who = duet::format("the layer {}", layer.plugin->id());
    fill(bare, bare_table, bare_ops);
    const duetp_device* out = nullptr;
    const duet_status status = call_plugin(who, "device_wrap", [&] { return layer.table.device_wrap(layer.plugin->self(), &bare_table, &below->info, &out); });
    if (status != DUET_OK) fail_plugin(who, status);
    if (out == nullptr || out->size < kMinDeviceSize) fail(DUET_E_ABI, "{}: device_wrap gave no table, or one smaller than the first version's", who);
    std::memcpy(&around.above, out, std::min<size_t>(out->size, sizeof around.above));
    close = std::exchange(around.above.close, nullptr);
    try {
      take(out->ops, who);
    } catch (...) {
      end();
      throw;
    }
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;
  ~Link() { end(); }

  void take(const duetp_ops* ops, const std::string& who) {
    if (ops) std::memcpy(&around.above_ops, ops, std::min<size_t>(ops->size, sizeof around.above_ops));
    bool stages = false;
    for_stages([&]<auto stage, auto slot>(const char*) { stages |= around.above_ops.*slot != nullptr; });
    if (stages && (below->layers || below->step) && !below->own_stages)
      fail(DUET_E_UNSUPPORTED, "{} sees stages, and {} offers only {}", who, below->spec, below->step ? "whole steps" : "runs of layers");

    duetp_ops merged{};
    device = *below;
    device.table = {};
    device.memory_self = &around;
    fill(around, device.table, merged);
    device.table.ops = nullptr;
    for_stages([&]<auto stage, auto slot>(const char*) {
      if (around.above_ops.*slot) device.*stage = {around.above_ops.*slot, around.above.self};
    });
    if (around.above_ops.sample) device.sample = {around.above_ops.sample, around.above.self};
    device.layers = stages && !around.above_ops.layers ? nullptr : merged.layers;
    device.step = stages && !around.above_ops.step ? nullptr : merged.step;
    if (stages && !around.above.record_begin)
      for_record_slots([&]<auto slot>(const char*) { device.table.*slot = nullptr; });
    if (!device.records()) device.info.caps &= ~uint64_t{DUETP_CAP_RECORD};
  }

  void end() noexcept {
    try {
      if (close) close(around.above.self);
    } catch (...) {  // it is gone either way
    }
  }

  std::shared_ptr<const Device> below;
  Side bare, around;
  duetp_device bare_table{};
  duetp_ops bare_ops{};
  void (*close)(void*) = nullptr;
  Device device;
};

}  // namespace

std::optional<Interposer> interposer_of(const OpenPlugin& plugin) {
  const auto* theirs = static_cast<const duetp_interposer*>(plugin.extension(DUETP_EXT_INTERPOSE));
  if (theirs == nullptr) return std::nullopt;
  Interposer layer{&plugin, {}};
  if (theirs->size >= sizeof layer.table) std::memcpy(&layer.table, theirs, sizeof layer.table);
  if (layer.table.device_wrap == nullptr) fail(DUET_E_ABI, "{}: its interposer has no device_wrap", plugin.path());
  return layer;
}

std::shared_ptr<const Device> interpose(std::shared_ptr<const Device> below, const Interposer& layer) {
  const auto link = std::make_shared<Link>(std::move(below), layer);
  return {link, &link->device};
}

}  // namespace duet
