// wkv by chunks of 16 tokens on tensor cores: parallel mode of all but f32 weights.
//
// Operands of the products are tf32, sums and the state f32: y and the final state are within 1e-3 of exact ones in the L2 norm.
// A sequence of any length takes exactly its own decays. The state is rounded as it is stored, once a call.
#pragma once
#include "gpu/wkv.h"

namespace duet_cuda {

// How the work is cut. A block walks a segment of one sequence with `slice` value rows of one head: slice / 16 warps hold the state ("walkers"),
// `producers` warps prepare chunks, which does not need the state, and hand them over through a ring of `stages` chunks in shared memory.
// Narrow slices fill the chip when there are few heads and sequences, and prepare every chunk head_size / slice times. So do segments, which prepare
// all but the first and the last twice, and find on the way what each does to the state it begins with, at the cost of two states.
struct WkvPlan {
  uint32_t slice;      // a power of two from 16 to head_size
  uint32_t producers;  // at least 1; with the walkers (slice / 16, twice that with segments) at most 16, or 12 for heads of 128
  uint32_t stages;     // at least producers
  uint32_t segment;    // tokens of one, a multiple of 16; 0: sequences are not cut, as they must not be for heads of 128
};

// Whether there is a chunked kernel for heads of this size.
bool wkv_chunked_takes(uint32_t head_size);

// The plan for these capacities on the current device; with segments only if that is allowed and faster.
WkvPlan wkv_plan(uint32_t n_tokens, uint32_t n_seqs, uint32_t n_head, uint32_t head_size, bool segments);

// Device memory for the plan, or for wkv_plan's with segments; 0: none is of use.
uint64_t wkv_scratch_bytes(const WkvPlan& plan, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_head, uint32_t head_size);
uint64_t wkv_scratch_bytes(uint32_t n_tokens, uint32_t n_seqs, uint32_t n_head, uint32_t head_size);

// y and the states of the slots, for all packed sequences. `scratch` has wkv_scratch_bytes for the capacities of `a`; null: without segments, whose
// results differ by rounding. Pointers are multiples of 16 bytes. cudaErrorInvalidValue for a head size that is not taken or a plan
// that does not fit the device.
duet_gpu::Error wkv_chunked(const duet_gpu::Wkv& a, void* scratch, duet_gpu::Stream stream);
duet_gpu::Error wkv_chunked(const duet_gpu::Wkv& a, const WkvPlan& plan, void* scratch, duet_gpu::Stream stream);

}  // namespace duet_cuda
