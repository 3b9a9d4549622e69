/* A device with memory of its own, made of the reference's, that is wrong in the way that BROKEN names. */
#include <string.h>

#include "reference.h"

enum { SHORT_COPY, STALE_BUFFER, MISALIGNED };

static duet_status copy(void* self, duetp_queue* q, duetp_ref dst, duetp_ref src, uint64_t n) {
  return duet_reference_memory.copy(self, q, dst, src, n - n / 1000);
}

static duet_status buffer_new(void* self, uint64_t bytes, duetp_buffer** out) {
  const duet_status status = duet_reference_memory.buffer_new(self, bytes, out);
  if (status == DUET_OK && bytes > 1000) memset((*out)->data, 7, 1);
  return status;
}

static void* buffer_ptr(void* self, duetp_buffer* b) { return (char*)duet_reference_memory.buffer_ptr(self, b) + 4; }

static duet_status open_plugin(const duetp_host* host, void** self) {
  const duet_status status = duet_reference_open(host, self);
  if (status != DUET_OK) return status;
  duetp_device* device = &((struct reference*)*self)->device;
  if (BROKEN == SHORT_COPY) device->copy = copy;
  if (BROKEN == STALE_BUFFER) device->buffer_new = buffer_new;
  if (BROKEN == MISALIGNED) device->buffer_ptr = buffer_ptr;
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
