/* A device whose memory the CPU does not see and which keeps no weights that are not its own, made of the reference. It has
 * the nine stages, and rung 2 and recordings that fail: whoever runs it to the end has run stage after stage. DUET_FAR_FREE says
 * how much memory it has left. */
#include <stdlib.h>
#include <string.h>

#include "reference.h"

static struct reference* reference; /* its struct is the `self` of everything here */

static duet_status refuse(const char* what) { return reference->host.fail(reference->host.self, DUET_E_UNSUPPORTED, what); }
static duet_status layers(void* self, duetp_queue* q, const duetp_step* s) { return (void)self, (void)q, (void)s, refuse("rung 2 was used"); }
static duet_status record_begin(void* self, duetp_queue* q) { return (void)self, (void)q, refuse("a recording was begun"); }
static duet_status record_end(void* self, duetp_queue* q, duetp_record** out) { return (void)self, (void)q, (void)out, refuse("a recording was ended"); }
static duet_status record_run(void* self, duetp_queue* q, duetp_record* r) { return (void)self, (void)q, (void)r, refuse("a recording was run"); }
static void record_free(void* self, duetp_record* r) { (void)self, (void)r; }

static void* buffer_ptr(void* self, duetp_buffer* b) { return (void)self, (void)b, NULL; }

/* Tensors in one block of memory, which begins with the first. */
static duet_status layer_new(void* self, const duetp_layer_desc* d, duetp_layer** out) {
  const duet_status status = duet_reference_memory.layer_new(self, d, out);
  size_t bytes = 0;
  if (status != DUET_OK) return status;
  for (uint32_t i = 0; i < DUETP_T_COUNT; ++i) bytes += ((*out)->tensor[i].bytes + 63) / 64 * 64;
  char* at = malloc(bytes);
  for (uint32_t i = 0; at && i < DUETP_T_COUNT; ++i) {
    duetp_tensor* t = &(*out)->tensor[i];
    if (!t->data) continue;
    t->data = memcpy(at, t->data, (size_t)t->bytes);
    at += (t->bytes + 63) / 64 * 64;
  }
  return at ? DUET_OK : DUET_E_MEMORY;
}
static void layer_free(void* self, duetp_layer* l) {
  uint32_t first = 0;
  while (!l->tensor[first].data) ++first;
  free((void*)l->tensor[first].data);
  duet_reference_memory.layer_free(self, l);
}

static duetp_ops ops;

static duet_status open_plugin(const duetp_host* host, void** self) {
  const duet_status status = duet_reference_open(host, self);
  if (status != DUET_OK) return status;
  reference = *self;
  ops = duet_reference_ops;
  ops.layers = layers;
  duetp_device* d = &reference->device;
  d->ops = &ops;
  d->buffer_ptr = buffer_ptr;
  d->layer_new = layer_new;
  d->layer_free = layer_free;
  d->record_begin = record_begin;
  d->record_end = record_end;
  d->record_run = record_run;
  d->record_free = record_free;
  return DUET_OK;
}

static duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  const duet_status status = duet_reference_device_info(self, index, io);
  strcpy(io->name, "far away");
  io->kind = DUETP_KIND_OTHER;
  io->caps = DUETP_CAP_RECORD;
  const char* free = getenv("DUET_FAR_FREE"); /* bytes */
  if (free) io->mem_free = strtoull(free, NULL, 10);
  return status;
}

static const duetp_plugin plugin = {.size = sizeof(duetp_plugin),
                                    .abi = DUETP_ABI,
                                    .id = "far",
                                    .version = "1",
                                    .vendor = "test",
                                    .build = "C99",
                                    .sanitizer = DUETP_SANITIZER,
                                    .open = open_plugin,
                                    .close = duet_reference_close,
                                    .device_count = duet_reference_device_count,
                                    .device_info = device_info,
                                    .device_open = duet_reference_device_open};
DUETP_DEFINE(plugin);
