/* Host memory behind the structs of duet_host_memory.h: buffers, layers that borrow their weights, states, and a queue that
 * runs everything at once. Other plugins without memory of their own use these slots too. */
#include <stdio.h>
#include <string.h>

#include "duet_stage.h"
#include "reference.h"

static duet_status out_of_memory(struct reference* r, const char* what, uint64_t bytes) {
  char text[128];
  snprintf(text, sizeof text, "out of memory: %s of %llu bytes", what, (unsigned long long)bytes);
  return r->host.fail(r->host.self, DUET_E_MEMORY, text);
}

/* Zeroed; SIZE_MAX and overflow are the allocator's to refuse. */
static void* zeroed(struct reference* r, uint64_t bytes) {
  if (bytes > SIZE_MAX - 64) return NULL;
  void* p = r->host.alloc(r->host.self, bytes ? (size_t)bytes : 64, 64);
  if (p) memset(p, 0, (size_t)bytes);
  return p;
}

static duet_status buffer_new(void* self, uint64_t bytes, duetp_buffer** out) {
  struct reference* r = self;
  duetp_buffer* b = zeroed(r, sizeof *b);
  if (!b) return out_of_memory(r, "a buffer", bytes);
  b->data = zeroed(r, bytes);
  b->bytes = bytes;
  if (!b->data) {
    r->host.free(r->host.self, b);
    return out_of_memory(r, "a buffer", bytes);
  }
  *out = b;
  return DUET_OK;
}

static void buffer_free(void* self, duetp_buffer* b) {
  struct reference* r = self;
  if (!b) return;
  r->host.free(r->host.self, b->data);
  r->host.free(r->host.self, b);
}

static void* buffer_ptr(void* self, duetp_buffer* b) {
  (void)self;
  return b->data;
}

static duet_status upload(void* self, duetp_queue* q, duetp_ref dst, const void* src, uint64_t n) {
  (void)self, (void)q;
  if (n) memcpy(duetp_host_ptr(dst), src, (size_t)n);
  return DUET_OK;
}

static duet_status download(void* self, duetp_queue* q, void* dst, duetp_ref src, uint64_t n) {
  (void)self, (void)q;
  if (n) memcpy(dst, duetp_host_ptr(src), (size_t)n);
  return DUET_OK;
}

static duet_status copy(void* self, duetp_queue* q, duetp_ref dst, duetp_ref src, uint64_t n) {
  (void)self, (void)q;
  if (n) memmove(duetp_host_ptr(dst), duetp_host_ptr(src), (size_t)n);
  return DUET_OK;
}

static duet_status layer_new(void* self, const duetp_layer_desc* d, duetp_layer** out) {
  struct reference* r = self;
  duetp_layer* l = zeroed(r, sizeof *l);
  if (!l) return out_of_memory(r, "a layer", sizeof *l);
  l->shape = *d->shape;
  l->index = d->index;
  l->weights = d->weights;
  for (uint32_t i = 0; i < d->n_tensors && i < DUETP_T_COUNT; ++i)
    if (d->tensors[i]) l->tensor[i] = *d->tensors[i];
  *out = l;
  return DUET_OK;
}

static duet_status layer_export(void* self, const duetp_layer* l, uint32_t id, void* dst, uint64_t n) {
  struct reference* r = self;
  if (id >= DUETP_T_COUNT || !l->tensor[id].data) return r->host.fail(r->host.self, DUET_E_NOT_FOUND, "the layer has no such tensor");
  if (n != l->tensor[id].bytes) return r->host.fail(r->host.self, DUET_E_INVALID, "layer_export: size differs from the tensor's");
  memcpy(dst, l->tensor[id].data, (size_t)n);
  return DUET_OK;
}

static void layer_free(void* self, duetp_layer* l) {
  struct reference* r = self;
  r->host.free(r->host.self, l);
}

static duet_status queue_new(void* self, duetp_queue** out) {
  *out = self; /* work runs at once: the queue has no memory of its own */
  return DUET_OK;
}

static duet_status queue_wait(void* self, duetp_queue* q) {
  (void)self, (void)q;
  return DUET_OK;
}

static void queue_free(void* self, duetp_queue* q) { (void)self, (void)q; }

static duet_status state_new(void* self, const duetp_shape* s, uint32_t n_slots, duet_dtype wkv, duetp_state** out) {
  struct reference* r = self;
  if (wkv != DUET_F32 && wkv != DUET_BF16 && wkv != DUET_F16) return r->host.fail(r->host.self, DUET_E_UNSUPPORTED, "this device keeps the wkv state in f32, bf16 and f16 only");
  const uint64_t layer = 2 * (uint64_t)s->n_embd + (uint64_t)s->n_embd * s->head_size;
  const uint64_t slot = layer * s->n_layer, bytes = slot * n_slots * sizeof(float);
  struct reference_state* own = zeroed(r, sizeof *own);
  if (!own) return out_of_memory(r, "a state", bytes);
  duetp_state* st = &own->state;
  own->stored = wkv;
  st->shape = *s;
  st->n_slots = n_slots;
  st->slot_floats = slot;
  st->layer_floats = layer;
  st->data = zeroed(r, bytes);
  if (!st->data) {
    r->host.free(r->host.self, own);
    return out_of_memory(r, "a state", bytes);
  }
  *out = st;
  return DUET_OK;
}

static duet_status state_copy(void* self, duetp_queue* q, duetp_state* dst, uint32_t dst_slot, const duetp_state* src, uint32_t src_slot) {
  struct reference* r = self;
  float* to = dst->data + dst_slot * dst->slot_floats;
  (void)q;
  if (src && ((const struct reference_state*)src)->stored != ((const struct reference_state*)dst)->stored)
    return r->host.fail(r->host.self, DUET_E_INVALID, "state_copy: the wkv states are stored in different dtypes; export one and import it");
  if (src)
    memmove(to, src->data + src_slot * src->slot_floats, (size_t)dst->slot_floats * sizeof(float));
  else
    memset(to, 0, (size_t)dst->slot_floats * sizeof(float));
  return DUET_OK;
}

/* One part of the canonical form, to or from the slot; a NULL array is skipped. */
static void move_part(const duetp_state* s, uint32_t slot, uint64_t at, uint64_t n, float* out, const float* in) {
  for (uint32_t i = 0; i < s->shape.n_layer; ++i) {
    float* p = s->data + slot * s->slot_floats + i * s->layer_floats + at;
    if (out) memcpy(out + i * n, p, (size_t)n * sizeof(float));
    if (in) memcpy(p, in + i * n, (size_t)n * sizeof(float));
  }
}

static void move_state(const duetp_state* s, uint32_t slot, float* const out[3], const float* const in[3]) {
  const uint64_t c = s->shape.n_embd, m = c * s->shape.head_size;
  move_part(s, slot, 0, c, out[0], in[0]);
  move_part(s, slot, c, m, out[1], in[1]);
  move_part(s, slot, c + m, c, out[2], in[2]);
  const duet_dtype stored = ((const struct reference_state*)s)->stored;
  if (!in[1] || stored == DUET_F32) return;
  for (uint32_t i = 0; i < s->shape.n_layer; ++i) {
    float* S = duetp_host_wkv(s, (int32_t)slot, i);
    for (uint64_t j = 0; j < m; ++j) S[j] = duetp_stored(S[j], stored);
  }
}

static duet_status state_export(void* self, duetp_queue* q, const duetp_state* s, uint32_t slot, float* att_x, float* wkv, float* ffn_x) {
  (void)self, (void)q;
  move_state(s, slot, (float* const[]){att_x, wkv, ffn_x}, (const float* const[]){NULL, NULL, NULL});
  return DUET_OK;
}

static duet_status state_import(void* self, duetp_queue* q, duetp_state* s, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x) {
  (void)self, (void)q;
  move_state(s, slot, (float* const[]){NULL, NULL, NULL}, (const float* const[]){att_x, wkv, ffn_x});
  return DUET_OK;
}

static void state_free(void* self, duetp_state* s) {
  struct reference* r = self;
  if (!s) return;
  r->host.free(r->host.self, s->data);
  r->host.free(r->host.self, s);
}

const duetp_device duet_reference_memory = {
    .size = sizeof(duetp_device),
    .buffer_new = buffer_new,
    .buffer_free = buffer_free,
    .buffer_ptr = buffer_ptr,
    .upload = upload,
    .download = download,
    .copy = copy,
    .layer_new = layer_new,
    .layer_export = layer_export,
    .layer_free = layer_free,
    .queue_new = queue_new,
    .queue_wait = queue_wait,
    .queue_free = queue_free,
    .state_new = state_new,
    .state_copy = state_copy,
    .state_export = state_export,
    .state_import = state_import,
    .state_free = state_free,
};
