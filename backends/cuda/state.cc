// States lie on the device in the order of the host's canonical form. What is f32 crosses as a plain copy; matrices stored in two bytes pass
// through staging memory, where they are f32.
#include "gpu/shape.h"
#include "queue.h"

namespace duet_cuda {
namespace {

duet_status state_new(void* self, const duetp_shape* shape, uint32_t n_slots, duet_dtype wkv, duetp_state** out) {
  return guarded(self, [&](Device& d) {
    if (wkv != DUET_F32 && wkv != DUET_BF16 && wkv != DUET_F16) throw Failure(DUET_E_UNSUPPORTED, "the CUDA backend keeps the wkv state in f32, bf16 and f16 only");
    auto s = std::make_unique<duetp_state>();
    s->shape = *shape;
    s->n_slots = n_slots;
    s->stored = wkv;
    s->layer = 2ull * shape->n_embd * sizeof(float) + s->matrices() * s->stored_bytes();
    s->slot = s->layer * shape->n_layer;
    s->memory = d.allocate(s->slot * n_slots, "a state");
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
    if (src && src->stored != dst->stored) throw Failure(DUET_E_INVALID, "state_copy: the wkv states are stored in different dtypes; export one and import it");
    char* to = dst->memory.data() + dst_slot * dst->slot;
    if (src)
      d.check(cudaMemcpyAsync(to, src->memory.data() + src_slot * src->slot, dst->slot, cudaMemcpyDeviceToDevice, q->stream), "copying a state");
    else
      d.check(cudaMemsetAsync(to, 0, dst->slot, q->stream), "resetting a state");
  });
}

// A part of a slot: a row of `floats` numbers per layer.
struct Part {
  char* device;  // of layer 0
  uint64_t floats;
  bool narrow;  // stored in two bytes
};

Part part(const duetp_state& s, uint32_t slot, int which) {
  void* const base[] = {s.att_x(0), s.wkv(0), s.ffn_x(0)};
  return {static_cast<char*>(base[which]) + slot * s.slot, which == 1 ? s.matrices() : s.shape.n_embd, which == 1 && s.stored != DUET_F32};
}

// f32 [n_layer, floats] on the device, for a part that is not f32 there. Freed only when the queue's work is done.
Memory staging(Device& d, const duetp_state& s, const Part& p) { return d.allocate(s.shape.n_layer * p.floats * sizeof(float), "passing a state on as f32"); }

duet_status state_export(void* self, duetp_queue* q, const duetp_state* s, uint32_t slot, float* att_x, float* wkv, float* ffn_x) {
  return guarded(self, [&](Device& d) {
    float* const host[] = {att_x, wkv, ffn_x};
    for (int i = 0; i < 3; ++i) {
      const Part p = part(*s, slot, i);
      if (!host[i]) continue;
      if (p.narrow) {
        const Memory plain = staging(d, *s, p);
        d.check(duet_gpu::widen(p.device, s->stored, s->layer / s->stored_bytes(), reinterpret_cast<float*>(plain.data()), s->shape.n_layer, p.floats, q->stream), "reading a state");
        d.check(cudaMemcpyAsync(host[i], plain.data(), plain.bytes(), cudaMemcpyDeviceToHost, q->stream), "reading a state");
        d.check(cudaStreamSynchronize(q->stream), "reading a state");
      } else {
        d.check(cudaMemcpy2DAsync(host[i], p.floats * 4, p.device, s->layer, p.floats * 4, s->shape.n_layer, cudaMemcpyDeviceToHost, q->stream), "reading a state");
      }
    }
  });
}

duet_status state_import(void* self, duetp_queue* q, duetp_state* s, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x) {
  return guarded(self, [&](Device& d) {
    const float* const host[] = {att_x, wkv, ffn_x};
    Memory plain;
    for (int i = 0; i < 3; ++i) {
      const Part p = part(*s, slot, i);
      if (!host[i]) continue;
      if (p.narrow) {
        plain = staging(d, *s, p);
        d.check(cudaMemcpyAsync(plain.data(), host[i], plain.bytes(), cudaMemcpyHostToDevice, q->stream), "writing a state");
        d.check(duet_gpu::narrow(reinterpret_cast<const float*>(plain.data()), p.device, s->stored, s->layer / s->stored_bytes(), s->shape.n_layer, p.floats, q->stream), "writing a state");
      } else {
        d.check(cudaMemcpy2DAsync(p.device, s->layer, host[i], p.floats * 4, p.floats * 4, s->shape.n_layer, cudaMemcpyHostToDevice, q->stream), "writing a state");
      }
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
