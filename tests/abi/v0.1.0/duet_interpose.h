/* duet_interpose.h - interposing layers: plugins that stand between the host and a device. C99 and C++20.
 *
 * A layer is a plugin like any other (duet_plugin.h) without a device: device_count gives 0, and
 * extension(self, DUETP_EXT_INTERPOSE) gives a duetp_interposer. The host takes it for no backend, and puts it around a
 * device where it is named (duet_library_options.layers, DUET_LAYERS, duet --layers). C++: sdk/include/duet_interpose.hpp.
 */
#ifndef DUET_INTERPOSE_H
#define DUET_INTERPOSE_H
#include "duet_plugin.h"
#ifdef __cplusplus
extern "C" {
#endif
#define DUETP_EXT_INTERPOSE "duet.ext.interpose/1" /* of a plugin: const duetp_interposer* */
#define DUETP_EXT_REFERENCE "duet.ext.reference/1" /* of the host: const duetp_plugin*, the reference that is built into it. It
                                                      works on the structs of duet_host_memory.h and borrows weights */

/* What makes a plugin a layer. */
typedef struct duetp_interposer {
  uint32_t size, reserved;
  /* Makes the layer's table for one device. `self` is the plugin's.
   *
   * `below` is the device as the host would use it, with every gap filled: all memory slots are there, and so are all nine
   * stages unless the device offers wider rungs only. It lives until the layer's own `close` returns; its `close` is NULL.
   * `info` lives as long.
   *
   * A slot that is NULL in *out, or in its ops, is the device's below, called with that one's self: a layer fills what it
   * wants to see, and what a newer host adds to the tables passes by an older layer. Who fills a slot calls the one below
   * itself. A layer that fills any of the nine stages hides rungs 2 and 3 and recording where it does not fill them too:
   * the host then runs stage after stage through it. close(self), if it is there, ends the layer's part alone. */
  duet_status (*device_wrap)(void* self, const duetp_device* below, const duetp_device_info* info, const duetp_device** out);
} duetp_interposer;
#ifdef __cplusplus
}
#endif
#endif
