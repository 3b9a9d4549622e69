// Weights on the device: one piece of memory a layer, laid out as the kernels read it.
#include <algorithm>
#include <cstdio>

#include "device.h"
#include "gpu/norm.h"
#include "gpu/shape.h"
#include "product.h"

namespace duet_cuda {
namespace {

bool is_matrix(uint32_t id) {
  return duetp_is_in_major(id) || (id >= DUETP_T_RECEPTANCE && id <= DUETP_T_OUTPUT) || id == DUETP_T_FFN_KEY || id == DUETP_T_FFN_VALUE || id == DUETP_T_EMB || id == DUETP_T_HEAD;
}
uint32_t element_bytes(duet_dtype t) { return t == DUET_F32 ? 4 : 2; }

// How a tensor lies canonically, and whether it is turned round on the device, to [columns, rows]
struct Grid {
  bool is_turned;
  uint32_t rows, columns, element_bytes;
};
Grid by_groups(const duetp_layer& l, uint32_t id, uint32_t element_bytes) {
  const duetp_quantised_form form = duetp_form_of(id, l.weights, l.rows[id], l.columns[id]);
  return {l.by_groups(id), static_cast<uint32_t>(form.tiles), static_cast<uint32_t>(form.groups), element_bytes};
}
Grid data_of(const duetp_layer& l, uint32_t id) {
  if (is_matrix(id) && l.quantised()) return by_groups(l, id, DUETP_QUANTISED_TILE * DUETP_QUANTISED_GROUP * (l.weights == DUET_I4 ? 4 : 8) / 8);
  const bool turned = l.transposed[id];
  return {turned, turned ? l.columns[id] : l.rows[id], turned ? l.rows[id] : l.columns[id], is_matrix(id) ? element_bytes(l.weights) : 4};
}
Grid scales_of(const duetp_layer& l, uint32_t id) { return by_groups(l, id, DUETP_QUANTISED_TILE * 2); }  // minimums too

duet_status layer_new(void* self, const duetp_layer_desc* desc, duetp_layer** out) {
  return guarded(self, [&](Device& d) {
    if (const char* why = refuses(self, desc->shape, desc->weights, 1)) throw Failure(DUET_E_UNSUPPORTED, why);
    if (desc->flags) throw Failure(DUET_E_UNSUPPORTED, "the CUDA backend does not train");
    auto l = std::make_unique<duetp_layer>();
    l->shape = *desc->shape;
    l->index = desc->index;
    l->weights = desc->weights;
    for (auto* offsets : {&l->offset, &l->scale_offset, &l->minimum_offset}) std::fill(std::begin(*offsets), std::end(*offsets), duetp_layer::kAbsent);
    uint64_t bytes = 0, largest = 0;
    for (uint32_t id = 0; id < desc->n_tensors && id < DUETP_T_COUNT; ++id) {
      const duetp_tensor* t = desc->tensors[id];
      if (!t || !t->data) continue;
      if (is_matrix(id) && l->quantised()) {
        const duetp_quantised_form form = duetp_form(t);
        l->rows[id] = form.out;
        l->columns[id] = form.in;
        if (l->by_groups(id)) largest = std::max(largest, t->bytes);
        const auto place = [&](uint64_t& offset, const void* data, uint64_t n) {
          if (!data) return;
          offset = bytes;
          bytes += (n + 255) / 256 * 256;
        };
        place(l->offset[id], t->data, t->bytes), place(l->scale_offset[id], t->scale, t->scale_bytes), place(l->minimum_offset[id], t->minimum, t->minimum_bytes);
        continue;
      }
      l->transposed[id] = duetp_is_in_major(id) || id == DUETP_T_FFN_VALUE;
      const uint32_t rows = is_matrix(id) ? t->dim[0] : 1, columns = is_matrix(id) ? t->dim[1] : static_cast<uint32_t>(t->bytes / sizeof(float));
      l->rows[id] = l->transposed[id] ? columns : rows;
      l->columns[id] = l->transposed[id] ? rows : columns;
      l->offset[id] = bytes;
      // R, K and V have no gap between them: one batched product reads them
      const bool followed = id == DUETP_T_RECEPTANCE || id == DUETP_T_KEY;
      bytes += followed ? t->bytes : (t->bytes + 255) / 256 * 256;
      if (l->transposed[id]) largest = std::max(largest, t->bytes);
    }
    char what[48];
    std::snprintf(what, sizeof what, desc->index == desc->shape->n_layer ? "embedding and head" : "layer %u", desc->index);
    l->memory = d.allocate(bytes, what);
    const Memory staging = d.allocate(largest, what);
    for (uint32_t id = 0; id < DUETP_T_COUNT; ++id) {
      if (!l->has(id)) continue;
      const duetp_tensor& t = *desc->tensors[id];
      const auto upload = [&](uint64_t offset, const void* src, uint64_t n, const Grid& grid) {
        if (offset == duetp_layer::kAbsent) return;
        char* to = l->memory.data() + offset;
        d.check(cudaMemcpyAsync(grid.is_turned ? staging.data() : to, src, n, cudaMemcpyHostToDevice, d.setup), "uploading weights");
        if (grid.is_turned) d.check(duet_gpu::transpose(staging.data(), to, grid.rows, grid.columns, grid.element_bytes, d.setup), "transposing weights");
      };
      upload(l->offset[id], t.data, t.bytes, data_of(*l, id));
      upload(l->scale_offset[id], t.scale, t.scale_bytes, scales_of(*l, id));
      upload(l->minimum_offset[id], t.minimum, t.minimum_bytes, scales_of(*l, id));
    }
    d.check(cudaStreamSynchronize(d.setup), "uploading weights");
    *out = l.release();
  });
}

duet_status layer_export(void* self, const duetp_layer* l, uint32_t id, void* dst, uint64_t n) {
  return guarded(self, [&](Device& d) {
    if (id >= DUETP_T_COUNT || !l->has(id)) throw Failure(DUET_E_NOT_FOUND, "the layer has no such tensor");
    const bool quantised = is_matrix(id) && l->quantised();
    const uint32_t size = is_matrix(id) ? element_bytes(l->weights) : sizeof(float);
    const uint64_t bytes = quantised ? duetp_form_of(id, l->weights, l->rows[id], l->columns[id]).bytes : static_cast<uint64_t>(l->rows[id]) * l->columns[id] * size;
    if (n != bytes) throw Failure(DUET_E_INVALID, "layer_export: size differs from the tensor's");
    const void* from = l->matrix(id);
    Memory staging;
    if (const Grid grid = data_of(*l, id); grid.is_turned) {
      staging = d.allocate(n, "reading weights");
      d.check(duet_gpu::transpose(from, staging.data(), grid.columns, grid.rows, grid.element_bytes, d.setup), "transposing weights");
      from = staging.data();
    }
    d.check(cudaMemcpyAsync(dst, from, n, cudaMemcpyDeviceToHost, d.setup), "reading weights");
    d.check(cudaStreamSynchronize(d.setup), "reading weights");
  });
}

void layer_free(void* self, duetp_layer* l) {
  const OnDevice here(static_cast<Device*>(self)->index);
  delete l;
}

}  // namespace

const char* refuses(void* self, const duetp_shape* shape, duet_dtype weights, uint32_t rung) {
  Device& d = *static_cast<Device*>(self);
  if (d.is_lost()) return nullptr;  // the driver may answer no question; the next call says so
  if (d.compute_major < 8) return "the CUDA backend needs a GPU of compute capability 8.0 or newer";
  if (rung > 2) return "the CUDA backend implements the stages (rung 1) and runs of layers (rung 2) only";
  const bool quantised = duetp_is_quantised(weights);
  if (weights != DUET_F32 && weights != DUET_BF16 && weights != DUET_F16 && !quantised) return "the CUDA backend takes weights in f32, bf16, f16, q8 and q4 only";
  if (shape->head_size % 8 != 0 || shape->head_size > 256) return "the CUDA backend takes head sizes that are multiples of 8 up to 256";
  if (shape->n_embd > duet_gpu::kMaxWidth) return "the CUDA backend takes widths up to 8192";
  const OnDevice here(d.index);
  if (!quantised && shape->n_ffn > most_skipped_inputs(weights)) return "n_ffn is more than this GPU's shared memory has room for in the channel mix";
  return nullptr;
}

void fill_layer_slots(duetp_device& t) {
  t.layer_new = layer_new;
  t.layer_export = layer_export;
  t.layer_free = layer_free;
}

}  // namespace duet_cuda
