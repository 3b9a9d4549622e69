// Buffers.
#include "device.h"

namespace duet_cuda {
namespace {

duet_status buffer_new(void* self, uint64_t bytes, duetp_buffer** out) {
  return guarded(self, [&](Device& d) {
    auto b = std::make_unique<duetp_buffer>();
    b->memory = d.allocate(bytes, "a buffer");
    d.zero(b->memory);
    *out = b.release();
  });
}

void buffer_free(void* self, duetp_buffer* b) {
  const OnDevice here(static_cast<Device*>(self)->index);
  delete b;
}

void* buffer_ptr(void*, duetp_buffer*) { return nullptr; }

}  // namespace

void fill_memory_slots(duetp_device& t) {
  t.buffer_new = buffer_new;
  t.buffer_free = buffer_free;
  t.buffer_ptr = buffer_ptr;
}

}  // namespace duet_cuda
