// What compute capability 9.0a has for tiles: copies of boxes into shared memory that report to a barrier, and products of a whole
// warpgroup that read their operands from there. Where there is no such hardware the functions are not there either.
#pragma once
#include "barrier.h"
#include "gpu/port.h"
#if defined(DUET_WATCHDOG_SPEAKS)
#include <cstdio>
#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define DUET_HAS_TILES
#endif

namespace duet_cuda {

#if defined(DUET_HAS_TILES)
// A warpgroup gives back registers, down to so many for each thread, or takes what others gave back
template <int n>
__device__ __forceinline__ void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
__device__ __forceinline__ void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

// ---- barriers (barrier.h) ----

// After barriers have been made: copies will see them
__device__ __forceinline__ void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory"); }
// Until the phase of this parity is over
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
#if defined(DUET_WATCHDOG)
  const long long start = clock64();
#endif
  while (!barrier_passed_soon(barrier, parity)) {
#if defined(DUET_WATCHDOG)
    if (clock64() - start > DUET_WATCHDOG) {
#if defined(DUET_WATCHDOG_SPEAKS)  // costs registers and keeps products from overlapping
      printf("stuck: block %u thread %u barrier at %u parity %u\n", blockIdx.x, threadIdx.x, shared_address(barrier), parity);
#endif
      __trap();
    }
#endif
  }
}

// ---- copies of boxes ----

// For what is read once, and for what all blocks read
__device__ __forceinline__ uint64_t read_once() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t read_often() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// The box whose first element is (inner, outer); what lies outside the matrix arrives as zeros, and counts as bytes all the same
__device__ __forceinline__ void copy_box(uint32_t to, const void* map, uint32_t inner, uint32_t outer, uint64_t* barrier, uint64_t policy) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to), "l"(map), "r"(inner), "r"(outer),
               "r"(shared_address(barrier)), "l"(policy)
               : "memory");
}

// ---- products of a warpgroup: 64 x 16 by 16 x n bf16, added up in f32 ----
// Thread (warp, g = lane / 4, t = lane % 4) holds d[4 j + i] of row 16 warp + g + 8 (i / 2) and column 8 j + 2 t + i % 2.

// Operand in shared memory whose rows are 128 bytes, swizzled as copies do it, at a multiple of 1024 bytes: groups of eight rows
// follow one another. For operands that run along k in a row, and for those that run across (transposed), where rows are k.
__device__ __forceinline__ uint64_t operand(uint32_t address) { return (1ull << 62) | (64ull << 32) | (1ull << 16) | ((address & 0x3ffff) >> 4); }
// 16 further along k
template <bool kTransposed>
__device__ __forceinline__ uint64_t next_operand(uint64_t o) {
  return o + (kTransposed ? 16 * 128 : 16 * 2) / 16;
}
// Around products: before the first, after what has been done to d; after the last, as a group; and when at most kPending groups run
__device__ __forceinline__ void tiles_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void tiles_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void tiles_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from touching d before this point
template <int n>
__device__ __forceinline__ void settle(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// d = a b (+ d if add)
#define DUET_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define DUET_SUMS_16(i) DUET_SUMS_4(i), DUET_SUMS_4(i + 4), DUET_SUMS_4(i + 8), DUET_SUMS_4(i + 12)
template <bool kTransposed>
__device__ __forceinline__ void multiply_tile(float (&d)[4], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile("{ .reg .pred more; setp.ne.b32 more, %6, 0; wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%0, %1, %2, %3}, %4, %5, more, 1, 1, %7, 0; }"
               : DUET_SUMS_4(0)
               : "l"(a), "l"(b), "r"(add), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ __forceinline__ void multiply_tile(float (&d)[8], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile("{ .reg .pred more; setp.ne.b32 more, %10, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0, %1, %2, %3, %4, %5, %6, %7}, %8, %9, more, 1, 1, %11, 0; }"
               : DUET_SUMS_4(0), DUET_SUMS_4(4)
               : "l"(a), "l"(b), "r"(add), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ __forceinline__ void multiply_tile(float (&d)[16], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile("{ .reg .pred more; setp.ne.b32 more, %18, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
               "}, %16, %17, more, 1, 1, %19, 0; }"
               : DUET_SUMS_16(0)
               : "l"(a), "l"(b), "r"(add), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ __forceinline__ void multiply_tile(float (&d)[32], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile("{ .reg .pred more; setp.ne.b32 more, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
               "}, %32, %33, more, 1, 1, %35, 0; }"
               : DUET_SUMS_16(0), DUET_SUMS_16(16)
               : "l"(a), "l"(b), "r"(add), "n"(kTransposed ? 1 : 0));
}
template <bool kTransposed>
__device__ __forceinline__ void multiply_tile(float (&d)[64], uint64_t a, uint64_t b, uint32_t add) {
  asm volatile("{ .reg .pred more; setp.ne.b32 more, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
               "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
               "}, %64, %65, more, 1, 1, %67, 0; }"
               : DUET_SUMS_16(0), DUET_SUMS_16(16), DUET_SUMS_16(32), DUET_SUMS_16(48)
               : "l"(a), "l"(b), "r"(add), "n"(kTransposed ? 1 : 0));
}
#undef DUET_SUMS_16
#undef DUET_SUMS_4
#endif

}  // namespace duet_cuda
