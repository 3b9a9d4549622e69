// Norms and token shifts: the first warp, a pair of the block's columns a lane.
#pragma once
#include "resident/worker.h"

namespace duet_cuda::resident {

__device__ __forceinline__ void copy_async(float2* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)) : "memory");
}

template <class Worker, bool is_narrow>
struct TokenShift : Worker {
  using Worker::Worker, Worker::p, Worker::s, Worker::step, Worker::told, Worker::warp, Worker::lane;

  // What a token shift reads of its own, long before it does
  __device__ void fetch_shift(const Layer& l, bool is_channel_mix, const float* state) const {
    if (warp != 0 || s.own.begin + 2 * lane >= s.own.end) return;
    const uint32_t c = s.own.begin + 2 * lane, first_mix = is_channel_mix ? static_cast<uint32_t>(kMixChannel) : 0, n_mixes = is_channel_mix ? 1 : static_cast<uint32_t>(kTimeMixes);
    float2(*to)[kMaxOwn / 2] = is_channel_mix ? s.channel_shift : s.time_shift;
    copy_async(&to[0][lane], l.vector(is_channel_mix ? DUETP_T_LN2_W : DUETP_T_LN1_W) + c);
    copy_async(&to[1][lane], l.vector(is_channel_mix ? DUETP_T_LN2_B : DUETP_T_LN1_B) + c);
    if (state)
      copy_async(&to[2][lane], state + c);
    else
      to[2][lane] = {0, 0};
#pragma unroll 1
    for (uint32_t i = 0; i < n_mixes; ++i) copy_async(&to[3 + i][lane], l.vector(mix_tensor(first_mix + i)) + c);
  }

  // Blocks without columns of x wait for the sums too, or all their threads would look for mixes that are long in coming; but nobody
  // waits for such a block, and it may find later sums. The norm of x, by the sums of how far its elements are from the mean before, and its mixes with the vector before; `state` (if there is one) gets what the next token will mix with.
  __device__ void shift_own(bool is_channel_mix, float* state) {
    const uint32_t begin = s.own.begin, n = s.own.end - begin, last = p.n_owners - 1;
    const bool inside = 2 * lane < n;
    const float reference = s.mean;  // the mean before
    const float2 x = inside ? *reinterpret_cast<const float2*>(s.x + 2 * lane) : float2{0, 0};
    const float2 d = inside ? float2{x.x - reference, x.y - reference} : float2{0, 0};
    const float2 own = lane_sums({d.x + d.y, d.x * d.x + d.y * d.y});
    uint64_t* sums = told.sums + (is_channel_mix ? 2 * p.n_owners : 0);
    if (n > 0 && lane < 2) tell(sums + 2 * (blockIdx.x - (gridDim.x - p.n_owners)) + lane, lane == 0 ? own.x : own.y, step);

    constexpr uint32_t kOfLane = kMaxBlocks / 32;
    Told<2> t[kOfLane];
    warp_waits_for([&] {
      bool all = true;
#pragma unroll
      for (uint32_t j = 0; j < kOfLane; ++j) t[j].look(sums + 2 * min(lane + 32 * j, last));
#pragma unroll
      for (uint32_t j = 0; j < kOfLane; ++j) all = all && t[j].is_since(step);
      return all;
    });
    float2 total{0, 0};
#pragma unroll
    for (uint32_t j = 0; j < kOfLane; ++j)
      if (lane + 32 * j <= last) total.x += t[j][0], total.y += t[j][1];
    total = lane_sums(total);
    const float off = total.x * p.reciprocal_of_C, mean = reference + off, scale = rsqrtf(fmaxf(fmaf(-off, off, total.y * p.reciprocal_of_C), 0.0f) + p.ln_eps);
    __syncwarp();
    s.mean = mean;
    if (!inside) return;

    asm volatile("cp.async.wait_all;" ::: "memory");
    const float2(*vectors)[kMaxOwn / 2] = is_channel_mix ? s.channel_shift : s.time_shift;
    const float2 w = vectors[0][lane], b = vectors[1][lane], before = vectors[2][lane];
    const float2 y{(x.x - mean) * scale * w.x + b.x, (x.y - mean) * scale * w.y + b.y};
    const auto mix = [&](uint32_t of, float2 m) { this->tell_mix(of, {y.x + (before.x - y.x) * m.x, y.y + (before.y - y.y) * m.y}); };
    if (is_channel_mix) {
      mix(kMixChannel, vectors[3][lane]);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kTimeMixes; ++i) mix(i, vectors[3 + i][lane]);
    }
    if (state) *reinterpret_cast<float2*>(state + begin + 2 * lane) = y;
  }

  // ---- narrow models: two exchanges less a layer. x itself is told, and each block makes its norm and the mixes that it needs ----

  __device__ uint64_t* told_x(bool is_channel_mix) const { return told.x + (is_channel_mix ? p.C : 0); }
  // By the first warp, a pair of the block's columns a lane
  __device__ void tell_x(bool is_channel_mix, uint32_t as_of) const {
    if (warp != 0 || 2 * lane >= s.own.end - s.own.begin) return;
    uint64_t* to = told_x(is_channel_mix) + s.own.begin + 2 * lane;
    tell(to, s.x[2 * lane], as_of), tell(to + 1, s.x[2 * lane + 1], as_of);
  }
  // All threads, a pair of columns each. The state gets its part (keep_norms) when all blocks have read what is there.
  __device__ void mix_here(const Layer& l, bool is_channel_mix, uint32_t n, uint32_t which, const float* state) const {
    const uint32_t c = 2 * this_thread();
    const bool inside = c < p.C;
    const auto pair = [&](const float* v) { return inside ? *reinterpret_cast<const float2*>(v + c) : float2{0, 0}; };
    const float2 w = pair(l.vector(is_channel_mix ? DUETP_T_LN2_W : DUETP_T_LN1_W)), b = pair(l.vector(is_channel_mix ? DUETP_T_LN2_B : DUETP_T_LN1_B));
    const float2 before = state && inside ? __ldcg(reinterpret_cast<const float2*>(state + c)) : float2{0, 0};
    const float2 mix[kMaxInputs] = {pair(l.vector(mix_tensor(which & 0xff))), pair(l.vector(mix_tensor(n > 1 ? which >> 8 & 0xff : which & 0xff)))};
    static_assert(kMaxInputs == 2);
    Told<2> x;
    warp_waits_for([&] {
      if (inside) x.look(told_x(is_channel_mix) + c);
      return !inside || x.is_of(step);
    });
    const float reference = s.mean;
    const float2 d = inside ? float2{x[0] - reference, x[1] - reference} : float2{0, 0};
    const float2 of_warp = lane_sums({d.x + d.y, d.x * d.x + d.y * d.y});
    if (lane == 0) s.norm_sums[warp] = of_warp;
    workers_meet();
    float2 total{0, 0};
#pragma unroll
    for (uint32_t i = 0; i < kWarps; ++i) total.x += s.norm_sums[i].x, total.y += s.norm_sums[i].y;
    const float off = total.x * p.reciprocal_of_C, scale = rsqrtf(fmaxf(fmaf(-off, off, total.y * p.reciprocal_of_C), 0.0f) + p.ln_eps);
    const float2 y{(d.x - off) * scale * w.x + b.x, (d.y - off) * scale * w.y + b.y};
    if (inside)
#pragma unroll
      for (uint32_t i = 0; i < kMaxInputs; ++i)
        if (i < n) this->keep_mix(i, c, {y.x + (before.x - y.x) * mix[i].x, y.y + (before.y - y.y) * mix[i].y});
    if (c >= s.own.begin && c < s.own.end) *reinterpret_cast<float2*>(s.y[is_channel_mix] + c - s.own.begin) = y;
    if (threadIdx.x == 0) s.mean = reference + off;
    this->mixes_are_kept(n);
  }
  // What the next token will mix with. Whoever has heard what came of the mixes knows that all have read what was there.
  __device__ void keep_norms(bool is_channel_mix, float* state) const {
    if (state && threadIdx.x < s.own.end - s.own.begin) state[s.own.begin + threadIdx.x] = s.y[is_channel_mix][threadIdx.x];
  }

  // ---- both ----

  // The inputs of a step's products, n of those that the bytes of `which` number. All meet after it. fetch_next(): the next
  // fetch_shift, while the mixes come.
  template <class F>
  __device__ void make_inputs(const Layer& l, bool is_channel_mix, uint32_t n, uint32_t which, float* state, F&& fetch_next) {
    if constexpr (is_narrow) {
      if (n > 0 || s.own.begin < s.own.end) mix_here(l, is_channel_mix, n, which, state);
    } else {
      if (warp == 0) shift_own(is_channel_mix, state);
      workers_meet();  // now the mixes are about to come
      fetch_next();
      if (n > 0) this->hear_mixes(n, which);
    }
    workers_meet();
  }
};

}  // namespace duet_cuda::resident
