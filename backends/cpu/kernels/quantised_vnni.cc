// Products with q8 and q4 weights by vpdpbusd of AVX-512 VNNI: bytes without sign times bytes with sign.
#include "kernels/quantised_x86.h"

#if defined(__x86_64__)
#include <algorithm>

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma"), always_inline)) inline
#define VNNI_FN __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))

namespace duet_cpu {
namespace {

VNNI __m512 floats16(const uint16_t* bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bf16))), 16));
}

// dot + products of four unsigned bytes of a and four signed ones of b in each lane. Not the intrinsic: for it g++ 12 copies every
// sum from one register to another and back.
VNNI __m512i add_products(__m512i dot, __m512i a, __m512i b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(dot) : "v"(a), "v"(b));
  return dot;
}

// What one row fetches: scales and minimums of the four tiles that come next, and one line in four of the tiles. Asking for all keeps
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
void multiply(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, const Place& out, Slice next) {
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
    rows_of<I4, 2, 6>(tiles_at<I4>(m, first / kTile + t, 1), x, rows, out.at(0, t * kTile), rows == 1 ? Ahead{} : ahead_of<I4, 2>(then, x.groups, (rows + 5) / 6));
  }
  if (t < n_tiles) rows_of<I4, 1, 6>(tiles_at<I4>(m, first / kTile + t, 1), x, rows, out.at(0, t * kTile), {});
}

}  // namespace

bool has_vnni() {
  static const bool has = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
  return has;
}

void multiply_vnni(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next) {
  m.dtype == DUET_I4 ? multiply<true>(m, first, count, x, rows, out, next) : multiply<false>(m, first, count, x, rows, out, next);
}

}  // namespace duet_cpu
#endif
