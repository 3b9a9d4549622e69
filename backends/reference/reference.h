/* What the three files of the reference backend share. */
#ifndef DUET_REFERENCE_H
#define DUET_REFERENCE_H
#include "duet_host_memory.h"

extern const duetp_plugin duet_reference_plugin; /* built in: no exported symbol, no manifest */
extern const duetp_ops duet_reference_ops;       /* stages.c */
extern const duetp_device duet_reference_memory; /* memory.c: every memory slot; self = struct reference* */

struct reference {
  duetp_host host;
  duetp_device device;
};
#endif
