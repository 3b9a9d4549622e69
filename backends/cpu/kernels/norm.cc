// Layer norm and token shift of one token.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/norm.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

const char* Name() { return hwy::TargetName(HWY_TARGET); }

void LayerNorm(const float* x, const float* w, const float* b, size_t C, float eps, float* y) {
  const float mean = sum(C, [x](auto d, size_t i) HWY_ATTR { return load(d, x + i); }) / static_cast<float>(C);
  const float var = sum(C, [x, mean](auto d, size_t i) HWY_ATTR {
    const auto u = hn::Sub(load(d, x + i), hn::Set(d, mean));
    return hn::Mul(u, u);
  }) / static_cast<float>(C);
  const float scale = 1 / std::sqrt(var + eps);
  each(C, [=](auto d, size_t i) HWY_ATTR {
    const auto u = hn::Mul(hn::Sub(load(d, x + i), hn::Set(d, mean)), hn::Set(d, scale));
    store(d, hn::MulAdd(u, load(d, w + i), load(d, b + i)), y + i);
  });
}

template <class T>
void WidenFrom(const T* src, size_t n, float* y) {
  each(n, [=](auto d, size_t i) HWY_ATTR { store(d, load(d, src + i), y + i); });
}

void Widen(const void* src, duet_dtype dtype, size_t n, float* y) {
  if (dtype == DUET_F32) return WidenFrom(static_cast<const float*>(src), n, y);
  if (dtype == DUET_BF16) return WidenFrom(static_cast<const Bf16*>(src), n, y);
  return WidenFrom(static_cast<const F16*>(src), n, y);
}

template <class T>
void RoundTo(const float* x, size_t n, T* y) {
  each(n, [=](auto d, size_t i) HWY_ATTR { store(d, load(d, x + i), y + i); });
}

void RoundRow(const float* x, size_t n, bool bf16, void* y) {
  if (bf16) return RoundTo(x, n, static_cast<Bf16*>(y));
  return RoundTo(x, n, static_cast<float*>(y));
}

template <class T>
void MixTo(const float* y, const float* prev, const float* const* mix, size_t n, size_t C, void* const* out) {
  each(C, [=](auto d, size_t i) HWY_ATTR {
    const auto now = load(d, y + i);
    const auto change = hn::Sub(load(d, prev + i), now);
    for (size_t m = 0; m < n; ++m) store(d, hn::MulAdd(change, load(d, mix[m] + i), now), static_cast<T*>(out[m]) + i);
  });
}

void Mix(const float* y, const float* prev, const float* const* mix, size_t n, size_t C, bool bf16, void* const* out) {
  if (bf16) return MixTo<Bf16>(y, prev, mix, n, C, out);
  return MixTo<float>(y, prev, mix, n, C, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(LayerNorm);
HWY_EXPORT(Widen);
HWY_EXPORT(RoundRow);
HWY_EXPORT(Mix);

void layer_norm(const float* x, const float* w, const float* b, size_t C, float eps, float* y) { HWY_DYNAMIC_DISPATCH(LayerNorm)(x, w, b, C, eps, y); }
void widen(const void* src, duet_dtype dtype, size_t n, float* y) { HWY_DYNAMIC_DISPATCH(Widen)(src, dtype, n, y); }
void round_row(const float* x, size_t n, bool bf16, void* y) { HWY_DYNAMIC_DISPATCH(RoundRow)(x, n, bf16, y); }
void mix(const float* y, const float* prev, const float* const* mix, size_t n, size_t C, bool bf16, void* const* out) {
  HWY_DYNAMIC_DISPATCH(Mix)(y, prev, mix, n, C, bf16, out);
}
HWY_EXPORT(Name);
const char* instruction_set() { return HWY_DYNAMIC_DISPATCH(Name)(); }
}  // namespace duet_cpu
#endif
