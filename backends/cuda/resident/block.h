// A layer, and what a block has in shared memory.
#pragma once
#include "resident/plan.h"

namespace duet_cuda::resident {

struct Layer {
  const Plan& p;
  uint32_t i;  // of the run
  __device__ bool is_first() const { return p.first + i == 0; }
  __device__ const char* at(const uint32_t (&offset)[2][DUETP_T_COUNT], uint32_t id) const { return p.layer[i] + offset[is_first() ? 0 : 1][id]; }
  __device__ const bf16* matrix(uint32_t id) const { return reinterpret_cast<const bf16*>(at(p.offset, id)); }
  __device__ const float* vector(uint32_t id) const { return reinterpret_cast<const float*>(at(p.offset, id)); }
};

struct Shared {
  uint64_t full[kMaxStages], empty[kMaxStages], ready[2];  // ready: u of a tile
  volatile uint32_t under_way;  // stages whose copies may have not ended yet
  float sums[2][4];
  alignas(16) float u[kMaxSlice];
  alignas(16) char inner_q[kMaxSlice];  // u rounded, where weights are quantised
  float2 inner_scale[kMaxSlice / kGroup];
  alignas(16) float low[4][kHead];  // of the second low-rank products: decay, a, how much of the first layer's v, g
  alignas(16) float rkv[3 * kHead], k[kHead], v[kHead], minus_kk[kHead], b[kHead], out[kHead];
  float x[kMaxOwn], y[2][kMaxOwn];  // the columns; their norms for time mix and channel mix, which the state is to keep
  float2 norm_sums[kWarps];
  float mean;  // of x, the last time
  float2 time_shift[3 + kTimeMixes][kMaxOwn / 2], channel_shift[4][kMaxOwn / 2];  // weight and bias of the norm, the vector before, the mixes: the block's columns
  Products products[2];  // of layer 0, of the others
  __device__ const Products& products_of(const Layer& l) const { return products[l.is_first() ? 0 : 1]; }
  Share own, inner;      // this block's columns of x, rows of key
  int32_t slot;          // of the sequence's state
};

// What a layer has of the state of a slot; null without a state
struct StateOf {
  float* att_x;  // [C]
  char* S;       // [H, N, N], in p.a.stored
  float* ffn_x;  // [C]
  __device__ StateOf(const Plan& p, uint32_t i, const Shared& s) : att_x(nullptr), S(nullptr), ffn_x(nullptr) {
    if (s.slot < 0) return;
    char* of_layer = p.a.state + (p.first + i) * p.a.layer_stride + static_cast<uint64_t>(s.slot) * p.a.slot_stride;
    att_x = reinterpret_cast<float*>(of_layer);
    S = of_layer + p.C * sizeof(float);
    ffn_x = reinterpret_cast<float*>(S + p.C * kHead * p.a.stored_bytes);
  }
};

}  // namespace duet_cuda::resident
