// The copying thread's part with bf16 weights: rows.
#pragma once
#include "resident/copier.h"

namespace duet_cuda::resident {

__device__ __noinline__ Place copy_rows(char* data, Shared* s, Place at, const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
  Ring<Bf16> ring{data, *s, at.stage, at.parity};
#pragma unroll 1
  for (uint32_t row = 0; row < n_rows; row += at_once) {
    const uint32_t bytes = min(at_once, n_rows - row) * n_in * 2;
    ring.open(bytes);
    ring.copy(0, from + static_cast<uint64_t>(row) * n_in, bytes);
    ring.next();
  }
  return {ring.stage, ring.parity};
}

// Which inputs of a tile are not zero
__device__ __forceinline__ uint32_t nonzero(const float* u, uint32_t n) {
  uint32_t mask = 0;
  for (uint32_t i = 0; i < n; ++i) mask |= (u[i] != 0 ? 1u : 0u) << i;
  return mask;
}

__device__ __noinline__ Place copy_values(char* data, Shared* s, Place at, const bf16* value, uint32_t mask, uint32_t C, uint32_t at_once) {
  Ring<Bf16> ring{data, *s, at.stage, at.parity};
#pragma unroll 1
  while (mask != 0) {
    const uint32_t n = min(at_once, static_cast<uint32_t>(__popc(mask)));
    ring.open(n * C * 2);
#pragma unroll 1
    for (uint32_t i = 0; i < n; ++i, mask &= mask - 1) ring.copy(i * C * 2, value + static_cast<uint64_t>(__ffs(mask) - 1) * C, C * 2);
    ring.next();
  }
  return {ring.stage, ring.parity};
}

struct Bf16Copies {
  using Form = Bf16;
  const Plan& p;
  Ring<Form> ring;
  uint32_t tiles = 0;  // of key that are over

  __device__ void move_to(Place at) { ring.stage = at.stage, ring.parity = at.parity; }
  __device__ void rows(const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
    move_to(copy_rows(ring.data, &ring.s, {ring.stage, ring.parity}, from, n_rows, n_in, at_once));
  }
  __device__ void rows(const Layer& l, uint32_t matrix, uint32_t begin, uint32_t n) { rows(l.matrix(matrix) + static_cast<uint64_t>(begin) * p.C, n, p.C, p.at_once); }
  __device__ void low_rank(const Layer& l, uint32_t m, uint32_t head) {
    rows(l.matrix(DUETP_T_W2 + m) + static_cast<uint64_t>(head) * kHead * p.rank[m], kHead, p.rank[m], p.low_at_once[m]);
  }

  __device__ void channel_mix(const Layer& l) {
    const uint32_t C = p.C, begin = ring.s.inner.begin, n = ring.s.inner.end - begin;
    const bf16* value = l.matrix(DUETP_T_FFN_VALUE) + static_cast<uint64_t>(begin) * C;
#pragma unroll 1
    for (uint32_t at = 0; at < n + kBehind; at += kBehind) {
      if (at < n) rows(l, DUETP_T_FFN_KEY, begin + at, min(kBehind, n - at));
      if (at < kBehind) continue;
      const uint32_t before = at - kBehind;
      const bf16* rows_of_tile = value + static_cast<uint64_t>(before) * C;
      const uint32_t n_rows = min(kBehind, n - before);
      if (!p.skips) {
        rows(rows_of_tile, n_rows, C, p.at_once);
        continue;
      }
      wait_for([&] { return barrier_passed_soon(&ring.s.ready[tiles % 2], tiles / 2 % 2); });
      ++tiles;
      move_to(copy_values(ring.data, &ring.s, {ring.stage, ring.parity}, rows_of_tile, nonzero(ring.s.u + before, n_rows), C, p.at_once));
    }
  }
};

}  // namespace duet_cuda::resident
