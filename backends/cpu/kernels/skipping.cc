// The product of channel mix in recurrent mode: what relu^2 left at zero takes no row of the value matrix.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/skipping.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

// Rows at once: sums go to the first-level cache and back once for all of them. Memory is faster with fewer streams, where one
// input row wants nearly all.
constexpr size_t kFew = 8, kMany = 4;

// Adds R rows times their inputs to V vectors of sums, in the order of the rows.
template <size_t R, size_t B, size_t V, class D, class W>
HWY_INLINE void AddTo(D d, const W* const* rows, const float (*x)[B], size_t at, float* sum, size_t ld) {
  const size_t lanes = hn::Lanes(d);
  hn::Vec<D> acc[B][V];
  for (size_t b = 0; b < B; ++b)
    for (size_t v = 0; v < V; ++v) acc[b][v] = hn::LoadU(d, sum + b * ld + at + v * lanes);
  for (size_t r = 0; r < R; ++r) {
    hn::Vec<D> w[V];
    for (size_t v = 0; v < V; ++v) w[v] = load(d, rows[r] + at + v * lanes);
    for (size_t b = 0; b < B; ++b)
      for (size_t v = 0; v < V; ++v) acc[b][v] = hn::MulAdd(w[v], hn::Set(d, x[r][b]), acc[b][v]);
  }
  for (size_t b = 0; b < B; ++b)
    for (size_t v = 0; v < V; ++v) hn::StoreU(acc[b][v], d, sum + b * ld + at + v * lanes);
}

template <size_t R, size_t B, class W, class X>
void AddSome(const W* w, size_t count, const uint32_t* list, const X* x, size_t ld_x, float* sum, size_t ld) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  const W* rows[R];
  float in[R][B];
  for (size_t r = 0; r < R; ++r) {
    rows[r] = w + list[r] * count;
    for (size_t b = 0; b < B; ++b) in[r][b] = hn::GetLane(load(OneFloat(), x + b * ld_x + list[r]));
  }
  size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) AddTo<R, B, 2>(d, rows, in, i, sum, ld);
  for (; i < count; ++i) AddTo<R, B, 1>(OneFloat(), rows, in, i, sum, ld);
}

template <size_t R, size_t B, class W, class X>
void AddList(const Skipping& s, const uint32_t* list, size_t n, const X* x, float* sum, size_t ld) {
  const W* w = static_cast<const W*>(s.w.data);
  size_t i = 0;
  for (; i + R <= n; i += R) AddSome<R, B>(w, s.w.out, list + i, x, s.w.in, sum, ld);
  for (; i < n; ++i) AddSome<1, B>(w, s.w.out, list + i, x, s.w.in, sum, ld);
}

template <size_t B, class W, class X>
void AddAll(const Skipping& s, const X* x, float* sum, size_t ld) {
  auto* list = static_cast<uint32_t*>(s.scratch);
  const size_t apart = skip_steps(s.to - s.from);
  size_t n = 0, all = 0;
  for (size_t step = s.begin; step < s.end; ++step)
    for (size_t k = s.from + step; k < s.to; k += apart, ++all) {
      bool any = false;
      for (size_t b = 0; b < B; ++b) any |= hn::GetLane(load(OneFloat(), x + b * s.w.in + k)) != 0;  // true of NaN
      list[n] = static_cast<uint32_t>(k);
      n += any;
    }
  if (B == 1 && 8 * n > 7 * all) return AddList<kMany, B, W>(s, list, n, x, sum, ld);
  AddList<kFew, B, W>(s, list, n, x, sum, ld);
}

template <class W, class X>
void AddOf(const Skipping& s, const void* in, size_t rows, float* sum, size_t ld) {
  const X* x = static_cast<const X*>(in);
  if (rows == 1) return AddAll<1, W>(s, x, sum, ld);
  if (rows == 2) return AddAll<2, W>(s, x, sum, ld);
  if (rows == 3) return AddAll<3, W>(s, x, sum, ld);
  return AddAll<4, W>(s, x, sum, ld);
}

void AddRows(const Skipping& s, const void* x, size_t rows, float* sum, size_t ld) {
  if (s.w.dtype == DUET_F32) return AddOf<float, float>(s, x, rows, sum, ld);
  if (s.w.dtype == DUET_BF16) return AddOf<Bf16, Bf16>(s, x, rows, sum, ld);
  return AddOf<F16, float>(s, x, rows, sum, ld);
}

void AddParts(const float* parts, size_t n, size_t ld, size_t count, float* y) {
  each(count, [=](auto d, size_t i) HWY_ATTR {
    auto sum = load(d, y + i);
    for (size_t p = 0; p < n; ++p) sum = hn::Add(sum, load(d, parts + p * ld + i));
    store(d, sum, y + i);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(AddRows);
HWY_EXPORT(AddParts);
void add_rows(const Skipping& s, const void* x, size_t rows, float* sum, size_t ld) {
  if (s.w.dtype == DUET_BF16 && has_bf16_dot()) return add_rows_bf16_dot(s, x, rows, sum, ld);
  HWY_DYNAMIC_DISPATCH(AddRows)(s, x, rows, sum, ld);
}
void add_parts(const float* parts, size_t n, size_t ld, size_t count, float* y) { HWY_DYNAMIC_DISPATCH(AddParts)(parts, n, ld, count, y); }
}  // namespace duet_cpu
#endif
