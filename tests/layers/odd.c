/* Interposing layers in plain C. MEMORY sees buffers and nothing else; the others are wrong in the way that ODD names. */
#include <duet_interpose.h>
#include <stdio.h>
#include <string.h>

enum { MEMORY, NO_WRAP, FAILS, MUTE, SMALL };

static const duetp_host* host;
static const duetp_device* device; /* below */
static int buffers;

static duet_status buffer_new(void* self, uint64_t bytes, duetp_buffer** out) {
  (void)self;
  ++buffers;
  return device->buffer_new(device->self, bytes, out);
}
static void close_layer(void* self) {
  char line[64];
  (void)self;
  snprintf(line, sizeof line, "%d buffers", buffers);
  host->log(host->self, DUET_LOG_INFO, line);
}
static const duetp_device mine = {.size = ODD == SMALL ? 8 : sizeof(duetp_device), .close = close_layer, .buffer_new = buffer_new};

static duet_status wrap(void* self, const duetp_device* below, const duetp_device_info* info, const duetp_device** out) {
  (void)self, (void)info;
  if (ODD == FAILS) return host->fail(host->self, DUET_E_UNSUPPORTED, "not on a Thursday");
  device = below;
  buffers = 0;
  if (ODD != MUTE) *out = &mine;
  return DUET_OK;
}
static const duetp_interposer interposer = {sizeof(duetp_interposer), 0, ODD == NO_WRAP ? NULL : wrap};

static duet_status open_plugin(const duetp_host* h, void** self) { return host = h, *self = NULL, DUET_OK; }
static void close_plugin(void* self) { (void)self; }
static uint32_t device_count(void* self) { return (void)self, 0; }
static duet_status device_info(void* self, uint32_t index, duetp_device_info* io) { return (void)self, (void)index, (void)io, DUET_E_NOT_FOUND; }
static duet_status device_open(void* self, uint32_t index, const duetp_device** out) { return (void)self, (void)index, (void)out, DUET_E_NOT_FOUND; }
static const void* extension(void* self, const char* id) { return (void)self, strcmp(id, DUETP_EXT_INTERPOSE) == 0 ? &interposer : NULL; }

static const duetp_plugin plugin = {.size = sizeof(duetp_plugin),
                                    .abi = DUETP_ABI,
                                    .id = "odd",
                                    .version = "1",
                                    .vendor = "test",
                                    .build = "C99",
                                    .sanitizer = DUETP_SANITIZER,
                                    .open = open_plugin,
                                    .close = close_plugin,
                                    .device_count = device_count,
                                    .device_info = device_info,
                                    .device_open = device_open,
                                    .extension = extension};
DUETP_DEFINE(plugin);
