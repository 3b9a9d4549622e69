// What the kernels share: loops over lanes with a tail, bf16 and f16 in memory, sigmoid. Included once per instruction set.
#if defined(DUET_CPU_LANES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef DUET_CPU_LANES_INL_H
#undef DUET_CPU_LANES_INL_H
#else
#define DUET_CPU_LANES_INL_H
#endif

#include <cstdint>
#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, 16>;
using OneFloat = hn::CappedTag<float, 1>;

// f(d, i) for whole vectors, then one by one
template <class F>
HWY_INLINE void each(size_t n, const F& f) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) f(d, i);
  for (; i < n; ++i) f(OneFloat(), i);
}

// sum of f(d, i) over n elements, in an order that depends on n only
template <class F>
HWY_INLINE float sum(size_t n, const F& f) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  auto s0 = hn::Zero(d), s1 = hn::Zero(d);
  float tail = 0;
  size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    s0 = hn::Add(s0, f(d, i));
    s1 = hn::Add(s1, f(d, i + lanes));
  }
  for (; i + lanes <= n; i += lanes) s0 = hn::Add(s0, f(d, i));
  for (; i < n; ++i) tail += hn::GetLane(f(OneFloat(), i));
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1))) + tail;
}

struct Bf16 { uint16_t bits; };  // in memory; aligned to 2
struct F16 { uint16_t bits; };

template <class D>
HWY_INLINE hn::VFromD<D> load(D d, const float* p) { return hn::LoadU(d, p); }
template <class D>
HWY_INLINE hn::VFromD<D> load(D d, const Bf16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p)))));
}
template <class D>
HWY_INLINE hn::VFromD<D> load(D d, const F16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> dh;
  return hn::PromoteTo(d, hn::BitCast(dh, hn::LoadU(d16, reinterpret_cast<const uint16_t*>(p))));
}

template <class D>
HWY_INLINE void store(D d, hn::VFromD<D> v, float* p) { hn::StoreU(v, d, p); }
// round to nearest even; NaN stays NaN
template <class D>
HWY_INLINE void store(D, hn::VFromD<D> v, Bf16* p) {
  const hn::RebindToUnsigned<D> d32;
  const hn::RebindToSigned<D> di32;
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::BitCast(d32, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, odd), hn::Set(d32, 0x7fff)));
  const auto nan = hn::Or(hn::ShiftRight<16>(bits), hn::Set(d32, 0x40));
  const auto half = hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), nan, rounded);
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, half)), d16, reinterpret_cast<uint16_t*>(p));
}

// c[n] x^n + ... + c[0]
template <class D, size_t n>
HWY_INLINE hn::VFromD<D> polynomial(D d, hn::VFromD<D> x, const float (&c)[n]) {
  auto y = hn::Set(d, c[n - 1]);
  for (size_t i = n - 1; i > 0; --i) y = hn::MulAdd(y, x, hn::Set(d, c[i - 1]));
  return y;
}

// exp for |x| <= 87, to 1e-7 of its value; NaN passes through. hn::Exp minds all other x too.
template <class D>
HWY_INLINE hn::VFromD<D> exp_within_87(D d, hn::VFromD<D> x) {
  static constexpr float kPolynomial[] = {1.0f, 1.00000003772f, 0.500000004712f, 0.166664155147f, 0.0416663528968f, 0.00837512639815f, 0.0013941108434f};  // of +-ln(2) / 2
  const hn::RebindToSigned<D> di;
  const auto shift = hn::Set(d, 12582912.0f);  // 1.5 2^23: the sum has no bits after the point
  const auto shifted = hn::MulAdd(x, hn::Set(d, 1.44269504f), shift), n = hn::Sub(shifted, shift);
  const auto rest = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x));  // x - n ln(2), in two steps
  const auto power = hn::BitCast(d, hn::Add(hn::ShiftLeft<23>(hn::BitCast(di, shifted)), hn::Set(di, 127 << 23)));  // 2^n
  return hn::Mul(polynomial(d, rest, kPolynomial), power);
}

// Beyond +-87 exp leaves the range of f32, and sigmoid is 0 or 1 to within 1e-37. NaN passes through.
template <class D>
HWY_INLINE hn::VFromD<D> sigmoid(D d, hn::VFromD<D> x) {
  const auto one = hn::Set(d, 1.0f);
  const auto bounded = hn::Max(hn::Set(d, -87.0f), hn::Min(hn::Set(d, 87.0f), x));
  return hn::Div(one, hn::Add(one, exp_within_87(d, hn::Neg(bounded))));
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();
#endif
