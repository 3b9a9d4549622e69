// The slots of a device's tables by name, for code that treats them all alike.
#pragma once
#include "plugin/registry.h"

namespace duet {

// f.operator()<slot>(name) for each memory slot of duetp_device
template <class F>
void for_memory_slots(F&& f) {
#define DUET_SLOT(name) f.template operator()<&duetp_device::name>(#name)
  DUET_SLOT(buffer_new), DUET_SLOT(buffer_free), DUET_SLOT(buffer_ptr), DUET_SLOT(upload), DUET_SLOT(download), DUET_SLOT(copy);
  DUET_SLOT(layer_new), DUET_SLOT(layer_export), DUET_SLOT(layer_free), DUET_SLOT(queue_new), DUET_SLOT(queue_wait), DUET_SLOT(queue_free);
  DUET_SLOT(state_new), DUET_SLOT(state_copy), DUET_SLOT(state_export), DUET_SLOT(state_import), DUET_SLOT(state_free);
}

// The same for recording
template <class F>
void for_record_slots(F&& f) {
  DUET_SLOT(record_begin), DUET_SLOT(record_end), DUET_SLOT(record_run), DUET_SLOT(record_free);
#undef DUET_SLOT
}

// f.operator()<stage of Device, slot of duetp_ops>(name) for each stage of rung 1
template <class F>
void for_stages(F&& f) {
#define DUET_STAGE(name) f.template operator()<&Device::name, &duetp_ops::name>(#name)
  DUET_STAGE(embed), DUET_STAGE(shift_mix), DUET_STAGE(linear), DUET_STAGE(lowrank), DUET_STAGE(wkv_prepare);
  DUET_STAGE(wkv), DUET_STAGE(norm_gate), DUET_STAGE(channel_mix), DUET_STAGE(head);
#undef DUET_STAGE
}

}  // namespace duet
