// The copying thread's part with q8 and q4 weights: units, which lie tile after tile and in a tile group after group.
#pragma once
#include "resident/copier.h"

namespace duet_cuda::resident {

// A matrix from a unit on
template <int kBits>
struct Units {
  using Form = Quantised<kBits>;
  const char *integers, *scales, *minimums;
  __device__ Units(const Layer& l, uint32_t matrix) : integers(l.at(l.p.offset, matrix)), scales(l.at(l.p.scale, matrix)), minimums(l.at(l.p.minimum, matrix)) {}
  __device__ void skip(uint32_t n) { integers += static_cast<uint64_t>(n) * Form::kIntegers, scales += static_cast<uint64_t>(n) * Form::kScales, minimums += static_cast<uint64_t>(n) * Form::kScales; }
  // The next n as the stage's units from the `to`-th on
  __device__ void copy(Ring<Form>& ring, uint32_t to, uint32_t n) const {
    ring.copy(to * Form::kIntegers, integers, n * Form::kIntegers);
    ring.copy(Form::kUnits * Form::kIntegers + to * Form::kScales, scales, n * Form::kScales);
    if constexpr (kBits == 4) ring.copy(Form::kUnits * (Form::kIntegers + Form::kScales) + to * Form::kScales, minimums, n * Form::kScales);
  }
};

template <int kBits>
__device__ __noinline__ Place copy_units(char* data, Shared* s, Place at, Units<kBits> from, uint32_t n, uint32_t at_once) {
  using Form = Quantised<kBits>;
  Ring<Form> ring{data, *s, at.stage, at.parity};
#pragma unroll 1
  for (uint32_t i = 0; i < n; i += at_once) {
    const uint32_t here = min(at_once, n - i);
    ring.open(here * Form::kUnitBytes);
    from.copy(ring, 0, here);
    from.skip(here);
    ring.next();
  }
  return {ring.stage, ring.parity};
}

// Of all tiles of value n groups, which lie one after another, and so in the stage. (In pieces of a tile they were slower than the memory: a
// copy takes some 45 ns, however small.)
template <int kBits>
__device__ __noinline__ Place copy_value(char* data, Shared* s, Place at, Units<kBits> from, uint32_t n_tiles, uint32_t n) {
  using Form = Quantised<kBits>;
  Ring<Form> ring{data, *s, at.stage, at.parity};
  const uint32_t at_once = Form::kUnits / n;
#pragma unroll 1
  for (uint32_t i = 0; i < n_tiles; i += at_once) {
    const uint32_t here = min(at_once, n_tiles - i);
    ring.open(here * n * Form::kUnitBytes);
#pragma unroll 1
    for (uint32_t j = 0; j < n; ++j) {
      Units<kBits> of_group = from;
      of_group.skip(j * n_tiles + i);
      of_group.copy(ring, j * at_once, here);
    }
    ring.next();
  }
  return {ring.stage, ring.parity};
}

template <int kBits>
struct QuantisedCopies {
  using Form = Quantised<kBits>;
  const Plan& p;
  Ring<Form> ring;

  __device__ void move_to(Place at) { ring.stage = at.stage, ring.parity = at.parity; }
  __device__ void units(const Layer& l, uint32_t matrix, uint32_t begin, uint32_t n, uint32_t at_once) {
    Units<kBits> from(l, matrix);
    from.skip(begin);
    move_to(copy_units<kBits>(ring.data, &ring.s, {ring.stage, ring.parity}, from, n, at_once));
  }
  __device__ void rows(const Layer& l, uint32_t matrix, uint32_t tile, uint32_t n) { units(l, matrix, tile * (p.C / kGroup), n * (p.C / kGroup), p.at_once); }
  __device__ void low_rank(const Layer& l, uint32_t m, uint32_t head) {
    const uint32_t groups = groups_in(p.rank[m]), tiles = kHead / kTile;
    units(l, DUETP_T_W2 + m, head * tiles * groups, tiles * groups, p.low_at_once[m] * groups);
  }

  __device__ void channel_mix(const Layer& l) {
    const uint32_t begin = ring.s.inner.begin, n = ring.s.inner.end - begin;
    if (n == 0) return;
    rows(l, DUETP_T_FFN_KEY, begin / kTile, n / kTile);
    const uint32_t n_tiles = p.C / kTile;
    Units<kBits> value(l, DUETP_T_FFN_VALUE);
    value.skip(begin / kGroup * n_tiles);
    move_to(copy_value<kBits>(ring.data, &ring.s, {ring.stage, ring.parity}, value, n_tiles, n / kGroup));
  }
};

}  // namespace duet_cuda::resident
