// Products with q8 and q4 weights in integers: vpdpbusd of AVX-512 VNNI, and AVX2. Own intrinsics, because Highway 1.0.3 has
// no products of bytes; chosen by cpuid. Sixteen outputs are the lanes of a vector, so that nothing is summed across lanes.
#include "duet_quantised.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>

#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12: in its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"), always_inline)) inline
#define VNNI_FN __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define AVX2 __attribute__((target("avx2,fma"), always_inline)) inline
#define AVX2_FN __attribute__((target("avx2,fma")))
#define UNROLL _Pragma("GCC unroll 16")

namespace duet_cpu {
namespace {

struct Tiles {  // of a matrix, `apart` tiles from one to the next
  const uint8_t* w = nullptr;
  const uint16_t *scale = nullptr, *minimum = nullptr;
  size_t groups = 0, apart = 0;
};

template <bool I4>
constexpr size_t kGroupBytes = kGroup * kTile / (I4 ? 2 : 1);  // of a tile

template <bool I4>
Tiles tiles_at(const Matrix& m, size_t tile, size_t apart) {
  const size_t groups = (m.in + kGroup - 1) / kGroup, scales = tile * groups * kTile;
  return {static_cast<const uint8_t*>(m.data) + tile * groups * kGroupBytes<I4>, static_cast<const uint16_t*>(m.scale) + scales,
          I4 ? static_cast<const uint16_t*>(m.minimum) + scales : nullptr, groups, apart};
}

inline int32_t four(const int8_t* q) {  // inputs, for all lanes alike
  int32_t v;
  __builtin_memcpy(&v, q, sizeof v);
  return v;
}

// ---- AVX-512 VNNI: bytes without sign times bytes with sign ----

VNNI __m512 floats16(const uint16_t* bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16))), 16));
}

// dot + products of four unsigned bytes of a and four signed ones of b in each lane. Not the intrinsic: for it g++ 12 copies every
// sum from one register to another and back.
VNNI __m512i add_products(__m512i dot, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(dot) : "v"(a), "v"(b));
  return dot;
}

// What products of several rows fetch from memory meanwhile, evenly over the groups of all blocks of rows: the two tiles that come
// next, then their scales and minimums
struct Ahead {
  struct Stretch {
    const char *at, *end;
  } left[3];
  size_t lines;  // in a group

  VNNI void group(size_t) {
    size_t n = lines;
    for (Stretch& s : left)
      for (; n > 0 && s.at < s.end; --n, s.at += 64) _mm_prefetch(s.at, _MM_HINT_T1);
  }
  VNNI void line(size_t, size_t) {}
};

template <bool I4>
Ahead ahead_of(const Slice& next, size_t groups, size_t blocks) {
  if (!next.w || (next.w->dtype == DUET_I4) != I4) return {};
  const Tiles t = tiles_at<I4>(*next.w, next.first / kTile, 1);
  const auto two = [](const auto* p, size_t step) { return Ahead::Stretch{reinterpret_cast<const char*>(p), reinterpret_cast<const char*>(p + 2 * step)}; };
  const size_t w_step = t.groups * kGroupBytes<I4>, scale_step = t.groups * kTile, bytes = 2 * (w_step + (I4 ? 4 : 2) * scale_step);
  return {{two(t.w, w_step), two(t.scale, scale_step), I4 ? two(t.minimum, scale_step) : Ahead::Stretch{}}, (bytes / 64 + groups * blocks - 1) / (groups * blocks)};
}

// The same for one row: scales and minimums of the four tiles that come next, and one line in four of the tiles. Asking for all keeps
// so many requests of the first-level cache that the prefetchers of the second, which follow long streams by themselves, fall behind.
template <bool I4>
struct Streams {
  Tiles next;

  VNNI void group(size_t g) {
    if (g >= next.groups) return;
    UNROLL for (size_t t = 0; t < 4; ++t) {
      const size_t at = (t * next.apart * next.groups + g) * kTile;
      _mm_prefetch(reinterpret_cast<const char*>(next.scale + at), _MM_HINT_T1);
      if (I4) _mm_prefetch(reinterpret_cast<const char*>(next.minimum + at), _MM_HINT_T1);
    }
  }
  VNNI void line(size_t g, size_t i) {
    if (g < next.groups) _mm_prefetch(reinterpret_cast<const char*>(next.w + (i % 4 * next.apart * next.groups + g) * kGroupBytes<I4> + i * 64), _MM_HINT_T1);
  }
};

// T tiles x R rows. The lines of `out` are asked for before, since they may be in memory.
template <bool I4, size_t T, size_t R, class Fetch>
VNNI void product(const Tiles& m, const RoundedRows& x, const Place& out, Fetch& ahead) {
  const auto place = [&](size_t r, size_t t) { return out.at(r, t * m.apart * kTile).y; };
  UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t t = 0; t < T; ++t) __builtin_prefetch(place(r, t), 1);
  const size_t w_step = m.apart * m.groups * kGroupBytes<I4>, scale_step = m.apart * m.groups * kTile;
  __m512 y[R][T];
  UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t t = 0; t < T; ++t) y[r][t] = _mm512_setzero_ps();
  for (size_t g = 0; g < x.groups; ++g) {
    __m512i dot[R][T];
    // q8 is shifted to 0 .. 255 for the product, which the bias takes back
    UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t t = 0; t < T; ++t)
        dot[r][t] = I4 ? _mm512_setzero_si512() : _mm512_set1_epi32(x.bias[r * x.groups + g]);
    const uint8_t* w = m.w + g * kGroupBytes<I4>;
    const int8_t* q = x.q + g * kGroup;
    ahead.group(g);
    for (size_t i = 0; i < kGroup; i += I4 ? 8 : 4, w += 64) {
      ahead.line(g, i / (I4 ? 8 : 4));
      __m512i a[T], b[T];
      UNROLL for (size_t t = 0; t < T; ++t) {
        const __m512i v = _mm512_loadu_si512(w + t * w_step);
        if (I4) {
          const __m512i low = _mm512_set1_epi8(15);
          a[t] = _mm512_and_si512(v, low);
          b[t] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
        } else {
          a[t] = _mm512_xor_si512(v, _mm512_set1_epi8(-128));
        }
      }
      UNROLL for (size_t r = 0; r < R; ++r) {
        const int8_t* at = q + r * x.groups * kGroup + i;
        const __m512i first = _mm512_set1_epi32(four(at));
        UNROLL for (size_t t = 0; t < T; ++t) dot[r][t] = add_products(dot[r][t], a[t], first);
        if (I4) {
          const __m512i second = _mm512_set1_epi32(four(at + 4));
          UNROLL for (size_t t = 0; t < T; ++t) dot[r][t] = add_products(dot[r][t], b[t], second);
        }
      }
    }
    UNROLL for (size_t t = 0; t < T; ++t) {
      const __m512 scale = floats16(m.scale + t * scale_step + g * kTile);
      UNROLL for (size_t r = 0; r < R; ++r) {
        const size_t at = r * x.groups + g;
        y[r][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r][t]), _mm512_mul_ps(scale, _mm512_set1_ps(x.scale[at])), y[r][t]);
      }
      if (!I4) continue;
      const __m512 minimum = floats16(m.minimum + t * scale_step + g * kTile);
      UNROLL for (size_t r = 0; r < R; ++r) y[r][t] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x.offset[r * x.groups + g]), y[r][t]);
    }
  }
  UNROLL for (size_t r = 0; r < R; ++r) UNROLL for (size_t t = 0; t < T; ++t) _mm512_storeu_ps(place(r, t), out.add ? _mm512_add_ps(_mm512_loadu_ps(place(r, t)), y[r][t]) : y[r][t]);
}

// T tiles for all rows, at most R at a time, in blocks of nearly one size: the tiles stay in L1
template <bool I4, size_t T, size_t R>
VNNI_FN void rows_of(const Tiles& m, RoundedRows x, size_t rows, Place out, Ahead ahead) {
  for (size_t n = rows - std::min(rows, (rows + R - 1) / R * (R - 1)); n > 0; --n, rows -= R, x = rounded_from(x, R), out = out.at(R, 0))
    product<I4, T, R>(m, x, out, ahead);
  if constexpr (R > 1)
    if (rows > 0) rows_of<I4, T, R - 1>(m, x, rows, out, ahead);
}

template <bool I4>
VNNI_FN void one_row(const Tiles& m, const RoundedRows& x, const Place& out, Streams<I4> ahead) {
  product<I4, 4, 1>(m, x, out, ahead);
}

// One row waits for memory, which likes few long streams: four, each of a quarter of the outputs. More rows are bound by the
// products: two tiles leave registers for six rows, and memory works evenly at the tiles to come.
template <bool I4>
void multiply_vnni(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, const Place& out, Slice next) {
  const size_t n_tiles = (count + kTile - 1) / kTile;
  size_t t = 0;
  if (rows == 1) {
    const size_t apart = n_tiles / 4, next_apart = next.w && next.w->dtype == m.dtype ? next.count / kTile / 4 : 0;
    for (; t < apart; ++t)
      one_row<I4>(tiles_at<I4>(m, first / kTile + t, apart), x, out.at(0, t * kTile), {t < next_apart ? tiles_at<I4>(*next.w, next.first / kTile + t, next_apart) : Tiles()});
    t = 4 * apart;
  }
  for (; t + 2 <= n_tiles; t += 2) {
    const Slice then = t + 4 <= n_tiles ? Slice{&m, first + (t + 2) * kTile} : next;
    rows_of<I4, 2, 6>(tiles_at<I4>(m, first / kTile + t, 1), x, rows, out.at(0, t * kTile), rows == 1 ? Ahead{} : ahead_of<I4>(then, x.groups, (rows + 5) / 6));
  }
  if (t < n_tiles) rows_of<I4, 1, 6>(tiles_at<I4>(m, first / kTile + t, 1), x, rows, out.at(0, t * kTile), {});
}

// ---- AVX2: products of bytes come in pairs of 16 bits, which must not overflow ----

AVX2 __m256 floats8(const uint16_t* bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bf16))), 16));
}

// sums of four neighbouring products
AVX2 __m256i dot_i8(__m256i w, __m256i x) {  // |w| (x with the sign of w): 2 x 128 x 127 fits
  return _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)), _mm256_set1_epi16(1));
}
AVX2 __m256i dot_i4(__m256i a, __m256i x, __m256i b, __m256i z) {
  return _mm256_madd_epi16(_mm256_add_epi16(_mm256_maddubs_epi16(a, x), _mm256_maddubs_epi16(b, z)), _mm256_set1_epi16(1));
}

// Half a tile, eight outputs, x R rows
template <bool I4, size_t R>
AVX2_FN void half_product(const Tiles& m, size_t half, const RoundedRows& x, const Place& out) {
  __m256 y[R];
  UNROLL for (size_t r = 0; r < R; ++r) y[r] = _mm256_setzero_ps();
  for (size_t g = 0; g < x.groups; ++g) {
    __m256i dot[R];
    UNROLL for (size_t r = 0; r < R; ++r) dot[r] = _mm256_setzero_si256();
    const uint8_t* w = m.w + g * kGroup * kTile / (I4 ? 2 : 1) + half * 32;
    const int8_t* q = x.q + g * kGroup;
    for (size_t i = 0; i < kGroup; i += I4 ? 8 : 4, w += 64) {
      const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)), low = _mm256_set1_epi8(15);
      UNROLL for (size_t r = 0; r < R; ++r) {
        const int8_t* at = q + r * x.groups * kGroup + i;
        const __m256i four_of = _mm256_set1_epi32(four(at));
        const __m256i sum = I4 ? dot_i4(_mm256_and_si256(v, low), four_of, _mm256_and_si256(_mm256_srli_epi16(v, 4), low), _mm256_set1_epi32(four(at + 4)))
                               : dot_i8(v, four_of);
        dot[r] = _mm256_add_epi32(dot[r], sum);
      }
    }
    const __m256 scale = floats8(m.scale + g * kTile + half * 8);
    UNROLL for (size_t r = 0; r < R; ++r) {
      const size_t at = r * x.groups + g;
      y[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r]), _mm256_mul_ps(scale, _mm256_set1_ps(x.scale[at])), y[r]);
      if (I4) y[r] = _mm256_fmadd_ps(floats8(m.minimum + g * kTile + half * 8), _mm256_set1_ps(x.offset[at]), y[r]);
    }
  }
  UNROLL for (size_t r = 0; r < R; ++r) {
    float* to = out.at(r, half * 8).y;
    _mm256_storeu_ps(to, out.add ? _mm256_add_ps(_mm256_loadu_ps(to), y[r]) : y[r]);
  }
}

template <bool I4>
void multiply_avx2(const Matrix& m, size_t first, size_t count, const RoundedRows& all, size_t rows, const Place& out) {
  for (size_t o = 0; o < count; o += kTile) {
    const Tiles w = tiles_at<I4>(m, (first + o) / kTile, 1);
    for (size_t half = 0; half < 2; ++half) {
      size_t row = 0;
      for (; row + 4 <= rows; row += 4) half_product<I4, 4>(w, half, rounded_from(all, row), out.at(row, o));
      for (; row < rows; ++row) half_product<I4, 1>(w, half, rounded_from(all, row), out.at(row, o));
    }
  }
}

bool vnni_forbidden = false, avx2_forbidden = false;

void vnni(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next) {
  m.dtype == DUET_I4 ? multiply_vnni<true>(m, first, count, x, rows, out, next) : multiply_vnni<false>(m, first, count, x, rows, out, next);
}
void avx2(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice) {
  m.dtype == DUET_I4 ? multiply_avx2<true>(m, first, count, x, rows, out) : multiply_avx2<false>(m, first, count, x, rows, out);
}

}  // namespace

IntegerProduct integer_product() {
  static const bool has_vnni = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return has_vnni && !vnni_forbidden ? vnni : has_avx2 && !avx2_forbidden ? avx2 : nullptr;
}
void forbid_vnni() { vnni_forbidden = true; }
void forbid_avx2() { vnni_forbidden = avx2_forbidden = true; }

}  // namespace duet_cpu
#else
namespace duet_cpu {
IntegerProduct integer_product() { return nullptr; }
void forbid_vnni() {}
void forbid_avx2() {}
}  // namespace duet_cpu
#endif
