// y = W x with vdpbf16ps. Own intrinsics, because Highway 1.0.3 has no bf16 dot product; chosen by cpuid.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12: in its own _mm512_reduce_add_ps
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define BF16_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace duet_cpu {
namespace {

constexpr size_t kStep = 32;  // bf16 in a vector

BF16_DOT inline __m512bh elements(const uint16_t* p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
BF16_DOT inline __m512bh elements(const uint16_t* p, __mmask32 some) { return reinterpret_cast<__m512bh>(_mm512_maskz_loadu_epi16(some, p)); }

// R outputs, `step` apart, x B inputs; one accumulator each
template <size_t R, size_t B>
BF16_DOT inline void dots(const uint16_t* __restrict w, size_t step, const uint16_t* __restrict x, size_t depth, float* __restrict tile) {
  __m512 acc[R][B];
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (size_t b = 0; b < B; ++b) acc[r][b] = _mm512_setzero_ps();
  size_t k = 0;
  for (; k + kStep <= depth; k += kStep) {
    __m512bh in[B];
#pragma GCC unroll 8
    for (size_t b = 0; b < B; ++b) in[b] = elements(x + b * depth + k);
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const __m512bh wr = elements(w + r * step * depth + k);
#pragma GCC unroll 8
      for (size_t b = 0; b < B; ++b) acc[r][b] = _mm512_dpbf16_ps(acc[r][b], wr, in[b]);
    }
  }
  if (k < depth) {
    const __mmask32 some = (1u << (depth - k)) - 1;
#pragma GCC unroll 8
    for (size_t r = 0; r < R; ++r) {
      const __m512bh wr = elements(w + r * step * depth + k, some);
#pragma GCC unroll 8
      for (size_t b = 0; b < B; ++b) acc[r][b] = _mm512_dpbf16_ps(acc[r][b], wr, elements(x + b * depth + k, some));
    }
  }
#pragma GCC unroll 8
  for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (size_t b = 0; b < B; ++b) tile[b * kTileColumns + r * step] = _mm512_reduce_add_ps(acc[r][b]);
}

template <size_t B>
BF16_DOT void dots_of(const uint16_t* w, size_t count, const uint16_t* x, size_t depth, float* tile) {
  constexpr size_t R = B == 1 ? 8 : 4;
  const size_t step = count / R;
  for (size_t r = 0; r < step; ++r) dots<R, B>(w + r * depth, step, x, depth, tile + r);
  for (size_t r = step * R; r < count; ++r) dots<1, B>(w + r * depth, 1, x, depth, tile + r);
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

void multiply_tile_bf16_dot(const Matrix& m, size_t first, size_t count, const void* in, size_t rows, float* tile) {
  const uint16_t* w = static_cast<const uint16_t*>(m.data) + first * m.in;
  const uint16_t* x = static_cast<const uint16_t*>(in);
  for (; rows >= 4; rows -= 4, x += 4 * size_t{m.in}, tile += 4 * kTileColumns) dots_of<4>(w, count, x, m.in, tile);
  if (rows == 3) return dots_of<3>(w, count, x, m.in, tile);
  if (rows == 2) return dots_of<2>(w, count, x, m.in, tile);
  if (rows == 1) return dots_of<1>(w, count, x, m.in, tile);
}

}  // namespace duet_cpu
#else
namespace duet_cpu {
void forbid_bf16_dot() {}
bool has_bf16_dot() { return false; }
void multiply_tile_bf16_dot(const Matrix&, size_t, size_t, const void*, size_t, float*) {}
}  // namespace duet_cpu
#endif
