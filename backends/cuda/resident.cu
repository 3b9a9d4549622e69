// All layers for one token, without a kernel's end between a step and the next. One block a multiprocessor. Its last warp
// copies the block's share of all weights, in the order in which they are used, into a ring in shared memory, as fast as the
// ring takes them: it waits for no result, so that the memory is busy while the other warps wait for each other's blocks.
// A layer has five steps, with a barrier of all blocks after each:
//   1  token shift of time mix; rows of receptance, key, value and of the first low-rank matrices
//   2  a block a head: the second low-rank matrices' rows of it, wkv, norm and gate
//   3  rows of output, added to x
//   4  token shift of channel mix; rows of key, and for each input u of relu^2 that is not zero u times its row of value, for
//      all outputs at once: a block's part of a sum over blocks
//   5  columns of these sums, added to x
// All sums have a fixed order.
#include "resident.h"

#include <algorithm>

#include "barrier.h"
#include "device.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::bf16;
using duet_gpu::Error;

constexpr uint32_t kWarps = 16, kWorkers = 32 * kWarps, kThreads = kWorkers + 32;
constexpr uint32_t kStages = 11, kStageBytes = 16 << 10;
constexpr uint32_t kMaxWidth = 8 * kWorkers;  // eight columns a thread
constexpr uint32_t kMaxLayers = 128;
constexpr uint32_t kHead = 64;                // elements
constexpr uint32_t kMaxInputs = 4;            // different inputs of a block's rows in step 1
constexpr uint32_t kTile = 16;                // rows of key between which rows of value are fetched
constexpr uint32_t kMaxSlice = 1024;          // rows of key of a block
constexpr uint64_t kPatience = 20'000'000'000;  // ns at a barrier before the kernel gives up: rather a fault than a hang

// ---- what the host hands over ----

struct Plan {
  const char* layer[kMaxLayers];
  uint32_t offset[2][DUETP_T_COUNT];  // of tensors in a layer's memory: of layer 0, of the others
  uint32_t first, n, C, F, n_head, rank[4];  // ranks: w, a, v, g, in the order of DUETP_T_W1
  float ln_eps, gn_eps;
  Resident a;
};

struct Layer {
  const char* memory;
  const uint32_t* offset;
  bool is_first;
  __device__ Layer(const Plan& p, uint32_t i) : memory(p.layer[i]), offset(p.offset[p.first + i > 0]), is_first(p.first + i == 0) {}
  __device__ const bf16* matrix(uint32_t id) const { return reinterpret_cast<const bf16*>(memory + offset[id]); }
  __device__ const float* vector(uint32_t id) const { return reinterpret_cast<const float*>(memory + offset[id]); }
};

struct Share {
  uint32_t begin, end;
};
__device__ __forceinline__ Share share(uint32_t n) { return {n * blockIdx.x / gridDim.x, n * (blockIdx.x + 1) / gridDim.x}; }

// The products of step 1, one after another: r, k, v and the low-rank w, a, v, g
constexpr uint32_t kProducts = 7;
__host__ __device__ __forceinline__ uint32_t product_rows(uint32_t product, uint32_t C, const uint32_t (&rank)[4], bool first_layer) {
  return product < 3 ? C : product == 5 && first_layer ? 0 : rank[product - 3];
}
__device__ __forceinline__ uint32_t matrix_of(uint32_t product) { return product < 3 ? DUETP_T_RECEPTANCE + product : DUETP_T_W1 + product - 3; }
__device__ __forceinline__ uint32_t mix_of(uint32_t product) {
  constexpr uint32_t kMix[kProducts] = {DUETP_T_X_R, DUETP_T_X_K, DUETP_T_X_V, DUETP_T_X_W, DUETP_T_X_A, DUETP_T_X_V, DUETP_T_X_G};
  return kMix[product];
}
// f(product, first row, end row) for each product of which the block has rows
template <class F>
__device__ __forceinline__ void for_products(const Plan& p, bool first_layer, F&& f) {
  uint32_t n = 0, at = 0;
  for (uint32_t q = 0; q < kProducts; ++q) n += product_rows(q, p.C, p.rank, first_layer);
  const Share mine = share(n);
  for (uint32_t q = 0; q < kProducts; ++q) {
    const uint32_t rows = product_rows(q, p.C, p.rank, first_layer), begin = max(at, mine.begin), end = min(at + rows, mine.end);
    if (begin < end) f(q, begin - at, end - at);
    at += rows;
  }
}
__device__ __forceinline__ uint32_t rows_of_stage(uint32_t n_in) { return kStageBytes / (2 * n_in); }
// Of the second low-rank matrices, where a warp has four rows
__device__ __forceinline__ uint32_t low_rows_of_stage(uint32_t rank) { return min(kHead, rows_of_stage(rank) & ~3u); }

// ---- the ring ----

struct Shared {
  uint64_t full[kStages], empty[kStages], ready[2];  // ready: u of a tile
  float sums[4][kWarps];
  float u[kMaxSlice];
  float low[4][kHead];  // second low-rank products
  float r[kHead], w[kHead], k[kHead], v[kHead], minus_kk[kHead], b[kHead], g[kHead], y[kHead];
};

__device__ __forceinline__ uint64_t nanoseconds() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}
template <class Passed>
__device__ __forceinline__ void wait_for(Passed&& passed) {
  if (passed()) return;
  uint64_t since = 0;
  for (uint32_t i = 1; !passed(); ++i) {
    if (i % 1024 != 0) continue;
    if (since == 0) since = nanoseconds();
    if (nanoseconds() - since > kPatience) __trap();
  }
}

struct Ring {
  char* data;
  Shared& s;
  uint32_t stage = 0, parity = 0;
  __device__ char* memory() const { return data + stage * kStageBytes; }
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  // The copying warp's: room for a stage of so many bytes
  __device__ void open(uint32_t bytes) {
    wait_for([&] { return barrier_passed_soon(&s.empty[stage], parity ^ 1); });
    barrier_expect(&s.full[stage], bytes);
  }
  __device__ void copy(uint32_t at, const void* from, uint32_t bytes) { copy_bulk(memory() + at, from, bytes, &s.full[stage]); }
  // The workers': every warp takes every stage, also if it needs nothing of it
  __device__ const uint4* take() {
    wait_for([&] { return barrier_passed_soon(&s.full[stage], parity); });
    return reinterpret_cast<const uint4*>(memory());
  }
  __device__ void give_back() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&s.empty[stage]);
    next();
  }
};

// ---- copying: one thread ----

__device__ void copy_rows(Ring& ring, const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
  for (uint32_t row = 0; row < n_rows; row += at_once) {
    const uint32_t bytes = min(at_once, n_rows - row) * n_in * 2;
    ring.open(bytes);
    ring.copy(0, from + static_cast<uint64_t>(row) * n_in, bytes);
    ring.next();
  }
}

// Which inputs of a tile are not zero
__device__ __forceinline__ uint32_t nonzero(const float* u, uint32_t n) {
  uint32_t mask = 0;
  for (uint32_t i = 0; i < n; ++i) mask |= (u[i] != 0 ? 1u : 0u) << i;
  return mask;
}

__device__ void copy_values(Ring& ring, const bf16* value, uint32_t mask, uint32_t C) {
  const uint32_t at_once = rows_of_stage(C);
  while (mask != 0) {
    const uint32_t n = min(at_once, static_cast<uint32_t>(__popc(mask)));
    ring.open(n * C * 2);
    for (uint32_t i = 0; i < n; ++i, mask &= mask - 1) ring.copy(i * C * 2, value + static_cast<uint64_t>(__ffs(mask) - 1) * C, C * 2);
    ring.next();
  }
}

__device__ void copy_layers(const Plan& p, Ring ring) {
  const uint32_t C = p.C;
  uint32_t tiles = 0;  // that are over
  for (uint32_t i = 0; i < p.n; ++i) {
    const Layer l(p, i);
    for_products(p, l.is_first, [&](uint32_t q, uint32_t begin, uint32_t end) {
      copy_rows(ring, l.matrix(matrix_of(q)) + static_cast<uint64_t>(begin) * C, end - begin, C, rows_of_stage(C));
    });
    if (blockIdx.x < p.n_head)
      for (uint32_t m = 0; m < 4; ++m)
        if (m != 2 || !l.is_first) copy_rows(ring, l.matrix(DUETP_T_W2 + m) + static_cast<uint64_t>(blockIdx.x) * kHead * p.rank[m], kHead, p.rank[m], low_rows_of_stage(p.rank[m]));
    const Share outputs = share(C), inner = share(p.F);
    copy_rows(ring, l.matrix(DUETP_T_OUTPUT) + static_cast<uint64_t>(outputs.begin) * C, outputs.end - outputs.begin, C, rows_of_stage(C));
    const uint32_t n = inner.end - inner.begin;
    const auto tile = [&](uint32_t at) { return min(kTile, n - at); };
    for (uint32_t at = 0; at < n + kTile; at += kTile) {  // value is a tile behind key
      if (at < n) copy_rows(ring, l.matrix(DUETP_T_FFN_KEY) + static_cast<uint64_t>(inner.begin + at) * C, tile(at), C, rows_of_stage(C));
      if (at < kTile) continue;
      const uint32_t before = at - kTile;
      wait_for([&] { return barrier_passed_soon(&ring.s.ready[tiles % 2], tiles / 2 % 2); });
      ++tiles;
      copy_values(ring, l.matrix(DUETP_T_FFN_VALUE) + static_cast<uint64_t>(inner.begin + before) * C, nonzero(ring.s.u + before, tile(before)), C);
    }
  }
}

// ---- working ----

__device__ __forceinline__ void workers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(kWorkers) : "memory"); }

__device__ __forceinline__ float low_half(uint32_t w) { return __uint_as_float(w << 16); }
__device__ __forceinline__ float high_half(uint32_t w) { return __uint_as_float(w & 0xffff0000u); }
__device__ __forceinline__ void multiply_add(uint4 w, uint4 x, float& a, float& b) {
  a = fmaf(low_half(w.x), low_half(x.x), a), b = fmaf(high_half(w.x), high_half(x.x), b);
  a = fmaf(low_half(w.y), low_half(x.y), a), b = fmaf(high_half(w.y), high_half(x.y), b);
  a = fmaf(low_half(w.z), low_half(x.z), a), b = fmaf(high_half(w.z), high_half(x.z), b);
  a = fmaf(low_half(w.w), low_half(x.w), a), b = fmaf(high_half(w.w), high_half(x.w), b);
}
template <int kLanes>
__device__ __forceinline__ float lane_sum(float x) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(~0u, x, d);
  return x;
}
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Eight columns of a thread
struct Eight {
  float v[8];
  __device__ float& operator[](int i) { return v[i]; }
  __device__ const float& operator[](int i) const { return v[i]; }
};
__device__ __forceinline__ Eight read_eight(const float* p, uint32_t column, uint32_t n) {
  Eight e{};
  if (column >= n) return e;
  const float4 a = __ldg(reinterpret_cast<const float4*>(p + column)), b = __ldg(reinterpret_cast<const float4*>(p + column) + 1);
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}
__device__ __forceinline__ Eight read_eight_of_others(const float* p, uint32_t column, uint32_t n) {  // not from this multiprocessor's cache
  Eight e{};
  if (column >= n) return e;
  const float4 a = __ldcg(reinterpret_cast<const float4*>(p + column)), b = __ldcg(reinterpret_cast<const float4*>(p + column) + 1);
  return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
}
__device__ __forceinline__ void write_eight(float* p, const Eight& e) {
  reinterpret_cast<float4*>(p)[0] = {e[0], e[1], e[2], e[3]};
  reinterpret_cast<float4*>(p)[1] = {e[4], e[5], e[6], e[7]};
}
__device__ __forceinline__ uint4 to_bf16(const Eight& e) {
  uint4 out;
  __nv_bfloat162 h[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) h[i] = __floats2bfloat162_rn(e[2 * i], e[2 * i + 1]);
  memcpy(&out, h, sizeof out);
  return out;
}

struct Worker {
  const Plan& p;
  Shared& s;
  Ring ring;
  char* scratch;  // inputs of products, bf16 [kMaxInputs, C], or sums of value, f32 [kWorkers, 8]
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = 8 * threadIdx.x;
  uint32_t meetings = 0;  // of all blocks
  uint32_t tiles = 0;

  __device__ uint4* input(uint32_t i) const { return reinterpret_cast<uint4*>(scratch) + i * (p.C / 8); }

  // A barrier of all blocks in two parts. What other blocks wrote before it is read from the L2 cache.
  __device__ void arrive() {
    workers_meet();
    ++meetings;
    if (threadIdx.x == 0) {
      __threadfence();
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(p.a.scratch.tickets) : "memory");
    }
  }
  __device__ void meet() const {
    if (threadIdx.x == 0)
      wait_for([&] {
        uint32_t n;
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(n) : "l"(p.a.scratch.tickets) : "memory");
        return n >= meetings * gridDim.x;
      });
    workers_meet();
  }

  // The sum over all threads; `which` of the arrays is free again after the next meeting of workers.
  __device__ float sum(float x, uint32_t which) const {
    x = lane_sum<32>(x);
    if (lane == 0) s.sums[which][warp] = x;
    workers_meet();
    float total = 0;
#pragma unroll
    for (uint32_t i = 0; i < kWarps; ++i) total += s.sums[which][i];
    return total;
  }

  __device__ Eight norm(const Eight& x, const Eight& w, const Eight& b) const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) total += x[i];
    const float mean = sum(total, 0) / p.C;
    float square = 0;
    if (column < p.C)
#pragma unroll
      for (int i = 0; i < 8; ++i) square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(sum(square, 1) / p.C + p.ln_eps);
    Eight y;
#pragma unroll
    for (int i = 0; i < 8; ++i) y[i] = (x[i] - mean) * scale * w[i] + b[i];
    return y;
  }

  __device__ void mix(const Eight& y, const Eight& before, const Eight& m, uint32_t to) const {
    if (column >= p.C) return;
    Eight out;
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = y[i] + (before[i] - y[i]) * m[i];
    input(to)[threadIdx.x] = to_bf16(out);
  }

  // Rows of a matrix times x, a row a warp: done(row, sum) by one lane. `taken` counts rows, so that they go round.
  template <class Done>
  __device__ void rows(uint32_t n_rows, const uint4* x, uint32_t& taken, Done&& done) {
    const uint32_t n = p.C / 8, at_once = rows_of_stage(p.C);
    for (uint32_t first = 0; first < n_rows; first += at_once) {
      const uint32_t here = min(at_once, n_rows - first);
      const uint4* w = ring.take();
      for (uint32_t i = (warp - taken) % kWarps; i < here; i += kWarps) {
        float a = 0, b = 0;
#pragma unroll 4
        for (uint32_t j = lane; j < n; j += 32) multiply_add(w[i * n + j], x[j], a, b);
        const float total = lane_sum<32>(a + b);
        if (lane == 0) done(first + i, total);
      }
      ring.give_back();
      taken += here;
    }
  }

  __device__ void time_mix_products(const Layer& l, Eight& y, float* state) {
    const Eight w = read_eight(l.vector(DUETP_T_LN1_W), column, p.C), b = read_eight(l.vector(DUETP_T_LN1_B), column, p.C);
    const Eight before = state ? read_eight_of_others(state, column, p.C) : Eight{};
    uint32_t products[kMaxInputs], n_products = 0;
    for_products(p, l.is_first, [&](uint32_t q, uint32_t, uint32_t) {
#pragma unroll
      for (uint32_t i = 0; i < kMaxInputs; ++i)
        if (i == n_products) products[i] = q;
      ++n_products;
    });
    Eight m[kMaxInputs];
#pragma unroll
    for (uint32_t i = 0; i < kMaxInputs; ++i)
      if (i < n_products) m[i] = read_eight(l.vector(mix_of(products[i])), column, p.C);
    meet();
    y = norm(read_eight_of_others(p.a.x, column, p.C), w, b);
#pragma unroll
    for (uint32_t i = 0; i < kMaxInputs; ++i)
      if (i < n_products) mix(y, before, m[i], i);
    workers_meet();
    uint32_t taken = 0, which = 0;
    const ResidentScratch& to = p.a.scratch;
    for_products(p, l.is_first, [&](uint32_t q, uint32_t begin, uint32_t end) {
      const uint4* x = input(which++);
      if (q < 3) return rows(end - begin, x, taken, [&](uint32_t row, float sum) { to.rkv[q * p.C + begin + row] = sum; });
      bf16* low = static_cast<bf16*>(to.low) + begin;
      for (uint32_t i = 3; i < q; ++i) low += p.rank[i - 3];
      rows(end - begin, x, taken, [&](uint32_t row, float sum) { low[row] = __float2bfloat16_rn(q == 3 ? tanhf(sum) : q == 6 ? sigmoid(sum) : sum); });
    });
    arrive();
  }

  // The sums of a and b over the first 64 threads, to those. Everyone comes.
  __device__ float2 head_sum(float a, float b) const {
    if (threadIdx.x < kHead) {
      a = lane_sum<32>(a), b = lane_sum<32>(b);
      if (lane == 0) s.sums[2][warp] = a, s.sums[3][warp] = b;
    }
    workers_meet();
    const float2 total = {s.sums[2][0] + s.sums[2][1], s.sums[3][0] + s.sums[3][1]};
    workers_meet();
    return total;
  }

  // Thread (row of S, eighth) has eight keys of it.
  __device__ void head(const Layer& l, float* state) {
    const uint32_t C = p.C, i = threadIdx.x, row = i / 8, channel = blockIdx.x * kHead + i;
    const bool has_channel = i < kHead;
    float w0 = 0, a0 = 0, v0 = 0, k_k = 0, k_a = 0, r_k = 0, ln_w = 0, ln_b = 0;
    if (has_channel) {
      w0 = l.vector(DUETP_T_W0)[channel], a0 = l.vector(DUETP_T_A0)[channel], k_k = l.vector(DUETP_T_K_K)[channel], k_a = l.vector(DUETP_T_K_A)[channel];
      r_k = l.vector(DUETP_T_R_K)[channel], ln_w = l.vector(DUETP_T_LN_X_W)[channel], ln_b = l.vector(DUETP_T_LN_X_B)[channel];
      if (!l.is_first) v0 = l.vector(DUETP_T_V0)[channel];
    }
    float* mine = state ? state + (static_cast<uint64_t>(blockIdx.x) * kHead * kHead + 8 * i) : nullptr;
    Eight S{};
    if (mine) {
      const float4 a = __ldcs(reinterpret_cast<const float4*>(mine)), b = __ldcs(reinterpret_cast<const float4*>(mine) + 1);
      S = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    }
    meet();

    const uint32_t n_hidden = (p.rank[0] + p.rank[1] + p.rank[2] + p.rank[3]) / 8;
    for (uint32_t j = i; j < n_hidden; j += kWorkers) input(0)[j] = __ldcg(static_cast<const uint4*>(p.a.scratch.low) + j);
    float r = 0, k = 0, v = 0, v_first = 0;
    if (has_channel) {
      r = __ldcg(p.a.scratch.rkv + channel), k = __ldcg(p.a.scratch.rkv + C + channel), v = __ldcg(p.a.scratch.rkv + 2 * C + channel);
      if (!l.is_first) v_first = __ldcg(p.a.v_first + channel);
    }
    workers_meet();
    const uint4* hidden = input(0);
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t n = p.rank[m] / 8, at_once = low_rows_of_stage(p.rank[m]);
      if (m != 2 || !l.is_first)
        for (uint32_t first = 0; first < kHead; first += at_once) {
          const uint4* w = ring.take();
          if (row >= first && row < min(first + at_once, kHead)) {
            float a = 0, b = 0;
#pragma unroll 2
            for (uint32_t j = i % 8; j < n; j += 8) multiply_add(w[(row - first) * n + j], hidden[j], a, b);
            const float total = lane_sum<8>(a + b);
            if (i % 8 == 0) s.low[m][row] = total;
          }
          ring.give_back();
        }
      hidden += n;
    }
    workers_meet();

    float in_context = 0, kk = 0;
    if (has_channel) {
      in_context = sigmoid(a0 + s.low[1][i]);
      s.w[i] = expf(-0.60653065971263342f * sigmoid(w0 + s.low[0][i]));
      s.g[i] = s.low[3][i];
      if (!l.is_first)
        v += (v_first - v) * sigmoid(v0 + s.low[2][i]);
      else
        p.a.v_first[channel] = v;
      kk = k * k_k;
      k *= 1.0f + (in_context - 1.0f) * k_a;
      s.r[i] = r, s.k[i] = k, s.v[i] = v;
    }
    const float2 sums = head_sum(kk * kk, r * k * r_k);
    if (has_channel) {
      kk /= fmaxf(sqrtf(sums.x), 1e-12f);
      s.minus_kk[i] = -kk;
      s.b[i] = kk * in_context;
    }
    workers_meet();

    const uint32_t key = i % 8 * 8;
    float removed = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) removed = fmaf(S[j], s.minus_kk[key + j], removed);
    removed = lane_sum<8>(removed);
    const float value = s.v[row];
    float y = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      S[j] = S[j] * s.w[key + j] + removed * s.b[key + j] + value * s.k[key + j];
      y = fmaf(S[j], s.r[key + j], y);
    }
    if (mine) {
      __stcs(reinterpret_cast<float4*>(mine), float4{S[0], S[1], S[2], S[3]});
      __stcs(reinterpret_cast<float4*>(mine) + 1, float4{S[4], S[5], S[6], S[7]});
    }
    y = lane_sum<8>(y);
    if (i % 8 == 0) s.y[row] = y;
    workers_meet();
    const float own = has_channel ? s.y[i] : 0, mean = head_sum(own, 0).x / kHead, centred = own - mean;
    const float variance = head_sum(centred * centred, 0).x / kHead;
    if (has_channel)
      static_cast<bf16*>(p.a.scratch.gated)[channel] = __float2bfloat16_rn((centred * (1.0f / sqrtf(variance + p.gn_eps)) * ln_w + ln_b + sums.y * v) * s.g[i]);
  }

  __device__ void output(const Layer& l) {
    meet();
    if (column < p.C) input(0)[threadIdx.x] = __ldcg(static_cast<const uint4*>(p.a.scratch.gated) + threadIdx.x);
    workers_meet();
    const Share mine = share(p.C);
    uint32_t taken = 0;
    rows(mine.end - mine.begin, input(0), taken, [&](uint32_t row, float sum) { atomicAdd(p.a.x + mine.begin + row, sum); });  // nobody else adds here
    arrive();
  }

  __device__ void channel_mix(const Layer& l, Eight& y, float* state) {
    const Eight w = read_eight(l.vector(DUETP_T_LN2_W), column, p.C), b = read_eight(l.vector(DUETP_T_LN2_B), column, p.C), m = read_eight(l.vector(DUETP_T_FFN_X_K), column, p.C);
    const Eight before = state ? read_eight_of_others(state, column, p.C) : Eight{};
    meet();
    y = norm(read_eight_of_others(p.a.x, column, p.C), w, b);
    mix(y, before, m, 0);
    workers_meet();

    const Share inner = share(p.F);
    const uint32_t n = inner.end - inner.begin, across = p.C / 8, abreast = kWorkers / across, group = threadIdx.x / across, at_once = rows_of_stage(p.C);
    const auto tile = [&](uint32_t at) { return min(kTile, n - at); };
    Eight sums{};
    uint32_t taken = 0, taken_values = 0;
    for (uint32_t at = 0; at < n + kTile; at += kTile) {
      if (at < n) {
        rows(tile(at), input(0), taken, [&](uint32_t row, float sum) {
          const float positive = fmaxf(sum, 0.0f);
          s.u[at + row] = __bfloat162float(__float2bfloat16_rn(positive * positive));
        });
        __syncwarp();
        if (lane == 0) barrier_arrive(&s.ready[(tiles + at / kTile) % 2]);
      }
      if (at < kTile) continue;
      const uint32_t before_at = at - kTile, of = tiles + before_at / kTile;
      wait_for([&] { return barrier_passed_soon(&s.ready[of % 2], of / 2 % 2); });
      for (uint32_t mask = nonzero(s.u + before_at, tile(before_at)); mask != 0;) {
        const uint32_t here = min(at_once, static_cast<uint32_t>(__popc(mask)));
        const uint4* rows_of_value = ring.take();
        for (uint32_t i = 0; i < here; ++i, mask &= mask - 1) {
          if ((taken_values + i) % abreast != group) continue;
          const float u = s.u[before_at + __ffs(mask) - 1];
          const uint4 v = rows_of_value[i * across + threadIdx.x % across];
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[2 * j] = fmaf(u, low_half(words[j]), sums[2 * j]), sums[2 * j + 1] = fmaf(u, high_half(words[j]), sums[2 * j + 1]);
        }
        ring.give_back();
        taken_values += here;
      }
    }
    tiles += (n + kTile - 1) / kTile;

    float* parts = p.a.scratch.parts + static_cast<uint64_t>(blockIdx.x) * p.C;
    if (abreast > 1) {  // all have read the input by now: every warp's last u came after its last row
      float* of_groups = reinterpret_cast<float*>(scratch);  // [abreast, C]
      workers_meet();
      if (group < abreast) write_eight(of_groups + group * p.C + 8 * (threadIdx.x % across), sums);
      workers_meet();
      if (group == 0)
        for (uint32_t g = 1; g < abreast; ++g)
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[j] += of_groups[g * p.C + column + j];
    }
    if (group == 0) write_eight(parts + column, sums);
    arrive();
  }

  __device__ void add_parts() {
    meet();
    const Share mine = share(p.C);
    float* of_warps = reinterpret_cast<float*>(scratch);  // [kWarps, 32]
    for (uint32_t first = mine.begin; first < mine.end; first += 32) {
      const uint32_t c = first + lane;
      float total = 0;
      if (c < mine.end)
#pragma unroll 16
        for (uint32_t b = warp; b < gridDim.x; b += kWarps) total += __ldcg(p.a.scratch.parts + static_cast<uint64_t>(b) * p.C + c);
      of_warps[warp * 32 + lane] = total;
      workers_meet();
      if (warp == 0 && c < mine.end) {
        float all = 0;
#pragma unroll
        for (uint32_t i = 0; i < kWarps; ++i) all += of_warps[i * 32 + lane];
        atomicAdd(p.a.x + c, all);  // nobody else adds here
      }
      workers_meet();
    }
    arrive();
  }

  __device__ void run() {
    const int32_t slot = p.a.slots[0];
    const bool keeps = blockIdx.x == gridDim.x - 1 && column < p.C && slot >= 0;  // the token shifts' vectors
    for (uint32_t i = 0; i < p.n; ++i) {
      const Layer l(p, i);
      float* att_x = slot < 0 ? nullptr : p.a.state + (p.first + i) * p.a.layer_stride + static_cast<uint64_t>(slot) * p.a.slot_stride;
      float *S = att_x ? att_x + p.C : nullptr, *ffn_x = att_x ? S + static_cast<uint64_t>(p.C) * kHead : nullptr;
      Eight y;
      time_mix_products(l, y, att_x);
      if (blockIdx.x < p.n_head)
        head(l, S);
      else
        meet();
      if (keeps) write_eight(att_x + column, y);  // all have read the one before
      arrive();
      output(l);
      channel_mix(l, y, ffn_x);
      add_parts();
      if (keeps) write_eight(ffn_x + column, y);
    }
  }
};

__global__ void __launch_bounds__(kThreads, 1) resident_kernel(__grid_constant__ const Plan p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory + kStages * kStageBytes);
  char* scratch = memory + kStages * kStageBytes + (sizeof(Shared) + 15) / 16 * 16;
  if (p.a.used[0] == 0 || p.a.starts[1] == 0) return;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], kWarps);
    for (uint64_t& r : s.ready) barrier_init(&r, kWarps);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  Ring ring{memory, s};
  if (threadIdx.x >= kWorkers) {
    if (threadIdx.x == kWorkers) copy_layers(p, ring);
    return;
  }
  Worker worker{p, s, ring, scratch};
  worker.run();
  if (threadIdx.x == 0 && atomicInc(p.a.scratch.tickets + 1, gridDim.x - 1) == gridDim.x - 1) p.a.scratch.tickets[0] = 0;  // the last one, for the next run
#endif
}

uint32_t scratch_bytes(uint32_t C) { return std::max(kMaxInputs * C * 2, kWorkers * 8 * 4); }
uint32_t shared_bytes(uint32_t C) { return kStages * kStageBytes + (sizeof(Shared) + 15) / 16 * 16 + scratch_bytes(C); }

}  // namespace

bool resident_takes(const duetp_layer& l) {
  const duetp_shape& s = l.shape;
  const uint32_t blocks = multiprocessors(), C = s.n_embd;
  if (duet_gpu::device_attribute(cudaDevAttrComputeCapabilityMajor, 0) < 9 || duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) < static_cast<int>(shared_bytes(C))) return false;
  if (l.weights != DUET_BF16 || s.head_size != kHead || C > kMaxWidth || s.n_head > blocks || (s.n_ffn + blocks - 1) / blocks > kMaxSlice || s.n_layer > kMaxLayers) return false;
  const uint32_t rank[4] = {s.rank_w, s.rank_a, s.rank_v, s.rank_g};
  uint32_t ranks = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    if (rank[i] % 8 != 0 || rank[i] * 2 * 4 > kStageBytes) return false;
    ranks += rank[i];
  }
  if (ranks * 2 > scratch_bytes(C)) return false;
  for (const bool first : {false, true}) {  // how many products a block's rows belong to
    uint32_t n = 0;
    for (uint32_t q = 0; q < kProducts; ++q) n += product_rows(q, C, rank, first);
    for (uint32_t b = 0; b < blocks; ++b) {
      uint32_t at = 0, products = 0;
      for (uint32_t q = 0; q < kProducts; ++q) {
        const uint32_t rows = product_rows(q, C, rank, first);
        if (std::max(at, n * b / blocks) < std::min(at + rows, n * (b + 1) / blocks)) ++products;
        at += rows;
      }
      if (products > kMaxInputs) return false;
    }
  }
  return true;
}

uint64_t resident_parts_bytes(uint32_t n_embd) { return static_cast<uint64_t>(multiprocessors()) * n_embd * sizeof(float); }

Error resident_layers(const Resident& a, duet_gpu::Stream stream) {
  if (a.n == 0) return cudaSuccess;
  const duetp_shape& s = a.layers[a.first]->shape;
  Plan p{};
  if (a.n > kMaxLayers) return cudaErrorInvalidValue;
  for (uint32_t i = 0; i < a.n; ++i) {
    const duetp_layer& l = *a.layers[a.first + i];
    p.layer[i] = l.memory.data();
    const duetp_layer& like = *a.layers[l.index == 0 || i == 0 ? a.first + i : a.first + (a.first == 0 ? 1 : 0)];
    for (uint32_t id = 0; id < DUETP_T_COUNT; ++id) {
      if (l.offset[id] != like.offset[id] || (l.has(id) && l.offset[id] > ~0u)) return cudaErrorInvalidValue;
      p.offset[l.index > 0][id] = static_cast<uint32_t>(l.offset[id]);
    }
  }
  p.first = a.first, p.n = a.n, p.C = s.n_embd, p.F = s.n_ffn, p.n_head = s.n_head;
  p.rank[0] = s.rank_w, p.rank[1] = s.rank_a, p.rank[2] = s.rank_v, p.rank[3] = s.rank_g;
  p.ln_eps = s.ln_eps, p.gn_eps = s.gn_eps;
  p.a = a;
  const uint32_t shared = shared_bytes(s.n_embd);
  if (const Error e = cudaFuncSetAttribute(resident_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)); e != cudaSuccess) return e;
  cudaLaunchAttribute all_at_once{};
  all_at_once.id = cudaLaunchAttributeCooperative;
  all_at_once.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(multiprocessors());
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &all_at_once;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, resident_kernel, p);
}

}  // namespace duet_cuda
