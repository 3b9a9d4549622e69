// What kernels with vdpbf16ps share that take two rows of W [in,out] together. x86-64 only.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12: in its own _mm512_unpacklo_epi16
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define BF16_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace duet_cpu {
namespace {

// Sums of 32 outputs are kept as unpacking leaves them: in each 16 bytes of the lower vector outputs 0..3 of eight, in the upper 4..7.
BF16_DOT inline __m512i lower_half() { return _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27); }
BF16_DOT inline __m512i upper_half() { return _mm512_setr_epi32(4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31); }
BF16_DOT inline __m512i first_half() { return _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23); }
BF16_DOT inline __m512i second_half() { return _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31); }

struct Sums {  // of 32 outputs
  __m512 low, high;
};

// Outputs at to .. to + 32, or those in `some`
template <bool kWhole>
BF16_DOT inline Sums load_sums(const float* from, __mmask32 some) {
  const __m512 first = kWhole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(static_cast<__mmask16>(some), from);
  const __m512 second = kWhole ? _mm512_loadu_ps(from + 16) : _mm512_maskz_loadu_ps(static_cast<__mmask16>(some >> 16), from + 16);
  return {_mm512_permutex2var_ps(first, lower_half(), second), _mm512_permutex2var_ps(first, upper_half(), second)};
}
template <bool kWhole>
BF16_DOT inline void store_sums(float* to, __mmask32 some, const Sums& s) {
  const __m512 first = _mm512_permutex2var_ps(s.low, first_half(), s.high), second = _mm512_permutex2var_ps(s.low, second_half(), s.high);
  if (kWhole) {
    _mm512_storeu_ps(to, first);
    _mm512_storeu_ps(to + 16, second);
  } else {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(some), first);
    _mm512_mask_storeu_ps(to + 16, static_cast<__mmask16>(some >> 16), second);
  }
}

struct Rows {  // two rows of W, 32 outputs, as pairs
  __m512bh low, high;
};
template <bool kWhole>
BF16_DOT inline Rows load_rows(const uint16_t* first, const uint16_t* second, __mmask32 some) {
  const __m512i even = kWhole ? _mm512_loadu_si512(first) : _mm512_maskz_loadu_epi16(some, first);
  const __m512i odd = kWhole ? _mm512_loadu_si512(second) : _mm512_maskz_loadu_epi16(some, second);
  return {reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(even, odd)), reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(even, odd))};
}

// s += both rows times their inputs
BF16_DOT inline void add(Sums& s, const Rows& rows, uint32_t inputs) {
  const auto in = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(inputs)));
  s.low = _mm512_dpbf16_ps(s.low, rows.low, in);
  s.high = _mm512_dpbf16_ps(s.high, rows.high, in);
}

// The outputs that are left of `count` at a multiple of 32
inline __mmask32 some_of(size_t count) { return (uint32_t{1} << count % 32) - 1; }

}  // namespace
}  // namespace duet_cpu
