// y = W x for bf16 weights [out,in] in parallel mode. Tokens lie across the lanes and a pair of elements of W is given to all of
// them, so that W is read where it is, and nothing is packed. Sums go along the inputs as oneDNN's do: each block of inputs is
// summed from zero and added to those before it.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#define BF16_DOT __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

namespace duet_cpu {
namespace {

constexpr size_t kLanes = 16, kOutputs = 8, kLine = 32;  // tokens in a vector; outputs at once; elements in a cache line

// Sums over a block of inputs, of kOutputs rows of W, `step` elements apart, and V vectors of tokens: [output][token]; stored, or
// added to those before. Meanwhile as many elements are fetched from `ahead`.
template <size_t V>
BF16_DOT void add_block(const uint16_t* w, size_t step, const uint32_t* x, size_t depth, float* sums, bool first, const uint16_t* ahead) {
  __m512 acc[kOutputs][V];
#pragma GCC unroll 8
  for (size_t r = 0; r < kOutputs; ++r)
#pragma GCC unroll 2
    for (size_t v = 0; v < V; ++v) acc[r][v] = _mm512_setzero_ps();
  const auto pair = [&](size_t k) BF16_DOT __attribute__((always_inline)) {
    __m512i in[V];
#pragma GCC unroll 2
    for (size_t v = 0; v < V; ++v) in[v] = _mm512_loadu_si512(x + (k / 2 * V + v) * kLanes);
#pragma GCC unroll 8
    for (size_t r = 0; r < kOutputs; ++r) {
      int32_t word;
      std::memcpy(&word, w + r * step + k, sizeof word);
      const auto both = reinterpret_cast<__m512bh>(_mm512_set1_epi32(word));
#pragma GCC unroll 2
      for (size_t v = 0; v < V; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], reinterpret_cast<__m512bh>(in[v]), both);
    }
  };
  size_t k = 0;
  for (; k + kLine <= depth; k += kLine) {
#pragma GCC unroll 8
    for (size_t r = 0; r < kOutputs; ++r) __builtin_prefetch(ahead + k * kOutputs + r * kLine, 0, 2);
#pragma GCC unroll 4
    for (size_t i = 0; i < kLine; i += 2) pair(k + i);
  }
  for (; k < depth; k += 2) pair(k);
#pragma GCC unroll 8
  for (size_t r = 0; r < kOutputs; ++r)
#pragma GCC unroll 2
    for (size_t v = 0; v < V; ++v) {
      float* at = sums + (r * V + v) * kLanes;
      _mm512_store_ps(at, first ? acc[r][v] : _mm512_add_ps(_mm512_load_ps(at), acc[r][v]));
    }
}

template <size_t V>
void outputs(const uint16_t* w, size_t step, const uint32_t* x, size_t depth, size_t block, float* sums, const uint16_t* ahead) {
  for (size_t k = 0; k < depth; k += block)
    add_block<V>(w + k, step, x + k / 2 * V * kLanes, std::min(block, depth - k), sums, k == 0, ahead + k * kOutputs);
}

template <size_t V>
void tile_of(const uint16_t* w, size_t count, const uint32_t* x, size_t depth, size_t block, float* tile, const uint16_t* next) {
  alignas(64) float sums[kTileColumns * V * kLanes];
  size_t r = 0;
  for (; r + kOutputs <= count; r += kOutputs)
    outputs<V>(w + r * depth, depth, x, depth, block, sums + r * V * kLanes, r + 2 * kOutputs <= count ? w + (r + kOutputs) * depth : next);
  alignas(64) float one[kOutputs * V * kLanes];
  for (; r < count; ++r) {
    outputs<V>(w + r * depth, 0, x, depth, block, one, next);
    std::copy_n(one, V * kLanes, sums + r * V * kLanes);
  }
  for (; r < kTileColumns; ++r) std::fill_n(sums + r * V * kLanes, V * kLanes, 0.0f);
  transpose(sums, sizeof(float), kTileColumns, V * kLanes, 0, kTileColumns, tile);
}

size_t vectors(size_t rows) { return (rows + kLanes - 1) / kLanes; }

}  // namespace

bool takes_tokens(const Matrix& w) { return has_bf16_dot() && w.dtype == DUET_BF16 && !w.in_major && w.in % 2 == 0; }

void spread_tokens(const void* x, size_t rows, size_t depth, void* spread) {
  const size_t lanes = vectors(rows) * kLanes;
  if (rows < lanes) std::memset(spread, 0, lanes * depth * sizeof(uint16_t));
  transpose(x, 2 * sizeof(uint16_t), lanes, depth / 2, 0, rows, spread);
}

void multiply_tokens(const Matrix& m, size_t first, size_t count, const void* spread, size_t rows, size_t block, float* tile, Slice next) {
  const uint16_t* w = static_cast<const uint16_t*>(m.data) + first * m.in;
  const uint16_t* ahead = next.w && takes_tokens(*next.w) ? static_cast<const uint16_t*>(next.w->data) + next.first * next.w->in : w;
  const auto* x = static_cast<const uint32_t*>(spread);
  vectors(rows) == 1 ? tile_of<1>(w, count, x, m.in, block, tile, ahead) : tile_of<2>(w, count, x, m.in, block, tile, ahead);
}

}  // namespace duet_cpu
#else
namespace duet_cpu {
bool takes_tokens(const Matrix&) { return false; }
void spread_tokens(const void*, size_t, size_t, void*) {}
void multiply_tokens(const Matrix&, size_t, size_t, const void*, size_t, size_t, float*, Slice) {}
}  // namespace duet_cpu
#endif
