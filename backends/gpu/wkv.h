// The wkv recurrence, per head: w = exp(-exp(-1/2) sigmoid(w_raw));  S = S diag(w) + (S (-kk)) (kk*a)^T + v k^T;  y = S r.
#pragma once
#include "duet_types.h"
#include "gpu/port.h"

namespace duet_gpu {

struct Wkv {
  const float *r, *w_raw, *k, *v, *kk, *a;  // f32 [n_tokens, C], C = n_head * head_size
  float* y;                                 // f32 [n_tokens, C]
  void* state;                              // of one layer: slot s, head h at element s * slot_stride + h * N * N; [value][key]
  duet_dtype stored;                        // of its elements: f32, bf16 or f16 (stored.h)
  uint64_t slot_stride;                     // in elements
  // The packed sequences, in device memory, as duetp_frame has them
  const int32_t* used;    // i32[3]: tokens, sequences, rows of this run; at most the capacities below
  const int32_t* starts;  // i32[n_seqs + 1]
  const int32_t* slots;   // i32[n_seqs]; -1: from zero, the final state is dropped
  uint32_t n_tokens, n_seqs, max_len;  // capacities, from which grids come
  uint32_t n_head, head_size;
};

// Walks the tokens one by one, in f32: recurrent mode, and parallel mode in f32. Head sizes 1 to 256. The state is rounded after the last token.
Error wkv_sequential(const Wkv& a, Stream stream);

}  // namespace duet_gpu
