#include "gpu/norm.h"

#include <type_traits>

namespace duet_gpu {
namespace {

// A block holds one row of x in registers, kVectors float4 a thread: thread i has the elements 4 (i + j * blockDim).
template <int kVectors>
struct Row {
  float4 v[kVectors];
};

__device__ __forceinline__ float4 read4(const float* p, uint32_t i) { return reinterpret_cast<const float4*>(p)[i]; }
__device__ __forceinline__ float4 read4(const bf16* p, uint32_t i) {
  const uint2 u = reinterpret_cast<const uint2*>(p)[i];
  return {__uint_as_float(u.x << 16), __uint_as_float(u.x & 0xffff0000u), __uint_as_float(u.y << 16), __uint_as_float(u.y & 0xffff0000u)};
}
__device__ __forceinline__ float4 read4(const f16* p, uint32_t i) {
  const __half2* h = reinterpret_cast<const __half2*>(p) + 2 * i;
  const float2 a = __half22float2(h[0]), b = __half22float2(h[1]);
  return {a.x, a.y, b.x, b.y};
}
__device__ __forceinline__ void write4(float* p, uint32_t i, float4 v) { reinterpret_cast<float4*>(p)[i] = v; }
__device__ __forceinline__ void write4(bf16* p, uint32_t i, float4 v) {
  __nv_bfloat162 h[2] = {__floats2bfloat162_rn(v.x, v.y), __floats2bfloat162_rn(v.z, v.w)};
  reinterpret_cast<uint2*>(p)[i] = *reinterpret_cast<uint2*>(h);
}

// A row of an embedding in q8 (kBits 8) or q4 (4), as duet_quantised.h stores it.
template <int kBits>
struct Quantised {
  static constexpr uint32_t kWords = 2 * kBits;  // of a group of 64
  const uint32_t* words;  // q8: inputs 4 i to 4 i + 3; q4: 8 i to 8 i + 3 in the low halves of the bytes, 8 i + 4 to 8 i + 7 in the high ones
  const uint16_t *scale, *minimum;  // bf16, of each group of 64
};
__device__ __forceinline__ float as_float(uint16_t bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
__device__ __forceinline__ float4 read4(const Quantised<8>& p, uint32_t i) {
  const uint32_t q = p.words[i];
  const float s = as_float(p.scale[i / 16]);
  return {s * static_cast<int8_t>(q), s * static_cast<int8_t>(q >> 8), s * static_cast<int8_t>(q >> 16), s * static_cast<int8_t>(q >> 24)};
}
__device__ __forceinline__ float4 read4(const Quantised<4>& p, uint32_t i) {
  const uint32_t u = p.words[i / 2] >> i % 2 * 4;
  const float s = as_float(p.scale[i / 16]), m = as_float(p.minimum[i / 16]);
  return {s * (u & 15) + m, s * (u >> 8 & 15) + m, s * (u >> 16 & 15) + m, s * (u >> 24 & 15) + m};
}

// The row of a token, for read_row. T: float, bf16, f16 or Quantised
template <class T>
__device__ __forceinline__ auto embedding(const Embed& a, uint64_t token) {
  if constexpr (std::is_same_v<T, Quantised<8>> || std::is_same_v<T, Quantised<4>>) {
    const uint64_t groups = (a.width + 63) / 64, at = token * groups;
    return T{static_cast<const uint32_t*>(a.emb) + at * T::kWords, static_cast<const uint16_t*>(a.scale) + at, a.minimum ? static_cast<const uint16_t*>(a.minimum) + at : nullptr};
  } else {
    return static_cast<const T*>(a.emb) + token * a.width;
  }
}

template <int kVectors, class P>
__device__ __forceinline__ Row<kVectors> read_row(P p, uint32_t n) {  // n in float4
  Row<kVectors> r;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const uint32_t i = threadIdx.x + j * blockDim.x;
    r.v[j] = i < n ? read4(p, i) : float4{0, 0, 0, 0};
  }
  return r;
}

// The sums of a and b over the block; `shared` has room for 64 floats and is free again after the next barrier.
__device__ __forceinline__ float2 block_sum(float a, float b, float2* shared) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    a += __shfl_xor_sync(~0u, a, d);
    b += __shfl_xor_sync(~0u, b, d);
  }
  const uint32_t n_warps = blockDim.x / 32;
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = {a, b};
  __syncthreads();
  const float2 mine = threadIdx.x % 32 < n_warps ? shared[threadIdx.x % 32] : float2{0, 0};
  a = mine.x, b = mine.y;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    a += __shfl_xor_sync(~0u, a, d);
    b += __shfl_xor_sync(~0u, b, d);
  }
  return {a, b};
}

__device__ __forceinline__ float sum4(float4 v) { return (v.x + v.y) + (v.z + v.w); }
__device__ __forceinline__ float square_sum4(float4 v, float mean) {
  const float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
  return (a * a + b * b) + (c * c + d * d);
}
__device__ __forceinline__ float4 normed(float4 v, float mean, float scale, float4 w, float4 b) {
  return {(v.x - mean) * scale * w.x + b.x, (v.y - mean) * scale * w.y + b.y, (v.z - mean) * scale * w.z + b.z, (v.w - mean) * scale * w.w + b.w};
}
__device__ __forceinline__ float4 mixed(float4 y, float4 before, float4 m) {
  return {y.x + (before.x - y.x) * m.x, y.y + (before.y - y.y) * m.y, y.z + (before.z - y.z) * m.z, y.w + (before.w - y.w) * m.w};
}

struct Scale {
  float mean, scale;
};

// Mean and 1/deviation of two rows at once, so that they share the barriers.
template <int kVectors>
__device__ __forceinline__ void row_scales(const Row<kVectors>& a, const Row<kVectors>& b, uint32_t n, float epsilon, Scale& of_a, Scale& of_b) {
  __shared__ float2 shared[2][32];
  float sa = 0, sb = 0;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) sa += sum4(a.v[j]), sb += sum4(b.v[j]);
  const float inverse = 1.0f / (4 * n);
  const float2 sum = block_sum(sa, sb, shared[0]);
  of_a.mean = sum.x * inverse, of_b.mean = sum.y * inverse;
  float va = 0, vb = 0;
#pragma unroll
  for (int j = 0; j < kVectors; ++j)
    if (threadIdx.x + j * blockDim.x < n) va += square_sum4(a.v[j], of_a.mean), vb += square_sum4(b.v[j], of_b.mean);
  const float2 variance = block_sum(va, vb, shared[1]);
  of_a.scale = 1.0f / sqrtf(variance.x * inverse + epsilon), of_b.scale = 1.0f / sqrtf(variance.y * inverse + epsilon);
}

template <int kVectors>
__device__ __forceinline__ Scale row_scale(const Row<kVectors>& a, uint32_t n, float epsilon) {
  Scale s, unused;
  row_scales(a, a, n, epsilon, s, unused);
  return s;
}

__global__ void place_kernel(Packed p, Place* places) {
  let_next_start();
  wait_for_inputs();
  const int32_t t = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x), n_seqs = p.used[1];
  if (t >= p.used[0]) return;
  int32_t low = 0, high = n_seqs;  // the last sequence that starts at or before t; empty ones before it start there too
  while (high - low > 1) {
    const int32_t middle = (low + high) / 2;
    (p.starts[middle] <= t ? low : high) = middle;
  }
  places[t] = {p.slots[low], t == p.starts[low], t + 1 == p.starts[low + 1], 0};
}

template <class T, int kVectors>
__global__ void embed_kernel(Embed a) {
  let_next_start();
  const uint32_t n = a.width / 4;
  const Row<kVectors> w = read_row<kVectors>(a.norm.weight, n), b = read_row<kVectors>(a.norm.bias, n);
  wait_for_inputs();
  const uint32_t t = blockIdx.x;
  if (t >= static_cast<uint32_t>(a.used[0])) return;
  const Row<kVectors> row = read_row<kVectors>(embedding<T>(a, static_cast<uint64_t>(a.tokens[t])), n);
  const Scale s = row_scale(row, n, a.norm.epsilon);
  float* x = a.x + static_cast<uint64_t>(t) * a.width;
#pragma unroll
  for (int j = 0; j < kVectors; ++j)
    if (const uint32_t i = threadIdx.x + j * blockDim.x; i < n) write4(x, i, normed(row.v[j], s.mean, s.scale, w.v[j], b.v[j]));
}

constexpr uint32_t kFewTokens = 256, kFewThreads = 128;

// Few tokens. Block (slice, token): the norm of the whole row, and an output vector of the slice a thread. What no earlier kernel
// writes is loaded before the wait.
template <class T, int kVectors, int kMixes>
__global__ void __launch_bounds__(kFewThreads) shift_mix_few_kernel(ShiftMix a) {
  let_next_start();
  const uint32_t n = a.width / 4, i = blockIdx.x * kFewThreads + threadIdx.x;
  float4 w{}, b{}, mix[kMixes]{};
  if (i < n) {
    w = read4(a.norm.weight, i), b = read4(a.norm.bias, i);
#pragma unroll
    for (int q = 0; q < kMixes; ++q) mix[q] = read4(a.mix[q], i);
  }
  const uint32_t t = blockIdx.y;
  const bool inside = t < static_cast<uint32_t>(a.packed.used[0]);
  const bool alone = a.packed.n_tokens == 1 && a.packed.n_seqs == 1;  // then nothing need be read that a kernel writes
  const int32_t slot = alone && inside ? a.packed.slots[0] : -1;
  wait_for_inputs();
  if (!inside) return;
  const Place place = alone ? Place{slot, 1, 1, 0} : a.places[t];
  const float* x = a.x + static_cast<uint64_t>(t) * a.width;
  const Row<kVectors> row = read_row<kVectors>(x, n), before = place.is_first ? Row<kVectors>{} : read_row<kVectors>(x - a.width, n);
  float* state = place.slot < 0 ? nullptr : a.state + static_cast<uint64_t>(place.slot) * a.slot_stride;
  float4 y{}, y_prev{};
  if (i < n) {
    y = read4(x, i);
    if (!place.is_first)
      y_prev = read4(x - a.width, i);
    else if (state)
      y_prev = read4(state, i);
  }
  Scale of_row, of_before;
  row_scales(row, before, n, a.norm.epsilon, of_row, of_before);
  if (i >= n) return;
  y = normed(y, of_row.mean, of_row.scale, w, b);
  if (!place.is_first) y_prev = normed(y_prev, of_before.mean, of_before.scale, w, b);
#pragma unroll
  for (int q = 0; q < kMixes; ++q) write4(static_cast<T*>(a.out[q]) + static_cast<uint64_t>(t) * a.width, i, mixed(y, y_prev, mix[q]));
  if (a.single && state) write4(state, i, y);  // by the thread that read it
}

// Many tokens. A block walks kRun tokens in a row with the weights in registers, and has the norm of the token before at hand.
constexpr uint32_t kRun = 8;
template <class T, int kVectors, int kMixes>
__global__ void __launch_bounds__(kVectors == 4 ? 512 : 1024) shift_mix_many_kernel(ShiftMix a) {
  let_next_start();
  const uint32_t n = a.width / 4;
  const Row<kVectors> w = read_row<kVectors>(a.norm.weight, n), b = read_row<kVectors>(a.norm.bias, n);
  Row<kVectors> mix[kMixes];
#pragma unroll
  for (int q = 0; q < kMixes; ++q) mix[q] = read_row<kVectors>(a.mix[q], n);
  const uint32_t used = static_cast<uint32_t>(a.packed.used[0]), begin = blockIdx.x * kRun, end = min(begin + kRun, used);
  wait_for_inputs();
  Row<kVectors> before{};  // the norm of token t - 1
  for (uint32_t t = begin; t < end; ++t) {
    const Place place = a.places[t];
    const float* x = a.x + static_cast<uint64_t>(t) * a.width;
    Row<kVectors> row = read_row<kVectors>(x, n);
    const bool fetch = t == begin && !place.is_first;
    const Row<kVectors> other = fetch ? read_row<kVectors>(x - a.width, n) : Row<kVectors>{};
    Scale of_row, of_other;
    row_scales(row, other, n, a.norm.epsilon, of_row, of_other);
    __syncthreads();  // the next round writes what this one's sums are read from
    const float* state = place.slot < 0 ? nullptr : a.state + static_cast<uint64_t>(place.slot) * a.slot_stride;
    if (place.is_first) before = state ? read_row<kVectors>(state, n) : Row<kVectors>{};
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const uint32_t i = threadIdx.x + j * blockDim.x;
      if (i >= n) continue;
      if (fetch) before.v[j] = normed(other.v[j], of_other.mean, of_other.scale, w.v[j], b.v[j]);
      const float4 y = normed(row.v[j], of_row.mean, of_row.scale, w.v[j], b.v[j]);
#pragma unroll
      for (int q = 0; q < kMixes; ++q) write4(static_cast<T*>(a.out[q]) + static_cast<uint64_t>(t) * a.width, i, mixed(y, before.v[j], mix[q].v[j]));
      before.v[j] = y;
    }
  }
}

// The state's vector of each sequence: LN of its last token. After shift_mix_kernel, which reads what was there before.
template <int kVectors>
__global__ void keep_last_kernel(ShiftMix a) {
  let_next_start();
  const uint32_t n = a.width / 4;
  const Row<kVectors> w = read_row<kVectors>(a.norm.weight, n), b = read_row<kVectors>(a.norm.bias, n);
  wait_for_inputs();
  const int32_t s = static_cast<int32_t>(blockIdx.x);
  if (s >= a.packed.used[1] || a.packed.slots[s] < 0 || a.packed.starts[s + 1] == a.packed.starts[s]) return;
  const Row<kVectors> row = read_row<kVectors>(a.x + static_cast<uint64_t>(a.packed.starts[s + 1] - 1) * a.width, n);
  const Scale scale = row_scale(row, n, a.norm.epsilon);
  float* state = a.state + static_cast<uint64_t>(a.packed.slots[s]) * a.slot_stride;
#pragma unroll
  for (int j = 0; j < kVectors; ++j)
    if (const uint32_t i = threadIdx.x + j * blockDim.x; i < n) write4(state, i, normed(row.v[j], scale.mean, scale.scale, w.v[j], b.v[j]));
}

template <class T, int kVectors>
__global__ void head_rows_kernel(HeadRows a) {
  let_next_start();
  const uint32_t n = a.width / 4;
  const Row<kVectors> w = read_row<kVectors>(a.norm.weight, n), b = read_row<kVectors>(a.norm.bias, n);
  wait_for_inputs();
  if (blockIdx.x >= static_cast<uint32_t>(a.used[2])) return;
  const Row<kVectors> row = read_row<kVectors>(a.x + static_cast<uint64_t>(a.rows[blockIdx.x]) * a.width, n);
  const Scale s = row_scale(row, n, a.norm.epsilon);
  const uint64_t at = static_cast<uint64_t>(blockIdx.x) * a.width;
#pragma unroll
  for (int j = 0; j < kVectors; ++j) {
    const uint32_t i = threadIdx.x + j * blockDim.x;
    if (i >= n) continue;
    const float4 y = normed(row.v[j], s.mean, s.scale, w.v[j], b.v[j]);
    if (a.hidden) write4(a.hidden + at, i, y);
    if (a.input) write4(static_cast<T*>(a.input) + at, i, y);
  }
}

// Calls f(vectors a thread as a constant, threads a block). Few rows get many threads, which is sooner done.
template <class F>
Error with_block(uint32_t width, bool few_rows, F&& f) {
  const uint32_t n = width / 4;
  const auto threads = [&](uint32_t vectors) { return ((n + vectors - 1) / vectors + 31) / 32 * 32; };
  if (n <= (few_rows ? 1024u : 256u)) return f(std::integral_constant<int, 1>(), threads(1));
  if (n <= (few_rows ? 2048u : 512u)) return f(std::integral_constant<int, 2>(), threads(2));
  return f(std::integral_constant<int, 4>(), threads(4));
}

Error launch_keep_last(const ShiftMix& a, Stream stream) {
  return with_block(a.width, a.packed.n_seqs <= 64, [&](auto vectors, uint32_t threads) {
    return launch(keep_last_kernel<decltype(vectors)::value>, dim3(a.packed.n_seqs), dim3(threads), 0, stream, a);
  });
}

}  // namespace

Error place_tokens(const Packed& p, Place* places, Stream stream) {
  return launch(place_kernel, dim3((p.n_tokens + 127) / 128), dim3(128), 0, stream, p, places);
}

Error embed(const Embed& a, Stream stream) {
  return with_block(a.width, a.n_tokens <= 64, [&](auto vectors, uint32_t threads) {
    constexpr int k = decltype(vectors)::value;
    const auto kernel = a.dtype == DUET_F32    ? embed_kernel<float, k>
                        : a.dtype == DUET_BF16 ? embed_kernel<bf16, k>
                        : a.dtype == DUET_F16  ? embed_kernel<f16, k>
                        : a.dtype == DUET_I8   ? embed_kernel<Quantised<8>, k>
                                               : embed_kernel<Quantised<4>, k>;
    return launch(kernel, dim3(a.n_tokens), dim3(threads), 0, stream, a);
  });
}

Error shift_mix(const ShiftMix& a, Stream stream) {
  const uint32_t n_tokens = a.packed.n_tokens, n = a.width / 4;
  Error error = kSuccess;
  if (n_tokens <= kFewTokens) {
    const auto launch_few = [&](auto vectors) {
      constexpr int k = decltype(vectors)::value;
      const auto kernel = a.n_mixes == 1 ? (a.bf16 ? shift_mix_few_kernel<bf16, k, 1> : shift_mix_few_kernel<float, k, 1>)
                                         : (a.bf16 ? shift_mix_few_kernel<bf16, k, 6> : shift_mix_few_kernel<float, k, 6>);
      return launch(kernel, dim3((n + kFewThreads - 1) / kFewThreads, n_tokens), dim3(kFewThreads), 0, stream, a);
    };
    error = n <= 2 * kFewThreads ? launch_few(std::integral_constant<int, 2>()) : n <= 8 * kFewThreads ? launch_few(std::integral_constant<int, 8>()) : launch_few(std::integral_constant<int, 16>());
  } else {
    error = with_block(a.width, false, [&](auto vectors, uint32_t threads) {
      constexpr int k = decltype(vectors)::value;
      const auto kernel = a.n_mixes == 1 ? (a.bf16 ? shift_mix_many_kernel<bf16, k, 1> : shift_mix_many_kernel<float, k, 1>)
                                         : (a.bf16 ? shift_mix_many_kernel<bf16, k, 6> : shift_mix_many_kernel<float, k, 6>);
      return launch(kernel, dim3((n_tokens + kRun - 1) / kRun), dim3(threads), 0, stream, a);
    });
  }
  const bool kept = a.single && n_tokens <= kFewTokens;
  return error != kSuccess || kept ? error : launch_keep_last(a, stream);
}

Error head_rows(const HeadRows& a, Stream stream) {
  return with_block(a.width, a.n_rows <= 64, [&](auto vectors, uint32_t threads) {
    constexpr int k = decltype(vectors)::value;
    return launch(a.bf16 ? head_rows_kernel<bf16, k> : head_rows_kernel<float, k>, dim3(a.n_rows), dim3(threads), 0, stream, a);
  });
}

}  // namespace duet_gpu
