// The recurrence, for both modes: S = S diag(w) + (S (-kk)) (kk a)^T + v k^T;  y = S r.
//
// With the lanes running over values, every sum over keys stays inside its lane. The old S gives all that a token needs,
//   sa = -S kk,  y = S (w r) + sa (b.r) + v (k.r)   with b = kk a,
// so the pass over S that applies one token also gathers sa and S (w r) of the next: one load and one store per token.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/wkv.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

#include <algorithm>

#ifndef DUET_CPU_WKV_CHUNK
#define DUET_CPU_WKV_CHUNK
namespace duet_cpu {
namespace {
constexpr size_t kChunk = 16;  // tokens whose coefficients are computed ahead; they stay in L1 beside S
struct Coefficients {          // of one token, each [wkv_stride(N)] floats
  float *w, *b, *k, *kk, *wr, *v, *y;
  float br, kr;
};
}  // namespace
}  // namespace duet_cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

// exp(-exp(-0.5) s) for s from 0 to 1, to 1e-9
constexpr float kDecay[] = {0.999999999438f, -0.606530604545f, 0.183938834294f, -0.0371829989603f, 0.00562343248712f, -0.000660656857823f, 5.12065582932e-5f};

void Coefficient(const Wkv& p, size_t at, Coefficients& c) {
  const float *r = p.r + at, *w_raw = p.w_raw + at, *k = p.k + at, *kk = p.kk + at, *a = p.a + at;
  each(p.N, [&](auto d, size_t j) HWY_ATTR {
    const auto w = polynomial(d, sigmoid(d, load(d, w_raw + j)), kDecay);
    const auto kkj = load(d, kk + j);
    store(d, w, c.w + j);
    store(d, hn::Mul(kkj, load(d, a + j)), c.b + j);
    store(d, load(d, k + j), c.k + j);
    store(d, kkj, c.kk + j);
    store(d, hn::Mul(w, load(d, r + j)), c.wr + j);
    store(d, load(d, p.v + at + j), c.v + j);
  });
  c.br = sum(p.N, [&](auto d, size_t j) HWY_ATTR { return hn::Mul(load(d, c.b + j), load(d, r + j)); });
  c.kr = sum(p.N, [&](auto d, size_t j) HWY_ATTR { return hn::Mul(load(d, k + j), load(d, r + j)); });
}

// V vectors of values of S through n tokens
template <size_t V>
void Walk(const Coefficients* c, size_t n, size_t N, size_t stride, size_t first, float* HWY_RESTRICT S) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  using Vec = hn::Vec<Floats>;
  Vec sa[V], y[V];
  for (size_t i = 0; i < V; ++i) sa[i] = y[i] = hn::Zero(d);
  for (size_t j = 0; j < N; ++j) {
    const Vec kk = hn::Set(d, c->kk[j]), wr = hn::Set(d, c->wr[j]);
    for (size_t i = 0; i < V; ++i) {
      const Vec s = hn::LoadU(d, S + j * stride + first + i * lanes);
      sa[i] = hn::NegMulAdd(s, kk, sa[i]);
      y[i] = hn::MulAdd(s, wr, y[i]);
    }
  }
  for (const Coefficients* end = c + n; c != end; ++c) {
    Vec v[V], next_sa[V], next_y[V];
    const Vec br = hn::Set(d, c->br), kr = hn::Set(d, c->kr);
    for (size_t i = 0; i < V; ++i) {
      v[i] = hn::LoadU(d, c->v + first + i * lanes);
      hn::StoreU(hn::MulAdd(v[i], kr, hn::MulAdd(sa[i], br, y[i])), d, c->y + first + i * lanes);
      next_sa[i] = next_y[i] = hn::Zero(d);
    }
    const bool last = c + 1 == end;
    const float *next_kk = last ? c->kk : c[1].kk, *next_wr = last ? c->wr : c[1].wr;  // the last one's sums are not used
    for (size_t j = 0; j < N; ++j) {
      const Vec w = hn::Set(d, c->w[j]), b = hn::Set(d, c->b[j]), k = hn::Set(d, c->k[j]);
      const Vec kk = hn::Set(d, next_kk[j]), wr = hn::Set(d, next_wr[j]);
      float* row = S + j * stride + first;
      for (size_t i = 0; i < V; ++i) {
        const Vec s = hn::MulAdd(sa[i], b, hn::MulAdd(v[i], k, hn::Mul(hn::LoadU(d, row + i * lanes), w)));
        hn::StoreU(s, d, row + i * lanes);
        next_sa[i] = hn::NegMulAdd(s, kk, next_sa[i]);
        next_y[i] = hn::MulAdd(s, wr, next_y[i]);
      }
    }
    for (size_t i = 0; i < V; ++i) sa[i] = next_sa[i], y[i] = next_y[i];
  }
}

void WkvHead(const Wkv& p, size_t head, size_t t0, size_t t1, float* S, void* scratch) {
  const size_t stride = wkv_stride(p.N), lanes = hn::Lanes(Floats());
  float* at = static_cast<float*>(scratch);
  Coefficients c[kChunk];
  for (Coefficients& one : c)
    for (float** part : {&one.w, &one.b, &one.k, &one.kk, &one.wr, &one.v, &one.y}) {
      *part = at;
      at += stride;
    }
  for (Coefficients& one : c) std::fill(one.v + p.N, one.v + stride, 0.0f);  // values that are only padding stay zero
  for (size_t t = t0; t < t1; t += kChunk) {
    const size_t n = std::min(kChunk, t1 - t);
    for (size_t i = 0; i < n; ++i) Coefficient(p, (t + i) * p.C + head * p.N, c[i]);
    size_t first = 0;
    for (; first + 4 * lanes <= stride; first += 4 * lanes) Walk<4>(c, n, p.N, stride, first, S);
    for (; first < stride; first += lanes) Walk<1>(c, n, p.N, stride, first, S);
    for (size_t i = 0; i < n; ++i) std::memcpy(p.y + (t + i) * p.C + head * p.N, c[i].y, p.N * sizeof(float));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(WkvHead);
size_t wkv_scratch_bytes(size_t N) { return kChunk * 7 * wkv_stride(N) * sizeof(float); }
void wkv(const Wkv& p, size_t head, size_t t0, size_t t1, float* S, void* scratch) { HWY_DYNAMIC_DISPATCH(WkvHead)(p, head, t0, t1, S, scratch); }
}  // namespace duet_cpu
#endif
