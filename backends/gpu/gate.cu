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

template <int kFrom>
__device__ __forceinline__ float sum_over_lanes(float x) {  // that differ in bits from kFrom / 2 up or 16 down
#pragma unroll
  for (int d = 16; d >= kFrom; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

template <int N>
struct Vectors {  // shared memory
  float r[N], w[N], k[N], v[N], minus_kk[N], b[N], y[N];
  float2 rows[N / 8];  // of a warp's eight rows of y: mean, sum of squares about it
  float bonus[N / 32];
};

template <int N>
struct Weights {  // of a channel; k_k of all channels of this lane
  float w0, a0, v0, k_a, r_k, ln_w, ln_b, k_k[N / 32];
};
template <int N>
__device__ __forceinline__ Weights<N> weights_of(const RecurrentHeads& a, int head, int i) {
  const int channel = head * N + i;
  Weights<N> c{a.prepare.w0[channel], a.prepare.a0[channel], a.lv ? a.prepare.v0[channel] : 0, a.prepare.k_a[channel], a.norm.r_k[channel], a.norm.ln_w[channel], a.norm.ln_b[channel], {}};
#pragma unroll
  for (int m = 0; m < N / 32; ++m) c.k_k[m] = a.prepare.k_k[head * N + i % 32 + 32 * m];
  return c;
}

template <int N>
struct Token {  // a channel's inputs; k of all channels of this lane
  float r, v, lw, la, lv, v_first, g, k[N / 32];
};

// Channel i's entries of x. Returns v and the bonus of the warp's channels.
template <int N>
__device__ __forceinline__ float2 prepare_channel(Vectors<N>& x, const Weights<N>& c, const Token<N>& t, bool first_layer, int i) {
  float square = 0, own = 0, own_k_k = 0;
#pragma unroll
  for (int m = 0; m < N / 32; ++m) {
    square += t.k[m] * c.k_k[m] * (t.k[m] * c.k_k[m]);
    if (m == i / 32) own = t.k[m], own_k_k = c.k_k[m];
  }
  const float in_context = sigmoid(c.a0 + t.la), v = first_layer ? t.v : t.v + (t.v_first - t.v) * sigmoid(c.v0 + t.lv);
  x.w[i] = expf(-0.60653065971263342f * sigmoid(c.w0 + t.lw));
  const float kk = own * own_k_k / fmaxf(sqrtf(sum_over_lanes<1>(square)), 1e-12f), k = own * (1.0f + (in_context - 1.0f) * c.k_a);
  x.minus_kk[i] = -kk, x.b[i] = kk * in_context;
  x.r[i] = t.r, x.k[i] = k, x.v[i] = v;
  return {v, sum_over_lanes<1>(t.r * k * c.r_k)};
}

// One token of the elements of S in the pieces of 16 bytes quarter + 4 p of a row; store(p, bits) is called for each. Leaves y in x.
template <class Stored, int N, class Store>
__device__ __forceinline__ void advance(Vectors<N>& x, const uint4* stored, int i, Store store) {
  constexpr int kFours = kFoursOf16Bytes<Stored>, kQuads = N / 16, kPieces = kQuads / kFours;
  const int row = i / 4, quarter = i % 4;
  float4 S[kQuads];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) unpack_16_bytes<Stored>(stored[p], S + p * kFours);
  const auto column = [&](const float* v, int j) { return reinterpret_cast<const float4*>(v)[(quarter + 4 * (j / kFours)) * kFours + j % kFours]; };
  float removed = 0;
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
    const float4 w = column(x.w, j), b = column(x.b, j), k = column(x.k, j), r = column(x.r, j);
    S[j] = {S[j].x * w.x + removed * b.x + value * k.x, S[j].y * w.y + removed * b.y + value * k.y, S[j].z * w.z + removed * b.z + value * k.z, S[j].w * w.w + removed * b.w + value * k.w};
    y += S[j].x * r.x + S[j].y * r.y + S[j].z * r.z + S[j].w * r.w;
    if (j % kFours == kFours - 1) store(j / kFours, pack_16_bytes<Stored>(S + j / kFours * kFours));
  }
  y += __shfl_xor_sync(~0u, y, 1);
  y += __shfl_xor_sync(~0u, y, 2);
  if (quarter == 0) x.y[row] = y;
  const float mean = sum_over_lanes<4>(y) / 8, square = sum_over_lanes<4>((y - mean) * (y - mean));
  if (i % 32 == 0) x.rows[i / 32] = {mean, square};
}

template <int N>
__device__ __forceinline__ float finish_channel(const Vectors<N>& x, const Weights<N>& c, float v, float g, float epsilon, int i) {
  float mean = 0, square = 0, bonus = 0;
#pragma unroll
  for (int w = 0; w < N / 8; ++w) mean += x.rows[w].x;
  mean /= N / 8;
#pragma unroll
  for (int w = 0; w < N / 8; ++w) square += x.rows[w].y + 8 * (x.rows[w].x - mean) * (x.rows[w].x - mean);
#pragma unroll
  for (int m = 0; m < N / 32; ++m) bonus += x.bonus[m];
  return ((x.y[i] - mean) * (1.0f / sqrtf(square / N + epsilon)) * c.ln_w + c.ln_b + bonus * v) * g;
}

// Block (head, sequence) of 4 N threads. Thread (value row, quarter) has the N/4 elements of S in the pieces of 16 bytes quarter + 4 p of the row, in
// registers from one load to one store; the vectors pass through shared memory. Two barriers: each warp that prepares vectors finds the norm of kk
// itself, and each warp gives mean and squares of its rows of y.
template <class T, class Stored, int N>
__global__ void __launch_bounds__(4 * N, 1280 / (4 * N)) recurrent_heads_kernel(RecurrentHeads a) {
  constexpr int kPieces = N / 16 / kFoursOf16Bytes<Stored>;
  __shared__ Vectors<N> x;
  let_next_start();
  const uint32_t h = blockIdx.x, s = blockIdx.y, C = a.n_head * N, i = threadIdx.x;
  Weights<N> c{};
  if (i < N) c = weights_of<N>(a, h, i);
  const bool inside = s < static_cast<uint32_t>(a.used[1]);
  const int32_t t = inside ? a.starts[s] : 0, slot = inside ? a.slots[s] : 0;
  const bool empty = !inside || a.starts[s + 1] == t;
  wait_for_inputs();
  if (empty) return;
  uint4* state = slot < 0 ? nullptr : reinterpret_cast<uint4*>(static_cast<Stored*>(a.state) + static_cast<uint64_t>(slot) * a.slot_stride + h * (N * N) + i / 4 * N) + i % 4;
  uint4 stored[kPieces];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) stored[p] = state ? __ldcs(state + 4 * p) : uint4{0, 0, 0, 0};
  const uint64_t at = static_cast<uint64_t>(t) * C + h * N + i;
  float2 v_bonus{};
  float g = 0;
  if (i < N) {
    Token<N> in{a.r[at], a.v[at], a.lw[at], a.la[at], a.lv ? a.lv[at] : 0, a.lv ? a.v_first[at] : 0, a.g[at], {}};
#pragma unroll
    for (int m = 0; m < N / 32; ++m) in.k[m] = a.k[at - i + i % 32 + 32 * m];
    if (!a.lv) a.v_first[at] = in.v;
    v_bonus = prepare_channel(x, c, in, !a.lv, i), g = in.g;
  }
  __syncthreads();
  if (i < N && i % 32 == 0) x.bonus[i / 32] = v_bonus.y;
  advance<Stored>(x, stored, i, [&](int p, const uint4& bits) {
    if (state) __stcs(state + 4 * p, bits);
  });
  __syncthreads();
  if (i < N) static_cast<T*>(a.out)[at] = from_f32<T>(finish_channel(x, c, v_bonus.x, g, a.norm.epsilon, i));
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
