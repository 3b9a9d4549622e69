/* A device with memory of its own, made of the reference's, that is wrong in the way that BROKEN names. */
#include <string.h>

#include "duet_stage.h"
#include "reference.h"

enum { SHORT_COPY, STALE_BUFFER, MISALIGNED, KEEPS_F32, CUTS_OFF };

static duet_status copy(void* self, duetp_queue* q, duetp_ref dst, duetp_ref src, uint64_t n) {
  return duet_reference_memory.copy(self, q, dst, src, n - n / 1000);
}

static duet_status buffer_new(void* self, uint64_t bytes, duetp_buffer** out) {
  const duet_status status = duet_reference_memory.buffer_new(self, bytes, out);
  if (status == DUET_OK && bytes > 1000) memset((*out)->data, 7, 1);
  return status;
}

static void* buffer_ptr(void* self, duetp_buffer* b) { return (char*)duet_reference_memory.buffer_ptr(self, b) + 4; }

static duet_status f32_state(void* self, const duetp_shape* s, uint32_t n_slots, duet_dtype wkv, duetp_state** out) {
  (void)wkv;
  return duet_reference_memory.state_new(self, s, n_slots, DUET_F32, out);
}

/* S one unit of f16 nearer to zero wherever it is not zero, as if half of it had been cut off and not rounded */
static duet_status cutting_wkv(void* self, duetp_queue* q, const duetp_stage* a) {
  const int32_t *used = duetp_host_i32(a->frame->used), *starts = duetp_host_i32(a->frame->starts), *slots = duetp_host_i32(a->frame->slots);
  const duet_status status = duet_reference_ops.wkv(self, q, a);
  if (((const struct reference_state*)a->state)->stored != DUET_F16) return status;
  for (int32_t s = 0; s < used[1]; ++s) {
    float* S = starts[s] == starts[s + 1] ? NULL : duetp_host_wkv(a->state, slots[s], a->layer_index);
    for (uint32_t i = 0; S && i < a->layer->shape.n_embd * a->layer->shape.head_size; i += 2)
      if (S[i] != 0) S[i] = duetp_f32_of_f16((uint16_t)(duetp_f16_of_f32(S[i]) - 1));
  }
  return status;
}

static duetp_ops cutting_ops;

static duet_status open_plugin(const duetp_host* host, void** self) {
  const duet_status status = duet_reference_open(host, self);
  if (status != DUET_OK) return status;
  duetp_device* device = &((struct reference*)*self)->device;
  if (BROKEN == SHORT_COPY) device->copy = copy;
  if (BROKEN == STALE_BUFFER) device->buffer_new = buffer_new;
  if (BROKEN == MISALIGNED) device->buffer_ptr = buffer_ptr;
  if (BROKEN == KEEPS_F32) device->state_new = f32_state;
  if (BROKEN == CUTS_OFF) {
    cutting_ops = duet_reference_ops;
    cutting_ops.wkv = cutting_wkv;
    device->ops = &cutting_ops;
  }
  return DUET_OK;
}

static const duetp_plugin plugin = {
    .size = sizeof(duetp_plugin),
    .abi = DUETP_ABI,
    .id = "broken",
    .version = "1",
    .vendor = "test",
    .build = "C99",
    .sanitizer = DUETP_SANITIZER,
    .open = open_plugin,
    .close = duet_reference_close,
    .device_count = duet_reference_device_count,
    .device_info = duet_reference_device_info,
    .device_open = duet_reference_device_open,
};
DUETP_DEFINE(plugin);
