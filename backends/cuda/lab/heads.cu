// Variants of recurrent_heads (gpu/gate.cu) for many sequences, tested against f64 on the host and timed beside it. From the root of the repository:
//   nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Ibackends -Iapi -Isdk/include backends/cuda/lab/heads.cu backends/gpu/gate.cu -o heads_lab
//   ./heads_lab         everything; "test" or "time" for a part. Exit code 1 when a case fails
// 0 five   a block for a head of a sequence, five barriers
// 1 built  the same with two barriers: each warp that prepares vectors finds the norm of kk itself, and each warp gives mean and squares of its rows
// 2 ring   blocks that stay, each with one head of many sequences: a warp fetches what comes next by bulk copies into a ring in shared memory, so that
//          the bytes on their way do not depend on registers; weights are read once a block. Head size 64 here, sm_90 and newer
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "duet_stage.h"
#include "gpu/gate.h"
#include "gpu/stored.h"
#include "timing.h"

namespace {

using namespace duet_gpu;

constexpr int N = 64;
constexpr int kQuads = N / 16;  // times four elements of S in a thread
constexpr int kOwners = N / 32;  // warps with a channel a lane

// ---- what ring has from the kernel that is built -----------------------------------------------------------------------------
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <int kFrom>
__device__ __forceinline__ float sum_over_lanes(float x) {  // that differ in bits from kFrom / 2 up or 16 down
#pragma unroll
  for (int d = 16; d >= kFrom; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}

struct Vectors {  // shared memory
  float r[N], w[N], k[N], v[N], minus_kk[N], b[N], y[N];
  float2 rows[N / 8];  // of a warp's eight rows of y: mean, sum of squares about it
  float bonus[kOwners];
};

struct Weights {  // of a channel; k_k of all channels of this lane
  float w0, a0, v0, k_a, r_k, ln_w, ln_b, k_k[kOwners];
};
__device__ __forceinline__ Weights weights_of(const RecurrentHeads& a, int head, int i) {
  const int channel = head * N + i;
  Weights c{a.prepare.w0[channel], a.prepare.a0[channel], a.lv ? a.prepare.v0[channel] : 0, a.prepare.k_a[channel], a.norm.r_k[channel], a.norm.ln_w[channel], a.norm.ln_b[channel], {}};
#pragma unroll
  for (int m = 0; m < kOwners; ++m) c.k_k[m] = a.prepare.k_k[head * N + i % 32 + 32 * m];
  return c;
}

struct Token {  // a channel's inputs; k of all channels of this lane
  float r, v, lw, la, lv, v_first, g, k[kOwners];
};

// Channel i's entries of x, but for bonus: while one warp comes to this, another may still finish the token before. Returns v and the bonus of the
// warp's channels.
__device__ __forceinline__ float2 prepare_channel(Vectors& x, const Weights& c, const Token& t, bool first_layer, int i) {
  float square = 0, own = 0, own_k_k = 0;
#pragma unroll
  for (int m = 0; m < kOwners; ++m) {
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

// One token of the elements of S in the pieces of 16 bytes quarter + 4 (p ^ swap) of a row; store(p, bits) is called for each. Leaves y in x.
template <class Stored, class Store>
__device__ __forceinline__ void advance(Vectors& x, const uint4* stored, int i, int swap, Store store) {
  constexpr int kFours = kFoursOf16Bytes<Stored>, kPieces = kQuads / kFours;
  const int row = i / 4, quarter = i % 4;
  float4 S[kQuads];
#pragma unroll
  for (int p = 0; p < kPieces; ++p) unpack_16_bytes<Stored>(stored[p], S + p * kFours);
  const auto column = [&](const float* v, int j) { return reinterpret_cast<const float4*>(v)[(quarter + 4 * (j / kFours ^ swap)) * kFours + j % kFours]; };
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

__device__ __forceinline__ float finish_channel(const Vectors& x, const Weights& c, float v, float g, float epsilon, int i) {
  float mean = 0, square = 0, bonus = 0;
#pragma unroll
  for (int w = 0; w < N / 8; ++w) mean += x.rows[w].x;
  mean /= N / 8;
#pragma unroll
  for (int w = 0; w < N / 8; ++w) square += x.rows[w].y + 8 * (x.rows[w].x - mean) * (x.rows[w].x - mean);
#pragma unroll
  for (int m = 0; m < kOwners; ++m) bonus += x.bonus[m];
  return ((x.y[i] - mean) * (1.0f / sqrtf(square / N + epsilon)) * c.ln_w + c.ln_b + bonus * v) * g;
}

// ---- 0: five barriers --------------------------------------------------------------------------------------
struct HeadVectors {  // shared memory
  float r[N], w[N], k[N], v[N], minus_kk[N], b[N], g[N], y[N];
};

// The sums of a and b over the first N threads' warps, to all threads of the block
__device__ __forceinline__ float2 head_sum(float a, float b, float2 (&part)[N / 32]) {
  if (threadIdx.x < N) {
    a = sum_over_lanes<1>(a), b = sum_over_lanes<1>(b);
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
template <class T, class Stored>
__global__ void __launch_bounds__(4 * N, 1280 / (4 * N)) five_kernel(RecurrentHeads a) {
  constexpr int kFours = kFoursOf16Bytes<Stored>, kPieces = kQuads / kFours;
  __shared__ HeadVectors x;
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
  const float2 sums = head_sum(square, bonus, part[0]);
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
  const float mean = head_sum(own, 0, part[1]).x / N, centred = own - mean;
  const float variance = head_sum(centred * centred, 0, part[2]).x / N;
  if (i < N) static_cast<T*>(a.out)[at] = from_f32<T>((centred * (1.0f / sqrtf(variance + a.norm.epsilon)) * ln_w + ln_b + sums.y * x.v[i]) * x.g[i]);
}


Error five(const RecurrentHeads& a, Stream stream) {
  return with_stored(a.stored, [&](auto of) {
    using S = decltype(of);
    return launch(a.bf16 ? five_kernel<bf16, S> : five_kernel<float, S>, dim3(a.n_head, a.n_seqs), dim3(4 * N), 0, stream, a);
  });
}

// ---- 2: ring ----------------------------------------------------------------------------------------------
__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void barrier_init(uint64_t* b, uint32_t count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory"); }
__device__ __forceinline__ void barrier_arrive(uint64_t* b) { asm volatile("{ .reg .b64 s; mbarrier.arrive.shared.b64 s, [%0]; }" ::"r"(shared_address(b)) : "memory"); }
__device__ __forceinline__ void barrier_arrive_and_expect(uint64_t* b, uint32_t bytes) {
  asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared.b64 s, [%0], %1; }" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* b, uint32_t parity) {
  uint32_t passed = 0;
  while (!passed)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(passed) : "r"(shared_address(b)), "r"(parity) : "memory");
}
__device__ __forceinline__ void bulk_copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier, bool once) {
  if (once) {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(to)), "l"(from), "r"(bytes),
                 "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
  } else {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
  }
}

constexpr int kMatrixThreads = 4 * N;
__device__ __forceinline__ void matrix_threads_meet() { asm volatile("bar.sync 1, %0;" ::"n"(kMatrixThreads) : "memory"); }

enum { kR, kV, kLw, kLa, kG, kK, kLv, kVFirst, kInputs };  // the last two from layer 1 on

template <class Stored>
struct alignas(128) Stage {
  Stored S[N * N];
  float in[kInputs][N];
  int32_t token, slot;  // token -1: the end
};

// Block (head, group of every gridDim.x / n_head-th sequence): eight warps with a quarter of a row of S in a thread, and one that fetches.
template <class T, class Stored, int kBlocks>
__global__ void __launch_bounds__(kMatrixThreads + 32, kBlocks) ring_kernel(RecurrentHeads a, int stages) {
  constexpr int kPieces = kQuads / kFoursOf16Bytes<Stored>;
  extern __shared__ uint4 memory[];
  __shared__ Vectors x;
  __shared__ uint64_t full[8], empty[8];
  let_next_start();
  Stage<Stored>* const ring = reinterpret_cast<Stage<Stored>*>((reinterpret_cast<uintptr_t>(memory) + 127) & ~uintptr_t{127});
  const int h = blockIdx.x % a.n_head, first = blockIdx.x / a.n_head, groups = gridDim.x / a.n_head, i = threadIdx.x, lane = i % 32;
  const uint32_t C = a.n_head * N;
  if (i == 0) {
    for (int s = 0; s < stages; ++s) barrier_init(full + s, 1), barrier_init(empty + s, kMatrixThreads / 32);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  Weights c{};
  if (i < N) c = weights_of(a, h, i);
  __syncthreads();

  if (i >= kMatrixThreads) {  // fetches
    const int n_seqs = a.used[1], inputs = a.lv ? kInputs : kLv;
    const float* mine = nullptr;  // what this lane copies of each token
    switch (lane) {
      case kR: mine = a.r; break;
      case kV: mine = a.v; break;
      case kLw: mine = a.lw; break;
      case kLa: mine = a.la; break;
      case kG: mine = a.g; break;
      case kK: mine = a.k; break;
      case kLv: mine = a.lv; break;
      case kVFirst: mine = a.lv ? a.v_first : nullptr; break;
    }
    int at = 0, parity = 1;
    const auto next_stage = [&] {
      if (++at == stages) at = 0, parity ^= 1;
    };
    wait_for_inputs();
    for (int begin = first; begin < n_seqs; begin += 32 * groups) {
      const int s = begin + lane * groups;  // places of 32 sequences at a time
      const bool inside = s < n_seqs;
      const int32_t token = inside ? a.starts[s] : 0, end = inside ? a.starts[s + 1] : 0, slot = inside ? a.slots[s] : 0;
      for (int n = 0; n < 32 && begin + n * groups < n_seqs; ++n) {
        const int32_t t = __shfl_sync(~0u, token, n), e = __shfl_sync(~0u, end, n), place = __shfl_sync(~0u, slot, n);
        if (t == e) continue;
        barrier_wait(empty + at, parity);
        Stage<Stored>& stage = ring[at];
        if (lane == 0) {
          stage.token = t, stage.slot = place;
          barrier_arrive_and_expect(full + at, inputs * sizeof stage.in[0] + (place < 0 ? 0 : sizeof stage.S));
        }
        __syncwarp();
        if (mine) bulk_copy(stage.in[lane], mine + static_cast<uint64_t>(t) * C + h * N, sizeof stage.in[0], full + at, false);
        if (lane == kInputs && place >= 0)
          bulk_copy(stage.S, static_cast<const Stored*>(a.state) + static_cast<uint64_t>(place) * a.slot_stride + h * (N * N), sizeof stage.S, full + at, true);
        next_stage();
      }
    }
    barrier_wait(empty + at, parity);
    if (lane == 0) {
      ring[at].token = -1;
      barrier_arrive(full + at);
    }
    return;
  }

  wait_for_inputs();  // what is written below may still be read by the kernel before
  const int row = i / 4, quarter = i % 4, swap = row & 1;  // two rows that a quarter of a warp reads at once then share no bank
  for (int at = 0, parity = 0;;) {
    barrier_wait(full + at, parity);
    const Stage<Stored>& stage = ring[at];
    const int32_t t = stage.token, slot = stage.slot;
    if (t < 0) return;
    uint4 stored[kPieces];
#pragma unroll
    for (int p = 0; p < kPieces; ++p)
      stored[p] = slot < 0 ? uint4{0, 0, 0, 0} : *(reinterpret_cast<const uint4*>(stage.S + row * N) + quarter + 4 * (p ^ swap));
    float2 v_bonus{};
    float g = 0;
    const uint64_t to = static_cast<uint64_t>(t) * C + h * N + i;
    if (i < N) {
      Token in{stage.in[kR][i], stage.in[kV][i], stage.in[kLw][i], stage.in[kLa][i], a.lv ? stage.in[kLv][i] : 0, a.lv ? stage.in[kVFirst][i] : 0, stage.in[kG][i], {}};
#pragma unroll
      for (int m = 0; m < kOwners; ++m) in.k[m] = stage.in[kK][lane + 32 * m];
      if (!a.lv) a.v_first[to] = in.v;
      v_bonus = prepare_channel(x, c, in, !a.lv, i), g = in.g;
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(empty + at);  // all is in registers
    matrix_threads_meet();
    if (i < N && lane == 0) x.bonus[i / 32] = v_bonus.y;
    uint4* const state = reinterpret_cast<uint4*>(static_cast<Stored*>(a.state) + static_cast<uint64_t>(slot < 0 ? 0 : slot) * a.slot_stride + h * (N * N) + row * N) + quarter;
    advance<Stored>(x, stored, i, swap, [&](int p, const uint4& bits) {
      if (slot >= 0) __stcs(state + 4 * (p ^ swap), bits);
    });
    matrix_threads_meet();
    if (i < N) static_cast<T*>(a.out)[to] = from_f32<T>(finish_channel(x, c, v_bonus.x, g, a.norm.epsilon, i));
    if (++at == stages) at = 0, parity ^= 1;
  }
}

template <int kBlocks>  // on a multiprocessor
Error ring(const RecurrentHeads& a, Stream stream, int stages) {
  return with_stored(a.stored, [&](auto of) -> Error {
    using S = decltype(of);
    const auto kernel = a.bf16 ? ring_kernel<bf16, S, kBlocks> : ring_kernel<float, S, kBlocks>;
    const size_t bytes = stages * sizeof(Stage<S>) + 128;
    const Error e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (e != cudaSuccess) return e;
    const uint32_t groups = std::max(1u, std::min(a.n_seqs, static_cast<uint32_t>(multiprocessors() * kBlocks) / a.n_head));
    return launch(kernel, dim3(groups * a.n_head), dim3(kMatrixThreads + 32), bytes, stream, a, stages);
  });
}

// ---- the variants -----------------------------------------------------------------------------------------
struct Variant {
  std::string name;
  std::function<Error(const RecurrentHeads&, Stream)> run;
};
std::vector<Variant> variants(duet_dtype stored) {
  std::vector<Variant> out{{"0 five barriers", five}, {"1 built", recurrent_heads}};
  const auto add = [&](auto blocks, int stages) {  // as many stages as fit, and fewer
    constexpr int kBlocks = decltype(blocks)::value;
    out.push_back({"2 ring " + std::to_string(kBlocks) + "x" + std::to_string(stages), [=](const RecurrentHeads& a, Stream s) { return ring<kBlocks>(a, s, stages); }});
  };
  const std::integral_constant<int, 2> two;
  const std::integral_constant<int, 3> three;
  const std::integral_constant<int, 4> four;
  const std::integral_constant<int, 5> five;
  if (stored == DUET_F32) add(two, 6), add(two, 3), add(three, 4), add(three, 2), add(four, 2), add(five, 2);
  else add(two, 8), add(three, 7), add(three, 4), add(four, 5), add(four, 3), add(five, 4), add(five, 2);
  return out;
}

const char* name_of(duet_dtype t) { return t == DUET_F32 ? "f32" : t == DUET_F16 ? "f16" : "bf16"; }

int failures = 0;
template <class T>
struct Device {
  T* data = nullptr;
  size_t count;
  explicit Device(size_t n) : count(n) { lab::check(cudaMalloc(&data, n * sizeof(T)), "cudaMalloc"); }
  explicit Device(const std::vector<T>& v) : Device(v.size()) { write(v); }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }
  void write(const std::vector<T>& v) { lab::check(cudaMemcpy(data, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "to the device"); }
  std::vector<T> read() const {
    std::vector<T> to(count);
    lab::check(cudaMemcpy(to.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "to the host");
    return to;
  }
};

uint64_t random_state = 88172645463325252ull;
float uniform() {  // -1 .. 1
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return static_cast<float>(static_cast<int32_t>(random_state >> 32)) * 0x1p-31f;
}
std::vector<float> numbers(size_t n, float spread) {
  std::vector<float> v(n);
  for (float& f : v) f = spread * uniform();
  return v;
}

// ---- test -------------------------------------------------------------------------------------------------
enum { kW0, kA0, kV0, kK_k, kK_a, kLnW, kLnB, kR_k, kWeights };

// Sequences of one token, or none where i % 5 == 3; without a slot where i % 7 == 2.
void test(uint32_t n_head, uint32_t n_seqs, duet_dtype stored, bool first_layer) {
  const uint32_t C = n_head * N, spare = 2, n_slots = n_seqs + 3;
  const uint64_t matrix = uint64_t{n_head} * N * N, stride = matrix + 64;
  std::vector<int32_t> starts{0}, slots;
  for (uint32_t s = 0; s < n_seqs; ++s) starts.push_back(starts.back() + (s % 5 != 3)), slots.push_back(s % 7 == 2 ? -1 : static_cast<int32_t>(n_slots - 1 - s));
  const uint32_t T = starts.back();
  const std::vector<int32_t> used{static_cast<int32_t>(T), static_cast<int32_t>(n_seqs), 0};
  for (uint32_t i = 0; i < spare; ++i) starts.push_back(1 << 30), slots.push_back(1 << 28);  // a crash, if they were used
  std::vector<std::vector<float>> in, weights;
  for (int i = 0; i < kInputs; ++i) in.push_back(numbers((T + spare) * C, i == kLw ? 4.0f : 1.0f));
  for (int i = 0; i < kWeights; ++i) weights.push_back(numbers(C, 1));
  std::vector<float> before = numbers(n_slots * stride, 5);
  for (float& f : before) f = duetp_stored(f, stored);

  // f64; S is rounded once, at the end
  std::vector<double> want(T * C), S(N * N);
  std::vector<double> after(before.begin(), before.end());
  std::vector<float> v_first = in[kVFirst];
  const auto sigma = [](double x) { return 1 / (1 + std::exp(-x)); };
  for (uint32_t s = 0; s < n_seqs; ++s) {
    if (starts[s] == starts[s + 1]) continue;
    for (uint32_t h = 0; h < n_head; ++h) {
      const uint64_t at = uint64_t(starts[s]) * C + h * N;
      const auto x = [&](int which, int i) { return double{in[which][at + i]}; };
      const auto w = [&](int which, int i) { return double{weights[which][h * N + i]}; };
      double kk[N], k[N], v[N], a[N], y[N], norm = 0, bonus = 0, mean = 0, variance = 0;
      double* const slot = slots[s] < 0 ? nullptr : &after[slots[s] * stride + h * N * N];
      for (int i = 0; i < N * N; ++i) S[i] = slot ? slot[i] : 0;
      for (int i = 0; i < N; ++i) kk[i] = x(kK, i) * w(kK_k, i), norm += kk[i] * kk[i];
      for (int i = 0; i < N; ++i) {
        kk[i] /= std::max(std::sqrt(norm), 1e-12);
        a[i] = sigma(w(kA0, i) + x(kLa, i));
        k[i] = x(kK, i) * (1 + (a[i] - 1) * w(kK_a, i));
        v[i] = first_layer ? x(kV, i) : x(kV, i) + (x(kVFirst, i) - x(kV, i)) * sigma(w(kV0, i) + x(kLv, i));
        if (first_layer) v_first[at + i] = in[kV][at + i];
        bonus += x(kR, i) * k[i] * w(kR_k, i);
      }
      for (int i = 0; i < N; ++i) {
        double u = 0;
        y[i] = 0;
        for (int j = 0; j < N; ++j) u -= S[i * N + j] * kk[j];
        for (int j = 0; j < N; ++j) {
          S[i * N + j] = S[i * N + j] * std::exp(-std::exp(-0.5) * sigma(w(kW0, j) + x(kLw, j))) + u * kk[j] * a[j] + v[i] * k[j];
          y[i] += S[i * N + j] * x(kR, j);
        }
        mean += y[i] / N;
      }
      for (int i = 0; i < N; ++i) variance += (y[i] - mean) * (y[i] - mean) / N;
      for (int i = 0; i < N; ++i) want[at + i] = ((y[i] - mean) / std::sqrt(variance + 64e-5) * w(kLnW, i) + w(kLnB, i) + bonus * v[i]) * x(kG, i);
      if (slot) std::copy(S.begin(), S.end(), slot);
    }
  }

  std::vector<uint16_t> before_half(before.size());
  for (size_t i = 0; i < before.size(); ++i) before_half[i] = stored == DUET_BF16 ? duetp_bf16_of_f32(before[i]) : duetp_f16_of_f32(before[i]);
  std::vector<std::unique_ptr<Device<float>>> in_there, weights_there;
  for (const auto& v : in) in_there.push_back(std::make_unique<Device<float>>(v));
  for (const auto& v : weights) weights_there.push_back(std::make_unique<Device<float>>(v));
  Device<int32_t> used_there(used), starts_there(starts), slots_there(slots);
  for (const Variant& variant : variants(stored)) {
    Device<float> out((T + spare) * C), state(before);
    Device<uint16_t> half(before_half);
    lab::check(cudaMemset(out.data, 0xff, out.count * 4), "cudaMemset");
    in_there[kVFirst]->write(in[kVFirst]);
    RecurrentHeads a{};
    const auto input = [&](int i) { return in_there[i]->data; };
    const auto weight = [&](int i) { return weights_there[i]->data; };
    a.prepare = {weight(kW0), weight(kA0), first_layer ? nullptr : weight(kV0), weight(kK_k), weight(kK_a)};
    a.norm = {weight(kLnW), weight(kLnB), weight(kR_k), 64e-5f};
    a.r = input(kR), a.k = input(kK), a.v = input(kV), a.lw = input(kLw), a.la = input(kLa), a.lv = first_layer ? nullptr : input(kLv), a.g = input(kG), a.v_first = input(kVFirst);
    a.out = out.data;
    a.state = stored == DUET_F32 ? static_cast<void*>(state.data) : half.data, a.stored = stored, a.slot_stride = stride;
    a.used = used_there.data, a.starts = starts_there.data, a.slots = slots_there.data;
    a.n_seqs = n_seqs + spare, a.n_head = n_head, a.head_size = N;
    lab::check(variant.run(a, nullptr), variant.name.c_str());
    lab::check(cudaDeviceSynchronize(), variant.name.c_str());
    std::vector<float> got_state = state.read();
    const std::vector<uint16_t> got_half = half.read();
    if (stored != DUET_F32)
      for (size_t i = 0; i < got_half.size(); ++i) got_state[i] = stored == DUET_BF16 ? duetp_f32_of_bf16(got_half[i]) : duetp_f32_of_f16(got_half[i]);
    const std::vector<float> got = out.read(), got_first = in_there[kVFirst]->read();
    double worst = 0, worst_state = 0, square = 0;
    for (double v : want) square += v * v;
    const double rms = std::sqrt(square / want.size()), unit = stored == DUET_F32 ? 1e-5 : stored == DUET_F16 ? 0x1p-11 + 1e-5 : 0x1p-8 + 1e-5;
    for (size_t i = 0; i < want.size(); ++i) {
      const double e = std::fabs(got[i] - want[i]) / std::max(std::fabs(want[i]), rms);
      if (!(e <= worst)) worst = std::isnan(e) ? HUGE_VAL : e;
    }
    std::vector<bool> written(before.size());
    for (uint32_t s = 0; s < n_seqs; ++s)
      if (slots[s] >= 0 && starts[s] != starts[s + 1]) std::fill(written.begin() + slots[s] * stride, written.begin() + slots[s] * stride + matrix, true);
    bool untouched = true;
    for (size_t i = 0; i < before.size(); ++i) {
      if (!written[i]) untouched = untouched && got_state[i] == before[i];
      const double e = std::fabs(got_state[i] - after[i]) / std::max(std::fabs(after[i]), stored == DUET_F32 ? 1.0 : 0x1p-3);
      if (!(e <= worst_state)) worst_state = std::isnan(e) ? HUGE_VAL : e;
    }
    for (size_t i = T * C; i < got.size(); ++i) untouched = untouched && std::isnan(got[i]);
    const bool good = worst <= 1e-4 && worst_state <= unit && untouched && got_first == v_first;
    failures += !good;
    std::printf("%s %-12s H%-2u B%-3u %-4s layer %d  out %.1e  state %.1e of %.1e%s%s\n", good ? "ok  " : "FAIL", variant.name.c_str(), n_head, n_seqs, name_of(stored), !first_layer, worst, worst_state, unit,
                untouched ? "" : "  WROTE ELSEWHERE", got_first == v_first ? "" : "  v_first is wrong");
  }
}

// ---- time -------------------------------------------------------------------------------------------------
__global__ void copy_kernel(const uint4* from, uint4* to, uint64_t n) {
  for (uint64_t i = uint64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += uint64_t{gridDim.x} * blockDim.x) __stcs(to + i, __ldcs(from + i));
}

// Best of several, in ms
template <class F>
double best_ms(int repetitions, cudaStream_t stream, F f) {
  cudaEvent_t a, b;
  cudaEventCreate(&a), cudaEventCreate(&b);
  float best = 1e9;
  for (int i = 0; i < repetitions; ++i) {
    float ms = 0;
    cudaEventRecord(a, stream);
    f();
    cudaEventRecord(b, stream);
    lab::check(cudaEventSynchronize(b), "timing");
    cudaEventElapsedTime(&ms, a, b);
    best = std::min(best, ms);
  }
  cudaEventDestroy(a), cudaEventDestroy(b);
  return best;
}

constexpr uint64_t kPool = 4ull << 30;  // states that launches take in turn: none finds its own in the L2 unless they are small
constexpr int kLaunches = 64;           // of a graph

void time_all() {
  cudaStream_t stream;
  lab::check(cudaStreamCreate(&stream), "cudaStreamCreate");
  Device<uint4> pool(kPool / 16);
  lab::check(cudaMemset(pool.data, 0, kPool), "cudaMemset");
  Device<uint32_t> sink(1);
  const int wide = multiprocessors() * 8;
  const double read = kPool / best_ms(6, stream, [&] { lab::read_kernel<<<wide, 512, 0, stream>>>(pool.data, pool.count, sink.data); });
  const double copied = kPool / best_ms(6, stream, [&] { copy_kernel<<<2 * wide, 512, 0, stream>>>(pool.data, pool.data + pool.count / 2, pool.count / 2); });
  std::printf("read %.0f GB/s, copy %.0f GB/s (read and written)\n", read / 1e6, copied / 1e6);
  const uint32_t most = 512 * 64 * N;
  std::vector<std::unique_ptr<Device<float>>> in, weights;
  for (int i = 0; i < kInputs; ++i) in.push_back(std::make_unique<Device<float>>(numbers(most, 1)));
  for (int i = 0; i < kWeights; ++i) weights.push_back(std::make_unique<Device<float>>(numbers(64 * N, 1)));
  Device<float> out(most);
  std::vector<int32_t> ramp(513);
  for (int i = 0; i < 513; ++i) ramp[i] = i;
  Device<int32_t> starts(ramp);
  for (const duet_dtype stored : {DUET_F32, DUET_F16}) {
    for (const uint32_t H : {12u, 32u, 64u}) {
      for (const uint32_t B : {1u, 8u, 32u, 128u, 512u}) {
        Device<int32_t> used(std::vector<int32_t>{static_cast<int32_t>(B), static_cast<int32_t>(B), 0});
        const uint64_t state = uint64_t{B} * H * N * N * (stored == DUET_F32 ? 4 : 2), turns = std::min<uint64_t>(kPool / state, 1024);
        const double bytes = 2.0 * state + 9.0 * 4 * B * H * N, at_read = bytes / read * 1e3, at_copy = bytes / copied * 1e3;
        std::printf("%-4s H%-2u B%-3u  %7.1f MB: %7.1f us at the read rate, %7.1f at the copy's%s\n", name_of(stored), H, B, bytes / 1e6, at_read, at_copy, turns * state < (128u << 20) ? " (states fit the L2)" : "");
        for (const Variant& variant : variants(stored)) {
          RecurrentHeads a{};
          a.prepare = {weights[kW0]->data, weights[kA0]->data, weights[kV0]->data, weights[kK_k]->data, weights[kK_a]->data};
          a.norm = {weights[kLnW]->data, weights[kLnB]->data, weights[kR_k]->data, 64e-5f};
          a.r = in[kR]->data, a.k = in[kK]->data, a.v = in[kV]->data, a.lw = in[kLw]->data, a.la = in[kLa]->data, a.lv = in[kLv]->data, a.g = in[kG]->data, a.v_first = in[kVFirst]->data;
          a.out = out.data, a.bf16 = true;
          a.stored = stored, a.slot_stride = uint64_t{H} * N * N;
          a.used = used.data, a.starts = starts.data, a.slots = starts.data;
          a.n_seqs = B, a.n_head = H, a.head_size = N;
          a.state = pool.data;
          if (const cudaError_t e = variant.run(a, stream); e != cudaSuccess || cudaStreamSynchronize(stream) != cudaSuccess) {
            std::printf("     %-12s not launched: %s\n", variant.name.c_str(), cudaGetErrorString(e));
            cudaGetLastError();
            continue;
          }
          cudaGraph_t graph;
          cudaGraphExec_t runs;
          int turn = 0;
          std::vector<cudaGraphExec_t> graphs;  // several, so that the states of all turns are used
          for (uint64_t g = 0; g < (turns + kLaunches - 1) / kLaunches; ++g) {
            lab::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeRelaxed), "capture");
            for (int i = 0; i < kLaunches; ++i) {
              a.state = reinterpret_cast<char*>(pool.data) + turn++ % turns * state;
              lab::check(variant.run(a, stream), "launch");
            }
            lab::check(cudaStreamEndCapture(stream, &graph), "capture");
            lab::check(cudaGraphInstantiate(&runs, graph, 0), "cudaGraphInstantiate");
            cudaGraphDestroy(graph);
            graphs.push_back(runs);
          }
          const double us = best_ms(5, stream, [&] {
                              for (const cudaGraphExec_t g : graphs) lab::check(cudaGraphLaunch(g, stream), "cudaGraphLaunch");
                            }) / (kLaunches * graphs.size()) * 1e3;
          for (const cudaGraphExec_t g : graphs) cudaGraphExecDestroy(g);
          std::printf("     %-12s %8.2f us  %5.1f %% of the read rate, %5.1f %% of the copy's\n", variant.name.c_str(), us, 100 * at_read / us, 100 * at_copy / us);
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::string part = argc > 1 ? argv[1] : "all";
  cudaDeviceProp device;
  lab::check(cudaGetDeviceProperties(&device, 0), "cudaGetDeviceProperties");
  std::printf("%s, %d multiprocessors\n", device.name, device.multiProcessorCount);
  if (part != "time")
    for (const duet_dtype stored : {DUET_F32, DUET_BF16, DUET_F16})
      for (const bool first_layer : {false, true})
        for (const auto& [H, B] : {std::pair(1u, 1u), std::pair(3u, 9u), std::pair(12u, 40u), std::pair(64u, 33u), std::pair(2u, 300u)}) test(H, B, stored, first_layer);
  if (part != "test" && failures == 0) time_all();
  std::printf("%s: %d failed\n", failures ? "FAIL" : "ok", failures);
  return failures ? 1 : 0;
}
