// Layer norms with what stands around them: embedding, token shift and mix, the head's rows. Equations: docs/mathematics.md.
// x is the residual stream, f32 [n_tokens, width]; width is a multiple of 4, at most kMaxWidth. Matrix inputs ("m") are bf16
// with bf16 weights and f32 otherwise. All pointers are device memory.
#pragma once
#include "duet_types.h"
#include "gpu/port.h"

namespace duet_gpu {

constexpr uint32_t kMaxWidth = 8192;

// Where a token stands: its sequence's slot (-1: from zero, dropped), and whether it is the first or the last token there.
struct Place {
  int32_t slot, is_first, is_last, reserved;
};
struct Packed {  // the packed sequences of a duetp_frame; grids come from the capacities, work from `used`
  const int32_t* used;    // i32[3]: tokens, sequences, rows of this run
  const int32_t* starts;  // i32[n_seqs + 1]
  const int32_t* slots;   // i32[n_seqs]
  uint32_t n_tokens, n_seqs;
};
Error place_tokens(const Packed& p, Place* places, Stream stream);  // places [n_tokens]

struct Norm {
  const float *weight, *bias;  // [width]
  float epsilon;
};

// x = LN(emb[token])
struct Embed {
  const void* emb;  // [n_vocab, width]
  const void *scale, *minimum;  // of q8 and q4, in their stored form (duet_quantised.h)
  duet_dtype dtype;
  Norm norm;
  const int32_t *tokens, *used;
  float* x;
  uint32_t n_tokens, width;
};
Error embed(const Embed& a, Stream stream);

// y = LN(x);  out[q] (m) = y + (y_prev - y) * mix[q]. y_prev of a sequence's first token is the state's vector, which becomes
// y of the last token.
struct ShiftMix {
  const float* x;
  Norm norm;
  uint32_t n_mixes;     // 1 or 6
  const float* mix[6];  // [width]
  void* out[6];         // [n_tokens, width]
  bool bf16;
  float* state;         // slot s at state + s * slot_stride: [width]
  uint64_t slot_stride;
  const Place* places;
  Packed packed;
  uint32_t width;
  bool single;          // no sequence has more than one token
};
Error shift_mix(const ShiftMix& a, Stream stream);

// For each used row: LN(x[rows[i]]) as f32 and as matrix input; either may be null.
struct HeadRows {
  const float* x;
  Norm norm;
  const int32_t *rows, *used;
  float* hidden;  // [n_rows, width]
  void* input;    // [n_rows, width] (m)
  bool bf16;
  uint32_t n_rows, width;
};
Error head_rows(const HeadRows& a, Stream stream);

}  // namespace duet_gpu
