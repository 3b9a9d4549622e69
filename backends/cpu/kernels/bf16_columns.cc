// y = W x for W [in,out], the low-rank pairs, with vdpbf16ps: two rows of W at a time.
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels/bf16_pairs.h"

#include <cstring>

namespace duet_cpu {
namespace {

constexpr uint16_t kZeros[kTileColumns] = {};  // the row after the last of an odd number

// V times 32 outputs, the last of them those in `some`, x B inputs; rows of W are `ld` apart
template <size_t V, size_t B, bool kWhole>
BF16_DOT inline void columns(const uint16_t* w, size_t ld, __mmask32 some, const uint16_t* x, size_t depth, float* tile) {
  Sums sums[B][V];
#pragma GCC unroll 4
  for (size_t b = 0; b < B; ++b)
#pragma GCC unroll 2
    for (size_t v = 0; v < V; ++v) sums[b][v].low = sums[b][v].high = _mm512_setzero_ps();
  for (size_t k = 0; k < depth; k += 2, w += 2 * ld) {
    const bool whole = k + 1 < depth;
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
    for (size_t v = 0; v < V; ++v) store_sums<kWhole>(tile + b * kTileColumns + v * 32, some, sums[b][v]);
}

template <size_t B>
BF16_DOT void columns_of(const uint16_t* w, size_t ld, size_t count, const uint16_t* x, size_t depth, float* tile) {
  size_t i = 0;
  for (; i + 64 <= count; i += 64) columns<2, B, true>(w + i, ld, 0, x, depth, tile + i);
  for (; i + 32 <= count; i += 32) columns<1, B, true>(w + i, ld, 0, x, depth, tile + i);
  if (i < count) columns<1, B, false>(w + i, ld, some_of(count), x, depth, tile + i);
}

}  // namespace

void multiply_columns_bf16_dot(const Matrix& m, size_t first, size_t count, const void* in, size_t rows, float* tile) {
  const uint16_t* w = static_cast<const uint16_t*>(m.data) + first;
  const uint16_t* x = static_cast<const uint16_t*>(in);
  for (; rows >= 4; rows -= 4, x += 4 * size_t{m.in}, tile += 4 * kTileColumns) columns_of<4>(w, m.out, count, x, m.in, tile);
  if (rows == 3) return columns_of<3>(w, m.out, count, x, m.in, tile);
  if (rows == 2) return columns_of<2>(w, m.out, count, x, m.in, tile);
  if (rows == 1) return columns_of<1>(w, m.out, count, x, m.in, tile);
}

}  // namespace duet_cpu
#else
namespace duet_cpu {
void multiply_columns_bf16_dot(const Matrix&, size_t, size_t, const void*, size_t, float*) {}
}  // namespace duet_cpu
#endif
