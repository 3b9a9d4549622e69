/* The reference as a plugin, but that the last byte of a download is not brought. */
#include "reference.h"

static duet_status download(void* self, duetp_queue* q, void* dst, duetp_ref src, uint64_t n) { return duet_reference_memory.download(self, q, dst, src, n ? n - 1 : 0); }

static duet_status open_plugin(const duetp_host* host, void** self) {
  const duet_status status = duet_reference_open(host, self);
  if (status == DUET_OK) ((struct reference*)*self)->device.download = download;
  return status;
}

static const duetp_plugin plugin = {.size = sizeof(duetp_plugin),
                                    .abi = DUETP_ABI,
                                    .id = "download",
                                    .version = "1",
                                    .vendor = "test",
                                    .build = "C99",
                                    .sanitizer = DUETP_SANITIZER,
                                    .open = open_plugin,
                                    .close = duet_reference_close,
                                    .device_count = duet_reference_device_count,
                                    .device_info = duet_reference_device_info,
                                    .device_open = duet_reference_device_open};
DUETP_DEFINE(plugin);
