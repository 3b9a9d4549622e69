// The tensor core's m16n8k16 on bf16, with weights as the left operand: 16 outputs by 8 rows of input.
#pragma once
#include "gpu/port.h"

namespace duet_cuda {

// Thread (g = lane / 4, t = lane % 4) holds sum[0..1] of output g and sum[2..3] of output g + 8, for the input rows 2t, 2t + 1.
struct Sums {
  float v[4] = {0, 0, 0, 0};
};

// a0: output g, first pair of k; a1: output g + 8, first pair; a2, a3: the same of the second pair. b0, b1: input row g. Which
// of the 16 k a pair stands for is free as long as both operands agree.
__device__ __forceinline__ void multiply(Sums& s, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(s.v[0]), "+f"(s.v[1]), "+f"(s.v[2]), "+f"(s.v[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// A 16-byte load of what is read once.
__device__ __forceinline__ uint4 stream_load(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

// Asks for bytes (a multiple of 16) to be in the L2 cache soon.
__device__ __forceinline__ void prefetch_l2(const void* p, uint32_t bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(bytes) : "memory");
#endif
}

}  // namespace duet_cuda
