// Products with q8 and q4 weights for every instruction set, the rounding of their inputs, and rows of a quantised embedding.
// Integers of up to 24 bits are exact in f32, so sums within a group are exact here as in the integer kernels of
// quantised_vnni.cc and quantised_avx2.cc; over groups both add in the same order.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/quantised.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

#include <algorithm>

#include "duet_quantised.h"

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

// Bits of the largest magnitude of a group: they sort as the magnitudes do, NaN last
HWY_INLINE int32_t Largest(const float* x) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  auto largest = hn::Zero(di);
  for (size_t i = 0; i < kGroup; i += hn::Lanes(d)) largest = hn::Max(largest, hn::BitCast(di, hn::Abs(load(d, x + i))));
  return hn::GetLane(hn::MaxOfLanes(di, largest));
}

// q = x times factor, rounded; returns the sum of q
HWY_INLINE int32_t Round(const float* HWY_RESTRICT x, float factor, int8_t* HWY_RESTRICT q) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const hn::RebindToUnsigned<Floats> du;
  const hn::Rebind<uint8_t, Floats> d8;
  const auto shift = hn::Set(d, 12582912.0f);  // 1.5 2^23: the sum has no bits after the point
  auto total = hn::Zero(di);
  for (size_t i = 0; i < kGroup; i += hn::Lanes(d)) {
    const auto rounded = hn::BitCast(di, hn::Add(hn::Mul(load(d, x + i), hn::Set(d, factor)), shift));
    total = hn::Add(total, hn::Sub(rounded, hn::BitCast(di, shift)));
    hn::StoreU(hn::TruncateTo(d8, hn::BitCast(du, rounded)), d8, reinterpret_cast<uint8_t*>(q + i));
  }
  return hn::GetLane(hn::SumOfLanes(di, total));
}

// As duetp_round_input does it: groups whose inputs are ld apart become the groups at, at + apart ... of `out`. Some at a time,
// because the steps of one wait for each other.
void RoundGroups(const float* x, size_t ld, size_t n, size_t count, const RoundedRows& out, size_t at, size_t apart) {
  constexpr size_t kSome = 16;
  float padded[kSome][kGroup], factor[kSome];
  for (size_t some; count > 0; count -= some, x += some * ld, at += some * apart) {
    some = std::min(kSome, count);
    const auto inputs = [&](size_t i) { return n < kGroup ? padded[i] : x + i * ld; };
    for (size_t i = 0; n < kGroup && i < some; ++i) {
      std::memcpy(padded[i], x + i * ld, n * sizeof(float));
      std::fill(padded[i] + n, padded[i] + kGroup, 0.0f);
    }
    for (size_t i = 0; i < some; ++i) {
      const int32_t bits = Largest(inputs(i));
      float max;
      std::memcpy(&max, &bits, sizeof max);
      out.scale[at + i * apart] = max / 127.0f;
      factor[i] = max >= 1e-30f && bits < 0x7f800000 ? 127.0f / max : 0.0f;
    }
    for (size_t i = 0; i < some; ++i) {
      const size_t to = at + i * apart;
      int32_t sum = 0;
      if (factor[i] > 0)
        sum = Round(inputs(i), factor[i], out.q + to * kGroup);
      else
        std::memset(out.q + to * kGroup, 0, kGroup);
      out.bias[to] = -128 * sum;
      out.offset[to] = out.scale[to] * static_cast<float>(sum);
    }
  }
}

// Byte J of each lane as a number: a signed one, or its lower or upper four bits
template <int J, class V>
HWY_INLINE V signed_byte(V v) { return hn::ShiftRight<24>(hn::ShiftLeft<24 - 8 * J>(v)); }
template <int Bit, class D, class V>
HWY_INLINE V half_byte(D d, V v) { return hn::And(hn::ShiftRight<Bit>(v), hn::Set(d, 15)); }

template <class D>
HWY_INLINE hn::VFromD<D> plus(D d, hn::VFromD<hn::RebindToSigned<D>> w, int8_t x, hn::VFromD<D> acc) {
  return hn::MulAdd(hn::ConvertTo(d, w), hn::Set(d, static_cast<float>(x)), acc);
}

// outputs [first, first + lanes) of a tile, for one row
HWY_INLINE hn::Vec<Floats> Lanes(const Matrix& m, const uint8_t* w, const Bf16* scale, const Bf16* minimum, const RoundedRows& x, size_t row) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  auto y = hn::Zero(d);
  for (size_t g = 0; g < x.groups; ++g, scale += kTile, minimum += kTile) {
    const size_t at = row * x.groups + g;
    const int8_t* q = x.q + at * kGroup;
    auto dot = hn::Zero(d);
    if (m.dtype == DUET_I8) {
      for (size_t i = 0; i < kGroup; i += 4, w += kTile * 4) {
        const auto v = hn::LoadU(di, reinterpret_cast<const int32_t*>(w));
        dot = plus(d, signed_byte<0>(v), q[i], dot);
        dot = plus(d, signed_byte<1>(v), q[i + 1], dot);
        dot = plus(d, signed_byte<2>(v), q[i + 2], dot);
        dot = plus(d, signed_byte<3>(v), q[i + 3], dot);
      }
    } else {
      for (size_t i = 0; i < kGroup; i += 8, w += kTile * 4) {
        const auto v = hn::LoadU(di, reinterpret_cast<const int32_t*>(w));
        dot = plus(d, half_byte<0>(di, v), q[i], dot);
        dot = plus(d, half_byte<8>(di, v), q[i + 1], dot);
        dot = plus(d, half_byte<16>(di, v), q[i + 2], dot);
        dot = plus(d, half_byte<24>(di, v), q[i + 3], dot);
        dot = plus(d, half_byte<4>(di, v), q[i + 4], dot);
        dot = plus(d, half_byte<12>(di, v), q[i + 5], dot);
        dot = plus(d, half_byte<20>(di, v), q[i + 6], dot);
        dot = plus(d, half_byte<28>(di, v), q[i + 7], dot);
      }
    }
    y = hn::MulAdd(dot, hn::Mul(load(d, scale), hn::Set(d, x.scale[at])), y);
    if (m.dtype == DUET_I4) y = hn::MulAdd(load(d, minimum), hn::Set(d, x.offset[at]), y);
  }
  return y;
}

void MultiplyTile(const Matrix& m, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out) {
  const Floats d;
  const size_t lanes = hn::Lanes(d), tile_bytes = x.groups * kGroup * kTile / (m.dtype == DUET_I4 ? 2 : 1);
  for (size_t o = first; o < first + count; o += lanes) {
    const size_t t = o / kTile, lane = o % kTile, scales = t * x.groups * kTile + lane;
    const uint8_t* w = static_cast<const uint8_t*>(m.data) + t * tile_bytes + lane * 4;
    for (size_t row = 0; row < rows; ++row) {
      const auto y = Lanes(m, w, static_cast<const Bf16*>(m.scale) + scales, static_cast<const Bf16*>(m.minimum) + (m.minimum ? scales : 0), x, row);
      float* to = out.at(row, o - first).y;
      hn::StoreU(out.add ? hn::Add(hn::LoadU(d, to), y) : y, d, to);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(RoundGroups);
HWY_EXPORT(MultiplyTile);

RoundedRows rounded_rows(size_t in, size_t rows, void* memory) {
  const size_t groups = (in + kGroup - 1) / kGroup, n = rows * groups;
  auto* q = static_cast<int8_t*>(memory);
  auto* scale = reinterpret_cast<float*>(q + n * kGroup);
  return {groups, q, scale, reinterpret_cast<int32_t*>(scale + n), scale + 2 * n};
}
RoundedRows rounded_from(const RoundedRows& x, size_t row) {
  const size_t n = row * x.groups;
  return {x.groups, x.q + n * kGroup, x.scale + n, x.bias + n, x.offset + n};
}
void round_groups(const float* x, size_t ld, size_t n, size_t rows, const RoundedRows& out, size_t group) {
  HWY_DYNAMIC_DISPATCH(RoundGroups)(x, ld, n, rows, out, group, out.groups);
}
void round_rows(const float* x, size_t in, size_t rows, const RoundedRows& out) {
  if (in % kGroup == 0) return HWY_DYNAMIC_DISPATCH(RoundGroups)(x, kGroup, kGroup, rows * out.groups, out, 0, 1);
  for (size_t g = 0; g < out.groups; ++g) round_groups(x + g * kGroup, in, std::min(kGroup, in - g * kGroup), rows, out, g);
}

void multiply_tile(const Matrix& w, size_t first, size_t count, const RoundedRows& x, size_t rows, Place out, Slice next) {
  if (const auto own = integer_product()) return own(w, first, count, x, rows, out, next);
  HWY_DYNAMIC_DISPATCH(MultiplyTile)(w, first, count, x, rows, out);
}

void widen_row(const Matrix& w, size_t row, float* y) {
  if (!duetp_is_quantised(w.dtype)) return widen(static_cast<const char*>(w.data) + row * w.in * (w.dtype == DUET_F32 ? 4 : 2), w.dtype, w.in, y);
  const duetp_quantised_form f = duetp_form_of(DUETP_T_EMB, w.dtype, w.out, w.in);
  duetp_tensor t{};
  t.dtype = w.dtype;
  t.data = w.data;
  t.scale = w.scale;
  t.minimum = w.minimum;
  for (size_t i = 0; i < w.in; ++i) y[i] = duetp_quantised_weight(&t, &f, row, i);
}
}  // namespace duet_cpu
#endif
