// Products of recurrent mode: each weight is read once from memory for all the rows, and its sums do not know how many there are.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/product.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

// The last n < lanes elements, with zeros behind them
template <class T>
HWY_INLINE hn::Vec<Floats> load_tail(const T* p, size_t n) {
  T padded[16] = {};
  std::memcpy(padded, p, n * sizeof(T));
  return load(Floats(), padded);
}

// [out,in]: R outputs, `step` apart, x B inputs; one accumulator each, along `depth`
template <size_t R, size_t B, class W, class X>
HWY_INLINE void Dots(const W* HWY_RESTRICT w, size_t step, const X* HWY_RESTRICT x, size_t depth, float* HWY_RESTRICT tile) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  hn::Vec<Floats> acc[R][B];
  for (size_t r = 0; r < R; ++r)
    for (size_t b = 0; b < B; ++b) acc[r][b] = hn::Zero(d);
  size_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    hn::Vec<Floats> in[B];
    for (size_t b = 0; b < B; ++b) in[b] = load(d, x + b * depth + k);
    for (size_t r = 0; r < R; ++r) {
      const auto wr = load(d, w + r * step * depth + k);
      for (size_t b = 0; b < B; ++b) acc[r][b] = hn::MulAdd(wr, in[b], acc[r][b]);
    }
  }
  if (k < depth)
    for (size_t r = 0; r < R; ++r) {
      const auto wr = load_tail(w + r * step * depth + k, depth - k);
      for (size_t b = 0; b < B; ++b) acc[r][b] = hn::MulAdd(wr, load_tail(x + b * depth + k, depth - k), acc[r][b]);
    }
  for (size_t r = 0; r < R; ++r)
    for (size_t b = 0; b < B; ++b) tile[b * kTileColumns + r * step] = hn::GetLane(hn::SumOfLanes(d, acc[r][b]));
}

template <size_t B, class W, class X>
void DotsOf(const W* w, size_t count, const X* x, size_t depth, float* tile) {
  constexpr size_t R = B == 1 ? 8 : 4;
  const size_t step = count / R;  // R streams through memory, each sequential for `step` rows: what prefetchers like best
  for (size_t r = 0; r < step; ++r) Dots<R, B>(w + r * depth, step, x, depth, tile + r);
  for (size_t r = step * R; r < count; ++r) Dots<1, B>(w + r * depth, 1, x, depth, tile + r);
}

// [in,out]: V vectors of outputs x B inputs; `w` is at the first output, rows of it are `ld` apart
template <size_t V, size_t B, class D, class W, class X>
HWY_INLINE void Columns(D d, const W* HWY_RESTRICT w, size_t ld, const X* HWY_RESTRICT x, size_t depth, float* HWY_RESTRICT tile) {
  const size_t lanes = hn::Lanes(d);
  hn::Vec<D> acc[B][V];
  for (size_t b = 0; b < B; ++b)
    for (size_t v = 0; v < V; ++v) acc[b][v] = hn::Zero(d);
  for (size_t k = 0; k < depth; ++k) {
    hn::Vec<D> wk[V];
    for (size_t v = 0; v < V; ++v) wk[v] = load(d, w + k * ld + v * lanes);
    for (size_t b = 0; b < B; ++b) {
      const auto in = hn::Set(d, hn::GetLane(load(OneFloat(), x + b * depth + k)));
      for (size_t v = 0; v < V; ++v) acc[b][v] = hn::MulAdd(wk[v], in, acc[b][v]);
    }
  }
  for (size_t b = 0; b < B; ++b)
    for (size_t v = 0; v < V; ++v) hn::StoreU(acc[b][v], d, tile + b * kTileColumns + v * lanes);
}

template <size_t B, class W, class X>
void ColumnsOf(const W* w, size_t ld, size_t count, const X* x, size_t depth, float* tile) {
  const Floats d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) Columns<4, B>(d, w + i, ld, x, depth, tile + i);
  for (; i + lanes <= count; i += lanes) Columns<1, B>(d, w + i, ld, x, depth, tile + i);
  for (; i < count; ++i) Columns<1, B>(OneFloat(), w + i, ld, x, depth, tile + i);
}

template <size_t B, class W, class X>
void Some(const Matrix& m, size_t first, size_t count, const X* x, float* tile) {
  const W* w = static_cast<const W*>(m.data);
  if (m.in_major) return ColumnsOf<B>(w + first, m.out, count, x, m.in, tile);
  return DotsOf<B>(w + first * m.in, count, x, m.in, tile);
}

template <class W, class X>
void All(const Matrix& m, size_t first, size_t count, const void* in, size_t rows, float* tile) {
  const X* x = static_cast<const X*>(in);
  for (; rows >= 4; rows -= 4, x += 4 * size_t{m.in}, tile += 4 * kTileColumns) Some<4, W>(m, first, count, x, tile);
  if (rows == 3) return Some<3, W>(m, first, count, x, tile);
  if (rows == 2) return Some<2, W>(m, first, count, x, tile);
  if (rows == 1) return Some<1, W>(m, first, count, x, tile);
}

void MultiplyTile(const Matrix& m, size_t first, size_t count, const void* x, size_t rows, float* tile) {
  if (m.dtype == DUET_F32) return All<float, float>(m, first, count, x, rows, tile);
  if (m.dtype == DUET_BF16) return All<Bf16, Bf16>(m, first, count, x, rows, tile);
  return All<F16, float>(m, first, count, x, rows, tile);
}

template <class T>
void FinishTile(const float* tile, size_t rows, size_t count, Finish finish, void* out, size_t ld) {
  for (size_t row = 0; row < rows; ++row) {
    const float* from = tile + row * kTileColumns;
    T* to = static_cast<T*>(out) + row * ld;
    each(count, [=](auto d, size_t i) HWY_ATTR {
      auto y = load(d, from + i);
      if (finish == Finish::kAdd) y = hn::Add(load(d, to + i), y);
      if (finish == Finish::kRelu2) y = hn::Max(y, hn::Zero(d)), y = hn::Mul(y, y);
      if (finish == Finish::kTanh) y = hn::Tanh(d, y);
      if (finish == Finish::kSigmoid) y = sigmoid(d, y);
      store(d, y, to + i);
    });
  }
}

void FinishAny(const float* tile, size_t rows, size_t count, Finish finish, bool bf16, void* out, size_t ld) {
  if (bf16) return FinishTile<Bf16>(tile, rows, count, finish, out, ld);
  return FinishTile<float>(tile, rows, count, finish, out, ld);
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(MultiplyTile);
HWY_EXPORT(FinishAny);
void multiply_tile(const Matrix& w, size_t first, size_t count, const void* x, size_t rows, float* tile, size_t next) {
  if (w.dtype == DUET_BF16 && has_bf16_dot()) {
    if (w.in_major) return multiply_columns_bf16_dot(w, first, count, x, rows, w.in, tile);
    return multiply_tile_bf16_dot(w, first, count, x, rows, tile, next);
  }
  HWY_DYNAMIC_DISPATCH(MultiplyTile)(w, first, count, x, rows, tile);
}
void finish_tile(const float* tile, size_t rows, size_t count, Finish finish, bool bf16, void* out, size_t ld) {
  HWY_DYNAMIC_DISPATCH(FinishAny)(tile, rows, count, finish, bf16, out, ld);
}
}  // namespace duet_cpu
#endif
