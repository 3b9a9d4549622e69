// The thread that copies the block's share of all weights into the ring. What depends on the weights' form is in bf16_copies.h and
// quantised_copies.h.
#pragma once
#include "resident/ring.h"

namespace duet_cuda::resident {

// What is not inline has the ring's place by value: addresses of variables would put them into memory.
struct Place {
  uint32_t stage, parity;
};

__constant__ const uint32_t kHeadTensors[kHeadVectors] = {DUETP_T_W0, DUETP_T_A0, DUETP_T_V0, DUETP_T_K_K, DUETP_T_K_A, DUETP_T_R_K, DUETP_T_LN_X_W, DUETP_T_LN_X_B};

template <class Copies>
struct Copier : Copies {
  using Copies::p, Copies::ring;

  __device__ void head(const Layer& l, const char* S) {
    const uint32_t head = blockIdx.x, bytes = kHead * kHead * p.a.stored_bytes;
    if (S) {
      ring.open(bytes);
      ring.copy(0, S + static_cast<uint64_t>(head) * bytes, bytes);
      ring.next();
    }
    ring.open((kHeadVectors - l.is_first()) * kHead * 4);
#pragma unroll 1
    for (uint32_t i = 0; i < kHeadVectors; ++i)
      if (i != kV0 || !l.is_first()) ring.copy(i * kHead * 4, l.vector(kHeadTensors[i]) + head * kHead, kHead * 4);
    ring.next();
#pragma unroll 1
    for (uint32_t m = 0; m < 4; ++m)
      if (m != 2 || !l.is_first()) this->low_rank(l, m, head);
  }

  __device__ void run() {
#pragma unroll 1
    for (uint32_t i = 0; i < p.n; ++i) {
      const Layer l{p, i};
#pragma unroll 1
      for (uint32_t j = 0; j < ring.s.products_of(l).n; ++j) {
        const auto& q = ring.s.products_of(l).of[j];
        this->rows(l, matrix_of(q.product), q.begin, q.end - q.begin);
      }
      if (blockIdx.x < p.n_head) head(l, StateOf(p, i, ring.s).S);
      const Share own = ring.s.own;
      this->rows(l, DUETP_T_OUTPUT, own.begin / p.rows, (own.end - own.begin) / p.rows);
      this->channel_mix(l);
    }
  }
};

}  // namespace duet_cuda::resident
