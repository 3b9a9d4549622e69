// Products with q8 and q4 weights on the eight lanes of AVX2: by vpdpbusd where there is AVX-VNNI, otherwise by products of bytes that
// come in pairs of 16 bits, which must not overflow.
#include "kernels/quantised_x86.h"

#if defined(__x86_64__)
#include <cpuid.h>

#include <algorithm>

#define AVX2 __attribute__((target("avx2,fma"), always_inline)) inline
#define AVX2_FN __attribute__((target("avx2,fma")))

namespace duet_cpu {
namespace {

AVX2 __m256 floats8(const uint16_t* bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16))), 16));
}

AVX2 __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
AVX2 __m256i to_all(const int8_t* q) { return _mm256_set1_epi32(four(q)); }

constexpr size_t kHalves = 2, kRows = 4;  // a tile's sixteen outputs, and the rows at once

// Each adds to dot[row][half] the products of a group, of a tile's weights and R rows of x.
struct Pairs {
  static int32_t bias(const RoundedRows&, size_t) { return 0; }
  // q4: an element of the sums is given 16 of 32 inputs, and 16 x 15 x 127 fits in 16 bits
  template <size_t R>
  static AVX2 void add_i4(__m256i (&dot)[R][kHalves], const uint8_t* w, const RoundedRows& x, size_t g) {
    const __m256i low = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
    for (size_t i = 0; i < kGroup; i += 32) {
      __m256i sum[R][kHalves];
      UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < kHalves; ++h) sum[r][h] = _mm256_setzero_si256();
      for (size_t k = i; k < i + 32; k += 8, w += 64) {
        __m256i v[kHalves];
        UNROLL for (size_t h = 0; h < kHalves; ++h) v[h] = load(w + h * 32);
        UNROLL for (size_t r = 0; r < R; ++r) {
          const int8_t* q = x.q + (r * x.groups + g) * kGroup + k;
          UNROLL for (size_t h = 0; h < kHalves; ++h) {
            const __m256i first = _mm256_maddubs_epi16(_mm256_and_si256(v[h], low), to_all(q));
            const __m256i second = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v[h], 4), low), to_all(q + 4));
            sum[r][h] = _mm256_add_epi16(_mm256_add_epi16(sum[r][h], first), second);
          }
        }
      }
      UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < kHalves; ++h) dot[r][h] = _mm256_add_epi32(dot[r][h], _mm256_madd_epi16(sum[r][h], one));
    }
  }

  // q8: |w| times x with the sign of w, because a sum of two such products fits in 16 bits: 2 x 128 x 127 does
  template <size_t R>
  static AVX2 void add_i8(__m256i (&dot)[R][kHalves], const uint8_t* w, const RoundedRows& x, size_t g) {
    const __m256i one = _mm256_set1_epi16(1);
    for (size_t i = 0; i < kGroup; i += 4, w += 64)
      UNROLL for (size_t h = 0; h < kHalves; ++h) {
        const __m256i v = load(w + h * 32), magnitude = _mm256_abs_epi8(v);
        UNROLL for (size_t r = 0; r < R; ++r) {
          const __m256i signed_x = _mm256_sign_epi8(to_all(x.q + (r * x.groups + g) * kGroup + i), v);
          dot[r][h] = _mm256_add_epi32(dot[r][h], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_x), one));
        }
      }
  }
};

// AVX-512 has the instruction on eight lanes too, in another encoding.
template <bool kVex>
struct Fours {
  template <size_t R>
  static AVX2 void add_i4(__m256i (&dot)[R][kHalves], const uint8_t* w, const RoundedRows& x, size_t g) {
    const __m256i low = _mm256_set1_epi8(15);
    for (size_t i = 0; i < kGroup; i += 8, w += 64) {
      __m256i v[kHalves];
      UNROLL for (size_t h = 0; h < kHalves; ++h) v[h] = load(w + h * 32);
      UNROLL for (size_t r = 0; r < R; ++r) {
        const int8_t* q = x.q + (r * x.groups + g) * kGroup + i;
        UNROLL for (size_t h = 0; h < kHalves; ++h)
            dot[r][h] = plus(plus(dot[r][h], _mm256_and_si256(v[h], low), to_all(q)), _mm256_and_si256(_mm256_srli_epi16(v[h], 4), low), to_all(q + 4));
      }
    }
  }
  // q8 is shifted to 0 .. 255 for the product, which the bias takes back
  static int32_t bias(const RoundedRows& x, size_t at) { return x.bias[at]; }
  template <size_t R>
  static AVX2 void add_i8(__m256i (&dot)[R][kHalves], const uint8_t* w, const RoundedRows& x, size_t g) {
    for (size_t i = 0; i < kGroup; i += 4, w += 64) {
      __m256i v[kHalves];
      UNROLL for (size_t h = 0; h < kHalves; ++h) v[h] = _mm256_xor_si256(load(w + h * 32), _mm256_set1_epi8(-128));
      UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < kHalves; ++h) dot[r][h] = plus(dot[r][h], v[h], to_all(x.q + (r * x.groups + g) * kGroup + i));
    }
  }

 private:
  static AVX2 __m256i plus(__m256i dot, __m256i w, __m256i x) {
    if (kVex)
      asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(dot) : "x"(w), "x"(x));
    else
      asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(dot) : "x"(w), "x"(x));
    return dot;
  }
};

// A tile x R rows. The lines of `out` are asked for before, since they may be in memory.
template <bool I4, class Dot, size_t R>
AVX2 void product(const Tiles& m, const RoundedRows& x, const Place& out, Ahead& ahead) {
  UNROLL for (size_t r = 0; r < R; ++r) __builtin_prefetch(out.at(r, 0).y, 1);
  __m256 y[R][kHalves];
  UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < kHalves; ++h) y[r][h] = _mm256_setzero_ps();
  for (size_t g = 0; g < x.groups; ++g) {
    __m256i dot[R][kHalves];
    UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < kHalves; ++h) dot[r][h] = _mm256_set1_epi32(I4 ? 0 : Dot::bias(x, r * x.groups + g));
    ahead.group(g);
    const uint8_t* w = m.w + g * kGroupBytes<I4>;
    if constexpr (I4)
      Dot::add_i4(dot, w, x, g);
    else
      Dot::add_i8(dot, w, x, g);
    UNROLL for (size_t h = 0; h < kHalves; ++h) {
      const size_t lane = g * kTile + h * 8;
      const __m256 scale = floats8(m.scale + lane);
      UNROLL for (size_t r = 0; r < R; ++r) {
        const size_t at = r * x.groups + g;
        y[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][h]), _mm256_mul_ps(scale, _mm256_set1_ps(x.scale[at])), y[r][h]);
        if (I4) y[r][h] = _mm256_fmadd_ps(floats8(m.minimum + lane), _mm256_set1_ps(x.offset[at]), y[r][h]);
      }
    }
  }
  UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < kHalves; ++h) {
    float* to = out.at(r, h * 8).y;
    _mm256_storeu_ps(to, out.add ? _mm256_add_ps(_mm256_loadu_ps(to), y[r][h]) : y[r][h]);
  }
}

// A tile for all rows, at most R at a time, in blocks of nearly one size
template <bool I4, class Dot, size_t R>
AVX2_FN void rows_of(const Tiles& m, RoundedRows x, size_t rows, Place out, Ahead& ahead) {
  for (size_t n = rows - std::min(rows, (rows + R - 1) / R * (R - 1)); n > 0; --n, rows -= R, x = rounded_from(x, R), out = out.at(R, 0))
    product<I4, Dot, R>(m, x, out, ahead);
  if constexpr (R > 1)
    if (rows > 0) rows_of<I4, Dot, R - 1>(m, x, rows, out, ahead);
}

template <bool I4, class Dot>
void multiply(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, const Place& out, const Slice& next) {
  for (size_t o = 0; o < count; o += kTile) {
    const Slice then = o + kTile < count ? Slice{&m, first + o + kTile} : next;
    Ahead ahead = rows == 1 ? Ahead{} : ahead_of<I4, 1>(then, x.groups, (rows + kRows - 1) / kRows);
    rows_of<I4, Dot, kRows>(tiles_at<I4>(m, (first + o) / kTile, 1), x, rows, out.at(0, o), ahead);
  }
}

template <class Dot>
void multiply(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, const Place& out, const Slice& next) {
  m.dtype == DUET_I4 ? multiply<true, Dot>(m, first, count, x, rows, out, next) : multiply<false, Dot>(m, first, count, x, rows, out, next);
}

bool has_vex() {  // of which not every compiler's __builtin_cpu_supports knows
  static const bool has = [] {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 4 & 1) != 0;
  }();
  return has;
}

}  // namespace

bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has;
}
bool has_avx_vnni() { return has_avx2() && (has_vex() || has_vnni()); }

void multiply_avx_vnni(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next) {
  has_vex() ? multiply<Fours<true>>(m, first, count, x, rows, out, next) : multiply<Fours<false>>(m, first, count, x, rows, out, next);
}
void multiply_avx2(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next) {
  multiply<Pairs>(m, first, count, x, rows, out, next);
}

}  // namespace duet_cpu
#endif
