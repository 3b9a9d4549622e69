// The warps that compute: what all their steps are made of. What a step adds is in a file of its own, each on top of the one before:
// token_shift.h, head.h, layers.h.
#pragma once
#include "resident/arithmetic.h"
#include "resident/told.h"

namespace duet_cuda::resident {

__device__ __forceinline__ void workers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory"); }

// What becomes of a row's sum
enum class Use { tell, tell_tanh, tell_sigmoid, add_to_x, square };

struct Worker {
  const Plan& p;
  Shared& s;
  Ring ring;
  char* scratch;  // inputs of products, bf16 [kMaxInputs, C], or sums of value, f32 [kWorkers, 8]
  uint32_t step;  // of the layer: what numbers carry
  const ResidentScratch& told = p.a.scratch;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  __device__ Worker(const Plan& plan, Shared& shared, const Ring& of, char* inputs, uint32_t first_step) : p(plan), s(shared), ring(of), scratch(inputs), step(first_step) {}

  __device__ void is_waiting(bool is) const {
    if (threadIdx.x == 0) s.is_waiting = is;
  }
  __device__ uint4* input(uint32_t i) const { return reinterpret_cast<uint4*>(scratch) + i * (p.C / 8); }

  // Rows of a matrix in the ring times x in shared memory, a row a warp. `taken` counts rows, so that they go round.
  __device__ void rows(uint32_t n_rows, const uint4* x, uint32_t& taken, Use use, uint64_t* told, float* kept = nullptr) {
    const uint32_t n = p.C / 8;
#pragma unroll 1
    for (uint32_t first = 0; first < n_rows; first += p.at_once) {
      const uint32_t here = min(p.at_once, n_rows - first);
      const uint4* w = ring.take();
#pragma unroll 1
      for (uint32_t i = (warp - taken) % kWarps; i < here; i += kWarps) {
        float a = 0, b = 0;
#pragma unroll 4
        for (uint32_t j = lane; j < n; j += 32) multiply_add(w[i * n + j], x[j], a, b);
        float sum = lane_sum<32>(a + b);
        if (lane == 0) {
          const uint32_t row = first + i;
          if (use == Use::square) {
            sum = fmaxf(sum, 0.0f);
            kept[row] = __bfloat162float(__float2bfloat16_rn(sum * sum));
          } else if (use == Use::add_to_x) {
            kept[row] += sum;
          } else {
            if (use == Use::tell_tanh) sum = tanhf(sum);
            if (use == Use::tell_sigmoid) sum = sigmoid(sum);
            tell(told + row, sum, step);
          }
        }
      }
      ring.give_back();
      taken += here;
    }
  }

  // Inputs of products from words of two each, n of [C / 2] words: those that the bytes of `which` number. All meet before it and after it.
  __device__ void hear(const uint64_t* words, uint32_t n = 1, uint32_t which = 0) const {
    constexpr uint32_t kAtOnce = 2;  // inputs: most blocks have no more
    const uint32_t C = p.C;
#pragma unroll 1
    for (uint32_t first = 0; first < n; first += kAtOnce) {
      Told<2> t[kAtOnce][kFours];
      const auto for_fours = [&](auto&& f) {
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (uint32_t j = 0; j < kFours; ++j)
            if (const uint32_t at = 2 * (threadIdx.x + kWorkers * j); first + i < n && at < C / 2) f(t[i][j], first + i, at);
      };
      warp_waits_for([&] {
        bool all = true;
        for_fours([&](Told<2>& of, uint32_t i, uint32_t at) { of.look(words + (which >> 8 * i & 0xff) * (C / 2) + at); });
        for_fours([&](const Told<2>& of, uint32_t, uint32_t) { all = all && of.is_of(step); });
        return all;
      });
      for_fours([&](const Told<2>& of, uint32_t i, uint32_t at) { *reinterpret_cast<uint2*>(scratch + (i * C + 2 * at) * 2) = {of.bits(0), of.bits(1)}; });
    }
  }
};

}  // namespace duet_cuda::resident
