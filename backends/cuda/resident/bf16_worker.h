// What workers do with bf16 weights: rows of a matrix, a row a warp, and what they are multiplied by, told two in a word.
#pragma once
#include "resident/worker.h"

namespace duet_cuda::resident {

// What becomes of a row's sum
enum class Use { tell, tell_tanh, tell_sigmoid, add_to_x, square };

struct Bf16Worker : Worker<Bf16> {
  using Form = Bf16;
  using Worker::Worker;
  static constexpr uint32_t kPairs = kMaxWidth / 4 / kWorkers;  // of words of an input, of a thread
  uint32_t tiles = 0;  // of key that are over

  // scratch: what the warps sum of x's columns; inputs of products, bf16 [kMaxInputs, C], or sums of value, f32 [kWorkers, 8]
  static __host__ __device__ uint32_t scratch_bytes(const Sizes& s) { return kColumnsBytes + max(kMaxInputs * s.C * 2, kWorkers * 8 * 4); }
  __device__ float2* columns() const { return reinterpret_cast<float2*>(scratch); }
  __device__ char* inputs() const { return scratch + kColumnsBytes; }
  __device__ uint4* input(uint32_t i) const { return reinterpret_cast<uint4*>(inputs()) + i * (p.C / 8); }

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

  // ---- what is told ----

  __device__ void tell_mix(uint32_t mix, float2 y) const { tell(told.mixes + mix * (p.C / 2) + s.own.begin / 2 + lane, y, step); }
  __device__ void keep_mix(uint32_t i, uint32_t c, float2 y) const { *reinterpret_cast<uint32_t*>(inputs() + (i * p.C + c) * 2) = duet_gpu::pack<bf16>(y.x, y.y); }
  __device__ void mixes_are_kept(uint32_t) const {}
  // A head's: of a channel a thread
  __device__ void tell_gated(float y) const {
    const float neighbour = __shfl_down_sync(~0u, y, 1);
    if (lane % 2 == 0) tell(told.gated + (blockIdx.x * kHead + threadIdx.x) / 2, float2{y, neighbour}, step);
  }
  __device__ const uint64_t* last_gated(uint32_t head) const { return told.gated + (head + 1) * (kHead / 2) - 1; }

  // Inputs of products, n of [C / 2] words: those that the bytes of `which` number. All meet before it and after it.
  __device__ void hear(const uint64_t* words, uint32_t n = 1, uint32_t which = 0) const {
    const uint32_t C = p.C;
    Told<2> t[kMaxInputs][kPairs];
    const auto for_pairs = [&](auto&& f) {
#pragma unroll
      for (uint32_t i = 0; i < kMaxInputs; ++i)
#pragma unroll
        for (uint32_t j = 0; j < kPairs; ++j)
          if (const uint32_t at = 2 * (threadIdx.x + kWorkers * j); i < n && at < C / 2) f(t[i][j], i, at);
    };
    warp_waits_for([&] {
      bool all = true;
      for_pairs([&](Told<2>& of, uint32_t i, uint32_t at) { of.look(words + (which >> 8 * i & 0xff) * (C / 2) + at); });
      for_pairs([&](const Told<2>& of, uint32_t, uint32_t) { all = all && of.is_of(step); });
      return all;
    });
    for_pairs([&](const Told<2>& of, uint32_t i, uint32_t at) { *reinterpret_cast<uint2*>(inputs() + (i * C + 2 * at) * 2) = {of.bits(0), of.bits(1)}; });
  }
  __device__ void hear_mixes(uint32_t n, uint32_t which) const { hear(told.mixes, n, which); }
  __device__ void hear_gated() const { hear(told.gated); }

  // ---- step 3 ----

  __device__ void time_mix_products(const Layer& l) {
    const Products& products = s.products_of(l);
    uint32_t taken = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < products.n; ++i) {
      const uint32_t q = products.of[i].product, begin = products.of[i].begin;
      uint64_t* to = q <= kV ? told.rkv + q * p.C : told.low + p.low_begin[low_of(q)];
      rows(products.of[i].end - begin, input(products.of[i].input), taken, q == kLowW ? Use::tell_tanh : q == kLowG ? Use::tell_sigmoid : Use::tell, to + begin);
    }
  }

  // ---- step 4: the second low-rank products, sixteen rows of one matrix a warp, by the tensor core ----

  // A lane's rows of the sixteen, and where what they are multiplied by is kept
  static constexpr uint32_t kLowApart = 8;
  __device__ uint32_t low_row() const { return warp % 4 * 16 + lane / 4; }
  __device__ static bool is_hidden(uint32_t) { return true; }
  __device__ void keep_hidden(uint32_t j, float x) const { reinterpret_cast<bf16*>(inputs())[j] = __float2bfloat16_rn(x); }
  __device__ void hidden_is_kept() const {}
  // Of the lane's two rows
  __device__ float2 low_products(const Layer& l) {
    const uint32_t g = lane / 4, t = lane % 4, m = warp / 4, row = warp % 4 * 16;
    const uint32_t(&stage)[5] = p.low_stage[l.is_first() ? 0 : 1];
    const uint32_t n = p.rank[m] / 8, at_once = p.low_at_once[m], before = stage[m], after = stage[m + 1], end = stage[4];
    const uint4* hidden = input(0) + p.low_begin[m] / 8;
    Sums sums;
#pragma unroll 1
    for (uint32_t i = 0, first = 0; i < end; ++i) {
      if (i >= before && i < after) {
        if (row >= first && row < first + at_once) {
          const uint4 *low = ring.take() + (row - first + g) * n, *high = low + 8 * n;
#pragma unroll 4
          for (uint32_t j = t; j < (n + 3) / 4 * 4; j += 4) {  // the four lanes of a row go together
            const bool inside = j < n;
            const uint4 zero{0, 0, 0, 0}, a = inside ? low[j] : zero, b = inside ? high[j] : zero, x = inside && g == 0 ? hidden[j] : zero;
            multiply(sums, a.x, b.x, a.y, b.y, x.x, x.y);
            multiply(sums, a.z, b.z, a.w, b.w, x.z, x.w);
          }
        }
        first += at_once;
      }
      ring.give_back();
    }
    return {sums.v[0], sums.v[2]};
  }

  // ---- step 5 ----

  __device__ void output_products() {
    uint32_t taken = 0;
    rows(s.own.end - s.own.begin, input(0), taken, Use::add_to_x, nullptr, s.x);
  }

  // ---- step 7 ----

  __device__ void key_and_value() {
    const uint32_t n = s.inner.end - s.inner.begin, across = p.C / 8, group = threadIdx.x / across;
    const auto tile = [&](uint32_t at) { return min(kBehind, n - at); };
    float sums[8] = {};
    uint32_t taken = 0;
#pragma unroll 1
    for (uint32_t at = 0; at < n + kBehind; at += kBehind) {
      if (at < n) {
        rows(tile(at), input(0), taken, Use::square, nullptr, s.u + at);
        warp_arrives(&s.ready[(tiles + at / kBehind) % 2]);
      }
      if (at < kBehind) continue;
      const uint32_t before_at = at - kBehind, of = tiles + before_at / kBehind;
      wait_for([&] { return barrier_passed_soon(&s.ready[of % 2], of / 2 % 2); });
      const uint32_t wanted = __ballot_sync(~0u, lane < tile(before_at) && (!p.skips || s.u[before_at + lane % kBehind] != 0)), n_wanted = __popc(wanted);
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
    tiles += (n + kBehind - 1) / kBehind;
    is_waiting(true);

    // every warp's last u came after its last row: nobody reads the inputs any more once all are here
    float* of_groups = reinterpret_cast<float*>(inputs());  // [abreast, C]
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
      tell(own_parts() + c, sum, step);
    }
  }
};

}  // namespace duet_cuda::resident
