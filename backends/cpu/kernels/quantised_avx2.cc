// Products with q8 and q4 weights on the eight lanes of AVX2: by vpdpbusd where there is AVX-VNNI, otherwise by products of bytes that
// come in pairs of 16 bits, which must not overflow.
#include "kernels/quantised_x86.h"

#if defined(__x86_64__)
#include <algorithm>

#define AVX2 __attribute__((target("avx2,fma"), always_inline)) inline
#define AVX2_FN __attribute__((target("avx2,fma")))

namespace duet_cpu {
namespace {

AVX2 __m256 floats8(const uint16_t* bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16))), 16));
}

// dot + products of four bytes of the weights w (q8: with sign) and four of x in each lane
struct Pairs {
  static constexpr size_t kHalves = 1, kRows = 4;
  static constexpr bool kShifted = false;  // q8, to 0 .. 255
  static AVX2 __m256i words(__m256i pairs) { return _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)); }
  static AVX2 __m256i add_i8(__m256i dot, __m256i w, __m256i x) {  // |w| (x with the sign of w): 2 x 128 x 127 fits
    return _mm256_add_epi32(dot, words(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))));
  }
  static AVX2 __m256i add_i4(__m256i dot, __m256i w, __m256i x, __m256i w2, __m256i x2) {
    return _mm256_add_epi32(dot, words(_mm256_add_epi16(_mm256_maddubs_epi16(w, x), _mm256_maddubs_epi16(w2, x2))));
  }
};

// AVX-512 has the instruction on eight lanes too, in another encoding.
template <bool kVex>
struct Fours {
  static constexpr size_t kHalves = 2, kRows = 4;
  static constexpr bool kShifted = true;
  static AVX2 __m256i add_i8(__m256i dot, __m256i w, __m256i x) {
    if (kVex)
      asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(dot) : "x"(w), "x"(x));
    else
      asm("%{evex%} vpdpbusd %2, %1, %0" : "+x"(dot) : "x"(w), "x"(x));
    return dot;
  }
  static AVX2 __m256i add_i4(__m256i dot, __m256i w, __m256i x, __m256i w2, __m256i x2) { return add_i8(add_i8(dot, w, x), w2, x2); }
};

// H halves of a tile, of eight outputs each, x R rows. The lines of `out` are asked for before, since they may be in memory.
template <bool I4, class Dot, size_t H, size_t R>
AVX2 void product(const Tiles& m, size_t half, const RoundedRows& x, const Place& out, Ahead& ahead) {
  const __m256i low = _mm256_set1_epi8(15), shift = _mm256_set1_epi8(-128);
  UNROLL for (size_t r = 0; r < R; ++r) __builtin_prefetch(out.at(r, half * 8).y, 1);
  __m256 y[R][H];
  UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < H; ++h) y[r][h] = _mm256_setzero_ps();
  for (size_t g = 0; g < x.groups; ++g) {
    __m256i dot[R][H];
    UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < H; ++h)
        dot[r][h] = Dot::kShifted && !I4 ? _mm256_set1_epi32(x.bias[r * x.groups + g]) : _mm256_setzero_si256();
    const uint8_t* w = m.w + g * kGroupBytes<I4> + half * 32;
    const int8_t* q = x.q + g * kGroup;
    ahead.group(g);
    for (size_t i = 0; i < kGroup; i += I4 ? 8 : 4, w += 64) {
      __m256i v[H];
      UNROLL for (size_t h = 0; h < H; ++h) v[h] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + h * 32));
      UNROLL for (size_t r = 0; r < R; ++r) {
        const int8_t* at = q + r * x.groups * kGroup + i;
        const __m256i first = _mm256_set1_epi32(four(at));
        if (I4) {
          const __m256i second = _mm256_set1_epi32(four(at + 4));
          UNROLL for (size_t h = 0; h < H; ++h)
              dot[r][h] = Dot::add_i4(dot[r][h], _mm256_and_si256(v[h], low), first, _mm256_and_si256(_mm256_srli_epi16(v[h], 4), low), second);
        } else {
          UNROLL for (size_t h = 0; h < H; ++h) dot[r][h] = Dot::add_i8(dot[r][h], Dot::kShifted ? _mm256_xor_si256(v[h], shift) : v[h], first);
        }
      }
    }
    UNROLL for (size_t h = 0; h < H; ++h) {
      const size_t lane = g * kTile + (half + h) * 8;
      const __m256 scale = floats8(m.scale + lane);
      UNROLL for (size_t r = 0; r < R; ++r) {
        const size_t at = r * x.groups + g;
        y[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][h]), _mm256_mul_ps(scale, _mm256_set1_ps(x.scale[at])), y[r][h]);
        if (I4) y[r][h] = _mm256_fmadd_ps(floats8(m.minimum + lane), _mm256_set1_ps(x.offset[at]), y[r][h]);
      }
    }
  }
  UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t h = 0; h < H; ++h) {
    float* to = out.at(r, (half + h) * 8).y;
    _mm256_storeu_ps(to, out.add ? _mm256_add_ps(_mm256_loadu_ps(to), y[r][h]) : y[r][h]);
  }
}

// The halves of a tile for all rows, at most R at a time, in blocks of nearly one size
template <bool I4, class Dot, size_t R>
AVX2_FN void rows_of(const Tiles& m, size_t half, RoundedRows x, size_t rows, Place out, Ahead& ahead) {
  for (size_t n = rows - std::min(rows, (rows + R - 1) / R * (R - 1)); n > 0; --n, rows -= R, x = rounded_from(x, R), out = out.at(R, 0))
    product<I4, Dot, Dot::kHalves, R>(m, half, x, out, ahead);
  if constexpr (R > 1)
    if (rows > 0) rows_of<I4, Dot, R - 1>(m, half, x, rows, out, ahead);
}

template <bool I4, class Dot>
void multiply(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, const Place& out, const Slice& next) {
  const size_t blocks = (rows + Dot::kRows - 1) / Dot::kRows * 2 / Dot::kHalves;
  for (size_t o = 0; o < count; o += kTile) {
    Ahead ahead = rows == 1 ? Ahead{} : ahead_of<I4, 1>(o + kTile < count ? Slice{&m, first + o + kTile} : next, x.groups, blocks);
    for (size_t half = 0; half < 2; half += Dot::kHalves) rows_of<I4, Dot, Dot::kRows>(tiles_at<I4>(m, (first + o) / kTile, 1), half, x, rows, out.at(0, o), ahead);
  }
}

template <class Dot>
void multiply(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, const Place& out, const Slice& next) {
  m.dtype == DUET_I4 ? multiply<true, Dot>(m, first, count, x, rows, out, next) : multiply<false, Dot>(m, first, count, x, rows, out, next);
}

bool has_vex() {
  static const bool has = __builtin_cpu_supports("avxvnni");
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
