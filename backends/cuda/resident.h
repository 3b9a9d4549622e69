// A run of layers for one token of one sequence in one kernel: recurrent mode's for a single sequence, where every weight is
// read for one token and the steps between the reads must cost nothing. See resident.cu.
#pragma once
#include "gpu/port.h"

struct duetp_layer;

namespace duet_cuda {

// Whether the current device has what it takes (sm_90 or newer, and the shared memory), and the model's sizes fit.
bool resident_takes(const duetp_layer& any_layer);

// What the blocks hand each other. Device memory, uninitialised but for `tickets`.
struct ResidentScratch {
  float* rkv;         // [3, C]
  void* low;          // bf16 [sum of the ranks]
  void* gated;        // bf16 [C]
  float* parts;       // resident_parts_bytes
  uint32_t* tickets;  // [2], zero at first and again after each run
};
uint64_t resident_parts_bytes(uint32_t n_embd);

struct Resident {
  const duetp_layer* const* layers;  // [first .. first + n) of a model with bf16 weights
  uint32_t first, n;
  float *x, *v_first;  // f32 [C]
  float* state;        // of layer 0, slot 0: att_x [C], S [H, N, N], ffn_x [C]
  uint64_t layer_stride, slot_stride;  // of the state, in elements
  const int32_t *used, *starts, *slots;
  ResidentScratch scratch;
};
// cudaErrorInvalidValue if there are more layers than a launch has room for, or they lie differently in their memory.
duet_gpu::Error resident_layers(const Resident& a, duet_gpu::Stream stream);

}  // namespace duet_cuda
