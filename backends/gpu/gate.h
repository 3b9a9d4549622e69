// What stands between the products and the wkv recurrence, in f32. All pointers are device memory, [n_tokens, C] unless said
// otherwise, C = n_head * head_size; head sizes are multiples of 8 up to 256. Equations: docs/mathematics.md.
#pragma once
#include "duet_types.h"
#include "gpu/port.h"

namespace duet_gpu {

struct PrepareWeights {
  const float *w0, *a0, *v0, *k_k, *k_a;  // [C]; v0 null in layer 0
};

// wkv_prepare. Outputs may be the inputs of the same letter.
struct Prepare {
  PrepareWeights weights;
  const float *k, *v, *lw, *la, *lv;  // lv null in layer 0
  const float* v_first_in;            // null in layer 0
  float *k_out, *v_out, *w_raw, *a, *kk;
  float* v_first_out;                 // layer 0's; else null
  const int32_t* used;                // used[0] tokens
  uint32_t n_tokens, n_head, head_size;
};
Error prepare(const Prepare& p, Stream stream);

struct NormGateWeights {
  const float *ln_w, *ln_b, *r_k;  // [C]
  float epsilon;
};
struct NormGate {
  NormGateWeights weights;
  const float *y, *r, *k, *v, *g;
  void* out;  // (m): bf16 or f32
  bool bf16;
  const int32_t* used;
  uint32_t n_tokens, n_head, head_size;
};
Error norm_gate(const NormGate& p, Stream stream);

// prepare, one token of wkv and norm_gate in one kernel: recurrent mode's, at most one token per sequence.
struct RecurrentHeads {
  PrepareWeights prepare;
  NormGateWeights norm;
  const float *r, *k, *v, *lw, *la, *lv, *g;
  float* v_first;  // written in layer 0 (lv null), else read
  void* out;       // (m)
  bool bf16;
  void* state;     // as in Wkv
  duet_dtype stored;
  uint64_t slot_stride;
  const int32_t *used, *starts, *slots;
  uint32_t n_seqs, n_head, head_size;
};
bool recurrent_heads_takes(uint32_t head_size);  // 32, 64 and 128
Error recurrent_heads(const RecurrentHeads& a, Stream stream);

}  // namespace duet_gpu
