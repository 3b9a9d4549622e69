#include "gpu/gate.h"

#include "gpu/stored.h"

namespace duet_gpu {
namespace {

constexpr uint32_t kWarps = 8;  // a block's; each has a head of a token

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

// A head of a token in one warp: lane i has the pairs of channels 2 i + 64 j.
template <int kPairs>
struct Head {
  float2 v[kPairs];
};

template <int kPairs>
__device__ __forceinline__ Head<kPairs> read_head(const float* p, uint32_t head_size) {
  Head<kPairs> h;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const uint32_t i = 2 * (threadIdx.x % 32) + 64 * j;
    h.v[j] = i < head_size ? *reinterpret_cast<const float2*>(p + i) : float2{0, 0};
  }
  return h;
}

template <int kPairs>
__device__ __forceinline__ void write_head(float* p, uint32_t head_size, const Head<kPairs>& h) {
#pragma unroll
  for (int j = 0; j < kPairs; ++j)
    if (const uint32_t i = 2 * (threadIdx.x % 32) + 64 * j; i < head_size) *reinterpret_cast<float2*>(p + i) = h.v[j];
}
template <int kPairs>
__device__ __forceinline__ void write_head(bf16* p, uint32_t head_size, const Head<kPairs>& h) {
#pragma unroll
  for (int j = 0; j < kPairs; ++j)
    if (const uint32_t i = 2 * (threadIdx.x % 32) + 64 * j; i < head_size)
      *reinterpret_cast<__nv_bfloat162*>(p + i) = __floats2bfloat162_rn(h.v[j].x, h.v[j].y);
}

// f(number of a head) for each of them, element by element
template <int kPairs, class F, class... H>
__device__ __forceinline__ Head<kPairs> map(F f, const H&... h) {
  Head<kPairs> out;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) out.v[j] = {f(h.v[j].x...), f(h.v[j].y...)};
  return out;
}
template <int kPairs>
__device__ __forceinline__ float sum(const Head<kPairs>& h) {
  float s = 0;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) s += h.v[j].x + h.v[j].y;
  return warp_sum(s);
}

template <int kPairs>
__global__ void prepare_kernel(Prepare p) {
  let_next_start();
  wait_for_inputs();
  const uint32_t N = p.head_size, C = p.n_head * N, unit = blockIdx.x * kWarps + threadIdx.x / 32, t = unit / p.n_head, h = unit % p.n_head;
  if (t >= static_cast<uint32_t>(p.used[0])) return;
  const uint64_t at = static_cast<uint64_t>(t) * C + h * N;
  const auto token = [&](const float* x) { return read_head<kPairs>(x + at, N); };
  const auto weight = [&](const float* x) { return read_head<kPairs>(x + h * N, N); };
  using R = Head<kPairs>;
  const R k = token(p.k), w0 = weight(p.weights.w0), lw = token(p.lw), a0 = weight(p.weights.a0), la = token(p.la), k_k = weight(p.weights.k_k), k_a = weight(p.weights.k_a);
  R v = token(p.v);
  const R a = map<kPairs>([](float x, float y) { return sigmoid(x + y); }, a0, la);
  write_head(p.w_raw + at, N, map<kPairs>([](float x, float y) { return x + y; }, w0, lw));
  write_head(p.a + at, N, a);
  if (p.lv)
    v = map<kPairs>([](float v, float first, float v0, float lv) { return v + (first - v) * sigmoid(v0 + lv); }, v, token(p.v_first_in), weight(p.weights.v0), token(p.lv));
  else
    write_head(p.v_first_out + at, N, v);
  write_head(p.v_out + at, N, v);
  const R kk = map<kPairs>([](float x, float y) { return x * y; }, k, k_k);
  const float norm = fmaxf(sqrtf(sum(map<kPairs>([](float x) { return x * x; }, kk))), 1e-12f);
  write_head(p.kk + at, N, map<kPairs>([norm](float x) { return x / norm; }, kk));
  write_head(p.k_out + at, N, map<kPairs>([](float k, float a, float k_a) { return k * (1.0f + (a - 1.0f) * k_a); }, k, a, k_a));
}

template <class T, int kPairs>
__global__ void norm_gate_kernel(NormGate p) {
  let_next_start();
  wait_for_inputs();
  const uint32_t N = p.head_size, C = p.n_head * N, unit = blockIdx.x * kWarps + threadIdx.x / 32, t = unit / p.n_head, h = unit % p.n_head;
  if (t >= static_cast<uint32_t>(p.used[0])) return;
  const uint64_t at = static_cast<uint64_t>(t) * C + h * N;
  const auto token = [&](const float* x) { return read_head<kPairs>(x + at, N); };
  const auto weight = [&](const float* x) { return read_head<kPairs>(x + h * N, N); };
  using R = Head<kPairs>;
  const R y = token(p.y), v = token(p.v), g = token(p.g), ln_w = weight(p.weights.ln_w), ln_b = weight(p.weights.ln_b);
  const float bonus = sum(map<kPairs>([](float r, float k, float r_k) { return r * k * r_k; }, token(p.r), token(p.k), weight(p.weights.r_k)));
  const float mean = sum(y) / N;
  R centred = map<kPairs>([mean](float x) { return x - mean; }, y);
#pragma unroll
  for (int j = 0; j < kPairs; ++j)
    if (2 * (threadIdx.x % 32) + 64 * j >= N) centred.v[j] = {0, 0};
  const float scale = 1.0f / sqrtf(sum(map<kPairs>([](float x) { return x * x; }, centred)) / N + p.weights.epsilon);
  write_head(static_cast<T*>(p.out) + at, N,
             map<kPairs>([=](float x, float w, float b, float v, float g) { return (x * scale * w + b + bonus * v) * g; }, centred, ln_w, ln_b, v, g));
}

// Calls f(pairs a lane as a constant)
template <class F>
Error with_pairs(uint32_t head_size, F&& f) {
  if (head_size <= 64) return f(std::integral_constant<int, 1>());
  if (head_size <= 128) return f(std::integral_constant<int, 2>());
  return f(std::integral_constant<int, 4>());
}

dim3 units(uint32_t n_tokens, uint32_t n_head) { return dim3((n_tokens * n_head + kWarps - 1) / kWarps); }

// ---- one token of a head in one block ----

template <int N>
struct HeadVectors {  // shared memory
  float r[N], w[N], k[N], v[N], minus_kk[N], b[N], g[N], y[N];
};

// The sums of a and b over the first N threads' warps, to all threads of the block
template <int N>
__device__ __forceinline__ float2 head_sum(float a, float b, float2 (&part)[N / 32]) {
  if (threadIdx.x < N) {
    a = warp_sum(a), b = warp_sum(b);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = {a, b};
  }
  __syncthreads();
  float2 s = part[0];
#pragma unroll
  for (int i = 1; i < N / 32; ++i) s.x += part[i].x, s.y += part[i].y;
  return s;
}

// Block (head, sequence) of 4 N threads. Thread (value row, quarter) has the N/4 elements of S in the pieces of 16 bytes quarter + 4 i
// of the row, in registers from one load to one store; the vectors pass through shared memory.
template <class T, class Stored, int N>
__global__ void __launch_bounds__(4 * N, 1280 / (4 * N)) recurrent_heads_kernel(RecurrentHeads a) {
  constexpr int kFours = kFoursOf16Bytes<Stored>, kQuads = N / 16, kPieces = kQuads / kFours;
  __shared__ HeadVectors<N> x;
  __shared__ float2 part[3][N / 32];
  let_next_start();
  const uint32_t h = blockIdx.x, s = blockIdx.y, C = a.n_head * N, i = threadIdx.x, channel = h * N + i;
  float w0 = 0, a0 = 0, v0 = 0, k_k = 0, k_a = 0, r_k = 0, ln_w = 0, ln_b = 0;
  if (i < N) {
    w0 = a.prepare.w0[channel], a0 = a.prepare.a0[channel], k_k = a.prepare.k_k[channel], k_a = a.prepare.k_a[channel];
    r_k = a.norm.r_k[channel], ln_w = a.norm.ln_w[channel], ln_b = a.norm.ln_b[channel];
    if (a.lv) v0 = a.prepare.v0[channel];
  }
  const bool inside = s < static_cast<uint32_t>(a.used[1]);
  const int32_t t = inside ? a.starts[s] : 0, slot = inside ? a.slots[s] : 0;
  const bool empty = !inside || a.starts[s + 1] == t;
  wait_for_inputs();
  if (empty) return;

  const uint32_t row = i / 4, quarter = i % 4;
  uint4* state = slot < 0 ? nullptr : reinterpret_cast<uint4*>(static_cast<Stored*>(a.state) + static_cast<uint64_t>(slot) * a.slot_stride + h * (N * N) + row * N) + quarter;
  uint4 stored[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) stored[i] = state ? __ldcs(state + 4 * i) : uint4{0, 0, 0, 0};

  float kk = 0, k = 0, r = 0, v = 0, in_context = 0, square = 0, bonus = 0;
  const uint64_t at = static_cast<uint64_t>(t) * C + channel;
  if (i < N) {
    r = a.r[at], k = a.k[at], v = a.v[at];
    in_context = sigmoid(a0 + a.la[at]);
    x.w[i] = expf(-0.60653065971263342f * sigmoid(w0 + a.lw[at]));
    x.g[i] = a.g[at];
    if (a.lv)
      v += (a.v_first[at] - v) * sigmoid(v0 + a.lv[at]);
    else
      a.v_first[at] = v;
    kk = k * k_k;
    square = kk * kk;
    k *= 1.0f + (in_context - 1.0f) * k_a;
    bonus = r * k * r_k;
    x.r[i] = r, x.k[i] = k, x.v[i] = v;
  }
  const float2 sums = head_sum<N>(square, bonus, part[0]);
  if (i < N) {
    kk /= fmaxf(sqrtf(sums.x), 1e-12f);
    x.minus_kk[i] = -kk;
    x.b[i] = kk * in_context;
  }
  __syncthreads();

  float4 S[kQuads];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) unpack_16_bytes<Stored>(stored[i], S + i * kFours);
  const auto column = [&](const float* p, int j) { return reinterpret_cast<const float4*>(p)[(quarter + 4 * (j / kFours)) * kFours + j % kFours]; };
  float removed = 0;  // of S (-kk), this row
#pragma unroll
  for (int j = 0; j < kQuads; ++j) {
    const float4 q = column(x.minus_kk, j);
    removed += S[j].x * q.x + S[j].y * q.y + S[j].z * q.z + S[j].w * q.w;
  }
  removed += __shfl_xor_sync(~0u, removed, 1);
  removed += __shfl_xor_sync(~0u, removed, 2);
  const float value = x.v[row];
  float y = 0;
#pragma unroll
  for (int j = 0; j < kQuads; ++j) {
    const float4 w = column(x.w, j), b = column(x.b, j), k4 = column(x.k, j), r4 = column(x.r, j);
    S[j].x = S[j].x * w.x + removed * b.x + value * k4.x;
    S[j].y = S[j].y * w.y + removed * b.y + value * k4.y;
    S[j].z = S[j].z * w.z + removed * b.z + value * k4.z;
    S[j].w = S[j].w * w.w + removed * b.w + value * k4.w;
    y += S[j].x * r4.x + S[j].y * r4.y + S[j].z * r4.z + S[j].w * r4.w;
    if (j % kFours == kFours - 1 && state) __stcs(state + 4 * (j / kFours), pack_16_bytes<Stored>(S + j / kFours * kFours));
  }
  y += __shfl_xor_sync(~0u, y, 1);
  y += __shfl_xor_sync(~0u, y, 2);
  if (quarter == 0) x.y[row] = y;
  __syncthreads();

  const float own = i < N ? x.y[i] : 0;
  const float mean = head_sum<N>(own, 0, part[1]).x / N, centred = own - mean;
  const float variance = head_sum<N>(centred * centred, 0, part[2]).x / N;
  if (i < N) static_cast<T*>(a.out)[at] = from_f32<T>((centred * (1.0f / sqrtf(variance + a.norm.epsilon)) * ln_w + ln_b + sums.y * x.v[i]) * x.g[i]);
}

}  // namespace

Error prepare(const Prepare& p, Stream stream) {
  return with_pairs(p.head_size, [&](auto pairs) { return launch(prepare_kernel<decltype(pairs)::value>, units(p.n_tokens, p.n_head), dim3(32 * kWarps), 0, stream, p); });
}

Error norm_gate(const NormGate& p, Stream stream) {
  return with_pairs(p.head_size, [&](auto pairs) {
    constexpr int k = decltype(pairs)::value;
    return launch(p.bf16 ? norm_gate_kernel<bf16, k> : norm_gate_kernel<float, k>, units(p.n_tokens, p.n_head), dim3(32 * kWarps), 0, stream, p);
  });
}

bool recurrent_heads_takes(uint32_t head_size) { return head_size == 32 || head_size == 64 || head_size == 128; }

Error recurrent_heads(const RecurrentHeads& a, Stream stream) {
  return with_stored(a.stored, [&](auto of) {
    using S = decltype(of);
    const auto kernel = a.head_size == 32   ? (a.bf16 ? recurrent_heads_kernel<bf16, S, 32> : recurrent_heads_kernel<float, S, 32>)
                        : a.head_size == 64 ? (a.bf16 ? recurrent_heads_kernel<bf16, S, 64> : recurrent_heads_kernel<float, S, 64>)
                                            : (a.bf16 ? recurrent_heads_kernel<bf16, S, 128> : recurrent_heads_kernel<float, S, 128>);
    return launch(kernel, dim3(a.n_head, a.n_seqs), dim3(4 * a.head_size), 0, stream, a);
  });
}

}  // namespace duet_gpu
