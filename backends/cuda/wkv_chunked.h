// wkv by chunks of 16 tokens on tensor cores: parallel mode of all but f32 weights.
//
// Operands of the products are tf32, sums and the state f32: y and the final state are within 1e-3 of exact ones in the L2 norm.
// Nothing is rounded at the ends: a sequence of any length takes exactly its own decays.
#pragma once
#include "gpu/wkv.h"

namespace duet_cuda {

// How the work is cut. A block walks one sequence with `slice` value rows of one head: slice / 16 warps hold the state ("walkers"), `producers`
// warps prepare chunks, which does not need the state, and hand them over through a ring of `stages` chunks in shared memory.
// Narrow slices fill the chip when there are few heads and sequences, and prepare every chunk head_size / slice times.
struct WkvPlan {
  uint32_t slice;      // a power of two from 16 to head_size
  uint32_t producers;  // 1 to 16 - slice / 16
  uint32_t stages;     // at least producers
};

// Whether there is a chunked kernel for heads of this size.
bool wkv_chunked_takes(uint32_t head_size);

// The plan for so many sequences (capacity) and heads on the current device.
WkvPlan wkv_plan(uint32_t n_seqs, uint32_t n_head, uint32_t head_size);

// y and the states of the slots, for all packed sequences; pointers and slot_stride are multiples of 16 bytes. cudaErrorInvalidValue for a head size
// that is not taken or a plan that does not fit the device.
duet_gpu::Error wkv_chunked(const duet_gpu::Wkv& a, duet_gpu::Stream stream);
duet_gpu::Error wkv_chunked(const duet_gpu::Wkv& a, const WkvPlan& plan, duet_gpu::Stream stream);

}  // namespace duet_cuda
