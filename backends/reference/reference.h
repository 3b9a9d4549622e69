/* What the files of the reference backend share. */
#ifndef DUET_REFERENCE_H
#define DUET_REFERENCE_H
#include "duet_host_memory.h"

extern const duetp_plugin duet_reference_plugin; /* built in: no exported symbol, no manifest */
extern const duetp_ops duet_reference_ops;       /* stages.c */
extern const duetp_device duet_reference_memory; /* memory.c: every memory slot; self = struct reference* */

duet_status duet_reference_sample(void* self, duetp_queue* q, const duetp_stage* a); /* sample.c */

/* The `self` of plugin and device. A plugin made of this one may replace device.ops between open and device_open. */
struct reference {
  duetp_host host;
  duetp_device device;
};

/* Every state of this backend. Its memory is f32; where `stored` is bf16 or f16, S holds numbers of that dtype only. */
struct reference_state {
  duetp_state state;
  duet_dtype stored;
};

/* What a plugin made of this one puts into its own table (plugin.c). */
duet_status duet_reference_open(const duetp_host* host, void** self);
void duet_reference_close(void* self);
uint32_t duet_reference_device_count(void* self);
duet_status duet_reference_device_info(void* self, uint32_t index, duetp_device_info* io);
duet_status duet_reference_device_open(void* self, uint32_t index, const duetp_device** out);
#endif
