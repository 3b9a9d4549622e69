// Five kernels, with a block for each kChunk logits of a row in the first four: adjusted logits and their maximum; a histogram
// of the probabilities; the tokens of the bucket in which a cut falls; the weights that are kept; the draw, in one block a row.
// Logits are f64. Sums are of integers (Fixed), so that neither the order of adding nor the number of blocks changes a bit.
#include "gpu/sample.h"

namespace duet_gpu {
namespace {

constexpr uint32_t kThreads = 256, kWarps = kThreads / 32;
constexpr uint32_t kEach = 8, kChunk = kThreads * kEach;  // logits of a thread, of a block
constexpr uint32_t kBuckets = 2048;                       // 1/64 of a logit each, from the maximum down; the last has the rest
constexpr double kInfinity = __builtin_huge_val();
constexpr int32_t kNoToken = INT32_MAX;

// A sum of up to 2^24 numbers from 0 to 1, or a count: high + low 2^-40 in units of 2^-38. `low` of sums may pass 2^40.
struct Fixed {
  uint64_t high, low;
};
constexpr int kHighBits = 38, kLowBits = 40;

__device__ __forceinline__ Fixed operator+(Fixed a, Fixed b) { return {a.high + b.high, a.low + b.low}; }
__device__ __forceinline__ Fixed normal(Fixed a) { return {a.high + (a.low >> kLowBits), a.low & ((uint64_t{1} << kLowBits) - 1)}; }
__device__ __forceinline__ bool operator<(Fixed a, Fixed b) {
  a = normal(a), b = normal(b);
  return a.high != b.high ? a.high < b.high : a.low < b.low;
}
// Rounded down; x >= 0 and below 2^25.
__device__ __forceinline__ Fixed fixed(double x) {
  const double scaled = x * static_cast<double>(uint64_t{1} << kHighBits);
  const uint64_t high = static_cast<uint64_t>(scaled);
  return {high, static_cast<uint64_t>((scaled - static_cast<double>(high)) * static_cast<double>(uint64_t{1} << kLowBits))};
}
__device__ __forceinline__ double real(Fixed a) {
  a = normal(a);
  return (static_cast<double>(a.high) + static_cast<double>(a.low) / static_cast<double>(uint64_t{1} << kLowBits)) / static_cast<double>(uint64_t{1} << kHighBits);
}
__device__ __forceinline__ Fixed least(Fixed a, Fixed b) { return a < b ? a : b; }
constexpr Fixed kZero{0, 0};

// Of a chunk of a row.
struct Chunk {
  double max;
  int32_t first_max;  // the first token with it
  int32_t first_bad;  // the first token whose logit is NaN or +inf; kNoToken: none
  Fixed kept;         // the sum of the weights that are kept
};
// Of a row.
struct RowScratch {
  uint64_t high[kBuckets], low[kBuckets];  // the sums of probabilities, as Fixed
  uint32_t count[kBuckets];
  uint32_t n_listed[2];  // tokens in the bucket in which the cut falls, of top_p and of top_k
  Fixed above[2], target[2];  // what lies in buckets above; what is to be reached
  double last_logit;     // the last rank that is kept
  int32_t last_token, reserved;
};
// All scratch memory of a row: RowScratch, Chunk [n_chunks], logits f64 [n_vocab], lists i32 [2, n_vocab]
struct Row {
  RowScratch* s;
  Chunk* chunks;
  double* logits;
  int32_t* list[2];
  const duetp_sample_row* p;
  uint32_t n_chunks;
};

__host__ __device__ inline uint64_t padded(uint64_t bytes) { return (bytes + 255) / 256 * 256; }
__host__ __device__ inline uint32_t chunks_of(uint32_t n_vocab) { return (n_vocab + kChunk - 1) / kChunk; }
__host__ __device__ inline uint64_t row_bytes(uint32_t n_vocab) {
  return padded(sizeof(RowScratch)) + padded(chunks_of(n_vocab) * sizeof(Chunk)) + padded(uint64_t{n_vocab} * sizeof(double)) + 2 * padded(uint64_t{n_vocab} * sizeof(int32_t));
}

__device__ __forceinline__ Row row_of(const Sample& a, uint32_t row) {
  char* at = a.scratch + row * row_bytes(a.n_vocab);
  const auto take = [&at](uint64_t bytes) {
    char* p = at;
    at += padded(bytes);
    return p;
  };
  Row r;
  r.n_chunks = chunks_of(a.n_vocab);
  r.s = reinterpret_cast<RowScratch*>(take(sizeof(RowScratch)));
  r.chunks = reinterpret_cast<Chunk*>(take(r.n_chunks * sizeof(Chunk)));
  r.logits = reinterpret_cast<double*>(take(uint64_t{a.n_vocab} * sizeof(double)));
  for (int i = 0; i < 2; ++i) r.list[i] = reinterpret_cast<int32_t*>(take(uint64_t{a.n_vocab} * sizeof(int32_t)));
  r.p = a.rows + row;
  return r;
}

// ---- over a block; called by all of its threads. Each begins with a barrier, and what it returns is the same in all of them ----

template <class T>
__device__ __forceinline__ T shuffled_xor(T v, int d);
template <>
__device__ __forceinline__ double shuffled_xor(double v, int d) { return __shfl_xor_sync(~0u, v, d); }
template <>
__device__ __forceinline__ int32_t shuffled_xor(int32_t v, int d) { return __shfl_xor_sync(~0u, v, d); }

struct Peak {  // the largest logit, the first token that has it, and the first bad token
  double max;
  int32_t first_max, first_bad;
};
__device__ __forceinline__ Peak higher(Peak a, Peak b) {
  const bool from_b = b.max > a.max || (b.max == a.max && b.first_max < a.first_max);
  return {from_b ? b.max : a.max, from_b ? b.first_max : a.first_max, a.first_bad < b.first_bad ? a.first_bad : b.first_bad};
}

__device__ Peak block_peak(Peak v) {
  __shared__ Peak of_warp[kWarps];
  for (int d = 16; d > 0; d /= 2) v = higher(v, {shuffled_xor(v.max, d), shuffled_xor(v.first_max, d), shuffled_xor(v.first_bad, d)});
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  v = of_warp[0];
  for (uint32_t w = 1; w < kWarps; ++w) v = higher(v, of_warp[w]);
  return v;
}

// The sum of all, and of the threads up to this one.
struct Scan {
  Fixed total, before, upto;
};
__device__ Scan block_scan(Fixed v) {
  __shared__ Fixed of_warp[kWarps];
  Fixed upto = v;
  for (uint32_t d = 1; d < 32; d *= 2) {
    const Fixed other = {__shfl_up_sync(~0u, static_cast<unsigned long long>(upto.high), d), __shfl_up_sync(~0u, static_cast<unsigned long long>(upto.low), d)};
    if (threadIdx.x % 32 >= d) upto = upto + other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 31) of_warp[threadIdx.x / 32] = upto;
  __syncthreads();
  Fixed total = kZero, warps_before = kZero;
  for (uint32_t w = 0; w < kWarps; ++w) {
    if (w == threadIdx.x / 32) warps_before = total;
    total = total + of_warp[w];
  }
  upto = warps_before + upto;
  return {total, {upto.high - v.high, upto.low - v.low}, upto};
}

// The least and the largest of n keys; the least is above the largest where there are none.
struct Range {
  uint64_t least, largest;
};
__device__ Range block_range(Range v) {
  __shared__ Range of_warp[kWarps];
  const auto joined = [](Range a, Range b) { return Range{a.least < b.least ? a.least : b.least, a.largest > b.largest ? a.largest : b.largest}; };
  for (int d = 16; d > 0; d /= 2)
    v = joined(v, {__shfl_xor_sync(~0u, static_cast<unsigned long long>(v.least), d), __shfl_xor_sync(~0u, static_cast<unsigned long long>(v.largest), d)});
  __syncthreads();
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = v;
  __syncthreads();
  v = of_warp[0];
  for (uint32_t w = 1; w < kWarps; ++w) v = joined(v, of_warp[w]);
  return v;
}

__device__ __forceinline__ void add(uint64_t* to, uint64_t v) { atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(v)); }

// ---- the parts of a row ----

__device__ __forceinline__ Peak row_peak(const Row& r) {
  Peak v{-kInfinity, kNoToken, kNoToken};
  for (uint32_t i = threadIdx.x; i < r.n_chunks; i += kThreads) v = higher(v, {r.chunks[i].max, r.chunks[i].first_max, r.chunks[i].first_bad});
  return block_peak(v);
}
__device__ __forceinline__ bool draws(const Row& r, const Peak& peak) { return peak.first_bad == kNoToken && peak.max > -kInfinity && r.p->temperature != 0; }
__device__ __forceinline__ bool cuts_p(const Row& r) { return r.p->top_p < 1; }
__device__ __forceinline__ bool cuts_k(const Row& r, uint32_t n_vocab) { return r.p->top_k > 0 && r.p->top_k < n_vocab; }

__device__ __forceinline__ uint32_t bucket_of(double logit, double max) { return static_cast<uint32_t>(fmin((max - logit) * 64, static_cast<double>(kBuckets - 1))); }
__device__ __forceinline__ Fixed probability(double logit, double max) { return fixed(exp(logit - max)); }

// In the order of the logits, which are no NaN.
__device__ __forceinline__ uint64_t key_of(double logit) {
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(logit + 0.0));  // -0 is 0
  return bits >> 63 ? ~bits : bits | uint64_t{1} << 63;
}
__device__ __forceinline__ double logit_of(uint64_t key) { return __longlong_as_double(static_cast<long long>(key >> 63 ? key & ~(uint64_t{1} << 63) : ~key)); }

// The largest key such that `above` and the weights of all items with that key or a larger one reach `target`; `above` becomes
// what lies above that key. key(i, &k) is false for items that do not count. By digits of 8 bits, from the first in which keys differ.
template <class Key, class Weight>
__device__ uint64_t reach(uint32_t n, Fixed& above, Fixed target, Key key, Weight weight) {
  __shared__ uint64_t high[256], low[256];
  __shared__ uint64_t found;
  __shared__ Fixed found_above;
  Range range{~uint64_t{0}, 0};
  for (uint32_t i = threadIdx.x; i < n; i += kThreads)
    if (uint64_t k; key(i, k)) range = {range.least < k ? range.least : k, range.largest > k ? range.largest : k};
  range = block_range(range);
  if (range.least >= range.largest) return range.largest;
  uint64_t prefix = range.largest;
  for (int shift = (63 - __clzll(static_cast<long long>(range.least ^ range.largest))) / 8 * 8; shift >= 0; shift -= 8) {
    high[threadIdx.x] = low[threadIdx.x] = 0;
    if (threadIdx.x == 0) found = 0, found_above = above;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n; i += kThreads)
      if (uint64_t k; key(i, k) && k >> shift >> 8 == prefix >> shift >> 8) {
        const Fixed w = weight(i);
        add(high + (k >> shift & 255), w.high);
        add(low + (k >> shift & 255), w.low);
      }
    __syncthreads();
    const uint32_t digit = 255 - threadIdx.x;
    const Scan scan = block_scan({high[digit], low[digit]});
    if (above + scan.before < target && !(above + scan.upto < target)) found = digit, found_above = above + scan.before;
    __syncthreads();
    above = found_above;
    prefix = (prefix >> shift >> 8 << 8 | found) << shift;
    __syncthreads();
  }
  return prefix;
}

// ---- the kernels ----

__global__ void __launch_bounds__(kThreads) adjust_kernel(Sample a) {
  __shared__ double logits[kChunk];
  let_next_start();
  wait_for_inputs();
  const uint32_t row = blockIdx.y, base = blockIdx.x * kChunk;
  if (row >= static_cast<uint32_t>(a.used[2])) return;
  const Row r = row_of(a, row);
  const uint32_t n = min(kChunk, a.n_vocab - base);
  int32_t first_bad = kNoToken;
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
    const float logit = a.logits[static_cast<uint64_t>(row) * a.n_vocab + base + i];
    if (!(logit < static_cast<float>(kInfinity))) first_bad = min(first_bad, static_cast<int32_t>(base + i));
    logits[i] = logit;
  }
  for (uint32_t i = blockIdx.x * kThreads + threadIdx.x; i < kBuckets; i += r.n_chunks * kThreads) r.s->high[i] = r.s->low[i] = r.s->count[i] = 0;
  if (blockIdx.x == 0 && threadIdx.x < 2) r.s->n_listed[threadIdx.x] = 0;
  __syncthreads();
  const duetp_sample_entry* entries = a.entries + r.p->first_entry;
  for (uint32_t i = threadIdx.x; i < r.p->n_entries; i += kThreads) {  // each token stands there once
    const duetp_sample_entry e = entries[i];
    const uint32_t at = static_cast<uint32_t>(e.token) - base;
    if (at >= n) continue;
    double logit = logits[at] + e.bias;
    if (e.count >= 0) logit -= __dadd_rn(static_cast<double>(r.p->presence), __dmul_rn(e.count, static_cast<double>(r.p->frequency)));
    logits[at] = logit;
  }
  __syncthreads();
  Peak peak{-kInfinity, kNoToken, first_bad};
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
    r.logits[base + i] = logits[i];
    peak = higher(peak, {logits[i], static_cast<int32_t>(base + i), kNoToken});
  }
  peak = block_peak(peak);
  if (threadIdx.x == 0) r.chunks[blockIdx.x] = {peak.max, peak.first_max, peak.first_bad, kZero};
}

__global__ void __launch_bounds__(kThreads) weigh_kernel(Sample a) {
  __shared__ uint64_t high[kBuckets], low[kBuckets];
  __shared__ uint32_t count[kBuckets];
  let_next_start();
  wait_for_inputs();
  const uint32_t row = blockIdx.y, base = blockIdx.x * kChunk;
  if (row >= static_cast<uint32_t>(a.used[2])) return;
  const Row r = row_of(a, row);
  const Peak peak = row_peak(r);
  if (!draws(r, peak) || !(cuts_p(r) || cuts_k(r, a.n_vocab))) return;
  for (uint32_t i = threadIdx.x; i < kBuckets; i += kThreads) high[i] = low[i] = count[i] = 0;
  __syncthreads();
  const uint32_t n = min(kChunk, a.n_vocab - base);
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
    const double logit = r.logits[base + i];
    const uint32_t b = bucket_of(logit, peak.max);
    const Fixed p = probability(logit, peak.max);
    add(high + b, p.high);
    add(low + b, p.low);
    atomicAdd(count + b, 1u);
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < kBuckets; i += kThreads) {
    if (count[i] == 0) continue;
    add(r.s->high + i, high[i]);
    add(r.s->low + i, low[i]);
    atomicAdd(r.s->count + i, count[i]);
  }
}

// The bucket in which the sum over buckets reaches target, and what lies above it.
template <class Weight>
__device__ uint32_t bucket_reached(Fixed target, Weight weight, Fixed& above) {
  __shared__ uint32_t found;
  __shared__ Fixed found_above;
  constexpr uint32_t kMine = kBuckets / kThreads;
  Fixed sum = kZero;
  for (uint32_t i = 0; i < kMine; ++i) sum = sum + weight(threadIdx.x * kMine + i);
  const Scan scan = block_scan(sum);
  if (scan.before < target && !(scan.upto < target)) {
    Fixed upto = scan.before;
    uint32_t b = threadIdx.x * kMine;
    while (upto + weight(b) < target) upto = upto + weight(b++);
    found = b, found_above = upto;
  }
  __syncthreads();
  above = found_above;
  return found;
}

__global__ void __launch_bounds__(kThreads) list_kernel(Sample a) {
  let_next_start();
  wait_for_inputs();
  const uint32_t row = blockIdx.y, base = blockIdx.x * kChunk;
  if (row >= static_cast<uint32_t>(a.used[2])) return;
  const Row r = row_of(a, row);
  const Peak peak = row_peak(r);
  const bool cuts[2] = {cuts_p(r), cuts_k(r, a.n_vocab)};
  if (!draws(r, peak) || !(cuts[0] || cuts[1])) return;
  uint32_t bucket[2] = {kBuckets, kBuckets};
  for (int c = 0; c < 2; ++c) {
    if (!cuts[c]) continue;
    const auto weight = [&](uint32_t b) { return c == 0 ? Fixed{r.s->high[b], r.s->low[b]} : Fixed{r.s->count[b], 0}; };
    Fixed target{r.p->top_k, 0}, above = kZero;
    if (c == 0) {
      Fixed total = kZero;
      for (uint32_t b = threadIdx.x; b < kBuckets; b += kThreads) total = total + weight(b);
      total = block_scan(total).total;
      target = fixed(static_cast<double>(r.p->top_p) * real(total));
      if (target < Fixed{0, 1}) target = {0, 1};
      target = least(target, total);
    }
    bucket[c] = bucket_reached(target, weight, above);
    if (blockIdx.x == 0 && threadIdx.x == 0) r.s->above[c] = above, r.s->target[c] = target;
    __syncthreads();
  }
  const uint32_t n = min(kChunk, a.n_vocab - base);
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) {
    const uint32_t b = bucket_of(r.logits[base + i], peak.max);
    for (int c = 0; c < 2; ++c)
      if (b == bucket[c]) r.list[c][atomicAdd(r.s->n_listed + c, 1u)] = static_cast<int32_t>(base + i);  // in any order: sums do not depend on it
  }
}

struct Rank {
  double logit;
  int32_t token;
};
__device__ __forceinline__ Rank stricter(Rank a, Rank b) { return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a; }

// The last rank that all cuts keep. The same in every block of the row.
__device__ Rank last_kept(const Sample& a, const Row& r, const Peak& peak) {
  Rank last{-kInfinity, kNoToken};
  if (r.p->min_p > 0) last = stricter(last, {peak.max + log(static_cast<double>(r.p->min_p)), kNoToken});
  for (int c = 0; c < 2; ++c) {
    if (!(c == 0 ? cuts_p(r) : cuts_k(r, a.n_vocab))) continue;
    const uint32_t n = r.s->n_listed[c];
    const int32_t* list = r.list[c];
    Fixed above = r.s->above[c];
    const Fixed target = r.s->target[c];
    const auto by_logit = [&](uint32_t i, uint64_t& k) { return k = key_of(r.logits[list[i]]), true; };
    const auto weight = [&](uint32_t i) { return c == 0 ? probability(r.logits[list[i]], peak.max) : Fixed{1, 0}; };
    const uint64_t key = reach(n, above, target, by_logit, weight);
    int32_t token = kNoToken;  // top_p keeps ties
    if (c == 1) {              // and top_k the first of them
      const auto by_token = [&](uint32_t i, uint64_t& k) { return k = ~static_cast<uint32_t>(list[i]), key_of(r.logits[list[i]]) == key; };
      token = static_cast<int32_t>(~static_cast<uint32_t>(reach(n, above, target, by_token, weight)));
    }
    last = stricter(last, {logit_of(key), token});
  }
  return last;
}

__device__ __forceinline__ Fixed kept_weight(const Row& r, const Peak& peak, Rank last, uint32_t token) {
  const double logit = r.logits[token];
  if (logit < last.logit || (logit == last.logit && static_cast<int32_t>(token) > last.token)) return kZero;
  return fixed(exp((logit - peak.max) / static_cast<double>(r.p->temperature)));
}

__global__ void __launch_bounds__(kThreads) keep_kernel(Sample a) {
  let_next_start();
  wait_for_inputs();
  const uint32_t row = blockIdx.y, base = blockIdx.x * kChunk;
  if (row >= static_cast<uint32_t>(a.used[2])) return;
  const Row r = row_of(a, row);
  const Peak peak = row_peak(r);
  if (!draws(r, peak)) return;
  const Rank last = last_kept(a, r, peak);
  const uint32_t n = min(kChunk, a.n_vocab - base);
  Fixed sum = kZero;
  for (uint32_t i = threadIdx.x; i < n; i += kThreads) sum = sum + kept_weight(r, peak, last, base + i);
  sum = block_scan(sum).total;
  if (threadIdx.x != 0) return;
  r.chunks[blockIdx.x].kept = sum;
  if (blockIdx.x == 0) r.s->last_logit = last.logit, r.s->last_token = last.token;
}

// Philox4x32-10 with key seed and counter (position, sequence); the upper 53 of its first 64 bits.
__device__ double uniform(uint64_t seed, uint64_t sequence, uint64_t position) {
  uint32_t c[4] = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), static_cast<uint32_t>(sequence), static_cast<uint32_t>(sequence >> 32)};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c[0], p1 = uint64_t{0xCD9E8D57u} * c[2];
    c[0] = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key[0], c[1] = static_cast<uint32_t>(p1);
    c[2] = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key[1], c[3] = static_cast<uint32_t>(p0);
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return static_cast<double>((static_cast<uint64_t>(c[1]) << 32 | c[0]) >> 11) / static_cast<double>(uint64_t{1} << 53);
}

// The first token at which the running sum of kept weights exceeds the drawn number.
__device__ int32_t drawn_token(const Sample& a, const Row& r, const Peak& peak) {
  __shared__ uint32_t found;
  __shared__ Fixed found_before;
  const Rank last{r.s->last_logit, r.s->last_token};
  const uint32_t mine = (r.n_chunks + kThreads - 1) / kThreads, first = min(threadIdx.x * mine, r.n_chunks), end = min(first + mine, r.n_chunks);
  Fixed sum = kZero;
  for (uint32_t c = first; c < end; ++c) sum = sum + r.chunks[c].kept;
  Scan scan = block_scan(sum);
  const double u = uniform(r.p->seed, r.p->sequence, r.p->position);
  const Fixed target = least(fixed(u * real(scan.total)) + Fixed{0, 1}, scan.total);
  if (scan.before < target && !(scan.upto < target)) {
    Fixed upto = scan.before;
    uint32_t c = first;
    while (upto + r.chunks[c].kept < target) upto = upto + r.chunks[c++].kept;
    found = c, found_before = upto;
  }
  __syncthreads();
  const uint32_t base = found * kChunk, n = min(kChunk, a.n_vocab - base);
  const Fixed before = found_before;
  sum = kZero;
  Fixed weight[kEach];
#pragma unroll
  for (uint32_t i = 0; i < kEach; ++i) {
    const uint32_t at = threadIdx.x * kEach + i;
    weight[i] = at < n ? kept_weight(r, peak, last, base + at) : kZero;
    sum = sum + weight[i];
  }
  scan = block_scan(sum);
  if (before + scan.before < target && !(before + scan.upto < target)) {
    Fixed upto = before + scan.before;
    uint32_t token = 0;
    bool reached = false;
#pragma unroll
    for (uint32_t i = 0; i < kEach; ++i) {
      upto = upto + weight[i];
      if (!reached && !(upto < target)) token = base + threadIdx.x * kEach + i, reached = true;
    }
    found = token;
  }
  __syncthreads();
  return static_cast<int32_t>(found);
}

__global__ void __launch_bounds__(kThreads) draw_kernel(Sample a) {
  __shared__ uint32_t known;  // the token has an entry
  let_next_start();
  wait_for_inputs();
  const uint32_t row = blockIdx.x;
  if (row >= static_cast<uint32_t>(a.used[2])) return;
  const Row r = row_of(a, row);
  const Peak peak = row_peak(r);
  int32_t token = peak.first_max;
  if (peak.first_bad != kNoToken)
    token = DUETP_SAMPLE_LOGIT - peak.first_bad;
  else if (!(peak.max > -kInfinity))
    token = DUETP_SAMPLE_NONE;
  else if (draws(r, peak))
    token = drawn_token(a, r, peak);

  duetp_sample_row& p = a.rows[row];
  duetp_sample_entry* entries = a.entries + p.first_entry;
  const uint32_t n_entries = p.n_entries;
  const bool counts = token >= 0 && (p.presence != 0 || p.frequency != 0);
  if (threadIdx.x == 0) known = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; counts && i < n_entries; i += kThreads) {
    duetp_sample_entry e = entries[i];
    if (e.count >= 0) e.count = __dmul_rn(e.count, static_cast<double>(p.decay));
    if (e.token == token) {
      e.count = (e.count < 0 ? 0 : e.count) + (e.is_free ? 0 : 1);
      known = 1;
    }
    entries[i].count = e.count;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (counts && !known) {
    entries[n_entries] = {0, 1, token, 0};
    p.n_entries = n_entries + 1;
  }
  if (token >= 0) p.position += 1;
  a.history[p.next++] = token;
  a.tokens[a.token_of_row[row]] = token < 0 ? 0 : token;
}

}  // namespace

uint64_t sample_scratch_bytes(uint32_t n_rows, uint32_t n_vocab) { return n_rows * row_bytes(n_vocab); }

Error sample(const Sample& a, Stream stream) {
  const dim3 chunks(chunks_of(a.n_vocab), a.n_rows), block(kThreads);
  for (void (*kernel)(Sample) : {adjust_kernel, weigh_kernel, list_kernel, keep_kernel})
    if (const Error e = launch(kernel, chunks, block, 0, stream, a); e != kSuccess) return e;
  return launch(draw_kernel, dim3(a.n_rows), block, 0, stream, a);
}

}  // namespace duet_gpu
