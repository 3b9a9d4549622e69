// What blocks tell each other.
#pragma once
#include "resident/ring.h"

namespace duet_cuda::resident {

// An f32 number, two of bf16 or four of 8 bits that carry the step they belong to, in one word of 64 bits, which is written and read as a whole
__device__ __forceinline__ void tell_bits(uint64_t* to, uint32_t x, uint32_t step) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(static_cast<uint64_t>(step) << 32 | x) : "memory");
}
__device__ __forceinline__ void tell(uint64_t* to, float x, uint32_t step) { tell_bits(to, __float_as_uint(x), step); }
__device__ __forceinline__ void tell(uint64_t* to, float2 x, uint32_t step) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(x.x, x.y);
  tell_bits(to, *reinterpret_cast<const uint32_t*>(&both), step);
}
template <int n>
struct Told {
  uint64_t word[n];
  __device__ void look(const uint64_t* from) {
    if constexpr (n == 1) {
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word[0]) : "l"(from) : "memory");
    } else {
#pragma unroll
      for (int i = 0; i < n; i += 2) asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(word[i]), "=l"(word[i + 1]) : "l"(from + i) : "memory");
    }
  }
  __device__ bool is_of(uint32_t step) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < n; ++i) all = all && static_cast<uint32_t>(word[i] >> 32) == step;
    return all;
  }
  __device__ bool is_since(uint32_t step) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < n; ++i) all = all && static_cast<int32_t>(static_cast<uint32_t>(word[i] >> 32) - step) >= 0;
    return all;
  }
  __device__ uint32_t bits(int i) const { return static_cast<uint32_t>(word[i]); }
  __device__ float operator[](int i) const { return __uint_as_float(bits(i)); }
};
// Who looks for what is not there yet stands in the way of those who write it: before all threads look for their words, a warp
// waits for a few of them, one a lane; word(i) is the i-th.
template <class F>
__device__ __forceinline__ void warp_awaits(uint32_t n, uint32_t step, F&& word) {
#pragma unroll 1
  for (uint32_t first = 0; first < n; first += 32) {
    Told<1> t;
    warp_waits_for([&] { return t.look(word(min(first + threadIdx.x % 32, n - 1))), t.is_of(step); });
  }
}

}  // namespace duet_cuda::resident
