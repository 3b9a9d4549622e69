// Numbers of the wkv matrices as a state stores them: f32, bf16 or f16 (docs/adr/0018-stored-states.md). They are computed with in f32; what is
// stored is rounded to nearest, ties to even. f16 saturates: what would be infinite is +-65504. NaN stays NaN.
#pragma once
#include "duet_types.h"
#include "gpu/port.h"

namespace duet_gpu {

// Two numbers of two bytes, the first in the lower half.
template <class Stored>
__device__ __forceinline__ uint32_t pack(float low, float high);
template <>
__device__ __forceinline__ uint32_t pack<bf16>(float low, float high) {
  const auto pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ __forceinline__ uint32_t pack<f16>(float low, float high) {
#if defined(__HIP__)
  const auto saturated = [](float x) { return x > 65504.0f ? 65504.0f : x < -65504.0f ? -65504.0f : x; };
  const auto pair = __floats2half2_rn(saturated(low), saturated(high));
  return *reinterpret_cast<const uint32_t*>(&pair);
#else
  uint32_t pair;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

template <class Stored>
__device__ __forceinline__ float2 unpack(uint32_t pair);
template <>
__device__ __forceinline__ float2 unpack<bf16>(uint32_t pair) { return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)}; }
template <>
__device__ __forceinline__ float2 unpack<f16>(uint32_t pair) { return __half22float2(*reinterpret_cast<const __half2*>(&pair)); }

// One number.
template <class Stored>
__device__ __forceinline__ Stored to_stored(float x) {
  const uint16_t low = static_cast<uint16_t>(pack<Stored>(x, 0.0f));
  return *reinterpret_cast<const Stored*>(&low);
}
template <>
__device__ __forceinline__ float to_stored<float>(float x) { return x; }

// Four numbers, aligned to their size.
template <class Stored>
__device__ __forceinline__ float4 load_four(const Stored* p) {
  const uint2 bits = *reinterpret_cast<const uint2*>(p);
  const float2 low = unpack<Stored>(bits.x), high = unpack<Stored>(bits.y);
  return {low.x, low.y, high.x, high.y};
}
template <>
__device__ __forceinline__ float4 load_four<float>(const float* p) { return *reinterpret_cast<const float4*>(p); }
template <class Stored>
__device__ __forceinline__ void store_four(Stored* p, const float4& x) { *reinterpret_cast<uint2*>(p) = {pack<Stored>(x.x, x.y), pack<Stored>(x.z, x.w)}; }
template <>
__device__ __forceinline__ void store_four<float>(float* p, const float4& x) { *reinterpret_cast<float4*>(p) = x; }

// What 16 bytes hold: one or two times four numbers.
template <class Stored>
constexpr int kFoursOf16Bytes = 4 / sizeof(Stored);
template <class Stored>
__device__ __forceinline__ void unpack_16_bytes(const uint4& bits, float4* to) {
  const float2 a = unpack<Stored>(bits.x), b = unpack<Stored>(bits.y), c = unpack<Stored>(bits.z), d = unpack<Stored>(bits.w);
  to[0] = {a.x, a.y, b.x, b.y}, to[1] = {c.x, c.y, d.x, d.y};
}
template <>
__device__ __forceinline__ void unpack_16_bytes<float>(const uint4& bits, float4* to) {
  to[0] = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z), __uint_as_float(bits.w)};
}
template <class Stored>
__device__ __forceinline__ uint4 pack_16_bytes(const float4* x) {
  return {pack<Stored>(x[0].x, x[0].y), pack<Stored>(x[0].z, x[0].w), pack<Stored>(x[1].x, x[1].y), pack<Stored>(x[1].z, x[1].w)};
}
template <>
__device__ __forceinline__ uint4 pack_16_bytes<float>(const float4* x) {
  return {__float_as_uint(x->x), __float_as_uint(x->y), __float_as_uint(x->z), __float_as_uint(x->w)};
}

// Calls f(an unspecified value of the type that `t` names).
template <class F>
auto with_stored(duet_dtype t, F&& f) {
  if (t == DUET_BF16) return f(bf16());
  if (t == DUET_F16) return f(f16());
  return f(float());
}

}  // namespace duet_gpu
