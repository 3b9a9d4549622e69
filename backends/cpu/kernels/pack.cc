// Weights as the right-hand side of a matrix product, 64 outputs at a time, from their canonical place into cache.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/pack.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

// ---- [out,in] -> [in][64]: a transposition of 32-bit words; a word is one f32, or two neighbouring bf16 ----
struct Pair { Bf16 a, b; };

inline uint32_t word(const float* p) {
  uint32_t u;
  std::memcpy(&u, p, sizeof u);
  return u;
}
inline uint32_t word(const Pair* p) {
  uint32_t u;
  std::memcpy(&u, p, sizeof u);
  return u;
}
template <class T>  // Bf16, F16: widened
inline uint32_t word(const T* p) {
  const float f = hn::GetLane(load(OneFloat(), p));
  return word(&f);
}

template <class T>
void TransposeSlowly(const T* const* rows, size_t count, size_t from, size_t n, uint32_t* out) {
  for (size_t k = from; k < n; ++k)
    for (size_t r = 0; r < count; ++r) out[k * kTileColumns + r] = word(rows[r] + k);
}

#if HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
template <class T>
void Transpose(const T* const* rows, size_t n, uint32_t* out) { TransposeSlowly(rows, kTileColumns, 0, n, out); }
#else
using Words4 = hn::Full128<uint32_t>;

template <class T>
HWY_INLINE hn::Vec<Words4> four(const T* p) { return hn::BitCast(Words4(), load(hn::Full128<float>(), p)); }
HWY_INLINE hn::Vec<Words4> four(const Pair* p) {
  return hn::BitCast(Words4(), hn::LoadU(hn::Full128<uint16_t>(), reinterpret_cast<const uint16_t*>(p)));
}

// block b of the result = four words of rows[4 b]
template <size_t Lanes, class T>
HWY_INLINE auto blocks(const T* const* rows, size_t k) {
  if constexpr (Lanes == 4) {
    return four(rows[0] + k);
  } else {
    const hn::CappedTag<uint32_t, Lanes> d;
    return hn::Combine(d, blocks<Lanes / 2>(rows + Lanes / 2, k), blocks<Lanes / 2>(rows, k));
  }
}

template <class T>
void Transpose(const T* const* rows, size_t n, uint32_t* out) {
  const hn::CappedTag<uint32_t, 16> d;
  const hn::Repartition<uint64_t, decltype(d)> d64;
  constexpr size_t lanes = HWY_MIN(16, HWY_MAX_BYTES / 4), kAhead = 64;  // more rows than hardware prefetchers follow
  size_t k = 0;
  for (; k + 16 <= n; k += 16) {  // a cache line of each row before the next
    for (size_t r = 0; r < kTileColumns; ++r)
      if (k + kAhead < n) hwy::Prefetch(rows[r] + k + kAhead);
    for (size_t r = 0; r < kTileColumns; r += lanes)
      for (size_t at = k; at < k + 16; at += 4) {
        const auto v0 = blocks<lanes>(rows + r, at), v1 = blocks<lanes>(rows + r + 1, at);
        const auto v2 = blocks<lanes>(rows + r + 2, at), v3 = blocks<lanes>(rows + r + 3, at);
        const auto a = hn::BitCast(d64, hn::InterleaveLower(d, v0, v1)), b = hn::BitCast(d64, hn::InterleaveUpper(d, v0, v1));
        const auto e = hn::BitCast(d64, hn::InterleaveLower(d, v2, v3)), f = hn::BitCast(d64, hn::InterleaveUpper(d, v2, v3));
        uint32_t* to = out + at * kTileColumns + r;
        hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, a, e)), d, to);
        hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, a, e)), d, to + kTileColumns);
        hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, b, f)), d, to + 2 * kTileColumns);
        hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, b, f)), d, to + 3 * kTileColumns);
      }
  }
  TransposeSlowly(rows, kTileColumns, k, n, out);
}
#endif

template <class T, class Element>
void PackRows(const Element* w, size_t in, size_t words, size_t count, uint32_t* out) {
  const T* rows[kTileColumns];
  for (size_t r = 0; r < count; ++r) rows[r] = reinterpret_cast<const T*>(w + r * in);
  if (count == kTileColumns) return Transpose(rows, words, out);
  std::fill(out, out + words * kTileColumns, 0u);
  TransposeSlowly(rows, count, 0, words, out);
}

void PackPairs(const Bf16* w, size_t in, size_t count, uint32_t* out) {
  const size_t pairs = in / 2;
  PackRows<Pair>(w, in, pairs, count, out);
  std::fill(out + pairs * kTileColumns, out + padded_depth(in, true) / 2 * kTileColumns, 0u);
  if (in % 2)
    for (size_t r = 0; r < count; ++r) out[pairs * kTileColumns + r] = w[r * in + in - 1].bits;
}

// ---- [in,out] -> [in][64] ----
template <class T>
void CopyRows(const T* w, size_t ld, size_t in, size_t count, float* out) {
  for (size_t k = 0; k < in; ++k, w += ld, out += kTileColumns) {
    each(count, [=](auto d, size_t i) HWY_ATTR { store(d, load(d, w + i), out + i); });
    std::fill(out + count, out + kTileColumns, 0.0f);
  }
}

void InterleaveRows(const Bf16* w, size_t ld, size_t in, size_t count, uint32_t* out) {
  const hn::CappedTag<uint32_t, 16> d;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  const size_t lanes = hn::Lanes(d);
  std::fill(out, out + padded_depth(in, true) / 2 * kTileColumns, 0u);
  for (size_t k = 0; k < in; k += 2, w += 2 * ld, out += kTileColumns) {
    const uint16_t* a = reinterpret_cast<const uint16_t*>(w);
    const uint16_t* b = k + 1 < in ? a + ld : nullptr;
    size_t i = 0;
    for (; b && i + lanes <= count; i += lanes) {
      const auto high = hn::ShiftLeft<16>(hn::PromoteTo(d, hn::LoadU(d16, b + i)));
      hn::StoreU(hn::Or(high, hn::PromoteTo(d, hn::LoadU(d16, a + i))), d, out + i);
    }
    for (; i < count; ++i) out[i] = a[i] | (b ? static_cast<uint32_t>(b[i]) << 16 : 0u);
  }
}

void PackPanel(const Matrix& m, size_t first, size_t count, bool bf16, void* panel) {
  uint32_t* words = static_cast<uint32_t*>(panel);
  float* floats = static_cast<float*>(panel);
  const auto *f32 = static_cast<const float*>(m.data);
  const auto *half = static_cast<const Bf16*>(m.data);
  const auto *f16 = static_cast<const F16*>(m.data);
  if (m.in_major) {
    if (bf16) return InterleaveRows(half + first, m.out, m.in, count, words);
    if (m.dtype == DUET_F32) return CopyRows(f32 + first, m.out, m.in, count, floats);
    if (m.dtype == DUET_BF16) return CopyRows(half + first, m.out, m.in, count, floats);
    return CopyRows(f16 + first, m.out, m.in, count, floats);
  }
  const size_t at = first * m.in;
  if (bf16) return PackPairs(half + at, m.in, count, words);
  if (m.dtype == DUET_F32) return PackRows<float>(f32 + at, m.in, m.in, count, words);
  if (m.dtype == DUET_BF16) return PackRows<Bf16>(half + at, m.in, m.in, count, words);
  return PackRows<F16>(f16 + at, m.in, m.in, count, words);
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(PackPanel);
void pack_panel(const Matrix& w, size_t first, size_t count, bool bf16, void* panel) { HWY_DYNAMIC_DISPATCH(PackPanel)(w, first, count, bf16, panel); }
}  // namespace duet_cpu
#endif
