// Layers, step by step.
#pragma once
#include "resident/head.h"

namespace duet_cuda::resident {

struct Layers : Head {
  using Head::Head;
  uint32_t tiles = 0;  // of key that are over

  __device__ void time_mix_products(const Layer& l) {
    const Products& products = l.products();
    hear(told.mixes, products.n_inputs, products.inputs);
    workers_meet();
    is_waiting(false);
    uint32_t taken = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < products.n; ++i) {
      const uint32_t q = products.of[i].product, begin = products.of[i].begin;
      uint64_t* to = q <= kV ? told.rkv + q * p.C : told.low + p.low_begin[low_of(q)];
      rows(products.of[i].end - begin, input(products.of[i].input), taken, q == kLowW ? Use::tell_tanh : q == kLowG ? Use::tell_sigmoid : Use::tell, to + begin);
    }
    is_waiting(true);
  }

  __device__ void output() {
    if (warp == 0) warp_awaits(p.n_head, step, [&](uint32_t h) { return told.gated + (h + 1) * (kHead / 2) - 1; });
    workers_meet();  // all have read what the inputs were before
    hear(told.gated);
    workers_meet();
    is_waiting(false);
    uint32_t taken = 0;
    rows(s.own.end - s.own.begin, input(0), taken, Use::add_to_x, nullptr, s.x);
    is_waiting(true);
    workers_meet();
  }

  __device__ void channel_mix() {
    const uint32_t n = s.inner.end - s.inner.begin, across = p.C / 8, group = threadIdx.x / across;
    const auto tile = [&](uint32_t at) { return min(kTile, n - at); };
    hear(told.mixes, 1, kMixChannel);
    workers_meet();
    is_waiting(false);
    float sums[8] = {};
    uint32_t taken = 0;
#pragma unroll 1
    for (uint32_t at = 0; at < n + kTile; at += kTile) {
      if (at < n) {
        rows(tile(at), input(0), taken, Use::square, nullptr, s.u + at);
        warp_arrives(&s.ready[(tiles + at / kTile) % 2]);
      }
      if (at < kTile) continue;
      const uint32_t before_at = at - kTile, of = tiles + before_at / kTile;
      wait_for([&] { return barrier_passed_soon(&s.ready[of % 2], of / 2 % 2); });
      const uint32_t wanted = __ballot_sync(~0u, lane < tile(before_at) && (!p.skips || s.u[before_at + lane % kTile] != 0)), n_wanted = __popc(wanted);
      const uint32_t own_row = place_of_bit(wanted, lane);
#pragma unroll 1
      for (uint32_t first = 0; first < n_wanted; first += p.at_once) {
        const uint32_t here = min(p.at_once, n_wanted - first);
        const uint4* rows_of_value = ring.take();
#pragma unroll 2
        for (uint32_t begin = 0; begin < here; begin += p.abreast) {
          const uint32_t i = begin + group, row = __shfl_sync(~0u, own_row, (first + i) % 32);
          if (i >= here || group >= p.abreast) continue;
          const float u = s.u[before_at + row];
          const uint4 v = rows_of_value[i * across + threadIdx.x - group * across];
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[2 * j] = fmaf(u, low_half(words[j]), sums[2 * j]), sums[2 * j + 1] = fmaf(u, high_half(words[j]), sums[2 * j + 1]);
        }
        ring.give_back();
      }
    }
    tiles += (n + kTile - 1) / kTile;
    is_waiting(true);

    // every warp's last u came after its last row: nobody reads the inputs any more once all are here
    float* of_groups = reinterpret_cast<float*>(scratch);  // [abreast, C]
    workers_meet();
    if (group < p.abreast) {
      float4* to = reinterpret_cast<float4*>(of_groups + group * p.C + 8 * (threadIdx.x - group * across));
      to[0] = {sums[0], sums[1], sums[2], sums[3]}, to[1] = {sums[4], sums[5], sums[6], sums[7]};
    }
    workers_meet();
#pragma unroll 1
    for (uint32_t c = threadIdx.x; c < p.C; c += kWorkers) {
      float sum = of_groups[c];
#pragma unroll 1
      for (uint32_t g = 1; g < p.abreast; ++g) sum += of_groups[g * p.C + c];
      tell(told.parts + static_cast<uint64_t>(blockIdx.x) * p.C + c, sum, step);
    }
  }

  __device__ void add_parts(bool is_last_of_run) {
    const uint32_t own_end = s.own.end;
#pragma unroll 1
    for (uint32_t first = s.own.begin; first < own_end; first += 32) {
      const uint32_t c = min(first + lane, own_end - 1);
      float total = 0;
      warp_awaits(1, step, [&](uint32_t) { return told.parts + static_cast<uint64_t>(warp) * p.C + first; });
#pragma unroll 1
      for (uint32_t b = warp; b < gridDim.x; b += kMaxHeard * kWarps) {
        Told<1> t[kMaxHeard];
#pragma unroll
        for (uint32_t j = 0; j < kMaxHeard; ++j) t[j].word[0] = static_cast<uint64_t>(~step) << 32;
        warp_waits_for([&] {
          bool all = true;
#pragma unroll
          for (uint32_t j = 0; j < kMaxHeard; ++j)
            if (const uint32_t of = b + j * kWarps; of < gridDim.x && !t[j].is_of(step)) t[j].look(told.parts + static_cast<uint64_t>(of) * p.C + c), all = false;
          return all;
        });
#pragma unroll
        for (uint32_t j = 0; j < kMaxHeard; ++j) total += t[j][0];  // 0 of blocks that are not
      }
      s.columns[warp][lane] = total;
      workers_meet();
      if (warp == 0 && first + lane < own_end) {
        float x = s.x[c - s.own.begin];
#pragma unroll
        for (uint32_t i = 0; i < kWarps; ++i) x += s.columns[i][lane];
        s.x[c - s.own.begin] = x;
        if (is_last_of_run) p.a.x[c] = x;
      }
      if (first + 32 < own_end) workers_meet();
    }
  }

  __device__ void run() {
    const int32_t slot = p.a.slots[0];
    const auto state_of = [&](uint32_t i) { return StateOf(p, p.first + i, slot); };
    reference = p.a.x[0];
    if (threadIdx.x < s.own.end - s.own.begin) s.x[threadIdx.x] = p.a.x[s.own.begin + threadIdx.x];
    workers_meet();
    fetch_shift(Layer(p, 0, s), false, state_of(0).att_x);
    for (uint32_t i = 0; i < p.n; ++i, ++step) {
      const Layer l(p, i, s);
      const StateOf state = state_of(i);
      shift(false, state.att_x);
      fetch_shift(l, true, state.ffn_x);
      time_mix_products(l);
      if (blockIdx.x < p.n_head) head(l, state.S);
      output();
      shift(true, state.ffn_x);
      if (i + 1 < p.n) fetch_shift(Layer(p, i + 1, s), false, state_of(i + 1).att_x);
      channel_mix();
      add_parts(i + 1 == p.n);
      __syncwarp();
    }
  }
};

}  // namespace duet_cuda::resident
