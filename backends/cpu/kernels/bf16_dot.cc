// y = W x with vdpbf16ps. Own intrinsics, because Highway 1.0.3 has no bf16 dot product; chosen by cpuid.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

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

// Two inputs of a row; zero is one that lies beyond the part
inline uint32_t pair(const uint16_t* x, size_t first, size_t second, size_t end) {
  return (first < end ? x[first] : 0) | (second < end ? static_cast<uint32_t>(x[second]) << 16 : 0);
}

// Sums of 32 outputs are kept as unpacking leaves them: in each 16 bytes of the lower vector outputs 0..3 of eight, in the upper 4..7.
BF16_DOT inline __m512i lower_half() { return _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27); }
BF16_DOT inline __m512i upper_half() { return _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31); }
BF16_DOT inline __m512i first_half() { return _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23); }
BF16_DOT inline __m512i second_half() { return _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31); }

// Adds P pairs of rows to the sums of outputs at .. at + 32, or of those in `some`.
template <size_t P, size_t B, bool kWhole>
BF16_DOT inline void add_pairs(const uint16_t* const (*rows)[2], const uint32_t (*x)[B], size_t at, __mmask32 some, float* sum, size_t ld) {
  const auto m0 = static_cast<__mmask16>(some), m1 = static_cast<__mmask16>(some >> 16);
  __m512 low[B], high[B];
#pragma GCC unroll 4
  for (size_t b = 0; b < B; ++b) {
    const float* from = sum + b * ld + at;
    const __m512 first = kWhole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(m0, from);
    const __m512 second = kWhole ? _mm512_loadu_ps(from + 16) : _mm512_maskz_loadu_ps(m1, from + 16);
    low[b] = _mm512_permutex2var_ps(first, lower_half(), second);
    high[b] = _mm512_permutex2var_ps(first, upper_half(), second);
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < P; ++i) {
    const __m512i even = kWhole ? _mm512_loadu_si512(rows[i][0] + at) : _mm512_maskz_loadu_epi16(some, rows[i][0] + at);
    const __m512i odd = kWhole ? _mm512_loadu_si512(rows[i][1] + at) : _mm512_maskz_loadu_epi16(some, rows[i][1] + at);
    const auto lower = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(even, odd)), upper = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(even, odd));
#pragma GCC unroll 4
    for (size_t b = 0; b < B; ++b) {
      const auto in = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(x[i][b])));
      low[b] = _mm512_dpbf16_ps(low[b], lower, in);
      high[b] = _mm512_dpbf16_ps(high[b], upper, in);
    }
  }
#pragma GCC unroll 4
  for (size_t b = 0; b < B; ++b) {
    float* to = sum + b * ld + at;
    const __m512 first = _mm512_permutex2var_ps(low[b], first_half(), high[b]), second = _mm512_permutex2var_ps(low[b], second_half(), high[b]);
    if (kWhole) {
      _mm512_storeu_ps(to, first);
      _mm512_storeu_ps(to + 16, second);
    } else {
      _mm512_mask_storeu_ps(to, m0, first);
      _mm512_mask_storeu_ps(to + 16, m1, second);
    }
  }
}

struct Wanted {
  const uint32_t* list;   // the first inputs of pairs
  const uint16_t* any;    // of each input, the bits of all rows of x
  const uint16_t* zeros;  // in the place of a row of w that is not wanted
};

template <size_t P, size_t B>
BF16_DOT void add_list(const Skipping& s, const Wanted& want, size_t n, const uint16_t* x, float* sum, size_t ld) {
  const size_t in = s.w.in, apart = skip_steps(s.to - s.from);
  const uint16_t* w = static_cast<const uint16_t*>(s.w.data);
  for (size_t i = 0; i < n; i += P) {
    const uint16_t* rows[P][2];
    uint32_t of[P][B];
    for (size_t j = 0; j < P; ++j) {
      const size_t k = i + j < n ? want.list[i + j] : s.to, second = k + apart;
      rows[j][0] = k < s.to && want.any[k] ? w + k * s.w.out : want.zeros;
      rows[j][1] = second < s.to && want.any[second] ? w + second * s.w.out : want.zeros;
      for (size_t b = 0; b < B; ++b) of[j][b] = pair(x + b * in, k, second, s.to);
    }
    size_t at = 0;
    for (; at + 32 <= s.w.out; at += 32) add_pairs<P, B, true>(rows, of, at, 0, sum, ld);
    if (at < s.w.out) add_pairs<P, B, false>(rows, of, at, (1u << (s.w.out - at)) - 1, sum, ld);
  }
}

template <size_t B>
BF16_DOT void add_all(const Skipping& s, const uint16_t* x, float* sum, size_t ld) {
  const size_t in = s.w.in, apart = skip_steps(s.to - s.from);
  auto* list = static_cast<uint32_t*>(s.scratch);
  auto* any = reinterpret_cast<uint16_t*>(list + in + kSkipStreams);
  auto* zeros = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(any + in) + 63) / 64 * 64);
  std::memset(zeros, 0, s.w.out * sizeof *zeros);
  for (size_t stretch = s.from; stretch < s.to; stretch += apart)
    for (size_t k = stretch + s.begin; k < std::min(stretch + s.end, s.to); ++k) {
      uint16_t bits = 0;
      for (size_t b = 0; b < B; ++b) bits |= x[b * in + k];
      any[k] = bits;
    }
  size_t n = 0, all = 0;
  for (size_t step = s.begin; step < s.end; ++step)
    for (size_t k = s.from + step; k < s.to; k += 2 * apart, ++all) {
      list[n] = static_cast<uint32_t>(k);
      n += any[k] || (k + apart < s.to && any[k + apart]);
    }
  // For one row that wants nearly all, memory is faster with fewer streams; for more rows the sums' way to the cache would weigh.
  if (B == 1 && 8 * n > 7 * all) return add_list<2, B>(s, {list, any, zeros}, n, x, sum, ld);
  add_list<8, B>(s, {list, any, zeros}, n, x, sum, ld);
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

void add_rows_bf16_dot(const Skipping& s, const void* in, size_t rows, float* sum, size_t ld) {
  const uint16_t* x = static_cast<const uint16_t*>(in);
  if (rows == 1) return add_all<1>(s, x, sum, ld);
  if (rows == 2) return add_all<2>(s, x, sum, ld);
  if (rows == 3) return add_all<3>(s, x, sum, ld);
  add_all<4>(s, x, sum, ld);
}

}  // namespace duet_cpu
#else
namespace duet_cpu {
void forbid_bf16_dot() {}
bool has_bf16_dot() { return false; }
void multiply_tile_bf16_dot(const Matrix&, size_t, size_t, const void*, size_t, float*) {}
void add_rows_bf16_dot(const Skipping&, const void*, size_t, float*, size_t) {}
}  // namespace duet_cpu
#endif
