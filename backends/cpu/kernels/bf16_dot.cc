// y = W x with vdpbf16ps. Own intrinsics, because Highway 1.0.3 has no bf16 dot product; chosen by cpuid.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>

#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12: in its own _mm512_reduce_add_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define BF16_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace duet_cpu {
namespace {

constexpr size_t kStep = 32;  // bf16 in a vector

BF16_DOT inline __m512bh elements(const uint16_t* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
BF16_DOT inline __m512bh elements(const uint16_t* p, __mmask32 some) { return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(some, p)); }

// Sums of the lanes of 16 accumulators at once, each in the order of _mm512_reduce_add_ps: that of acc[b][r] in lane 4 b + r.
BF16_DOT inline __m512 lane_sums(const __m512 (&acc)[4][4]) {
  __m512 by_four[4];
#pragma GCC unroll 4
  for (size_t r = 0; r < 4; ++r) {
    __m512 half[2];
#pragma GCC unroll 2
    for (size_t i = 0; i < 2; ++i)
      half[i] = _mm512_add_ps(_mm512_shuffle_f32x4(acc[i][r], acc[i + 2][r], 0x44), _mm512_shuffle_f32x4(acc[i][r], acc[i + 2][r], 0xee));
    const __m512 sum = _mm512_add_ps(_mm512_shuffle_f32x4(half[0], half[1], 0x88), _mm512_shuffle_f32x4(half[0], half[1], 0xdd));
    by_four[r] = _mm512_shuffle_f32x4(sum, sum, 0xd8);
  }
  __m512 by_two[2];
#pragma GCC unroll 2
  for (size_t r = 0; r < 2; ++r)
    by_two[r] = _mm512_add_ps(_mm512_shuffle_ps(by_four[r], by_four[r + 2], 0x44), _mm512_shuffle_ps(by_four[r], by_four[r + 2], 0xee));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(by_two[0], by_two[1], 0x88), _mm512_shuffle_ps(by_two[0], by_two[1], 0xdd));
  return _mm512_permute_ps(all, 0xd8);
}

// R outputs, `step` apart, x B inputs; one accumulator each. Meanwhile P lines a step of 32 inputs are fetched from `ahead`.
template <size_t R, size_t B, size_t P = 0>
BF16_DOT inline void dots(const uint16_t* __restrict w, size_t step, const uint16_t* __restrict x, size_t depth, float* __restrict tile,
                          const uint16_t* ahead = nullptr) {
  __m512 acc[B][R];
#pragma GCC unroll 8
  for (size_t b = 0; b < B; ++b)
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) acc[b][r] = _mm512_setzero_ps();
  size_t k = 0;
  for (; k + kStep <= depth; k += kStep) {
    __m512bh in[B];
#pragma GCC unroll 8
    for (size_t b = 0; b < B; ++b) in[b] = elements(x + b * depth + k);
#pragma GCC unroll 8
    for (size_t p = 0; p < P; ++p) __builtin_prefetch(ahead + (k * P + p * kStep), 0, 2);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const __m512bh wr = elements(w + r * step * depth + k);
#pragma GCC unroll 8
      for (size_t b = 0; b < B; ++b) acc[b][r] = _mm512_dpbf16_ps(acc[b][r], wr, in[b]);
    }
  }
  if (k < depth) {
    const __mmask32 some = (1u << (depth - k)) - 1;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const __m512bh wr = elements(w + r * step * depth + k, some);
#pragma GCC unroll 8
      for (size_t b = 0; b < B; ++b) acc[b][r] = _mm512_dpbf16_ps(acc[b][r], wr, elements(x + b * depth + k, some));
    }
  }
  if constexpr (R == 4 && B == 4)
    if (step == 1) {
      const __m512 sums = lane_sums(acc);
      _mm_storeu_ps(tile, _mm512_castps512_ps128(sums));
      _mm_storeu_ps(tile + kTileColumns, _mm512_extractf32x4_ps(sums, 1));
      _mm_storeu_ps(tile + 2 * kTileColumns, _mm512_extractf32x4_ps(sums, 2));
      _mm_storeu_ps(tile + 3 * kTileColumns, _mm512_extractf32x4_ps(sums, 3));
      return;
    }
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (size_t b = 0; b < B; ++b) tile[b * kTileColumns + r * step] = _mm512_reduce_add_ps(acc[b][r]);
}

// Up to four input rows: many streams through memory, each sequential for `step` rows.
template <size_t B>
BF16_DOT void dots_of_few(const uint16_t* w, size_t count, const uint16_t* x, size_t depth, float* tile) {
  constexpr size_t R = B == 1 ? 8 : 4;
  const size_t step = count / R;
  for (size_t r = 0; r < step; ++r) dots<R, B>(w + r * depth, step, x, depth, tile + r);
  for (size_t r = step * R; r < count; ++r) dots<1, B>(w + r * depth, 1, x, depth, tile + r);
}

// R outputs and the last rows of x, up to three
template <size_t R>
BF16_DOT void dots_of_last(const uint16_t* w, const uint16_t* x, size_t rows, size_t depth, float* tile) {
  if (rows == 3) return dots<R, 3>(w, 1, x, depth, tile);
  if (rows == 2) return dots<R, 2>(w, 1, x, depth, tile);
  if (rows == 1) return dots<R, 1>(w, 1, x, depth, tile);
}

// More input rows: outputs by eights stay in the first-level cache for all of them, while those to come are fetched from
// memory, evenly over the first one, two or four times four rows.
BF16_DOT void dots_of_many(const uint16_t* w, size_t count, const uint16_t* x, size_t rows, size_t depth, float* tile, const uint16_t* next) {
  constexpr size_t R = 4, B = 4, kEight = 2 * R, kAhead = 2 * kEight;
  size_t first = 0;
  for (; first + kEight <= count; first += kEight) {
    const uint16_t* ahead = first + kAhead + kEight <= count ? w + (first + kAhead) * depth : next + (std::max(first + kAhead, count) - count) * depth;
    size_t b = 0;
    for (; b + B <= rows; b += B)
      for (size_t r = first; r < first + kEight; r += R) {
        const uint16_t *at = w + r * depth, *in = x + b * depth;
        float* to = tile + b * kTileColumns + r;
        if (rows < 2 * B)
          dots<R, B, 4>(at, 1, in, depth, to, ahead), ahead += 4 * depth;
        else if (rows < 4 * B && b < 2 * B)
          dots<R, B, 2>(at, 1, in, depth, to, ahead), ahead += 2 * depth;
        else if (rows >= 4 * B && b < 4 * B)
          dots<R, B, 1>(at, 1, in, depth, to, ahead), ahead += depth;
        else
          dots<R, B>(at, 1, in, depth, to);
      }
    for (size_t r = first; r < first + kEight; r += R) dots_of_last<R>(w + r * depth, x + b * depth, rows - b, depth, tile + b * kTileColumns + r);
  }
  for (size_t r = first; r < count; ++r) {
    size_t b = 0;
    for (; b + B <= rows; b += B) dots<1, B>(w + r * depth, 1, x + b * depth, depth, tile + b * kTileColumns + r);
    dots_of_last<1>(w + r * depth, x + b * depth, rows - b, depth, tile + b * kTileColumns + r);
  }
}

}  // namespace

namespace {
bool forbidden = false;
}
void forbid_bf16_dot() { forbidden = true; }

bool has_bf16_dot() {
  static const bool has = __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has && !forbidden;
}

void multiply_tile_bf16_dot(const Matrix& m, size_t first, size_t count, const void* in, size_t rows, float* tile, size_t next) {
  const uint16_t* w = static_cast<const uint16_t*>(m.data) + first * m.in;
  const uint16_t* x = static_cast<const uint16_t*>(in);
  if (rows == 1) return dots_of_few<1>(w, count, x, m.in, tile);
  if (rows == 2) return dots_of_few<2>(w, count, x, m.in, tile);
  if (rows == 3) return dots_of_few<3>(w, count, x, m.in, tile);
  if (rows == 4) return dots_of_few<4>(w, count, x, m.in, tile);
  dots_of_many(w, count, x, rows, m.in, tile, static_cast<const uint16_t*>(m.data) + (next + count <= m.out ? next : first) * m.in);
}

}  // namespace duet_cpu
#else
namespace duet_cpu {
void forbid_bf16_dot() {}
bool has_bf16_dot() { return false; }
void multiply_tile_bf16_dot(const Matrix&, size_t, size_t, const void*, size_t, float*, size_t) {}
}  // namespace duet_cpu
#endif
