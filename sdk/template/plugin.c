/* The tables that the host reads: which stages there are, what the device is, and how it is opened and closed. */
#include "plugin.h"

#include <string.h>

/* NULL, or the first condition that is not met. The host shows the sentence, or takes another device. */
static const char* refuses(void* self, const duetp_shape* s, duet_dtype weights, uint32_t rung) {
  (void)self, (void)s, (void)rung;
  return weights == DUET_F32 || weights == DUET_BF16 || weights == DUET_F16 ? NULL : "weights must be f32, bf16 or f16";
}

/* A stage that is not named here is left to the host. */
static const duetp_ops ops = {
    .size = sizeof(duetp_ops),
    .linear = linear,
    .shift_mix = shift_mix,
};

static duet_status open_plugin(const duetp_host* host, void** self) {
  struct plugin* p = host->alloc(host->self, sizeof *p, 64);
  if (!p) return host->fail(host->self, DUET_E_MEMORY, "no memory for the plugin");
  p->host = host;
  p->device = (duetp_device){.size = sizeof(duetp_device), .self = p, .ops = &ops, .refuses = refuses};
  *self = p;
  return DUET_OK;
}

static void close_plugin(void* self) {
  struct plugin* p = self;
  p->host->free(p->host->self, p);
}

static uint32_t device_count(void* self) { return (void)self, 1; }

static duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  (void)self, (void)index; /* the host asks for what device_count reports, and no other */
  strcpy(io->id, "host");
  strcpy(io->name, "the host's memory and threads");
  io->kind = DUETP_KIND_CPU;
  io->caps = DUETP_CAP_HOST_VISIBLE; /* with all memory slots left NULL: on the host's memory */
  return DUET_OK;
}

static duet_status device_open(void* self, uint32_t index, const duetp_device** out) {
  struct plugin* p = self;
  (void)index;
  *out = &p->device;
  return DUET_OK;
}

static const duetp_plugin plugin = {
    .size = sizeof(duetp_plugin),
    .abi = DUETP_ABI,
    .id = "template",
    .version = "0.1",
    .vendor = "you",
    .build = "C99",
    .sanitizer = DUETP_SANITIZER,
    .open = open_plugin,
    .close = close_plugin,
    .device_count = device_count,
    .device_info = device_info,
    .device_open = device_open,
};
DUETP_DEFINE(plugin);
