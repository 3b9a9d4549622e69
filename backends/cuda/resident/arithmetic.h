// Small things that workers compute with.
#pragma once
#include "fragment.h"
#include "gpu/stored.h"
#include "resident/plan.h"

namespace duet_cuda::resident {

__device__ __forceinline__ float low_half(uint32_t w) { return __uint_as_float(w << 16); }
__device__ __forceinline__ float high_half(uint32_t w) { return __uint_as_float(w & 0xffff0000u); }
__device__ __forceinline__ void multiply_add(uint4 w, uint4 x, float& a, float& b) {
  a = fmaf(low_half(w.x), low_half(x.x), a), b = fmaf(high_half(w.x), high_half(x.x), b);
  a = fmaf(low_half(w.y), low_half(x.y), a), b = fmaf(high_half(w.y), high_half(x.y), b);
  a = fmaf(low_half(w.z), low_half(x.z), a), b = fmaf(high_half(w.z), high_half(x.z), b);
  a = fmaf(low_half(w.w), low_half(x.w), a), b = fmaf(high_half(w.w), high_half(x.w), b);
}
template <int kLanes>
__device__ __forceinline__ float lane_sum(float x) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
__device__ __forceinline__ float2 lane_sums(float2 x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = {x.x + __shfl_xor_sync(~0u, x.x, d), x.y + __shfl_xor_sync(~0u, x.y, d)};
  return x;
}
// Where the k-th set bit of a tile's mask is
__device__ __forceinline__ uint32_t place_of_bit(uint32_t mask, uint32_t k) {
  uint32_t at = 0;
#pragma unroll
  for (uint32_t width = kBehind / 2; width > 0; width /= 2) {
    const uint32_t below = __popc(mask >> at & ((1u << width) - 1));
    if (k >= below) k -= below, at += width;
  }
  return at;
}
__device__ __noinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Two numbers of a state, the i-th pair
template <class Stored>
__device__ __forceinline__ float2 read_pair(const void* p, uint32_t i) { return duet_gpu::unpack<Stored>(static_cast<const uint32_t*>(p)[i]); }
template <>
__device__ __forceinline__ float2 read_pair<float>(const void* p, uint32_t i) { return static_cast<const float2*>(p)[i]; }
template <class Stored>
__device__ __forceinline__ void write_pair(void* p, uint32_t i, float2 x) { __stcs(static_cast<uint32_t*>(p) + i, duet_gpu::pack<Stored>(x.x, x.y)); }
template <>
__device__ __forceinline__ void write_pair<float>(void* p, uint32_t i, float2 x) { __stcs(static_cast<float2*>(p) + i, x); }

}  // namespace duet_cuda::resident
