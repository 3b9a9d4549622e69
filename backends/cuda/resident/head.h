// A head, by the block of its number: the second low-rank products, wkv, norm and gate.
#pragma once
#include "resident/token_shift.h"

namespace duet_cuda::resident {

template <class Worker, bool is_narrow>
struct Head : TokenShift<Worker, is_narrow> {
  using Base = TokenShift<Worker, is_narrow>;
  using Base::Base, Base::p, Base::s, Base::ring, Base::step, Base::told, Base::warp, Base::lane, Base::is_waiting;

  // What the head needs of step 3: the low-rank products' inputs, r, k and v
  __device__ void hear_head(const Layer& l) {
    const uint32_t n_hidden = p.low_begin[4], n = n_hidden + 3 * kHead;
    const auto word = [&](uint32_t j) { return j < n_hidden ? told.low + j : told.rkv + (j - n_hidden) / kHead * p.C + blockIdx.x * kHead + (j - n_hidden) % kHead; };
    const auto is_there = [&](uint32_t j) { return j < n && (j >= n_hidden || (!(l.is_first() && j >= p.low_begin[2] && j < p.low_begin[3]) && this->is_hidden(j))); };
    workers_meet();  // all have read what the inputs were before
#pragma unroll 1
    for (uint32_t first = 0; first < n; first += 2 * kWorkers) {
      Told<1> t[2];
      const auto for_both = [&](auto&& f) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i)
          if (const uint32_t j = first + threadIdx.x + i * kWorkers; is_there(j)) f(t[i], j);
      };
      warp_waits_for([&] {
        bool all = true;
        for_both([&](Told<1>& of, uint32_t j) { of.look(word(j)); });
        for_both([&](const Told<1>& of, uint32_t) { all = all && of.is_of(step); });
        return all;
      });
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t j = first + threadIdx.x + i * kWorkers;
        if (j < n_hidden)
          this->keep_hidden(j, is_there(j) ? t[i][0] : 0.0f);
        else if (j < n)
          s.rkv[j - n_hidden] = t[i][0];
      }
    }
    this->hidden_is_kept();
    workers_meet();
  }

  // The second low-rank products of the head's channels, and what becomes of them. `bias`: of the lane's two.
  __device__ void low_rank(const Layer& l, float2 bias) {
    const float2 sum = this->low_products(l);
    const uint32_t m = warp / 4, row = this->low_row();
    const auto finish = [&](float x) { return m == 0 ? expf(-0.60653065971263342f * sigmoid(x)) : m == 3 ? x : sigmoid(x); };
    if (lane % 4 == 0) s.low[m][row] = finish(sum.x + bias.x), s.low[m][row + Worker::kLowApart] = finish(sum.y + bias.y);
    workers_meet();
  }

  // The sums of a and b over the first two warps, to their threads. Nobody else comes.
  __device__ float2 head_sum(float a, float b, uint32_t which) const {
    const float2 own = lane_sums({a, b});
    if (lane == 0) s.sums[which][2 * warp] = own.x, s.sums[which][2 * warp + 1] = own.y;
    two_warps_meet();
    return {s.sums[which][0] + s.sums[which][2], s.sums[which][1] + s.sums[which][3]};
  }

  // f(row of the warp's four, something of the type in which the state is stored)
  template <class F>
  __device__ void for_state_rows(F&& f) const {
    const auto each = [&](auto element) {
#pragma unroll
      for (int j = 0; j < 4; ++j) f(j, element);
    };
    if (p.a.stored == DUET_F32)
      each(float());
    else if (p.a.stored == DUET_BF16)
      each(duet_gpu::bf16());
    else
      each(duet_gpu::f16());
  }

  // The head of this block's number. The first two warps have its channels, each warp four rows of S.
  __device__ void head(const Layer& l, char* state) {
    const uint32_t i = threadIdx.x, channel = blockIdx.x * kHead + i;
    const uint32_t first_pair = 4 * warp * (kHead / 2) + lane;  // of S, a row's pairs side by side
    float2 S[4] = {};
    if (state) {
      const void* rows = ring.take();
      for_state_rows([&](int j, auto element) { S[j] = read_pair<decltype(element)>(rows, first_pair + j * (kHead / 2)); });
      ring.give_back();
    }
    const float* weights = reinterpret_cast<const float*>(ring.take());
    const auto weight = [&](HeadVector which) { return weights[which * kHead + i % kHead]; };
    const float k_k = weight(kKK), k_a = weight(kKA), r_k = weight(kRK), ln_w = weight(kLnW), ln_b = weight(kLnB);
    const uint32_t of = warp / 4 * kHead + this->low_row();
    const float2 bias = warp / 4 == 3 ? float2{0, 0} : float2{weights[of], weights[of + Worker::kLowApart]};
    ring.give_back();
    const float v_first = i < kHead && !l.is_first() ? __ldcg(p.a.v_first + channel) : 0.0f;
    hear_head(l);
    is_waiting(false);  // what this takes out of the ring should be there again when the other blocks go on
    low_rank(l, bias);
    float v = 0, bonus = 0;
    if (i < kHead) {
      const float r = s.rkv[i], k = s.rkv[kHead + i], a = s.low[1][i];
      v = s.rkv[2 * kHead + i];
      if (!l.is_first())
        v += (v_first - v) * s.low[2][i];
      else
        p.a.v_first[channel] = v;
      const float k2 = k * (1.0f + (a - 1.0f) * k_a);
      float kk = k * k_k;
      s.k[i] = k2, s.v[i] = v;
      const float2 sums = head_sum(kk * kk, r * k2 * r_k, 0);
      kk /= fmaxf(sqrtf(sums.x), 1e-12f);
      s.minus_kk[i] = -kk, s.b[i] = kk * a;
      bonus = sums.y;
    }
    workers_meet();
    const auto keys = [&](const float* of) { return reinterpret_cast<const float2*>(of)[lane]; };
    const float2 minus_kk = keys(s.minus_kk), b = keys(s.b), w = keys(s.low[0]), k2 = keys(s.k), r2 = keys(s.rkv);
    float removed[4], y[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) removed[j] = S[j].x * minus_kk.x + S[j].y * minus_kk.y;
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
#pragma unroll
      for (int j = 0; j < 4; ++j) removed[j] += __shfl_xor_sync(~0u, removed[j], d);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float value = s.v[4 * warp + j];
      S[j] = {S[j].x * w.x + removed[j] * b.x + value * k2.x, S[j].y * w.y + removed[j] * b.y + value * k2.y};
      y[j] = S[j].x * r2.x + S[j].y * r2.y;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
#pragma unroll
      for (int j = 0; j < 4; ++j) y[j] += __shfl_xor_sync(~0u, y[j], d);
    if (lane == 0) *reinterpret_cast<float4*>(s.out + 4 * warp) = {y[0], y[1], y[2], y[3]};
    if (state) {
      void* rows = state + static_cast<uint64_t>(blockIdx.x) * kHead * kHead * p.a.stored_bytes;
      for_state_rows([&](int j, auto element) { write_pair<decltype(element)>(rows, first_pair + j * (kHead / 2), S[j]); });
    }
    workers_meet();
    if (i >= kHead) return;
    const float own_y = s.out[i], mean = head_sum(own_y, 0, 1).x / kHead, centred = own_y - mean;
    const float scale = rsqrtf(head_sum(centred * centred, 0, 0).x / kHead + p.gn_eps);
    this->tell_gated((centred * scale * ln_w + ln_b + bonus * v) * s.low[3][i]);
  }
};

}  // namespace duet_cuda::resident
