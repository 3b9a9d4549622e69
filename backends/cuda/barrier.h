// Barriers in shared memory (mbarrier), and the copies that count on them. Bulk copies need sm_90.
#pragma once
#include <cstdint>

namespace duet_cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(shared_address(barrier)) : "memory");
}
// A warp's arrival: one lane's for all. compute-sanitizer's racecheck sees no order through that; compiled with DUET_RACECHECK,
// all lanes arrive.
#if defined(DUET_RACECHECK)
constexpr uint32_t kArrivalsOfWarp = 32;
#else
constexpr uint32_t kArrivalsOfWarp = 1;
#endif
__device__ __forceinline__ void warp_arrives(uint64_t* barrier) {
  __syncwarp();
  if (kArrivalsOfWarp > 1 || threadIdx.x % 32 == 0) barrier_arrive(barrier);
}
// Whether the phase of this parity is over, as it is for parity 1 before the first phase. Returns at once.
__device__ __forceinline__ bool barrier_passed(uint64_t* barrier, uint32_t parity) {
  uint32_t passed;
  asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(passed)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return passed != 0;
}
// The same, but the warp may sleep for a while first.
__device__ __forceinline__ bool barrier_passed_soon(uint64_t* barrier, uint32_t parity) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  uint32_t passed;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
               : "=r"(passed)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return passed != 0;
#else
  return barrier_passed(barrier, parity);
#endif
}

// Some of a block's threads, n in whole warps, meet at its barrier of this number (1 to 15). racecheck sees no order through that
// either; compiled with DUET_RACECHECK they meet at one in shared memory, which make_meeting makes.
#if defined(DUET_RACECHECK)
static __shared__ uint64_t meetings[16];
constexpr int kMeetingBytes = 128;  // less for everything else
#else
constexpr int kMeetingBytes = 0;
#endif
template <uint32_t number, uint32_t n>
__device__ __forceinline__ void make_meeting() {
#if defined(DUET_RACECHECK)
  barrier_init(&meetings[number], n);
#endif
}
template <uint32_t number, uint32_t n>
__device__ __forceinline__ void meet() {
#if defined(DUET_RACECHECK)
  uint64_t before;
  asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(before) : "r"(shared_address(&meetings[number])) : "memory");
  for (uint32_t passed = 0; !passed;)
    asm volatile("{ .reg .pred p; mbarrier.test_wait.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(passed) : "r"(shared_address(&meetings[number])), "l"(before) : "memory");
  __syncwarp();
#else
  asm volatile("bar.sync %0, %1;" ::"n"(number), "n"(n) : "memory");
#endif
}

// After barrier_init, so that copies see the barriers too.
__device__ __forceinline__ void barriers_are_made() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Arrives, and has the phase wait for so many bytes of copies too.
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
#endif
}
// Bytes and addresses are multiples of 16. What is copied is not read again soon, and makes room in the L2 first.
__device__ __forceinline__ void copy_bulk(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .b64 once; createpolicy.fractional.L2::evict_first.b64 once, 1.0;"
               " cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], once; }" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
#endif
}

}  // namespace duet_cuda
