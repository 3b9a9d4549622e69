// Waiting, and the ring of stages in shared memory through which weights come.
#pragma once
#include "barrier.h"
#include "resident/block.h"

namespace duet_cuda::resident {

template <class Passed>
__device__ __forceinline__ void wait_for(Passed&& passed) {
  for (uint32_t looks = 0; !passed();)
    if (++looks == kPatience) __trap();
}

// The same for all lanes of a warp: until it is so for each of them, so that they stay together. Shuffles of lanes that are apart
// take the better part of a microsecond.
template <class Passed>
__device__ __forceinline__ void warp_waits_for(Passed&& passed) {
  for (uint32_t looks = 0; !__all_sync(~0u, passed());)
    if (++looks == kPatience) __trap();
}

template <class Form>
struct Ring {
  static constexpr uint32_t kStages = Form::kStages;
  char* data;
  Shared& s;
  uint32_t stage = 0, parity = 0;
  __device__ char* memory() const { return data + stage * Form::kStageBytes; }
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  // The copying thread's: room for a stage of so many bytes
  __device__ void open(uint32_t bytes) {
    const uint32_t under_way = s.under_way, before = stage >= under_way ? stage - under_way : stage + kStages - under_way;
    wait_for([&] { return barrier_passed_soon(&s.full[before], before > stage ? parity ^ 1 : parity); });
    wait_for([&] { return barrier_passed_soon(&s.empty[stage], parity ^ 1); });
    barrier_expect(&s.full[stage], bytes);
  }
  __device__ void copy(uint32_t at, const void* from, uint32_t bytes) { copy_bulk(memory() + at, from, bytes, &s.full[stage]); }
  // The workers': every warp takes every stage, also if it needs nothing of it
  __device__ const uint4* take() {
    wait_for([&] { return barrier_passed_soon(&s.full[stage], parity); });
    return reinterpret_cast<const uint4*>(memory());
  }
  __device__ void give_back() {
    warp_arrives(&s.empty[stage]);
    next();
  }
};

}  // namespace duet_cuda::resident
