// Device code of the products with q8 (kBits 8) and q4 (4) weights: rounding a group of inputs, multiplying by a group of weights.
#pragma once
#include "fragment.h"
#include "quantised_product.h"

namespace duet_cuda {

// A word is four inputs in a row, 8 bits each. Lane t = lane % 4 multiplies with four words of a group, here the place of word j:
// q8 weights of lane t are of the words 4 i + t, q4's of 2 (4 h + t) + e; they get the places 4 t + i and 4 t + 2 h + e.
template <int kBits>
__device__ __forceinline__ uint32_t word_place(uint32_t j) {
  return kBits == 8 ? j % 4 * 4 + j / 4 : j / 2 % 4 * 4 + j / 8 * 2 + j % 2;
}

// ---- rounding: duetp_round_input, by eight lanes side by side ----

// What lane k of the eight reads: the group's words k and 8 + k.
struct Eighth {
  float v[8];
};
__device__ __forceinline__ Eighth read_eighth(const float* row, uint32_t n_in, uint32_t group, uint32_t k) {
  Eighth e;
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    const uint32_t at = group * kGroup + 32 * half + 4 * k;
    if (n_in % 4 == 0) {  // rows of 16-byte pieces
      const float4 f = at < n_in ? *reinterpret_cast<const float4*>(row + at) : float4{0, 0, 0, 0};
      e.v[4 * half] = f.x, e.v[4 * half + 1] = f.y, e.v[4 * half + 2] = f.z, e.v[4 * half + 3] = f.w;
    } else {
#pragma unroll
      for (uint32_t i = 0; i < 4; ++i) e.v[4 * half + i] = at + i < n_in ? row[at + i] : 0;
    }
  }
  return e;
}

// How a group is rounded, by the bits of the largest of its magnitudes, which sort as the magnitudes do.
struct RoundingOfGroup {
  float factor, scale;
  __device__ __forceinline__ explicit RoundingOfGroup(uint32_t largest) {
    const float most = __uint_as_float(largest);
    factor = most >= 1e-30f && largest < 0x7f800000u ? __fdiv_rn(127.0f, most) : 0.0f;
    scale = __fdiv_rn(most, 127.0f);
  }
  // 1.5 2^23 + q, whose low byte is that of q
  __device__ __forceinline__ uint32_t rounded(float x) const { return __float_as_uint(__fadd_rn(factor > 0 ? __fmul_rn(x, factor) : 0.0f, 12582912.0f)); }
};

struct RoundedEighth {
  uint32_t word[2];  // k and 8 + k
  float scale, sum;  // of the group: the same for all eight lanes
};
// All lanes of the warp call it.
__device__ __forceinline__ RoundedEighth round_eighth(const Eighth& e) {
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) largest = max(largest, __float_as_uint(e.v[i]) & 0x7fffffffu);
#pragma unroll
  for (int d = 1; d < 8; d *= 2) largest = max(largest, __shfl_xor_sync(~0u, largest, d));
  const RoundingOfGroup rounding(largest);
  RoundedEighth r;
  r.scale = rounding.scale;
  int sum = 0;
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    uint32_t byte[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) byte[i] = rounding.rounded(e.v[4 * w + i]);
    r.word[w] = __byte_perm(__byte_perm(byte[0], byte[1], 0x0040), __byte_perm(byte[2], byte[3], 0x0040), 0x5410);
    sum = __dp4a(static_cast<int>(r.word[w]), 0x01010101, sum);
  }
#pragma unroll
  for (int d = 1; d < 8; d *= 2) sum += __shfl_xor_sync(~0u, sum, d);
  r.sum = r.scale * static_cast<float>(sum);
  return r;
}

// ---- weights ----

// The weights of a group for the 16 outputs of a tile, as a warp loads them: 256 bytes at a time, lane (g = lane / 4, t = lane % 4)
// those of outputs 2 g and 2 g + 1.
template <int kBits>
struct GroupWeights {
  static constexpr int kLoads = kBits / 2;
  static constexpr uint32_t kBytes = 128 * kBits;
  uint2 v[kLoads];
};
__device__ __forceinline__ uint32_t place_of_lane() { return threadIdx.x % 4 * 64 + threadIdx.x % 32 / 4 * 8; }  // in the first 256 bytes

// The left operand of the two products of 32 inputs: output 2 g as the tensor core's row g, 2 g + 1 as its row g + 8.
template <int kBits>
struct Operand {
  uint32_t a[2][4];
  float scale[2], minimum[2];  // of outputs 2 g and 2 g + 1
  float offset[2];             // -1.5 2^23 scale, exact: scales have 8 digits
};
// scales, minimums: two bf16
template <int kBits>
__device__ __forceinline__ Operand<kBits> operand(const GroupWeights<kBits>& w, uint32_t scales, uint32_t minimums) {
  Operand<kBits> o;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if constexpr (kBits == 8) {
      o.a[h][0] = w.v[2 * h].x, o.a[h][1] = w.v[2 * h].y, o.a[h][2] = w.v[2 * h + 1].x, o.a[h][3] = w.v[2 * h + 1].y;
    } else {
      o.a[h][0] = w.v[h].x & 0x0f0f0f0fu, o.a[h][1] = w.v[h].y & 0x0f0f0f0fu;
      o.a[h][2] = w.v[h].x >> 4 & 0x0f0f0f0fu, o.a[h][3] = w.v[h].y >> 4 & 0x0f0f0f0fu;
    }
  }
  o.scale[0] = __uint_as_float(scales << 16), o.scale[1] = __uint_as_float(scales & 0xffff0000u);
  o.minimum[0] = __uint_as_float(minimums << 16), o.minimum[1] = __uint_as_float(minimums & 0xffff0000u);
  o.offset[0] = -12582912.0f * o.scale[0], o.offset[1] = -12582912.0f * o.scale[1];
  return o;
}

__device__ __forceinline__ void multiply(int (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&before)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=r"(sum[0]), "=r"(sum[1]), "=r"(sum[2]), "=r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(before[0]), "r"(before[1]), "r"(before[2]), "r"(before[3]));
}

// Adds a group to the sums of eight rows: v[0..1] of output 2 g, v[2..3] of 2 g + 1, for the rows 2 t and 2 t + 1. x: the lane's
// four words of row g; scale, sum: of rows 2 t and 2 t + 1. Integers begin at the bits of the float 1.5 2^23, and so are the
// float 1.5 2^23 + their sum: it stays below 2^22.
template <int kBits>
__device__ __forceinline__ void add_group(Sums& s, const Operand<kBits>& w, uint4 x, float2 scale, float2 sum) {
  constexpr int kZero = 0x4b400000;
  const int zero[4] = {kZero, kZero, kZero, kZero};
  int first[4], both[4];
  multiply(first, w.a[0], x.x, x.y, zero);
  multiply(both, w.a[1], x.z, x.w, first);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float of_group = fmaf(__int_as_float(both[i]), w.scale[i / 2], w.offset[i / 2]);
    s.v[i] = fmaf(of_group, i % 2 ? scale.y : scale.x, s.v[i]);
    if constexpr (kBits == 4) s.v[i] = fmaf(w.minimum[i / 2], i % 2 ? sum.y : sum.x, s.v[i]);
  }
}

// ---- copies to shared memory ----

__device__ __forceinline__ void copy_16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(shared))), "l"(__cvta_generic_to_global(global)) : "memory");
}
__device__ __forceinline__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLater>  // all but the kLater last ends
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

}  // namespace duet_cuda
