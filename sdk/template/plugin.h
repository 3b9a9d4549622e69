/* What the files of this plugin share. */
#ifndef PLUGIN_H
#define PLUGIN_H
#include <duet_stage.h>

/* The `self` of the plugin and of its device, the first argument of every slot and stage. The host may open a plugin more
 * than once: what is not constant belongs in here. */
struct plugin {
  const duetp_host* host; /* memory, threads, options, messages: all that a plugin needs of its host */
  duetp_device device;
};

/* One stage a file. */
duet_status linear(void* self, duetp_queue* q, const duetp_stage* a);
duet_status shift_mix(void* self, duetp_queue* q, const duetp_stage* a);
#endif
