// What workers do with q8 and q4 weights: units (form.h), one a warp at a time, by the tensor core's integers. What they are multiplied
// by is told as it is rounded (duetp_round_input), by the block that has the group: 16 words of four, the scale, and scale times sum.
#pragma once
#include "resident/worker.h"

namespace duet_cuda::resident {

constexpr uint32_t kToldOfGroup = kGroup / 4 + 2;

template <int kBits>
struct QuantisedWorker : Worker<Quantised<kBits>> {
  using Form = Quantised<kBits>;
  using Base = Worker<Form>;
  using Base::Base, Base::p, Base::s, Base::ring, Base::scratch, Base::step, Base::told, Base::warp, Base::lane, Base::is_waiting, Base::own_parts;
  __device__ uint32_t groups() const { return p.C / kGroup; }
  // Lane (g, t) has outputs 2 g and 2 g + 1 of a tile.
  __device__ uint32_t g() const { return lane / 4; }
  __device__ uint32_t t() const { return lane % 4; }

  // scratch: inputs of products [kMaxInputs, C] in the order of word_place, each group's scale and scale times sum; what the warps have
  // of tiles' sums, f32 [kMaxTiles, kWarps, kTile], or the hidden vectors or a narrow
  // model's mixes before they are rounded, or what the warps have of x's columns
  static constexpr uint32_t kPartsBytes = kMaxTiles * kWarps * kTile * 4;
  static_assert(kColumnsBytes <= kPartsBytes);
  static __host__ __device__ uint32_t scratch_bytes(const Sizes& s) { return kMaxInputs * (s.C + s.C / kGroup * 8) + kPartsBytes; }
  struct Input {
    char* q;
    float2* scale;
  };
  __device__ Input input(uint32_t i) const { return {scratch + i * p.C, reinterpret_cast<float2*>(scratch + kMaxInputs * p.C) + i * groups()}; }
  __device__ Input inner() const { return {s.inner_q, s.inner_scale}; }
  __device__ float* parts() const { return reinterpret_cast<float*>(scratch + kMaxInputs * (p.C + groups() * 8)); }

  __device__ float2* columns() const { return reinterpret_cast<float2*>(parts()); }

  // ---- products ----

  // A unit of the stage times a group of inputs, added to the sums of outputs 2 g and 2 g + 1
  __device__ void add_unit(float2& sum, const char* stage, uint32_t unit, const Input& x, uint32_t group) const {
    GroupWeights<kBits> w;
#pragma unroll
    for (int i = 0; i < GroupWeights<kBits>::kLoads; ++i) w.v[i] = *reinterpret_cast<const uint2*>(stage + unit * Form::kIntegers + i * 256 + place_of_lane());
    const char* scales = stage + Form::kUnits * Form::kIntegers + unit * Form::kScales + 4 * g();
    const auto word = [](const char* at) { return *reinterpret_cast<const uint32_t*>(at); };
    const Operand<kBits> a = operand(w, word(scales), kBits == 4 ? word(scales + Form::kUnits * Form::kScales) : 0);
    const uint4 b = *reinterpret_cast<const uint4*>(x.q + group * kGroup + 16 * t());  // the same for all eight columns
    const float2 scale = x.scale[group];
    Sums sums{{sum.x, 0, sum.y, 0}};
    add_group(sums, a, b, float2{scale.x, 0}, float2{scale.y, 0});
    sum = {sums.v[0], sums.v[2]};
  }

  // n tiles of C inputs in the ring: each warp leaves what its groups give in its parts of the tiles from `first` on.
  __device__ void tiles(uint32_t n, uint32_t first, const Input& x) {
#pragma unroll 1
    for (uint32_t tile = first; tile < first + n; ++tile) {
      float2 sum{0, 0};
#pragma unroll 1
      for (uint32_t group = 0; group < groups(); group += p.at_once) {
        const char* stage = reinterpret_cast<const char*>(ring.take());
#pragma unroll
        for (uint32_t unit = warp; unit < Form::kUnits; unit += kWarps)
          if (unit < p.at_once) add_unit(sum, stage, unit, x, group + unit);
        ring.give_back();
      }
      if (t() == 0) *reinterpret_cast<float2*>(parts() + (tile * kWarps + warp) * kTile + 2 * g()) = sum;
    }
  }
  // f(o, sum of output o) for those of n tiles. All have left their parts after it, and they are free after the next meeting.
  template <class F>
  __device__ void sum_tiles(uint32_t n, F&& f) const {
    workers_meet();
    const uint32_t o = this_thread();
    if (o >= n * kTile) return;
    float sum = 0;
#pragma unroll
    for (uint32_t i = 0; i < kWarps; ++i) sum += parts()[(o / kTile * kWarps + i) * kTile + o % kTile];
    f(o, sum);
  }

  // ---- what is told ----

  // Rounds n <= 64 groups in shared memory. Those that do call with whole warps.
  __device__ void round(const float* x, uint32_t n, const Input& to) const {
    const uint32_t thread = this_thread(), group = thread / 8, k = thread % 8;
    if (thread / 32 * 4 >= n) return;
    const RoundedEighth e = round_eighth(group < n ? read_eighth(x, n * kGroup, group, k) : Eighth{});
    if (group >= n) return;
    auto* words = reinterpret_cast<uint32_t*>(to.q + group * kGroup);
    words[word_place<kBits>(k)] = e.word[0], words[word_place<kBits>(8 + k)] = e.word[1];
    if (k == 0) to.scale[group] = {e.scale, e.sum};
  }
  // A group, a pair of it a lane
  __device__ void tell_group(uint64_t* to, float2 x) const {
    const auto magnitude = [](float f) { return __float_as_uint(f) & 0x7fffffffu; };
    const uint32_t largest = __reduce_max_sync(~0u, max(magnitude(x.x), magnitude(x.y)));
    const RoundingOfGroup rounding(largest);
    const uint32_t pair = (rounding.rounded(x.x) & 0xff) | (rounding.rounded(x.y) & 0xff) << 8, word = pair | __shfl_down_sync(~0u, pair, 1) << 16;
    const int sum = __reduce_add_sync(~0u, __dp4a(static_cast<int>(pair), 0x00000101, 0));
    if (lane % 2 == 0) tell_bits(to + word_place<kBits>(lane / 2), word, step);
    if (lane == 1) tell(to + kGroup / 4, rounding.scale, step);
    if (lane == 3) tell(to + kGroup / 4 + 1, rounding.scale * static_cast<float>(sum), step);
  }
  __device__ void tell_mix(uint32_t mix, float2 y) const { tell_group(told.mixes + (mix * groups() + s.own.begin / kGroup) * kToldOfGroup, y); }
  static_assert(kMaxInputs * kNarrow * 4 <= kPartsBytes);
  __device__ void keep_mix(uint32_t i, uint32_t c, float2 y) const { *reinterpret_cast<float2*>(parts() + i * p.C + c) = y; }
  __device__ void mixes_are_kept(uint32_t n) const {
    workers_meet();
    for (uint32_t i = 0; i < n; ++i) round(parts() + i * p.C, groups(), input(i));
  }
  // A head's: of a channel a thread of the first two warps
  __device__ void tell_gated(float y) const {
    s.out[threadIdx.x] = y;
    two_warps_meet();
    if (warp == 0) tell_group(told.gated + blockIdx.x * kToldOfGroup, reinterpret_cast<const float2*>(s.out)[lane]);
  }
  __device__ const uint64_t* last_gated(uint32_t head) const { return told.gated + (head + 1) * kToldOfGroup - 1; }

  // Inputs of products, n of [groups, kToldOfGroup] words: those that the bytes of `which` number. All meet before it and after it.
  __device__ void hear(const uint64_t* words, uint32_t n = 1, uint32_t which = 0) const {
    constexpr uint32_t kPairs = kToldOfGroup / 2, kOfThread = (kMaxInputs * kMaxWidth / kGroup * kPairs + kWorkers - 1) / kWorkers;
    const uint32_t of_input = groups() * kPairs, thread = this_thread();
    Told<2> told_pairs[kOfThread];
    const auto for_pairs = [&](auto&& f) {
#pragma unroll
      for (uint32_t j = 0; j < kOfThread; ++j)
        if (const uint32_t at = thread + kWorkers * j; at < n * of_input) f(told_pairs[j], at >= of_input ? 1u : 0u, at >= of_input ? at - of_input : at);
    };
    warp_waits_for([&] {
      bool all = true;
      for_pairs([&](Told<2>& of, uint32_t i, uint32_t at) { of.look(words + 2 * ((which >> 8 * i & 0xff) * of_input + at)); });
      for_pairs([&](const Told<2>& of, uint32_t, uint32_t) { all = all && of.is_of(step); });
      return all;
    });
    for_pairs([&](const Told<2>& of, uint32_t i, uint32_t at) {
      const uint32_t group = at / kPairs, pair = at % kPairs;
      const Input x = input(i);
      if (pair + 1 == kPairs)
        x.scale[group] = {of[0], of[1]};
      else
        *reinterpret_cast<uint2*>(x.q + group * kGroup + 8 * pair) = {of.bits(0), of.bits(1)};
    });
  }
  __device__ void hear_mixes(uint32_t n, uint32_t which) const { hear(told.mixes, n, which); }
  __device__ void hear_gated() const { hear(told.gated); }

  // ---- step 3 ----

  __device__ void time_mix_products(const Layer& l) {
    const Products& products = s.products_of(l);
    uint32_t n = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < products.n; ++i) {
      const uint32_t here = products.of[i].end - products.of[i].begin;
      tiles(here, n, input(products.of[i].input));
      n += here;
    }
    sum_tiles(n, [&](uint32_t o, float sum) {
      uint32_t i = 0, tile = o / kTile;
      for (; tile >= products.of[i].end - products.of[i].begin; ++i) tile -= products.of[i].end - products.of[i].begin;
      const uint32_t q = products.of[i].product, row = (products.of[i].begin + tile) * kTile + o % kTile;
      if (q <= kV) {
        tell(told.rkv + q * p.C + row, sum, step);
      } else if (row < p.rank[low_of(q)]) {
        tell(told.low + p.low_begin[low_of(q)] + row, q == kLowW ? tanhf(sum) : q == kLowG ? sigmoid(sum) : sum, step);
      }
    });
  }

  // ---- step 4: the second low-rank products, a tile of one matrix a warp ----

  // A lane's rows of the head, and how what they are multiplied by is kept
  static constexpr uint32_t kLowApart = 1;
  __device__ uint32_t low_row() const { return this_thread() / 4 * 2 % kHead; }
  __device__ bool is_hidden(uint32_t j) const {  // ranks are counted up to whole groups
    uint32_t m = 0;
    while (j >= p.low_begin[m + 1]) ++m;
    return j - p.low_begin[m] < p.rank[m];
  }
  __device__ void keep_hidden(uint32_t j, float x) const { parts()[j] = x; }
  __device__ void hidden_is_kept() const {
    workers_meet();
    round(parts(), p.low_begin[4] / kGroup, input(0));
  }
  // Of the lane's two rows
  __device__ float2 low_products(const Layer& l) {
    const uint32_t m = warp / 4, tile = warp % 4;
    const uint32_t(&stage)[5] = p.low_stage[l.is_first() ? 0 : 1];
    const uint32_t n = groups_in(p.rank[m]), first_group = p.low_begin[m] / kGroup, at_once = p.low_at_once[m];
    float2 sum{0, 0};
#pragma unroll 1
    for (uint32_t i = 0, first = 0; i < stage[4]; ++i) {
      if (i >= stage[m] && i < stage[m + 1]) {
        if (tile >= first && tile < first + at_once) {
          const char* units = reinterpret_cast<const char*>(ring.take());
#pragma unroll 2
          for (uint32_t group = 0; group < n; ++group) add_unit(sum, units, (tile - first) * n + group, input(0), first_group + group);
        }
        first += at_once;
      }
      ring.give_back();
    }
    return sum;
  }

  // ---- step 5 ----

  __device__ void output_products() {
    const uint32_t n = (s.own.end - s.own.begin) / kTile;
    tiles(n, 0, input(0));
    sum_tiles(n, [&](uint32_t o, float sum) { s.x[o] += sum; });
  }

  // ---- step 7 ----

  __device__ void key_and_value() {
    const uint32_t n = (s.inner.end - s.inner.begin) / kGroup;
#pragma unroll 1
    for (uint32_t tile = 0; tile < n * (kGroup / kTile); tile += kMaxTiles) {
      const uint32_t here = min(kMaxTiles, n * (kGroup / kTile) - tile);
      tiles(here, 0, input(0));
      sum_tiles(here, [&](uint32_t o, float sum) {
        sum = fmaxf(sum, 0.0f);
        s.u[tile * kTile + o] = sum * sum;
      });
      workers_meet();
    }
    round(s.u, n, inner());
    workers_meet();
    const uint32_t n_tiles = p.C / kTile, at_once = Form::kUnits / n;
    uint32_t taken = 0;  // tiles, so that they go round
#pragma unroll 1
    for (uint32_t first = 0; first < n_tiles; first += at_once) {
      const uint32_t here = min(at_once, n_tiles - first);
      const char* stage = reinterpret_cast<const char*>(ring.take());
#pragma unroll 1
      for (uint32_t i = (warp - taken) % kWarps; i < here; i += kWarps) {
        float2 sum{0, 0};
#pragma unroll 1
        for (uint32_t group = 0; group < n; ++group) add_unit(sum, stage, group * at_once + i, inner(), group);
        if (t() < 2) tell(own_parts() + (first + i) * kTile + 2 * g() + t(), t() == 0 ? sum.x : sum.y, step);
      }
      ring.give_back();
      taken += here;
    }
    is_waiting(true);
  }
};

}  // namespace duet_cuda::resident
