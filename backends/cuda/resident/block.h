// What a block has in shared memory, and a layer as it sees it.
#pragma once
#include "resident/plan.h"

namespace duet_cuda::resident {

struct Shared {
  uint64_t full[kStages], empty[kStages], ready[2];  // ready: u of a tile
  volatile uint32_t is_waiting;  // this block for others
  float sums[2][4];
  float u[kMaxSlice];
  alignas(16) float low[4][kHead];  // of the second low-rank products: decay, a, how much of the first layer's v, g
  alignas(16) float rkv[3 * kHead], k[kHead], v[kHead], minus_kk[kHead], b[kHead], y[kHead];
  float x[kMaxOwn];
  float2 time_shift[3 + kTimeMixes][kMaxOwn / 2], channel_shift[4][kMaxOwn / 2];  // weight and bias of the norm, the vector before, the mixes: the block's columns
  float columns[kWarps][32];
  Products products[2];  // of layer 0, of the others
  Share own, inner;      // this block's columns of x, rows of key
};

struct Layer {
  const char* memory;
  const uint32_t* offset;
  const Shared& s;
  bool is_first;
  __device__ Layer(const Plan& p, uint32_t i, const Shared& shared) : memory(p.layer[i]), offset(p.offset[p.first + i > 0]), s(shared), is_first(p.first + i == 0) {}
  __device__ const Products& products() const { return s.products[is_first ? 0 : 1]; }  // this block's rows
  __device__ const bf16* matrix(uint32_t id) const { return reinterpret_cast<const bf16*>(memory + offset[id]); }
  __device__ const float* vector(uint32_t id) const { return reinterpret_cast<const float*>(memory + offset[id]); }
};

// What a layer has of the state of a slot; null without a state
struct StateOf {
  float* att_x;  // [C]
  char* S;       // [H, N, N], in p.a.stored
  float* ffn_x;  // [C]
  __device__ StateOf(const Plan& p, uint32_t layer, int32_t slot) : att_x(nullptr), S(nullptr), ffn_x(nullptr) {
    if (slot < 0) return;
    char* of_layer = p.a.state + layer * p.a.layer_stride + static_cast<uint64_t>(slot) * p.a.slot_stride;
    att_x = reinterpret_cast<float*>(of_layer);
    S = of_layer + p.C * sizeof(float);
    ffn_x = reinterpret_cast<float*>(S + p.C * kHead * p.a.stored_bytes);
  }
};

}  // namespace duet_cuda::resident
