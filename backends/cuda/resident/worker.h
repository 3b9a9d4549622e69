// The warps that compute: what all their steps are made of. What depends on the weights' form is in bf16_worker.h and
// quantised_worker.h; what a step adds is in a file of its own, each on top of the one before: token_shift.h, head.h, layers.h.
#pragma once
#include "resident/arithmetic.h"
#include "resident/told.h"

namespace duet_cuda::resident {

__device__ __forceinline__ void workers_meet() { meet<1, kWorkers>(); }
__device__ __forceinline__ void two_warps_meet() { meet<2, 64>(); }  // those of a head's channels

// The thread's number, so that what follows from it is computed where it is used: kept from layer to layer it would be spilled.
__device__ __forceinline__ uint32_t this_thread() {
  uint32_t i = threadIdx.x;
  asm volatile("" : "+r"(i));
  return i;
}

template <class Form>
struct Worker {
  const Plan& p;
  Shared& s;
  Ring<Form> ring;
  char* scratch;  // the form's
  uint32_t step;  // of the layer: what numbers carry
  const ResidentScratch& told = p.a.scratch;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  __device__ Worker(const Plan& plan, Shared& shared, const Ring<Form>& of, char* memory, uint32_t first_step) : p(plan), s(shared), ring(of), scratch(memory), step(first_step) {}

  // This block for others
  __device__ void is_waiting(bool is) const {
    if (threadIdx.x == 0) s.under_way = is ? kUnderWayMeanwhile : p.under_way;
  }
  __device__ uint64_t* own_parts() const { return told.parts + static_cast<uint64_t>(blockIdx.x) * p.C; }
};

}  // namespace duet_cuda::resident
