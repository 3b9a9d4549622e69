// What the integer products of x86-64 have in common: quantised_vnni.cc, quantised_avx2.cc. Own intrinsics, because Highway 1.0.3 has
// no products of bytes. Sixteen outputs are the lanes of one vector or two, so that nothing is summed across lanes.
#pragma once
#include "duet_quantised.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#pragma GCC diagnostic ignored "-Wuninitialized"  // g++ 12: in its own intrinsics
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#define UNROLL _Pragma("GCC unroll 16")

namespace duet_cpu {

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

// What products of several rows fetch from memory meanwhile, evenly over the groups of all blocks of rows: the tiles that come next,
// then their scales and minimums
struct Ahead {
  struct Stretch {
    const char *at, *end;
  } left[3];
  size_t lines;  // in a group

  __attribute__((always_inline)) void group(size_t) {
    size_t n = lines;
    for (Stretch& s : left)
      for (; n > 0 && s.at < s.end; --n, s.at += 64) __builtin_prefetch(s.at, 0, 2);
  }
  __attribute__((always_inline)) void line(size_t, size_t) {}
};

template <bool I4, size_t T>
Ahead ahead_of(const Slice& next, size_t groups, size_t blocks) {
  if (!next.w || (next.w->dtype == DUET_I4) != I4) return {};
  const Tiles t = tiles_at<I4>(*next.w, next.first / kTile, 1);
  const auto all = [](const auto* p, size_t step) { return Ahead::Stretch{reinterpret_cast<const char*>(p), reinterpret_cast<const char*>(p + T * step)}; };
  const size_t w_step = t.groups * kGroupBytes<I4>, scale_step = t.groups * kTile, bytes = T * (w_step + (I4 ? 4 : 2) * scale_step);
  return {{all(t.w, w_step), all(t.scale, scale_step), I4 ? all(t.minimum, scale_step) : Ahead::Stretch{}}, (bytes / 64 + groups * blocks - 1) / (groups * blocks)};
}

inline int32_t four(const int8_t* q) {  // inputs, for all lanes alike
  int32_t v;
  std::memcpy(&v, q, sizeof v);
  return v;
}

// Whether this CPU has what each of them wants, which is not asked again
bool has_vnni();      // AVX-512 VNNI
bool has_avx_vnni();  // the same instruction on half as many lanes, in either encoding
bool has_avx2();
void multiply_vnni(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next);
void multiply_avx_vnni(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next);
void multiply_avx2(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next);

}  // namespace duet_cpu
#endif
