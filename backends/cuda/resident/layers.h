// Layers, step by step.
#pragma once
#include "resident/head.h"

namespace duet_cuda::resident {

template <class Worker, bool is_narrow>
struct Layers : Head<Worker, is_narrow> {
  using Base = Head<Worker, is_narrow>;
  using Form = typename Worker::Form;
  using Base::Base, Base::p, Base::s, Base::step, Base::told, Base::warp, Base::lane, Base::is_waiting;

  // What a thread waits for at a time of what others told of x's columns: in narrow models all that there is
  static constexpr uint32_t kHeard = is_narrow ? 4 : Form::kHeard;

  __device__ void time_mix_products(const Layer& l) {
    is_waiting(false);
    Worker::time_mix_products(l);
    is_waiting(true);
  }

  __device__ void output(float* att_x) {
    if (warp == 0 && p.C > kFewWords) warp_awaits(p.n_head, step, [&](uint32_t h) { return this->last_gated(h); });
    workers_meet();  // all have read what the inputs were before
    this->hear_gated();
    if (is_narrow) this->keep_norms(false, att_x);
    workers_meet();
    is_waiting(false);
    this->output_products();
    is_waiting(true);
    workers_meet();
    if (is_narrow) this->tell_x(true, step);
  }

  __device__ void channel_mix() {
    is_waiting(false);
    this->key_and_value();
  }

  // What the blocks that have rows of key told of x's columns, a pair of them a lane; where pairs are few, lanes hear several blocks at a
  // time. Then the first warp adds up what the warps have heard.
  __device__ void add_parts(bool is_last_of_run, float* ffn_x) {
    const uint32_t begin = s.own.begin, n = s.own.end - begin, lanes = n <= 8 ? 4 : n <= 16 ? 8 : n <= 32 ? 16 : 32, blocks = kWarps * 32 / lanes;
    const uint64_t* from = told.parts + begin + min(2 * (lane % lanes), n - 2);
    float2 total{0, 0};
    warp_awaits(1, step, [&](uint32_t) { return told.parts + static_cast<uint64_t>(min(warp, p.n_inner - 1)) * p.C + begin; });
#pragma unroll 1
    for (uint32_t first = warp * 32 / lanes; first < p.n_inner; first += kHeard * blocks) {
      const uint32_t b = first + lane / lanes;
      Told<2> t[kHeard];
#pragma unroll
      for (uint32_t j = 0; j < kHeard; ++j) t[j].word[0] = t[j].word[1] = static_cast<uint64_t>(b + j * blocks < p.n_inner ? ~step : step) << 32;
      warp_waits_for([&] {
        bool all = true;
#pragma unroll
        for (uint32_t j = 0; j < kHeard; ++j)
          if (!t[j].is_of(step)) t[j].look(from + static_cast<uint64_t>(b + j * blocks) * p.C), all = false;
        return all;
      });
#pragma unroll
      for (uint32_t j = 0; j < kHeard; ++j) total.x += t[j][0], total.y += t[j][1];
    }
    for (uint32_t d = lanes; d < 32; d *= 2) total.x += __shfl_xor_sync(~0u, total.x, d), total.y += __shfl_xor_sync(~0u, total.y, d);
    float2* columns = this->columns();  // [kWarps, pairs]
    columns[warp * (kMaxOwn / 2) + lane] = total;
    workers_meet();
    if (is_narrow) this->keep_norms(true, ffn_x);
    if (warp != 0 || 2 * lane >= n) return;
    float2 x = *reinterpret_cast<const float2*>(s.x + 2 * lane);
#pragma unroll
    for (uint32_t i = 0; i < kWarps; ++i) x.x += columns[i * (kMaxOwn / 2) + lane].x, x.y += columns[i * (kMaxOwn / 2) + lane].y;
    *reinterpret_cast<float2*>(s.x + 2 * lane) = x;
    if (is_last_of_run)
      *reinterpret_cast<float2*>(p.a.x + begin + 2 * lane) = x;
    else if (is_narrow)
      this->tell_x(false, step + 1);
  }

  __device__ bool has_columns() const { return s.own.begin < s.own.end; }
  __device__ void run() {
    if (threadIdx.x < s.own.end - s.own.begin) s.x[threadIdx.x] = p.a.x[s.own.begin + threadIdx.x];
    workers_meet();
    const auto state_of = [&](uint32_t i) { return StateOf(p, i, s); };  // made where it is used: pointers that live long are spilled
    if (is_narrow)
      this->tell_x(false, step);
    else
      this->fetch_shift(Layer{p, 0}, false, state_of(0).att_x);
    for (uint32_t i = 0; i < p.n; ++i, ++step) {
      const Layer l{p, i};
      const bool has_rows = blockIdx.x < p.n_inner;
      this->make_inputs(l, false, s.products_of(l).n_inputs, s.products_of(l).inputs, state_of(i).att_x, [&] { this->fetch_shift(l, true, state_of(i).ffn_x); });
      time_mix_products(l);
      if (blockIdx.x < p.n_head) this->head(l, state_of(i).S);
      if (has_columns()) output(state_of(i).att_x);
      this->make_inputs(l, true, has_rows ? 1 : 0, kMixChannel, state_of(i).ffn_x, [&] {
        if (i + 1 < p.n) this->fetch_shift(Layer{p, i + 1}, false, state_of(i + 1).att_x);
      });
      if (has_rows) channel_mix();
      if (has_columns()) add_parts(i + 1 == p.n, state_of(i).ffn_x);
      __syncwarp();
    }
  }
};

}  // namespace duet_cuda::resident
