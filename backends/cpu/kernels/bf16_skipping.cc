// add_rows with vdpbf16ps: two rows of the value matrix go together, always the same two; and the same sums for many rows of x.
#include "kernels.h"

#if defined(__x86_64__)
#include "kernels/bf16_pairs.h"

#include <algorithm>
#include <cstring>

namespace duet_cpu {
namespace {

// Two inputs of a row; zero is one that lies beyond the part
inline uint32_t pair(const uint16_t* x, size_t first, size_t second, size_t end) {
  return (first < end ? x[first] : 0) | (second < end ? static_cast<uint32_t>(x[second]) << 16 : 0);
}

// Adds P pairs of rows to the sums of outputs at .. at + 32, or of those in `some`.
template <size_t P, size_t B, bool kWhole>
BF16_DOT inline void add_pairs(const uint16_t* const (*rows)[2], const uint32_t (*x)[B], size_t at, __mmask32 some, float* sum, size_t ld) {
  Sums sums[B];
#pragma GCC unroll 4
  for (size_t b = 0; b < B; ++b) sums[b] = load_sums<kWhole>(sum + b * ld + at, some);
#pragma GCC unroll 8
  for (size_t i = 0; i < P; ++i) {
    const Rows both = load_rows<kWhole>(rows[i][0] + at, rows[i][1] + at, some);
#pragma GCC unroll 4
    for (size_t b = 0; b < B; ++b) add(sums[b], both, x[i][b]);
  }
#pragma GCC unroll 4
  for (size_t b = 0; b < B; ++b) store_sums<kWhole>(sum + b * ld + at, some, sums[b]);
}

struct Wanted {
  const uint32_t* list;   // the first inputs of pairs
  const uint16_t* any;    // of each input, the bits of all rows of x
  const uint16_t* zeros;  // in the place of a row of w that is not wanted
};

template <size_t P, size_t B>
BF16_DOT void add_list(const Skipping& s, const Wanted& want, size_t n, const uint16_t* x, float* sum, size_t ld) {
  const size_t in = s.w.in, apart = skip_steps(s.to - s.from);
  const uint16_t* w = static_cast<const uint16_t*>(s.w.data);
  for (size_t i = 0; i < n; i += P) {
    const uint16_t* rows[P][2];
    uint32_t of[P][B];
    for (size_t j = 0; j < P; ++j) {
      const size_t k = i + j < n ? want.list[i + j] : s.to, second = k + apart;
      rows[j][0] = k < s.to && want.any[k] ? w + k * s.w.out : want.zeros;
      rows[j][1] = second < s.to && want.any[second] ? w + second * s.w.out : want.zeros;
      for (size_t b = 0; b < B; ++b) of[j][b] = pair(x + b * in, k, second, s.to);
    }
    size_t at = 0;
    for (; at + 32 <= s.w.out; at += 32) add_pairs<P, B, true>(rows, of, at, 0, sum, ld);
    if (at < s.w.out) add_pairs<P, B, false>(rows, of, at, some_of(s.w.out), sum, ld);
  }
}

template <size_t B>
BF16_DOT void add_all(const Skipping& s, const uint16_t* x, float* sum, size_t ld) {
  const size_t in = s.w.in, apart = skip_steps(s.to - s.from);
  auto* list = static_cast<uint32_t*>(s.scratch);
  auto* any = reinterpret_cast<uint16_t*>(list + in + kSkipStreams);
  auto* zeros = reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(any + in) + 63) / 64 * 64);
  std::memset(zeros, 0, s.w.out * sizeof *zeros);
  for (size_t stretch = s.from; stretch < s.to; stretch += apart)
    for (size_t k = stretch + s.begin; k < std::min(stretch + s.end, s.to); ++k) {
      uint16_t bits = 0;
      for (size_t b = 0; b < B; ++b) bits |= x[b * in + k];
      any[k] = bits;
    }
  size_t n = 0, all = 0;
  for (size_t step = s.begin; step < s.end; ++step)
    for (size_t k = s.from + step; k < s.to; k += 2 * apart, ++all) {
      list[n] = static_cast<uint32_t>(k);
      n += any[k] || (k + apart < s.to && any[k + apart]);
    }
  // For one row that wants nearly all, memory is faster with fewer streams; for more rows the sums' way to the cache would weigh.
  if (B == 1 && 8 * n > 7 * all) return add_list<2, B>(s, {list, any, zeros}, n, x, sum, ld);
  add_list<8, B>(s, {list, any, zeros}, n, x, sum, ld);
}

// ---- many rows of x ----

// Walks over the rows that the next block wants, a cache line a step, and fetches them from memory.
class Ahead {
 public:
  Ahead(const WantedRows* next, size_t count) : row_(next ? next->by_address : nullptr), left_(next ? next->n_rows : 0), count_(count) {}
  BF16_DOT inline void step() {
    if (at_ >= end_) {
      if (left_ == 0) return;
      --left_, at_ = *row_++, end_ = at_ + count_;
    }
    __builtin_prefetch(at_, 0, 2);
    at_ += 32;
  }

 private:
  const uint16_t* const* row_;
  size_t left_, count_;
  const uint16_t *at_ = nullptr, *end_ = nullptr;
};

constexpr size_t kMost = 12;                   // rows of x whose sums registers hold
constexpr size_t kInputs = kBlockPairs + 16;  // pairs of inputs from one row of x to the next: not a power of two, which few of the cache's places serve

// Pairs of inputs of a block, by stretch and step
BF16_DOT void gather_pairs(const Skipping& s, const uint16_t* x, size_t rows, uint32_t* out) {
  const size_t apart = skip_steps(s.to - s.from);
  const auto some = [&](const uint16_t* row, size_t stretch) BF16_DOT {
    const size_t from = s.from + stretch * apart + s.begin, end = std::min(s.from + stretch * apart + s.end, s.to);
    const size_t n = from < end ? end - from : 0;
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), row + from));
  };
  for (size_t b = 0; b < rows; ++b)
    for (size_t p = 0; p < kSkipStreams / 2; ++p)
      _mm512_storeu_si512(out + b * kInputs + p * kBlockSteps, _mm512_or_si512(some(x + b * s.w.in, 2 * p), _mm512_slli_epi32(some(x + b * s.w.in, 2 * p + 1), 16)));
}

// Adds the pairs of a block to the sums of outputs at .. at + 32, or of those in `some`; P steps of `ahead` for each.
template <size_t B, size_t P, bool kWhole>
BF16_DOT inline void add_block(const WantedRows& now, const uint32_t* x, size_t at, __mmask32 some, float* sum, size_t ld, bool fresh, Ahead& next) {
  Sums sums[B];
#pragma GCC unroll 12
  for (size_t b = 0; b < B; ++b) {
    sums[b].low = sums[b].high = _mm512_setzero_ps();
    if (!fresh) sums[b] = load_sums<kWhole>(sum + b * ld + at, some);
  }
  Ahead ahead = next;
  for (size_t i = 0; i < now.n; ++i) {
    const Rows both = load_rows<kWhole>(now.rows[i][0] + at, now.rows[i][1] + at, some);
    const uint32_t* in = x + now.inputs[i];
#pragma GCC unroll 2
    for (size_t p = 0; p < P; ++p) ahead.step();
#pragma GCC unroll 12
    for (size_t b = 0; b < B; ++b) add(sums[b], both, in[b * kInputs]);
  }
  next = ahead;
#pragma GCC unroll 12
  for (size_t b = 0; b < B; ++b) store_sums<kWhole>(sum + b * ld + at, some, sums[b]);
}

template <size_t B, size_t P>
BF16_DOT void add_blocks(const Skipping& s, const WantedRows& now, const uint16_t* x, float* sum, size_t ld, Ahead& next) {
  alignas(64) uint32_t pairs[B * kInputs];
  gather_pairs(s, x, B, pairs);
  size_t at = 0;
  for (; at + 32 <= s.w.out; at += 32) add_block<B, P, true>(now, pairs, at, 0, sum, ld, s.begin == 0, next);
  if (at < s.w.out) add_block<B, P, false>(now, pairs, at, some_of(s.w.out), sum, ld, s.begin == 0, next);
}

template <size_t P>
BF16_DOT void add_groups(const Skipping& s, const WantedRows& now, const uint16_t* x, size_t rows, float* sum, size_t ld, Ahead& next) {
  while (rows > 0) {
    const size_t n = rows >= kMost && rows != 16 ? kMost : rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
    if (n == kMost) add_blocks<kMost, P>(s, now, x, sum, ld, next);
    if (n == 8) add_blocks<8, P>(s, now, x, sum, ld, next);
    if (n == 4) add_blocks<4, P>(s, now, x, sum, ld, next);
    if (n == 2) add_blocks<2, P>(s, now, x, sum, ld, next);
    if (n == 1) add_blocks<1, P>(s, now, x, sum, ld, next);
    rows -= n, x += n * s.w.in, sum += n * ld;
  }
}

}  // namespace

BF16_DOT void want_rows_bf16_dot(const Skipping& s, const void* in, size_t rows, WantedRows& out) {
  const size_t apart = skip_steps(s.to - s.from);
  const uint16_t *w = static_cast<const uint16_t*>(s.w.data), *x = static_cast<const uint16_t*>(in), *zeros = static_cast<const uint16_t*>(s.scratch);
  alignas(32) uint16_t any[kSkipStreams][kBlockSteps];
  for (size_t stretch = 0; stretch < kSkipStreams; ++stretch) {
    const size_t from = s.from + stretch * apart + s.begin, end = std::min(s.from + stretch * apart + s.end, s.to);
    const auto some = static_cast<__mmask16>((1u << (from < end ? end - from : 0)) - 1);
    __m256i bits = _mm256_setzero_si256();
    for (size_t b = 0; b < rows; ++b) bits = _mm256_or_si256(bits, _mm256_maskz_loadu_epi16(some, x + b * s.w.in + from));
    _mm256_store_si256(reinterpret_cast<__m256i*>(any[stretch]), bits);
  }
  out.n = out.n_rows = 0;
  for (size_t stretch = 0; stretch < kSkipStreams; ++stretch)
    for (size_t step = 0; step < s.end - s.begin; ++step) {
      out.by_address[out.n_rows] = w + (s.from + stretch * apart + s.begin + step) * s.w.out;
      out.n_rows += any[stretch][step] != 0;
    }
  for (size_t step = 0; step < s.end - s.begin; ++step)
    for (size_t p = 0; p < kSkipStreams / 2; ++p) {
      const bool first = any[2 * p][step], second = any[2 * p + 1][step];
      const uint16_t* row = w + (s.from + 2 * p * apart + s.begin + step) * s.w.out;
      out.rows[out.n][0] = first ? row : zeros;
      out.rows[out.n][1] = second ? row + apart * s.w.out : zeros;
      out.inputs[out.n] = static_cast<uint32_t>(p * kBlockSteps + step);
      out.n += first || second;
    }
}

// By loads: unlike prefetch instructions, they set off the hardware's own.
void fetch_wanted(const WantedRows& wanted, size_t count) {
  for (size_t i = 0; i < wanted.n_rows; ++i)
    for (size_t at = 0; at < count; at += 32) static_cast<void>(*static_cast<const volatile uint16_t*>(wanted.by_address[i] + at));
}

// The rows of the next block are fetched while the first group of x, or the first two, are multiplied.
void add_wanted_bf16_dot(const Skipping& s, const WantedRows& now, const WantedRows* next, const void* in, size_t rows, float* sum, size_t ld) {
  Ahead ahead(next, s.w.out);
  if (rows > kMost) return add_groups<1>(s, now, static_cast<const uint16_t*>(in), rows, sum, ld, ahead);
  add_groups<2>(s, now, static_cast<const uint16_t*>(in), rows, sum, ld, ahead);
}

void add_rows_bf16_dot(const Skipping& s, const void* in, size_t rows, float* sum, size_t ld) {
  const uint16_t* x = static_cast<const uint16_t*>(in);
  if (rows == 1) return add_all<1>(s, x, sum, ld);
  if (rows == 2) return add_all<2>(s, x, sum, ld);
  if (rows == 3) return add_all<3>(s, x, sum, ld);
  add_all<4>(s, x, sum, ld);
}

}  // namespace duet_cpu
#else
namespace duet_cpu {
void add_rows_bf16_dot(const Skipping&, const void*, size_t, float*, size_t) {}
void want_rows_bf16_dot(const Skipping&, const void*, size_t, WantedRows&) {}
void fetch_wanted(const WantedRows&, size_t) {}
void add_wanted_bf16_dot(const Skipping&, const WantedRows&, const WantedRows*, const void*, size_t, float*, size_t) {}
}  // namespace duet_cpu
#endif
