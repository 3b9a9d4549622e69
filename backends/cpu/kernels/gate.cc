// What surrounds wkv, head by head: the inputs of wkv from the products, and the gated group norm of its output.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/gate.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

// A head's rows lie n_embd apart, which no hardware prefetcher follows.
constexpr size_t kAhead = 4;  // tokens
HWY_INLINE void prefetch(size_t N, size_t at, std::initializer_list<const float*> arrays) {
  for (const float* p : arrays)
    if (p)
      for (size_t i = 0; i < N; i += 16) hwy::Prefetch(p + at + i);
}

void PrepareHead(const Prepare& p, size_t head, size_t t0, size_t t1) {
  const size_t c = head * p.N;
  for (size_t t = t0; t < t1; ++t) {
    const size_t at = t * p.C + c;
    const float *k = p.k + at, *v = p.v + at, *k_k = p.k_k + c;
    if (t + kAhead < t1) prefetch(p.N, at + kAhead * p.C, {p.k, p.v, p.lw, p.la, p.lv, p.v_first});
    const float norm = sum(p.N, [=](auto d, size_t i) HWY_ATTR {
      const auto u = hn::Mul(load(d, k + i), load(d, k_k + i));
      return hn::Mul(u, u);
    });
    const float scale = 1 / std::max(std::sqrt(norm), 1e-12f);
    each(p.N, [&](auto d, size_t i) HWY_ATTR {
      const auto ki = load(d, k + i);
      const auto a = sigmoid(d, hn::Add(load(d, p.a0 + c + i), load(d, p.la + at + i)));
      store(d, hn::Mul(hn::Mul(ki, load(d, k_k + i)), hn::Set(d, scale)), p.kk + at + i);
      store(d, hn::Mul(ki, hn::MulAdd(hn::Sub(a, hn::Set(d, 1.0f)), load(d, p.k_a + c + i), hn::Set(d, 1.0f))), p.out_k + at + i);
      store(d, hn::Add(load(d, p.w0 + c + i), load(d, p.lw + at + i)), p.w_raw + at + i);
      store(d, a, p.a + at + i);
      const auto vi = load(d, v + i);
      if (p.out_v_first) {
        store(d, vi, p.out_v_first + at + i);
        store(d, vi, p.out_v + at + i);
      } else {
        const auto share = sigmoid(d, hn::Add(load(d, p.v0 + c + i), load(d, p.lv + at + i)));
        store(d, hn::MulAdd(hn::Sub(load(d, p.v_first + at + i), vi), share, vi), p.out_v + at + i);
      }
    });
  }
}

template <class T>
void NormGateTo(const NormGate& p, size_t head, size_t t0, size_t t1) {
  const size_t c = head * p.N;
  const float n = static_cast<float>(p.N);
  for (size_t t = t0; t < t1; ++t) {
    const size_t at = t * p.C + c;
    const float *y = p.y + at, *v = p.v + at, *g = p.g + at;
    if (t + kAhead < t1) prefetch(p.N, at + kAhead * p.C, {p.g});
    const float mean = sum(p.N, [=](auto d, size_t i) HWY_ATTR { return load(d, y + i); }) / n;
    const float var = sum(p.N, [=](auto d, size_t i) HWY_ATTR {
      const auto u = hn::Sub(load(d, y + i), hn::Set(d, mean));
      return hn::Mul(u, u);
    }) / n;
    const float bonus = sum(p.N, [&](auto d, size_t i) HWY_ATTR {
      return hn::Mul(hn::Mul(load(d, p.r + at + i), load(d, p.k + at + i)), load(d, p.r_k + c + i));
    });
    const float scale = 1 / std::sqrt(var + p.eps);
    T* out = static_cast<T*>(p.out) + at;
    each(p.N, [&](auto d, size_t i) HWY_ATTR {
      const auto u = hn::Mul(hn::Sub(load(d, y + i), hn::Set(d, mean)), hn::Set(d, scale));
      const auto normed = hn::MulAdd(u, load(d, p.ln_w + c + i), load(d, p.ln_b + c + i));
      store(d, hn::Mul(hn::MulAdd(hn::Set(d, bonus), load(d, v + i), normed), load(d, g + i)), out + i);
    });
  }
}

void NormGateHead(const NormGate& p, size_t head, size_t t0, size_t t1) {
  if (p.bf16) return NormGateTo<Bf16>(p, head, t0, t1);
  return NormGateTo<float>(p, head, t0, t1);
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(PrepareHead);
HWY_EXPORT(NormGateHead);

void prepare(const Prepare& p, size_t head, size_t t0, size_t t1) { HWY_DYNAMIC_DISPATCH(PrepareHead)(p, head, t0, t1); }
void norm_gate(const NormGate& p, size_t head, size_t t0, size_t t1) { HWY_DYNAMIC_DISPATCH(NormGateHead)(p, head, t0, t1); }
}  // namespace duet_cpu
#endif
