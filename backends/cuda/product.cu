// Products of few rows: bf16 by the tensor core, others by fused multiply-add.
#include "product.h"

#include <algorithm>

#include "finish.h"
#include "fragment.h"
#include "quantised_product.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::bf16;
using duet_gpu::f16;
using duet_gpu::launch;
using duet_gpu::let_next_start;
using duet_gpu::to_f32;
using duet_gpu::wait_for_inputs;

constexpr uint32_t kThreads = 512, kWarps = kThreads / 32;
constexpr uint32_t kSlabs = 4;               // of 32 inputs each: what a warp has in flight
constexpr uint32_t kMaxTiles = 4;
constexpr uint32_t kPrefetch = 64 << 10;     // bytes of a block's weights that go to L2 while it waits for its inputs

// ---- bf16 ----

// How a launch is cut up: item after item, product after product. An item is 16 outputs for each of 16 >> split warps, and the
// 2^split warps that share them divide the inputs.
struct Plan {
  Products products;
  uint32_t first_item[9];
  uint32_t split[8];
  uint32_t blocks_of_share;  // 1, or 2: on each multiprocessor
  uint32_t x_stride;  // bytes between rows of x in shared memory: 64 mod 128, so that eight lanes meet no bank twice
};

struct Work {  // a warp's part of an item
  uint32_t product, output, slab, end_slab;
};

__device__ __forceinline__ Work work(const Plan& plan, uint32_t item, uint32_t warp) {
  Work w;
  w.product = 0;
  while (item >= plan.first_item[w.product + 1]) ++w.product;
  const uint32_t split = plan.split[w.product], n_slabs = (plan.products.item[w.product].n_in + 31) / 32, part = (n_slabs + (1u << split) - 1) >> split;
  w.output = ((item - plan.first_item[w.product]) * (kWarps >> split) + (warp >> split)) * 16;
  w.slab = (warp & ((1u << split) - 1)) * part;
  w.end_slab = min(n_slabs, w.slab + part);
  return w;
}

struct Weights {
  uint4 low[kSlabs], high[kSlabs];  // outputs g and g + 8 of the slabs
};

__device__ __forceinline__ void load(Weights& a, const Plan& plan, const Work& w) {
  const Product& p = plan.products.item[w.product];
  const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, output = w.output + g;
  const bf16* row = static_cast<const bf16*>(p.w) + static_cast<uint64_t>(output) * p.n_in + 8 * t;
#pragma unroll
  for (uint32_t i = 0; i < kSlabs; ++i) {
    const uint32_t at = 32 * (w.slab + i);
    const bool inside = w.slab + i < w.end_slab && at + 8 * t < p.n_in;
    a.low[i] = inside && output < p.n_out ? stream_load(row + at) : uint4{0, 0, 0, 0};
    a.high[i] = inside && output + 8 < p.n_out ? stream_load(row + 8ull * p.n_in + at) : uint4{0, 0, 0, 0};
  }
}

__device__ __forceinline__ void copy_x(char* shared, const Product& p, uint32_t row, uint32_t n_rows, uint32_t stride) {
  const uint32_t chunks = p.n_in / 8;
  const uint4* x = static_cast<const uint4*>(p.x) + static_cast<uint64_t>(row) * chunks;
  for (uint32_t i = threadIdx.x; i < n_rows * chunks; i += kThreads) *reinterpret_cast<uint4*>(shared + i / chunks * stride + i % chunks * 16) = x[i];
}

// 8 * kTiles rows of x in shared memory. Weights go from memory to registers in the order in which the tensor core takes them.
template <int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 2 : 1) product_kernel(__grid_constant__ const Plan plan) {
  extern __shared__ __align__(128) char shared[];
  constexpr uint32_t kRows = 8 * kTiles;
  let_next_start();
  const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const uint32_t n_items = plan.first_item[plan.products.n];
  // equal shares for all multiprocessors first, then for the two blocks of each
  const uint32_t n_shares = gridDim.x / plan.blocks_of_share, share = blockIdx.x % n_shares, half = blockIdx.x / n_shares;
  const uint32_t from = n_items * share / n_shares, to = n_items * (share + 1) / n_shares, middle = plan.blocks_of_share == 2 ? (from + to + 1) / 2 : to;
  const uint32_t begin = half == 0 ? from : middle, end = half == 0 ? middle : to;
  Work now{};
  Weights a;
  if (begin < end) {
    now = work(plan, begin, warp);
    load(a, plan, now);
  }
  if (threadIdx.x == 0 && end > begin) {  // what follows the registers' part
    const Product& p = plan.products.item[now.product];
    const uint32_t first = (begin - plan.first_item[now.product]) * (kWarps >> plan.split[now.product]) * 16;
    const uint64_t bytes = min(static_cast<uint64_t>(p.n_out - min(first, p.n_out)) * p.n_in * 2, static_cast<uint64_t>(kPrefetch)) & ~15ull;
    if (bytes > 0) prefetch_l2(static_cast<const bf16*>(p.w) + static_cast<uint64_t>(first) * p.n_in, static_cast<uint32_t>(bytes));
  }
  const uint32_t row = blockIdx.y * kRows, used = static_cast<uint32_t>(plan.products.used[plan.products.count_index]);
  wait_for_inputs();
  if (row >= used) return;
  const uint32_t n_rows = min(kRows, used - row);

  float* parts = reinterpret_cast<float*>(shared + kRows * plan.x_stride);  // [2][warps][rows][16]
  uint32_t x_of = ~0u, buffer = 0;
  for (uint32_t item = begin; item < end; ++item, buffer ^= 1) {
    if (x_of != now.product) {
      if (x_of != ~0u) __syncthreads();  // all have read the old one
      x_of = now.product;
      copy_x(shared, plan.products.item[x_of], row, n_rows, plan.x_stride);
      __syncthreads();
    }
    const uint32_t n_in = plan.products.item[x_of].n_in;
    Sums sums[kTiles];
    const Work mine = now;
    while (true) {
#pragma unroll
      for (uint32_t i = 0; i < kSlabs; ++i) {
        const uint32_t at = 32 * (now.slab + i) + 8 * t;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          uint4 b{0, 0, 0, 0};
          if (now.slab + i < now.end_slab && at < n_in && 8 * tile + g < n_rows) b = *reinterpret_cast<const uint4*>(shared + (8 * tile + g) * plan.x_stride + at * 2);
          multiply(sums[tile], a.low[i].x, a.high[i].x, a.low[i].y, a.high[i].y, b.x, b.y);
          multiply(sums[tile], a.low[i].z, a.high[i].z, a.low[i].w, a.high[i].w, b.z, b.w);
        }
      }
      now.slab += kSlabs;
      if (now.slab >= now.end_slab) break;
      load(a, plan, now);
    }
    if (item + 1 < end) {  // the next item's weights come while this one's parts are added
      now = work(plan, item + 1, warp);
      load(a, plan, now);
    }
    float* own = parts + (buffer * kWarps + warp) * 16 * kRows;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i) own[(8 * tile + 2 * t + i % 2) * 16 + g + i / 2 * 8] = sums[tile].v[i];
    __syncthreads();
    const uint32_t split = plan.split[mine.product], n_groups = kWarps >> split;
    const Product& p = plan.products.item[mine.product];
    const uint32_t first = (item - plan.first_item[mine.product]) * n_groups * 16;
    for (uint32_t i = threadIdx.x; i < n_groups * 16 * n_rows; i += kThreads) {
      const uint32_t r = i / (n_groups * 16), o = i % (n_groups * 16), group = o / 16;
      if (first + o >= p.n_out) continue;
      float sum = 0;
      for (uint32_t k = 0; k < 1u << split; ++k) sum += parts[((buffer * kWarps + (group << split) + k) * kRows + r) * 16 + o % 16];
      finish<bf16>(p, static_cast<uint64_t>(row + r) * p.n_out + first + o, sum);
    }
  }
}

// x, and the warps' sums of two items
uint32_t shared_bytes(uint32_t tiles, uint32_t x_stride) { return 8 * tiles * (x_stride + 2 * kWarps * 16 * 4); }

// How products() computes p: by 1, 2 or 4 tiles of 8 rows at a time, or plainly (0).
struct Choice {
  Plan plan{};
  uint32_t tiles = 0, blocks = 0, shared = 0;
};

Choice choose(const Products& p) {
  Choice c;
  c.plan.products = p;
  uint32_t most_in = 0;
  bool aligned = true;  // rows of 16-byte pieces
  for (uint32_t i = 0; i < p.n; ++i) {
    const uint32_t n_in = p.item[i].n_in, n_slabs = (n_in + 31) / 32;
    uint32_t& split = c.plan.split[i];
    while (split < 4 && (kSlabs << split) < n_slabs) ++split;
    const uint32_t outputs = 16 * (kWarps >> split);
    c.plan.first_item[i + 1] = c.plan.first_item[i] + (p.item[i].n_out + outputs - 1) / outputs;
    most_in = std::max(most_in, n_in);
    aligned &= n_in % 8 == 0;
  }
  const uint32_t limit = max_shared();
  c.plan.x_stride = (most_in * 2 + 127) / 128 * 128 + 64;
  if (p.weights != DUET_BF16 || !aligned || shared_bytes(1, c.plan.x_stride) > limit) return c;
  c.tiles = 1;
  while (c.tiles < kMaxTiles && 8 * c.tiles < p.n_rows && shared_bytes(2 * c.tiles, c.plan.x_stride) <= limit) c.tiles *= 2;
  c.shared = shared_bytes(c.tiles, c.plan.x_stride);
  const uint32_t n_items = c.plan.first_item[p.n], n = multiprocessors();
  c.plan.blocks_of_share = n_items > n && c.tiles == 1 && 2 * c.shared <= limit ? 2 : 1;
  c.blocks = c.plan.blocks_of_share == 2 ? 2 * n : std::min(n_items, n);
  return c;
}

template <int kTiles>
Error launch_product(const Choice& c, Stream stream) {
  const auto kernel = product_kernel<kTiles>;
  if (const Error e = allow_shared(kernel); e != cudaSuccess) return e;
  return launch(kernel, dim3(c.blocks, (c.plan.products.n_rows + 8 * kTiles - 1) / (8 * kTiles)), dim3(kThreads), c.shared, stream, c.plan);
}

// ---- f32 and f16, and bf16 of odd shapes: fused multiply-add, a warp an output ----

template <class T, class X>
__global__ void plain_kernel(__grid_constant__ const Products p, uint32_t n_outputs) {
  constexpr uint32_t kRows = 8;
  let_next_start();
  const uint32_t row = blockIdx.y * kRows, used = static_cast<uint32_t>(p.used[p.count_index]), lane = threadIdx.x % 32;
  wait_for_inputs();
  if (row >= used) return;
  const uint32_t n_rows = min(kRows, used - row);
  for (uint32_t o = blockIdx.x * kWarps + threadIdx.x / 32; o < n_outputs; o += gridDim.x * kWarps) {
    uint32_t which = 0, output = o;
    while (output >= p.item[which].n_out) output -= p.item[which++].n_out;
    const Product& item = p.item[which];
    const T* w = static_cast<const T*>(item.w) + static_cast<uint64_t>(output) * item.n_in;
    const X* x = static_cast<const X*>(item.x) + static_cast<uint64_t>(row) * item.n_in;
    float sums[kRows] = {};
    for (uint32_t i = lane; i < item.n_in; i += 32) {
      const float weight = to_f32(w[i]);
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r)
        if (r < n_rows) sums[r] = fmaf(weight, to_f32(x[static_cast<uint64_t>(r) * item.n_in + i]), sums[r]);
    }
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sums[r] += __shfl_xor_sync(~0u, sums[r], d);
      if (lane == r && r < n_rows) finish<X>(item, static_cast<uint64_t>(row + r) * item.n_out + output, sums[r]);
    }
  }
}

}  // namespace

Error products(const Products& p, Stream stream) {
  if (duetp_is_quantised(p.weights)) return quantised_products(p, stream);
  const Choice c = choose(p);
  if (c.tiles > 0) return c.tiles == 4 ? launch_product<4>(c, stream) : c.tiles == 2 ? launch_product<2>(c, stream) : launch_product<1>(c, stream);
  uint32_t n_outputs = 0;
  for (uint32_t i = 0; i < p.n; ++i) n_outputs += p.item[i].n_out;
  const dim3 grid(std::min((n_outputs + kWarps - 1) / kWarps, 4u * multiprocessors()), (p.n_rows + 7) / 8);
  const auto kernel = p.weights == DUET_BF16 ? plain_kernel<bf16, bf16> : p.weights == DUET_F16 ? plain_kernel<f16, float> : plain_kernel<float, float>;
  return launch(kernel, grid, dim3(kThreads), 0, stream, p, n_outputs);
}

}  // namespace duet_cuda
