// y = W x for W [in,out] with vdpbf16ps: two rows of W at a time. The low-rank pairs, and few tokens of parallel mode.
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels/bf16_pairs.h"

#include <algorithm>
#include <cstring>

namespace duet_cpu {
namespace {

constexpr uint16_t kZeros[kTileColumns] = {};  // the row after the last of an odd number

// Sums over the inputs [from, to), stored where `from` is 0, else added to those before: V times 32 outputs, the last of them those
// in `some`, x B rows of x, which are `depth` apart; rows of W are `ld` apart.
template <size_t V, size_t B, bool kWhole>
BF16_DOT inline void columns(const uint16_t* w, size_t ld, __mmask32 some, const uint16_t* x, size_t depth, size_t from, size_t to, float* tile) {
  Sums sums[B][V];
#pragma GCC unroll 4
  for (size_t b = 0; b < B; ++b)
#pragma GCC unroll 2
    for (size_t v = 0; v < V; ++v) sums[b][v].low = sums[b][v].high = _mm512_setzero_ps();
  w += from * ld;
  for (size_t k = from; k < to; k += 2, w += 2 * ld) {
    const bool whole = k + 1 < to;
    const uint16_t* second = whole ? w + ld : kZeros;
    Rows rows[V];
#pragma GCC unroll 2
    for (size_t v = 0; v < V; ++v) rows[v] = load_rows<kWhole>(w + v * 32, second + v * 32, some);
#pragma GCC unroll 4
    for (size_t b = 0; b < B; ++b) {
      uint32_t inputs = x[b * depth + k];
      if (whole) std::memcpy(&inputs, x + b * depth + k, sizeof inputs);
#pragma GCC unroll 2
      for (size_t v = 0; v < V; ++v) add(sums[b][v], rows[v], inputs);
    }
  }
#pragma GCC unroll 4
  for (size_t b = 0; b < B; ++b)
#pragma GCC unroll 2
    for (size_t v = 0; v < V; ++v) {
      float* at = tile + b * kTileColumns + v * 32;
      if (from > 0) {
        const Sums before = load_sums<kWhole>(at, some);
        sums[b][v] = {_mm512_add_ps(before.low, sums[b][v].low), _mm512_add_ps(before.high, sums[b][v].high)};
      }
      store_sums<kWhole>(at, some, sums[b][v]);
    }
}

template <size_t B>
BF16_DOT void columns_of(const uint16_t* w, size_t ld, size_t count, const uint16_t* x, size_t depth, size_t from, size_t to, float* tile) {
  size_t i = 0;
  for (; i + 64 <= count; i += 64) columns<2, B, true>(w + i, ld, 0, x, depth, from, to, tile + i);
  for (; i + 32 <= count; i += 32) columns<1, B, true>(w + i, ld, 0, x, depth, from, to, tile + i);
  if (i < count) columns<1, B, false>(w + i, ld, some_of(count), x, depth, from, to, tile + i);
}

}  // namespace

void multiply_columns_bf16_dot(const Matrix& m, size_t first, size_t count, const void* in, size_t rows, size_t block, float* tile) {
  const uint16_t* w = static_cast<const uint16_t*>(m.data) + first;
  for (size_t from = 0; from < m.in; from += block) {
    const size_t to = std::min<size_t>(from + block, m.in);
    const uint16_t* x = static_cast<const uint16_t*>(in);
    float* at = tile;
    size_t left = rows;
    for (; left >= 4; left -= 4, x += 4 * size_t{m.in}, at += 4 * kTileColumns) columns_of<4>(w, m.out, count, x, m.in, from, to, at);
    if (left == 3) columns_of<3>(w, m.out, count, x, m.in, from, to, at);
    if (left == 2) columns_of<2>(w, m.out, count, x, m.in, from, to, at);
    if (left == 1) columns_of<1>(w, m.out, count, x, m.in, from, to, at);
  }
}

}  // namespace duet_cpu
#else
namespace duet_cpu {
void multiply_columns_bf16_dot(const Matrix&, size_t, size_t, const void*, size_t, size_t, float*) {}
}  // namespace duet_cpu
#endif
