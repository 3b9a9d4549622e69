// A run of layers for one token of one sequence in one kernel: recurrent mode's for a single sequence, where every weight is
// read for one token and the steps between the reads must cost nothing. See resident.cu.
#pragma once
#include "device.h"
#include "gpu/port.h"

namespace duet_cuda {

// Whether the current device has what it takes (sm_90 or newer, and the shared memory), and the model's sizes fit.
bool resident_takes(const duetp_layer& any_layer);

// What the blocks tell each other: an f32 number, two of bf16 or four of 8 bits in a word with the step that they belong to. Device memory, zero at first,
// then this kernel's alone: it goes on where the last run ended.
struct ResidentScratch {
  uint64_t* rkv;       // [3, C]
  uint64_t* low;       // the hidden vectors, one after another: w, a, v, g; with quantised weights each counted up to groups of 64
  uint64_t* sums;      // [2, owners of x, 2]: of x and of its squares, for time mix and for channel mix
  uint64_t* mixes;     // [7, C / 2]: what token shifts make, two of bf16 in a word, or groups of 64 in 18 words (quantised_worker.h)
  uint64_t* x;         // [2, C]: in narrow models x itself instead of sums and mixes, for time mix and for channel mix
  uint64_t* gated;     // [C / 2]: output's inputs, in the same way
  uint64_t* parts;     // [blocks, C]
  uint32_t* steps;     // [2]: how many have been, and which blocks have ended
};
uint64_t resident_scratch_bytes(const duetp_shape& shape);
ResidentScratch lay_out_resident(void* memory, const duetp_shape& shape);  // on the current device

struct Resident {
  const duetp_layer* const* layers;  // [first .. first + n) of a model with bf16, q8 or q4 weights
  uint32_t first, n;
  float *x, *v_first;  // f32 [C]
  char* state;         // of layer 0, slot 0: att_x f32 [C], S [H, N, N], ffn_x f32 [C]
  duet_dtype stored;   // of S: f32, bf16 or f16
  uint32_t stored_bytes;
  uint64_t layer_stride, slot_stride;  // of the state, in bytes
  const int32_t *used, *starts, *slots;
  ResidentScratch scratch;
};
// cudaErrorInvalidValue if there are more layers than a launch has room for, or they lie differently in their memory.
duet_gpu::Error resident_layers(const Resident& a, duet_gpu::Stream stream);

}  // namespace duet_cuda
