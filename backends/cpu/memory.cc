// Buffers, layers and states.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "device.h"
#include "duet_quantised.h"
#include "queue.h"

namespace duet_cpu {

constexpr uint64_t kHuge = 2 << 20;

void* memory(const Device& d, uint64_t bytes) {
  if (bytes > SIZE_MAX - 2 * kHuge) return nullptr;
  if (bytes < kHuge / 2) return d.host.alloc(d.host.self, bytes ? bytes : 64, 64);
  const uint64_t rounded = (bytes + kHuge - 1) / kHuge * kHuge;
  void* p = d.host.alloc(d.host.self, rounded, kHuge);
  if (p) ::madvise(p, rounded, MADV_HUGEPAGE);  // refused: small pages, which are slower and as right
  return p;
}

void* zeroed(const Device& d, uint64_t bytes) {
  void* p = memory(d, bytes);
  if (p) std::memset(p, 0, bytes);
  return p;
}

namespace {

duet_status out_of_memory(const Device& d, const char* what, uint64_t bytes) {
  char text[96];
  std::snprintf(text, sizeof text, "out of memory: %s of %llu bytes", what, static_cast<unsigned long long>(bytes));
  return d.fail(DUET_E_MEMORY, text);
}

duet_status buffer_new(void* self, uint64_t bytes, duetp_buffer** out) {
  const Device& d = *static_cast<Device*>(self);
  auto* b = static_cast<duetp_buffer*>(zeroed(d, sizeof(duetp_buffer)));
  if (!b) return out_of_memory(d, "a buffer", bytes);
  b->bytes = bytes;
  b->data = static_cast<char*>(zeroed(d, bytes));
  if (b->data) return *out = b, DUET_OK;
  d.host.free(d.host.self, b);
  return out_of_memory(d, "a buffer", bytes);
}

void buffer_free(void* self, duetp_buffer* b) {
  const Device& d = *static_cast<Device*>(self);
  if (!b) return;
  d.host.free(d.host.self, b->data);
  d.host.free(d.host.self, b);
}

void* buffer_ptr(void*, duetp_buffer* b) { return b->data; }

// ---- layers ----

bool is_matrix(uint32_t id) { return duetp_is_in_major(id) || (id >= DUETP_T_RECEPTANCE && id <= DUETP_T_OUTPUT) || id == DUETP_T_FFN_KEY || id == DUETP_T_FFN_VALUE || id == DUETP_T_EMB || id == DUETP_T_HEAD; }

// Whole huge pages only: half of one would be wasted in each layer.
bool copy_value_by_inputs(const Device& d, duetp_layer& l) {
  const Matrix& m = l.matrix[DUETP_T_FFN_VALUE];
  if (!m.data || m.quantised() || l.has_value_by_inputs()) return true;
  const size_t element = m.dtype == DUET_F32 ? 4 : 2, bytes = element * m.in * m.out;
  void* value = d.host.alloc(d.host.self, bytes, bytes < kHuge ? 64 : kHuge);
  if (!value) return false;
  if (bytes >= kHuge) ::madvise(value, bytes / kHuge * kHuge, MADV_HUGEPAGE);
  struct Share {
    const Matrix& m;
    size_t element;
    void* to;
  } share{m, element, value};
  const auto transpose_share = [](void* ctx, uint32_t i, uint32_t n) {
    const Share& s = *static_cast<const Share*>(ctx);
    const size_t units = (s.m.out + kTileColumns - 1) / kTileColumns;
    const auto bound = [&](size_t k) { return std::min<size_t>(units * k / n * kTileColumns, s.m.out); };
    transpose(s.m.data, s.element, s.m.out, s.m.in, bound(i), bound(i + 1), s.to);
  };
  d.host.team(d.host.self, transpose_share, &share);
  l.value_by_inputs = m;
  l.value_by_inputs.data = value;
  l.value_by_inputs.in_major = true;
  l.value.store(value, std::memory_order_release);
  return true;
}

duet_status layer_new(void* self, const duetp_layer_desc* desc, duetp_layer** out) {
  Device& d = *static_cast<Device*>(self);
  if (!takes_weights(desc->weights)) return d.fail(DUET_E_UNSUPPORTED, kWeightsTaken);
  if (desc->flags) return d.fail(DUET_E_UNSUPPORTED, "the CPU backend does not train");
  auto* l = static_cast<duetp_layer*>(zeroed(d, sizeof(duetp_layer)));
  if (!l) return out_of_memory(d, "a layer", sizeof(duetp_layer));
  const duet_status status = guarded(d, [&] {
    l->shape = *desc->shape;
    l->index = desc->index;
    l->weights = desc->weights;
    l->bf16 = desc->weights == DUET_BF16;
    for (uint32_t id = 0; id < desc->n_tensors && id < DUETP_T_COUNT; ++id) {
      const duetp_tensor* t = desc->tensors[id];
      if (!t || !t->data) continue;
      l->bytes[id] = t->bytes;
      if (!is_matrix(id)) {
        l->vector[id] = static_cast<const float*>(t->data);
        continue;
      }
      const bool in_major = duetp_is_in_major(id);
      l->matrix[id] = {t->data, t->dtype, t->dim[in_major ? 0 : 1], t->dim[in_major ? 1 : 0], in_major, t->scale, t->minimum};
      if (!l->matrix[id].quantised() && id != DUETP_T_EMB && id != DUETP_T_HEAD) l->gemm[id] = d.gemms.get(l->matrix[id].in, l->bf16 && d.gemms.has_bf16());
    }
    return static_cast<duet_status>(DUET_OK);
  });
  if (status != DUET_OK) return d.host.free(d.host.self, l), status;
  *out = l;
  return DUET_OK;
}

duet_status layer_export(void* self, const duetp_layer* l, uint32_t id, void* dst, uint64_t n) {
  const Device& d = *static_cast<Device*>(self);
  const void* data = id >= DUETP_T_COUNT ? nullptr : is_matrix(id) ? l->weights_of(id).data : l->vector[id];
  if (!data) return d.fail(DUET_E_NOT_FOUND, "the layer has no such tensor");
  if (n != l->bytes[id]) return d.fail(DUET_E_INVALID, "layer_export: size differs from the tensor's");
  if (const Matrix& m = l->value_by_inputs; id == DUETP_T_FFN_VALUE && data == m.data)
    transpose(data, m.dtype == DUET_F32 ? 4 : 2, m.in, m.out, 0, m.in, dst);
  else
    std::memcpy(dst, data, n);
  return DUET_OK;
}

// Where parallel mode has no panels, the layout decides the order of its sums, so there it must not change between two passes.
duet_status layer_prepare(void* self, duetp_layer* l, duet_mode mode, uint64_t* copied) {
  const Device& d = *static_cast<Device*>(self);
  const bool wanted = mode == DUET_MODE_RECURRENT || !l->gemm[DUETP_T_FFN_VALUE];
  if (wanted && !copy_value_by_inputs(d, *l)) return out_of_memory(d, "a layer's value matrix", l->bytes[DUETP_T_FFN_VALUE]);
  *copied = l->has_value_by_inputs() ? uint64_t{1} << DUETP_T_FFN_VALUE : 0;
  return DUET_OK;
}

void layer_free(void* self, duetp_layer* l) {
  const Device& d = *static_cast<Device*>(self);
  if (l) d.host.free(d.host.self, l->value);
  d.host.free(d.host.self, l);
}

// ---- states ----

uint64_t padded(uint64_t floats) { return (floats + 15) / 16 * 16; }

duet_status state_new(void* self, const duetp_shape* shape, uint32_t n_slots, duet_dtype wkv, duetp_state** out) {
  const Device& d = *static_cast<Device*>(self);
  if (wkv != DUET_F32) return d.fail(DUET_E_UNSUPPORTED, "the CPU backend keeps the wkv state in f32 only");
  auto* s = static_cast<duetp_state*>(zeroed(d, sizeof(duetp_state)));
  if (!s) return out_of_memory(d, "a state", sizeof(duetp_state));
  s->shape = *shape;
  s->n_slots = n_slots;
  s->c = padded(shape->n_embd);
  s->s = static_cast<uint64_t>(shape->n_head) * shape->head_size * wkv_stride(shape->head_size);
  s->layer = 2 * s->c + s->s;
  s->slot = s->layer * shape->n_layer;
  const uint64_t bytes = s->slot * n_slots * sizeof(float);
  s->data = static_cast<float*>(zeroed(d, bytes));
  if (s->data) return *out = s, DUET_OK;
  d.host.free(d.host.self, s);
  return out_of_memory(d, "a state", bytes);
}

void state_free(void* self, duetp_state* s) {
  const Device& d = *static_cast<Device*>(self);
  if (!s) return;
  d.host.free(d.host.self, s->data);
  d.host.free(d.host.self, s);
}

duet_status state_copy(void*, duetp_queue* q, duetp_state* dst, uint32_t dst_slot, const duetp_state* src, uint32_t src_slot) {
  if (const duet_status status = q->flush(); status != DUET_OK) return status;
  float* to = dst->data + dst_slot * dst->slot;
  if (src)
    std::memmove(to, src->data + src_slot * src->slot, dst->slot * sizeof(float));
  else
    std::memset(to, 0, dst->slot * sizeof(float));
  return DUET_OK;
}

// f(number of the canonical [value][key], number of the own [key][value]) for each of a layer's S
template <class Canonical, class F>
void each_number(const duetp_state& s, Canonical* canonical, float* own, const F& f) {
  const uint64_t N = s.shape.head_size, stride = wkv_stride(N);
  for (uint64_t h = 0; h < s.shape.n_head; ++h, canonical += N * N, own += N * stride)
    for (uint64_t value = 0; value < N; ++value)
      for (uint64_t key = 0; key < N; ++key) f(canonical[value * N + key], own[key * stride + value]);
}

duet_status state_export(void*, duetp_queue* q, const duetp_state* s, uint32_t slot, float* att_x, float* wkv, float* ffn_x) {
  if (const duet_status status = q->flush(); status != DUET_OK) return status;
  const uint64_t C = s->shape.n_embd, M = C * s->shape.head_size;
  const int32_t i = static_cast<int32_t>(slot);
  for (uint32_t l = 0; l < s->shape.n_layer; ++l) {
    if (att_x) std::memcpy(att_x + l * C, s->att_x(i, l), C * sizeof(float));
    if (ffn_x) std::memcpy(ffn_x + l * C, s->ffn_x(i, l), C * sizeof(float));
    if (wkv) each_number(*s, wkv + l * M, s->wkv(i, l), [](float& canonical, float own) { canonical = own; });
  }
  return DUET_OK;
}

duet_status state_import(void*, duetp_queue* q, duetp_state* s, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x) {
  if (const duet_status status = q->flush(); status != DUET_OK) return status;
  const uint64_t C = s->shape.n_embd, M = C * s->shape.head_size;
  const int32_t i = static_cast<int32_t>(slot);
  for (uint32_t l = 0; l < s->shape.n_layer; ++l) {
    if (att_x) std::memcpy(s->att_x(i, l), att_x + l * C, C * sizeof(float));
    if (ffn_x) std::memcpy(s->ffn_x(i, l), ffn_x + l * C, C * sizeof(float));
    if (wkv) each_number(*s, wkv + l * M, s->wkv(i, l), [](float canonical, float& own) { own = canonical; });
  }
  return DUET_OK;
}

}  // namespace

void fill_memory_slots(duetp_device& t) {
  t.buffer_new = buffer_new;
  t.buffer_free = buffer_free;
  t.buffer_ptr = buffer_ptr;
  t.layer_new = layer_new;
  t.layer_export = layer_export;
  t.layer_free = layer_free;
  t.layer_prepare = layer_prepare;
  t.state_new = state_new;
  t.state_copy = state_copy;
  t.state_export = state_export;
  t.state_import = state_import;
  t.state_free = state_free;
}

}  // namespace duet_cpu
