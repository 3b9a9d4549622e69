// [rows,columns] -> [columns,rows], a cache line of each side at a time.
#include "kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/transpose.cc"
#include "hwy/foreach_target.h"
#include "kernels/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace duet_cpu {
namespace HWY_NAMESPACE {

template <class T>
void Slowly(const T* in, size_t rows, size_t columns, size_t r0, size_t r1, size_t c0, size_t c1, T* out) {
  for (size_t c = c0; c < c1; ++c)
    for (size_t r = r0; r < r1; ++r) out[c * rows + r] = in[r * columns + c];
}

#if HWY_TARGET == HWY_SCALAR || HWY_HAVE_SCALABLE
template <class T>
void Square(const T* in, size_t ld, T* out, size_t ld_out) {
  constexpr size_t kSide = 64 / sizeof(T);
  for (size_t c = 0; c < kSide; ++c)
    for (size_t r = 0; r < kSide; ++r) out[c * ld_out + r] = in[r * ld + c];
}
#else
// v[i] = row i of a square whose rows fill a vector -> column i of it; each step doubles what neighbours share
HWY_INLINE void Exchange(hn::Vec<hn::Full128<uint32_t>>* v) {
  const hn::Full128<uint32_t> d;
  const hn::Full128<uint64_t> d64;
  const auto wide = [&](auto x) HWY_ATTR { return hn::BitCast(d64, x); };
  const auto a = wide(hn::InterleaveLower(d, v[0], v[1])), b = wide(hn::InterleaveUpper(d, v[0], v[1]));
  const auto e = wide(hn::InterleaveLower(d, v[2], v[3])), f = wide(hn::InterleaveUpper(d, v[2], v[3]));
  v[0] = hn::BitCast(d, hn::InterleaveLower(d64, a, e));
  v[1] = hn::BitCast(d, hn::InterleaveUpper(d64, a, e));
  v[2] = hn::BitCast(d, hn::InterleaveLower(d64, b, f));
  v[3] = hn::BitCast(d, hn::InterleaveUpper(d64, b, f));
}
HWY_INLINE void Exchange(hn::Vec<hn::Full128<uint16_t>>* v) {
  const hn::Full128<uint16_t> d;
  const hn::Full128<uint32_t> d32;
  hn::Vec<hn::Full128<uint32_t>> low[4], high[4];  // pairs of rows; columns 0..3 and 4..7
  for (size_t i = 0; i < 4; ++i) {
    low[i] = hn::BitCast(d32, hn::InterleaveLower(d, v[2 * i], v[2 * i + 1]));
    high[i] = hn::BitCast(d32, hn::InterleaveUpper(d, v[2 * i], v[2 * i + 1]));
  }
  Exchange(low);
  Exchange(high);
  for (size_t i = 0; i < 4; ++i) {
    v[i] = hn::BitCast(d, low[i]);
    v[4 + i] = hn::BitCast(d, high[i]);
  }
}

// A square whose rows are cache lines. It goes through a copy: rows may lie a power of two apart, which few of the cache's places serve.
template <class T>
void Square(const T* in, size_t ld, T* out, size_t ld_out) {
  const hn::Full128<T> d;
  constexpr size_t kSide = 64 / sizeof(T), kLanes = 16 / sizeof(T);
  alignas(64) T copy[kSide][kSide];
  for (size_t r = 0; r < kSide; ++r) std::memcpy(copy[r], in + r * ld, sizeof copy[r]);
  for (size_t c = 0; c < kSide; c += kLanes)
    for (size_t r = 0; r < kSide; r += kLanes) {
      hn::Vec<hn::Full128<T>> v[kLanes];
      for (size_t i = 0; i < kLanes; ++i) v[i] = hn::Load(d, copy[r + i] + c);
      Exchange(v);
      for (size_t i = 0; i < kLanes; ++i) hn::StoreU(v[i], d, out + (c + i) * ld_out + r);
    }
}
#endif

template <class T>
void TransposeOf(const T* in, size_t rows, size_t columns, size_t from, size_t to, T* out) {
  constexpr size_t kSide = 64 / sizeof(T);
  size_t r = from;
  for (; r + kSide <= to; r += kSide) {
    size_t c = 0;
    for (; c + kSide <= columns; c += kSide) Square(in + r * columns + c, columns, out + c * rows + r, rows);
    Slowly(in, rows, columns, r, r + kSide, c, columns, out);
  }
  Slowly(in, rows, columns, r, to, 0, columns, out);
}

void Transpose(const void* in, size_t element, size_t rows, size_t columns, size_t from, size_t to, void* out) {
  if (element == 2) return TransposeOf(static_cast<const uint16_t*>(in), rows, columns, from, to, static_cast<uint16_t*>(out));
  TransposeOf(static_cast<const uint32_t*>(in), rows, columns, from, to, static_cast<uint32_t*>(out));
}

}  // namespace HWY_NAMESPACE
}  // namespace duet_cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace duet_cpu {
HWY_EXPORT(Transpose);
void transpose(const void* in, size_t element, size_t rows, size_t columns, size_t from, size_t to, void* out) {
  HWY_DYNAMIC_DISPATCH(Transpose)(in, element, rows, columns, from, to, out);
}
}  // namespace duet_cpu
#endif
