/* duet_host_memory.h - the structs behind duetp_buffer, duetp_layer, duetp_state and duetp_queue on a device that leaves
 * its memory slots NULL (duet_plugin.h, contract line 7), and on the built-in reference backend, which owns them.
 * A plugin reads and writes through them; it never allocates or frees one. C99 and C++20. */
#ifndef DUET_HOST_MEMORY_H
#define DUET_HOST_MEMORY_H
#include "duet_plugin.h"
#ifdef __cplusplus
extern "C" {
#endif
/* A buffer. */
struct duetp_buffer {
  void* data; /* 64-byte aligned */
  uint64_t bytes; /* of data */
};
/* The weights of a layer, or of the block of embedding and head. */
struct duetp_layer {
  duetp_shape shape;  /* of the whole model */
  uint32_t index;     /* 0 .. n_layer */
  duet_dtype weights; /* of the matrices */
  duetp_tensor tensor[DUETP_T_COUNT]; /* by id; data == NULL where the layer has none. Canonical, borrowed. */
};
/* Slots one after another; in a slot the layers one after another: att_x [C], wkv [H,N,N] (value row, key column), ffn_x [C]. */
struct duetp_state {
  duetp_shape shape; /* of the whole model */
  uint32_t n_slots;  /* of data */
  uint64_t slot_floats, layer_floats; /* from one slot or layer to the next */
  float* data; /* f32 [n_slots, L, C + H*N*N + C] */
};

/* Where the memory of a ref begins; NULL for none. */
static inline void* duetp_host_ptr(duetp_ref r) { return r.buf ? (char*)r.buf->data + r.off : (void*)0; }
static inline float* duetp_host_f32(duetp_ref r) { return (float*)duetp_host_ptr(r); }                 /* the same as f32 */
static inline const int32_t* duetp_host_i32(duetp_ref r) { return (const int32_t*)duetp_host_ptr(r); } /* the same as int32, of the frame */
/* att_x [C] of a slot and layer. Slot -1 has no memory: NULL, as in the two below. */
static inline float* duetp_host_att_x(const duetp_state* s, int32_t slot, uint32_t layer) {
  return slot < 0 ? (float*)0 : s->data + (uint64_t)slot * s->slot_floats + layer * s->layer_floats;
}
/* wkv [H,N,N] of a slot and layer */
static inline float* duetp_host_wkv(const duetp_state* s, int32_t slot, uint32_t layer) {
  return slot < 0 ? (float*)0 : duetp_host_att_x(s, slot, layer) + s->shape.n_embd;
}
/* ffn_x [C] of a slot and layer */
static inline float* duetp_host_ffn_x(const duetp_state* s, int32_t slot, uint32_t layer) {
  return slot < 0 ? (float*)0 : duetp_host_att_x(s, slot, layer) + s->layer_floats - s->shape.n_embd;
}
#ifdef __cplusplus
}
#endif
#endif
