// The thread that copies the block's share of all weights into the ring.
#pragma once
#include "resident/ring.h"

namespace duet_cuda::resident {

// What is not inline has the ring's place by value: addresses of variables would put them into memory.

struct Place {
  uint32_t stage, parity;
};

__device__ __noinline__ Place copy_rows(char* data, Shared* s, Place at, const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
  Ring ring{data, *s, at.stage, at.parity};
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
  Ring ring{data, *s, at.stage, at.parity};
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

__constant__ const uint32_t kHeadTensors[kHeadVectors] = {DUETP_T_W0, DUETP_T_A0, DUETP_T_V0, DUETP_T_K_K, DUETP_T_K_A, DUETP_T_R_K, DUETP_T_LN_X_W, DUETP_T_LN_X_B};

struct Copier {
  const Plan& p;
  Ring ring;

  __device__ void move_to(Place at) { ring.stage = at.stage, ring.parity = at.parity; }
  __device__ void rows(const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
    move_to(copy_rows(ring.data, &ring.s, {ring.stage, ring.parity}, from, n_rows, n_in, at_once));
  }

  __device__ void head(const Layer& l, const char* S) {
    const uint32_t head = blockIdx.x, bytes = kHead * kHead * p.a.stored_bytes;
    if (S) {
      ring.open(bytes);
      ring.copy(0, S + static_cast<uint64_t>(head) * bytes, bytes);
      ring.next();
    }
    ring.open((kHeadVectors - l.is_first) * kHead * 4);
#pragma unroll 1
    for (uint32_t i = 0; i < kHeadVectors; ++i)
      if (i != kV0 || !l.is_first) ring.copy(i * kHead * 4, l.vector(kHeadTensors[i]) + head * kHead, kHead * 4);
    ring.next();
#pragma unroll 1
    for (uint32_t m = 0; m < 4; ++m)
      if (m != 2 || !l.is_first) rows(l.matrix(DUETP_T_W2 + m) + static_cast<uint64_t>(head) * kHead * p.rank[m], kHead, p.rank[m], p.low_at_once[m]);
  }

  __device__ void run() {
    const uint32_t C = p.C;
    const int32_t slot = p.a.slots[0];
    uint32_t tiles = 0;  // that are over
#pragma unroll 1
    for (uint32_t i = 0; i < p.n; ++i) {
      const Layer l(p, i, ring.s);
#pragma unroll 1
      for (uint32_t j = 0; j < l.products().n; ++j) {
        const auto& q = l.products().of[j];
        rows(l.matrix(matrix_of(q.product)) + static_cast<uint64_t>(q.begin) * C, q.end - q.begin, C, p.at_once);
      }
      if (blockIdx.x < p.n_head) head(l, StateOf(p, p.first + i, slot).S);
      const Share own = ring.s.own, inner = ring.s.inner;
      rows(l.matrix(DUETP_T_OUTPUT) + static_cast<uint64_t>(own.begin) * C, own.end - own.begin, C, p.at_once);
      const uint32_t n = inner.end - inner.begin;
      const bf16 *key = l.matrix(DUETP_T_FFN_KEY) + static_cast<uint64_t>(inner.begin) * C, *value = l.matrix(DUETP_T_FFN_VALUE) + static_cast<uint64_t>(inner.begin) * C;
#pragma unroll 1
      for (uint32_t at = 0; at < n + kTile; at += kTile) {  // value is a tile behind key
        if (at < n) rows(key + static_cast<uint64_t>(at) * C, min(kTile, n - at), C, p.at_once);
        if (at < kTile) continue;
        const uint32_t before = at - kTile;
        const bf16* rows_of_tile = value + static_cast<uint64_t>(before) * C;
        const uint32_t n_rows = min(kTile, n - before);
        if (!p.skips) {
          rows(rows_of_tile, n_rows, C, p.at_once);
          continue;
        }
        wait_for([&] { return barrier_passed_soon(&ring.s.ready[tiles % 2], tiles / 2 % 2); });
        ++tiles;
        move_to(copy_values(ring.data, &ring.s, {ring.stage, ring.parity}, rows_of_tile, nonzero(ring.s.u + before, n_rows), C, p.at_once));
      }
    }
  }
};

}  // namespace duet_cuda::resident
