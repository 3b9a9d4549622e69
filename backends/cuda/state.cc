// States lie on the device as the host's canonical form has them, so that what crosses is a plain copy.
#include "queue.h"

namespace duet_cuda {
namespace {

duet_status state_new(void* self, const duetp_shape* shape, uint32_t n_slots, duet_dtype wkv, duetp_state** out) {
  return guarded(self, [&](Device& d) {
    if (wkv != DUET_F32) throw Failure(DUET_E_UNSUPPORTED, "the CUDA backend keeps the wkv state in f32 only");
    auto s = std::make_unique<duetp_state>();
    s->shape = *shape;
    s->n_slots = n_slots;
    s->layer = 2ull * shape->n_embd + static_cast<uint64_t>(shape->n_embd) * shape->head_size;
    s->slot = s->layer * shape->n_layer;
    s->memory = d.allocate(s->slot * n_slots * sizeof(float), "a state");
    d.zero(s->memory);
    *out = s.release();
  });
}

void state_free(void* self, duetp_state* s) {
  const OnDevice here(static_cast<Device*>(self)->index);
  delete s;
}

duet_status state_copy(void* self, duetp_queue* q, duetp_state* dst, uint32_t dst_slot, const duetp_state* src, uint32_t src_slot) {
  return guarded(self, [&](Device& d) {
    float* to = dst->att_x(0) + dst_slot * dst->slot;
    const uint64_t bytes = dst->slot * sizeof(float);
    if (src)
      d.check(cudaMemcpyAsync(to, src->att_x(0) + src_slot * src->slot, bytes, cudaMemcpyDeviceToDevice, q->stream), "copying a state");
    else
      d.check(cudaMemsetAsync(to, 0, bytes, q->stream), "resetting a state");
  });
}

// One strided copy per part: a row per layer.
struct Part {
  float* device;
  uint64_t floats;
};

Part part(const duetp_state& s, uint32_t slot, int which) {
  const uint64_t C = s.shape.n_embd;
  float* const base[] = {s.att_x(0), s.wkv(0), s.ffn_x(0)};
  return {base[which] + slot * s.slot, which == 1 ? C * s.shape.head_size : C};
}

duet_status state_export(void* self, duetp_queue* q, const duetp_state* s, uint32_t slot, float* att_x, float* wkv, float* ffn_x) {
  return guarded(self, [&](Device& d) {
    float* const host[] = {att_x, wkv, ffn_x};
    for (int i = 0; i < 3; ++i) {
      const Part p = part(*s, slot, i);
      if (host[i])
        d.check(cudaMemcpy2DAsync(host[i], p.floats * 4, p.device, s->layer * 4, p.floats * 4, s->shape.n_layer, cudaMemcpyDeviceToHost, q->stream), "reading a state");
    }
  });
}

duet_status state_import(void* self, duetp_queue* q, duetp_state* s, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x) {
  return guarded(self, [&](Device& d) {
    const float* const host[] = {att_x, wkv, ffn_x};
    for (int i = 0; i < 3; ++i) {
      const Part p = part(*s, slot, i);
      if (host[i])
        d.check(cudaMemcpy2DAsync(p.device, s->layer * 4, host[i], p.floats * 4, p.floats * 4, s->shape.n_layer, cudaMemcpyHostToDevice, q->stream), "writing a state");
    }
    d.check(cudaStreamSynchronize(q->stream), "writing a state");  // the host's arrays are free again on return
  });
}

}  // namespace

void fill_state_slots(duetp_device& t) {
  t.state_new = state_new;
  t.state_copy = state_copy;
  t.state_export = state_export;
  t.state_import = state_import;
  t.state_free = state_free;
}

}  // namespace duet_cuda
