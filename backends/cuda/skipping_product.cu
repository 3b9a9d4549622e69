// The product that skips the rows of w whose input is zero.
#include <algorithm>
#include <type_traits>

#include "fragment.h"
#include "product.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::bf16;
using duet_gpu::f16;
using duet_gpu::from_f32;
using duet_gpu::launch;
using duet_gpu::let_next_start;
using duet_gpu::to_f32;
using duet_gpu::wait_for_inputs;

constexpr uint32_t kThreads = 512, kWarps = kThreads / 32;

constexpr uint16_t kNone = 0xffff;  // on a list of inputs

// Up to four rows, any dtype. A block has `width` outputs and all inputs: nothing is left to add up between blocks. Each warp
// lists which of its share of the inputs are not zero, and multiplies their rows of w: width / 8 lanes side by side read 8
// outputs each, so that 256 / width inputs are read at a time.
struct FewPlan {
  SkippingProduct p;
  uint32_t width;  // of the outputs of a block: 8, 16, 32 or 64
  uint32_t share;  // inputs of a warp, a multiple of 32
};

template <class T>
struct Eight {  // 8 weights in a row
  std::conditional_t<sizeof(T) == 2, uint4, float4> v[sizeof(T) == 2 ? 1 : 2];
};
template <class T>
__device__ __forceinline__ Eight<T> read_eight(const T* p) {
  Eight<T> e;
  if constexpr (sizeof(T) == 2) {
    e.v[0] = stream_load(p);
  } else {
    e.v[0] = __ldcs(reinterpret_cast<const float4*>(p));
    e.v[1] = __ldcs(reinterpret_cast<const float4*>(p) + 1);
  }
  return e;
}
__device__ __forceinline__ float2 two(uint32_t w, bf16) { return {__uint_as_float(w << 16), __uint_as_float(w & 0xffff0000u)}; }
__device__ __forceinline__ float2 two(uint32_t w, f16) { return __half22float2(*reinterpret_cast<__half2*>(&w)); }
template <class T>
__device__ __forceinline__ void unpack(const Eight<T>& e, float (&out)[8]) {
  if constexpr (sizeof(T) == 2) {
    const uint32_t words[4] = {e.v[0].x, e.v[0].y, e.v[0].z, e.v[0].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 t = two(words[i], T());
      out[2 * i] = t.x, out[2 * i + 1] = t.y;
    }
  } else {
    out[0] = e.v[0].x, out[1] = e.v[0].y, out[2] = e.v[0].z, out[3] = e.v[0].w;
    out[4] = e.v[1].x, out[5] = e.v[1].y, out[6] = e.v[1].z, out[7] = e.v[1].w;
  }
}

template <class T, class U, uint32_t kRows>
__global__ void __launch_bounds__(kThreads, 1) skip_few_kernel(__grid_constant__ const FewPlan plan) {
  constexpr uint32_t kFlight = sizeof(T) == 4 ? 4 : kRows == 1 ? 16 : 8;  // inputs that a lane has in flight
  extern __shared__ __align__(128) char shared[];
  let_next_start();
  const SkippingProduct& p = plan.p;
  const uint32_t first_row = blockIdx.y * kRows, used = static_cast<uint32_t>(p.used[p.count_index]);
  wait_for_inputs();
  if (first_row >= used) return;
  const uint32_t n_rows = min(kRows, used - first_row), warp = threadIdx.x / 32, lane = threadIdx.x % 32, share = plan.share;
  const uint32_t begin = min(p.n_in, warp * share), n = min(share, p.n_in - begin);
  // of this warp: [share] inputs' values for all rows, then the list
  auto* u = reinterpret_cast<U*>(shared) + warp * share * kRows;
  auto* list = reinterpret_cast<uint16_t*>(reinterpret_cast<U*>(shared) + kWarps * share * kRows) + warp * share;
  const U* from = static_cast<const U*>(p.u) + static_cast<uint64_t>(first_row) * p.n_in + begin;
  uint32_t listed = 0;
  constexpr uint32_t kAtOnce = 16 / kRows;  // loads of a row that do not wait for one another
  for (uint32_t base = 0; base < n; base += 32 * kAtOnce) {
    U mine[kAtOnce][kRows];
#pragma unroll
    for (uint32_t k = 0; k < kAtOnce; ++k)
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) {
        const uint32_t f = base + 32 * k + lane;
        mine[k][r] = f < n && r < n_rows ? from[static_cast<uint64_t>(r) * p.n_in + f] : from_f32<U>(0);
      }
#pragma unroll
    for (uint32_t k = 0; k < kAtOnce; ++k) {
      bool any = false;
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) any |= to_f32(mine[k][r]) != 0;
      const uint32_t ballot = __ballot_sync(~0u, any), at = listed + __popc(ballot & ((1u << lane) - 1));
      if (any) {
        list[at] = static_cast<uint16_t>(base + 32 * k + lane);
#pragma unroll
        for (uint32_t r = 0; r < kRows; ++r) u[at * kRows + r] = mine[k][r];
      }
      listed += __popc(ballot);
    }
  }
  __syncwarp();

  const uint32_t across = plan.width / 8, abreast = 32 / across, column = blockIdx.x * plan.width + lane % across * 8;
  const T* w = static_cast<const T*>(p.w) + static_cast<uint64_t>(begin) * p.n_out + column;
  float sums[kRows][8] = {};
  if (column < p.n_out)
    for (uint32_t base = lane / across; base < listed; base += abreast * kFlight) {
      Eight<T> rows[kFlight];
#pragma unroll
      for (uint32_t k = 0; k < kFlight; ++k)
        if (const uint32_t at = base + k * abreast; at < listed) rows[k] = read_eight(w + static_cast<uint64_t>(list[at]) * p.n_out);
#pragma unroll
      for (uint32_t k = 0; k < kFlight; ++k) {
        const uint32_t at = base + k * abreast;
        if (at >= listed) break;
        float weights[8];
        unpack(rows[k], weights);
#pragma unroll
        for (uint32_t r = 0; r < kRows; ++r) {
          const float scale = to_f32(u[at * kRows + r]);
#pragma unroll
          for (int j = 0; j < 8; ++j) sums[r][j] = fmaf(scale, weights[j], sums[r][j]);
        }
      }
    }
  // first over the lanes that have the same outputs, then over the warps
  for (uint32_t d = across; d < 32; d *= 2)
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r)
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[r][j] += __shfl_xor_sync(~0u, sums[r][j], d);
  __syncthreads();  // the lists have been read: their memory is free
  float* parts = reinterpret_cast<float*>(shared);  // [warps][kRows][width]
  if (lane < across)
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r)
#pragma unroll
      for (int j = 0; j < 8; ++j) parts[(warp * kRows + r) * plan.width + 8 * lane + j] = sums[r][j];
  __syncthreads();
  if (threadIdx.x >= n_rows * plan.width) return;
  const uint32_t r = threadIdx.x / plan.width, o = threadIdx.x % plan.width;
  if (blockIdx.x * plan.width + o >= p.n_out) return;
  float* x = p.x + static_cast<uint64_t>(first_row + r) * p.n_out + blockIdx.x * plan.width + o;
  float sum = 0;
#pragma unroll
  for (uint32_t k = 0; k < kWarps; ++k) sum += parts[(k * kRows + r) * plan.width + o];
  *x += sum;
}

template <class T, class U, uint32_t kRows>
Error launch_skip_few(const SkippingProduct& p, Stream stream) {
  FewPlan plan{p, 8, (p.n_in + kWarps * 32 - 1) / (kWarps * 32) * 32};
  if constexpr (kRows > 1)
    if (kWarps * plan.share * (kRows * sizeof(U) + 2) > max_shared()) return launch_skip_few<T, U, 1>(p, stream);
  while (plan.width < 64 && (p.n_out + plan.width - 1) / plan.width > multiprocessors()) plan.width *= 2;
  const uint32_t shared = std::max(kWarps * plan.share * (kRows * static_cast<uint32_t>(sizeof(U)) + 2), kWarps * kRows * plan.width * 4);
  const auto kernel = skip_few_kernel<T, U, kRows>;
  if (const Error e = allow_shared(kernel); e != cudaSuccess) return e;
  return launch(kernel, dim3((p.n_out + plan.width - 1) / plan.width, (p.n_rows + kRows - 1) / kRows), dim3(kThreads), shared, stream, plan);
}

// More rows of bf16: by the tensor core, 64 outputs a warp.
constexpr uint32_t kGroup = 64;
constexpr uint32_t kRound = 2 * kThreads;  // inputs that a block lists at a time, two a thread

struct Cut {
  uint32_t n_groups;  // of 64 outputs in a block, a power of two up to 8; the other warps divide its inputs
  uint32_t columns;   // blocks side by side
  uint32_t slices;    // of the inputs, one a block
  uint32_t slice;     // inputs of a slice, a multiple of 16
};

// Enough blocks for the whole chip, slabs of rows counted in.
Cut cut(uint32_t n_out, uint32_t n_in, uint32_t n_slabs) {
  const uint32_t groups = (n_out + kGroup - 1) / kGroup, blocks = multiprocessors();
  Cut c{8, 0, 0, 0};
  while (c.n_groups > 1 && groups % c.n_groups != 0) c.n_groups /= 2;
  c.columns = (groups + c.n_groups - 1) / c.n_groups;
  const uint32_t max_slice = (max_shared() / (16 * 2 + 2) - 40) / 16 * 16;  // what fits into shared memory for 16 rows
  c.slices = std::max(std::min(blocks / (c.columns * n_slabs), (n_in + 15) / 16), (n_in + max_slice - 1) / max_slice);
  c.slice = ((n_in + c.slices - 1) / c.slices + 15) / 16 * 16;
  c.slices = (n_in + c.slice - 1) / c.slice;
  return c;
}

struct SkipPlan {
  SkippingProduct p;
  Cut cut;
  uint32_t* tickets;  // [row slabs][columns]
  float* parts;       // [row slabs][slices][kRows][n_out]
};

__device__ __forceinline__ uint32_t pair_low(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t pair_high(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

// The weights of a step of 16 listed inputs. Thread (g, t) reads the 8 outputs from 8 g of the inputs 4 t to 4 t + 3: whole lines.
struct Step {
  uint4 row[4];
};
__device__ __forceinline__ Step fetch(const bf16* w, uint32_t n_out, const uint16_t* list, uint32_t column) {
  const uint32_t lane = threadIdx.x % 32, at = column + 8 * (lane / 4);
  const ushort4 f = reinterpret_cast<const ushort4*>(list)[lane % 4];
  const uint16_t rows[4] = {f.x, f.y, f.z, f.w};
  Step s;
#pragma unroll
  for (int i = 0; i < 4; ++i) s.row[i] = rows[i] != kNone && at < n_out ? stream_load(w + static_cast<uint64_t>(rows[i]) * n_out + at) : uint4{0, 0, 0, 0};
  return s;
}
// Outputs 8 g + 2 i and + 1 are output g and g + 8 of the tile i; pairs of inputs are put together from two rows.
template <int kTiles>
__device__ __forceinline__ void add(Sums (&sums)[kTiles][4], const Step& s, const bf16* u, uint32_t u_stride) {
  const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  uint2 b[kTiles];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) b[tile] = *reinterpret_cast<const uint2*>(u + (8 * tile + g) * u_stride + 4 * t);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto word = [&](int r) { return i == 0 ? s.row[r].x : i == 1 ? s.row[r].y : i == 2 ? s.row[r].z : s.row[r].w; };
    const uint32_t a0 = pair_low(word(0), word(1)), a1 = pair_high(word(0), word(1)), a2 = pair_low(word(2), word(3)), a3 = pair_high(word(2), word(3));
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) multiply(sums[tile][i], a0, a1, a2, a3, b[tile].x, b[tile].y);
  }
}

// Block (column part, slice of the inputs, slab of rows): lists the inputs that are not zero, adds up their rows of w, and
// leaves its part; the block that comes last adds all parts to x in the order of the slices.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, 1) skip_more_kernel(__grid_constant__ const SkipPlan plan) {
  constexpr uint32_t kRows = 8 * kTiles, kSteps = 3;
  extern __shared__ __align__(128) char shared[];
  __shared__ uint32_t counts[kWarps];
  __shared__ bool is_last;
  let_next_start();
  const SkippingProduct& p = plan.p;
  const uint32_t first_row = blockIdx.z * kRows, used = static_cast<uint32_t>(p.used[p.count_index]);
  wait_for_inputs();
  if (first_row >= used) return;
  const uint32_t n_rows = min(kRows, used - first_row), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t stride = plan.cut.slice + 16 + 8;  // of u in elements: rows start in different banks
  auto* u = reinterpret_cast<bf16*>(shared);        // [kRows][stride], only what is listed
  float* sums_of = reinterpret_cast<float*>(shared);  // later: [warps][kRows][64]
  auto* list = reinterpret_cast<uint16_t*>(shared + max(kRows * stride * 2, kWarps * kRows * kGroup * 4));

  const uint32_t begin = blockIdx.y * plan.cut.slice, n = min(plan.cut.slice, p.n_in - begin);
  const auto* from = static_cast<const bf16*>(p.u) + static_cast<uint64_t>(first_row) * p.n_in + begin;
  uint32_t listed = 0;
  for (uint32_t base = 0; base < n; base += kRound) {
    bf16 mine[2][kRows];
    uint32_t ballots[2];
#pragma unroll
    for (int k = 0; k < 2; ++k)
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) {
        const uint32_t f = base + 64 * warp + 32 * k + lane;
        mine[k][r] = f < n && r < n_rows ? from[static_cast<uint64_t>(r) * p.n_in + f] : bf16(0.0f);
      }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      bool any = false;
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) any |= to_f32(mine[k][r]) != 0;
      ballots[k] = __ballot_sync(~0u, any);
    }
    if (lane == 0) counts[warp] = __popc(ballots[0]) + __popc(ballots[1]);
    __syncthreads();
    uint32_t at = listed;
    for (uint32_t i = 0; i < kWarps; ++i) {
      at += i < warp ? counts[i] : 0;
      listed += counts[i];
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      if (ballots[k] >> lane & 1) {
        const uint32_t to = at + __popc(ballots[k] & ((1u << lane) - 1));
        list[to] = static_cast<uint16_t>(base + 64 * warp + 32 * k + lane);
#pragma unroll
        for (uint32_t r = 0; r < kRows; ++r) u[r * stride + to] = mine[k][r];
      }
      at += __popc(ballots[k]);
    }
    __syncthreads();
  }
  if (threadIdx.x < 16) {  // a whole number of steps
    list[listed + threadIdx.x] = kNone;
    for (uint32_t r = 0; r < kRows; ++r) u[r * stride + listed + threadIdx.x] = bf16(0.0f);
  }
  __syncthreads();

  const uint32_t n_groups = plan.cut.n_groups, column = (blockIdx.x * n_groups + warp % n_groups) * kGroup, parts = kWarps / n_groups, advance = 16 * parts;
  const bf16* w = static_cast<const bf16*>(p.w) + static_cast<uint64_t>(begin) * p.n_out;
  Sums sums[kTiles][4];
  Step steps[kSteps];
  const uint32_t first_step = 16 * (warp / n_groups);
#pragma unroll
  for (uint32_t k = 0; k < kSteps; ++k)
    if (first_step + k * advance < listed) steps[k] = fetch(w, p.n_out, list + first_step + k * advance, column);
  for (uint32_t base = first_step; base < listed; base += kSteps * advance)
#pragma unroll
    for (uint32_t k = 0; k < kSteps; ++k) {
      const uint32_t i = base + k * advance, next = i + kSteps * advance;
      if (i >= listed) break;
      add<kTiles>(sums, steps[k], u + i, stride);
      if (next < listed) steps[k] = fetch(w, p.n_out, list + next, column);
    }
  __syncthreads();  // u has been read: its memory is free for the sums
  const uint32_t g = lane / 4, t = lane % 4;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sums_of[(warp * kRows + 8 * tile + 2 * t + j % 2) * kGroup + 8 * g + 2 * i + j / 2] = sums[tile][i].v[j];
  __syncthreads();
  const uint32_t width = n_groups * kGroup, first = blockIdx.x * width;
  float* mine = plan.parts + (static_cast<uint64_t>(blockIdx.z) * plan.cut.slices + blockIdx.y) * kRows * p.n_out;
  for (uint32_t i = threadIdx.x; i < n_rows * width; i += kThreads) {
    const uint32_t r = i / width, o = i % width;
    if (first + o >= p.n_out) continue;
    float sum = 0;
    for (uint32_t k = 0; k < parts; ++k) sum += sums_of[((k * n_groups + o / kGroup) * kRows + r) * kGroup + o % kGroup];
    mine[static_cast<uint64_t>(r) * p.n_out + first + o] = sum;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) is_last = atomicInc(plan.tickets + blockIdx.z * gridDim.x + blockIdx.x, plan.cut.slices - 1) == plan.cut.slices - 1;
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  const float* all = plan.parts + static_cast<uint64_t>(blockIdx.z) * plan.cut.slices * kRows * p.n_out;
  for (uint32_t i = threadIdx.x; i < n_rows * width; i += kThreads) {
    const uint32_t r = i / width, o = first + i % width;
    if (o >= p.n_out) continue;
    float* x = p.x + static_cast<uint64_t>(first_row + r) * p.n_out + o;
    float sum = *x;
#pragma unroll 16
    for (uint32_t s = 0; s < plan.cut.slices; ++s) sum += __ldcg(all + (static_cast<uint64_t>(s) * kRows + r) * p.n_out + o);
    *x = sum;
  }
}

template <int kTiles>
Error launch_skip_more(const SkippingProduct& p, void* tickets, void* parts, Stream stream) {
  constexpr uint32_t kRows = 8 * kTiles;
  const uint32_t n_slabs = (p.n_rows + kRows - 1) / kRows;
  const SkipPlan plan{p, cut(p.n_out, p.n_in, n_slabs), static_cast<uint32_t*>(tickets), static_cast<float*>(parts)};
  const uint32_t shared = std::max(kRows * (plan.cut.slice + 24) * 2, kWarps * kRows * kGroup * 4) + (plan.cut.slice + 16) * 2;
  const auto kernel = skip_more_kernel<kTiles>;
  if (const Error e = allow_shared(kernel); e != cudaSuccess) return e;
  return launch(kernel, dim3(plan.cut.columns, plan.cut.slices, n_slabs), dim3(kThreads), shared, stream, plan);
}

// A narrow model's time goes into steps that wait for one another: up to 16 rows it is better off reading the weights twice.
constexpr uint32_t kNarrow = 2048;
bool few(const SkippingProduct& p) { return p.n_rows <= 4 || p.weights != DUET_BF16 || (p.n_rows <= 16 && p.n_out <= kNarrow); }
uint32_t slab_rows(const SkippingProduct& p) { return p.n_rows > 8 ? 16 : 8; }

}  // namespace

SkippingScratch skipping_scratch(const SkippingProduct& p) {
  if (few(p)) return {0, 0};
  const uint64_t rows = slab_rows(p), n_slabs = (p.n_rows + rows - 1) / rows;
  const Cut c = cut(p.n_out, p.n_in, static_cast<uint32_t>(n_slabs));
  return {n_slabs * c.columns * sizeof(uint32_t), n_slabs * c.slices * rows * p.n_out * sizeof(float)};
}

uint32_t most_skipped_inputs(duet_dtype weights) { return max_shared() / ((weights == DUET_BF16 ? 2 : 4) + 2) / (kWarps * 32) * (kWarps * 32); }

Error skipping_product(const SkippingProduct& p, void* tickets, void* parts, Stream stream) {
  if (p.weights == DUET_F32) return launch_skip_few<float, float, 2>(p, stream);
  if (p.weights == DUET_F16) return launch_skip_few<f16, float, 2>(p, stream);
  if (p.n_rows == 1) return launch_skip_few<bf16, bf16, 1>(p, stream);
  if (few(p)) return p.n_rows <= 4 ? launch_skip_few<bf16, bf16, 4>(p, stream) : launch_skip_few<bf16, bf16, 8>(p, stream);
  return slab_rows(p) == 8 ? launch_skip_more<1>(p, tickets, parts, stream) : launch_skip_more<2>(p, tickets, parts, stream);
}

}  // namespace duet_cuda
