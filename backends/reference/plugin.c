/* The reference as a plugin that is compiled in: one device, any shape, weights of every dtype. */
#include <string.h>

#include "reference.h"

duet_status duet_reference_open(const duetp_host* host, void** self) {
  struct reference* r = host->alloc(host->self, sizeof *r, 64);
  if (!r) return host->fail(host->self, DUET_E_MEMORY, "out of memory: the reference backend");
  memset(r, 0, sizeof *r);
  r->host = *host;
  r->device = duet_reference_memory;
  r->device.self = r;
  r->device.ops = &duet_reference_ops;
  *self = r;
  return DUET_OK;
}

void duet_reference_close(void* self) {
  struct reference* r = self;
  r->host.free(r->host.self, r);
}

uint32_t duet_reference_device_count(void* self) {
  (void)self;
  return 1;
}

duet_status duet_reference_device_info(void* self, uint32_t index, duetp_device_info* io) {
  duetp_device_info d;
  const uint32_t size = io->size;
  (void)self, (void)index;
  memset(&d, 0, sizeof d);
  d.kind = DUETP_KIND_CPU;
  strcpy(d.id, "host");
  strcpy(d.name, "reference (plain C, one thread)");
  d.caps = DUETP_CAP_HOST_VISIBLE | DUETP_CAP_BORROWS_WEIGHTS;
  d.size = size < sizeof d ? size : (uint32_t)sizeof d;
  memcpy(io, &d, d.size);
  return DUET_OK;
}

duet_status duet_reference_device_open(void* self, uint32_t index, const duetp_device** out) {
  (void)index;
  *out = &((struct reference*)self)->device;
  return DUET_OK;
}

const duetp_plugin duet_reference_plugin = {
    .size = sizeof(duetp_plugin),
    .abi = DUETP_ABI,
    .id = "reference",
    .version = "0.1.0",
    .vendor = "Duet",
    .build = "C99",
    .sanitizer = DUETP_SANITIZER,
    .open = duet_reference_open,
    .close = duet_reference_close,
    .device_count = duet_reference_device_count,
    .device_info = duet_reference_device_info,
    .device_open = duet_reference_device_open,
};
