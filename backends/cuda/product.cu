#include "product.h"

#include <algorithm>

#include "fragment.h"

namespace duet_cuda {
namespace {

using duet_gpu::bf16;
using duet_gpu::f16;
using duet_gpu::fetch_ahead;
using duet_gpu::from_f32;
using duet_gpu::launch;
using duet_gpu::let_next_start;
using duet_gpu::to_f32;
using duet_gpu::wait_for_inputs;

constexpr uint32_t kThreads = 512, kWarps = kThreads / 32;
constexpr uint32_t kSlabs = 4;               // of 32 inputs each: what a warp has in flight
constexpr uint32_t kMaxShared = 200 << 10;   // for x
constexpr uint32_t kPrefetch = 64 << 10;     // bytes of a block's weights that go to L2 while it waits for its inputs

int multiprocessors() {
  int device = 0, n = 132;
  if (cudaGetDevice(&device) == cudaSuccess) cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, device);
  return n;
}

template <class T>
__device__ __forceinline__ void finish(const Product& p, uint64_t at, float sum) {  // T: of matrix inputs
  float* y = static_cast<float*>(p.y) + at;
  T* input = static_cast<T*>(p.y) + at;
  switch (p.finish) {
    case Finish::store: *y = sum; break;
    case Finish::add: *y += sum; break;
    case Finish::input: *input = from_f32<T>(sum); break;
    case Finish::tanh_input: *input = from_f32<T>(tanhf(sum)); break;
    case Finish::sigmoid_input: *input = from_f32<T>(1.0f / (1.0f + expf(-sum))); break;
    case Finish::relu_squared_input: sum = fmaxf(sum, 0.0f), *input = from_f32<T>(sum * sum); break;
  }
}

// ---- bf16 ----

// How a launch is cut up: item after item, product after product. An item is 16 outputs for each of 16 >> split warps, and the
// 2^split warps that share them divide the inputs.
struct Plan {
  Products products;
  uint32_t first_item[9];
  uint32_t split[8];
  uint32_t x_stride;  // bytes between rows of x in shared memory: 64 mod 128, so that eight lanes meet no bank twice
};

struct Work {  // a warp's part of an item
  uint32_t product, item, output, slab, end_slab;
};

__device__ __forceinline__ Work work(const Plan& plan, uint32_t item, uint32_t warp) {
  Work w;
  w.product = 0;
  while (item >= plan.first_item[w.product + 1]) ++w.product;
  w.item = item;
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

template <int kTiles>
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
  __shared__ float parts[2][kWarps][16 * kRows];
  let_next_start();
  if (blockIdx.y == 0) fetch_ahead(plan.products.ahead, blockIdx.x, gridDim.x);
  const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const uint32_t n_items = plan.first_item[plan.products.n];
  const uint32_t begin = static_cast<uint32_t>(static_cast<uint64_t>(n_items) * blockIdx.x / gridDim.x), end = static_cast<uint32_t>(static_cast<uint64_t>(n_items) * (blockIdx.x + 1) / gridDim.x);
  Work now = work(plan, begin, warp);
  Weights a;
  load(a, plan, now);
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

  uint32_t x_of = ~0u, buffer = 0;
  for (uint32_t item = begin; item < end; ++item, buffer ^= 1) {
    if (x_of != now.product) {
      if (x_of != ~0u) __syncthreads();  // all have read the old one
      x_of = now.product;
      copy_x<kTiles>(shared, plan.products.item[x_of], row, n_rows, plan.x_stride);
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
    float* own = parts[buffer][warp];
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
      for (uint32_t k = 0; k < 1u << split; ++k) sum += parts[buffer][(group << split) + k][r * 16 + o % 16];
      finish<bf16>(p, static_cast<uint64_t>(row + r) * p.n_out + first + o, sum);
    }
  }
}

// How products() computes p: by tiles of 8 rows (1 or 2), or plainly (0).
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
  c.plan.x_stride = (most_in * 2 + 127) / 128 * 128 + 64;
  if (p.weights != DUET_BF16 || !aligned || 8 * c.plan.x_stride > kMaxShared) return c;
  c.tiles = p.n_rows > 8 && 16 * c.plan.x_stride <= kMaxShared ? 2 : 1;
  c.shared = 8 * c.tiles * c.plan.x_stride;
  c.blocks = std::min(c.plan.first_item[p.n], static_cast<uint32_t>(multiprocessors()));  // half of each is left for the next kernel's
  return c;
}

template <int kTiles>
Error launch_product(const Choice& c, Stream stream) {
  const auto kernel = product_kernel<kTiles>;
  if (const Error e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(c.shared)); e != cudaSuccess) return e;
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

// ---- the product that skips ----

constexpr uint32_t kGroup = 64;   // outputs of a warp
constexpr uint32_t kTickets = 64 << 10;  // bytes before the parts in scratch
constexpr uint32_t kMaxPart = 320;  // inputs of a warp: 16 warps' lists of 8 rows of f32, or 16 of bf16, fit into shared memory
constexpr uint16_t kNone = 0xffff;  // on a list

struct Cut {
  uint32_t n_groups;  // of 64 outputs in a block, a power of two up to 8; the other warps divide its inputs
  uint32_t columns;   // blocks side by side
  uint32_t slices;    // of n_in, one a block
  uint32_t slice;     // inputs of a slice
  uint32_t part;      // inputs of a warp: its share of a slice, a multiple of 16 and small enough for shared memory
};

// Enough blocks for the whole chip, slabs of rows counted in.
Cut cut(uint32_t n_out, uint32_t n_in, uint32_t n_slabs) {
  const uint32_t groups = (n_out + kGroup - 1) / kGroup, blocks = static_cast<uint32_t>(multiprocessors());
  Cut c{8, 0, 0, 0, 0};
  while (c.n_groups > 1 && groups % c.n_groups != 0) c.n_groups /= 2;
  c.columns = (groups + c.n_groups - 1) / c.n_groups;
  const uint32_t parts = kWarps / c.n_groups;
  c.slices = std::clamp(blocks / (c.columns * n_slabs), 1u, (n_in + 15) / 16);
  c.part = std::min(((n_in + c.slices - 1) / c.slices + parts - 1) / parts, kMaxPart - 15);
  c.part = (c.part + 15) / 16 * 16;
  c.slice = c.part * parts;
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

// How a warp adds a step of 16 listed inputs to the sums of its 64 outputs: by the tensor core for bf16 ...
template <int kTiles>
struct BrainGroup {
  using Weight = bf16;
  using Input = bf16;
  static constexpr uint32_t kRows = 8 * kTiles, kSteps = 3;  // steps that a warp has in flight
  struct Step {
    uint4 row[4];
  };
  Sums sums[kTiles][4];
  // Thread (g, t) reads the 8 outputs from 8 g of the inputs 4 t to 4 t + 3: whole lines. Outputs 8 g + 2 i and + 1 are output
  // g and g + 8 of the tile i; pairs of inputs are put together from two rows.
  static __device__ __forceinline__ Step fetch(const bf16* w, uint32_t n_out, const uint16_t* list, uint32_t column) {
    const uint32_t lane = threadIdx.x % 32, at = column + 8 * (lane / 4);
    const ushort4 f = reinterpret_cast<const ushort4*>(list)[lane % 4];
    const uint16_t rows[4] = {f.x, f.y, f.z, f.w};
    Step s;
#pragma unroll
    for (int i = 0; i < 4; ++i) s.row[i] = rows[i] != kNone && at < n_out ? stream_load(w + static_cast<uint64_t>(rows[i]) * n_out + at) : uint4{0, 0, 0, 0};
    return s;
  }
  __device__ __forceinline__ void add(const Step& s, const bf16* u, uint32_t u_stride) {
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
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {  // f(row, output of the group, sum)
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) f(8 * tile + 2 * t + j % 2, 8 * g + 2 * i + j / 2, sums[tile][i].v[j]);
  }
};

// ... and by fused multiply-add for the others
template <class T>
struct PlainGroup {
  using Weight = T;
  using Input = float;
  static constexpr uint32_t kRows = 8, kSteps = 1;
  struct Step {
    float2 row[16];
  };
  float sums[8][2] = {};
  static __device__ __forceinline__ Step fetch(const T* w, uint32_t n_out, const uint16_t* list, uint32_t column) {
    const uint32_t at = column + 2 * (threadIdx.x % 32);
    Step s;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const bool inside = list[i] != kNone;
      const T* p = w + static_cast<uint64_t>(inside ? list[i] : 0) * n_out + at;
      s.row[i] = {inside && at < n_out ? to_f32(p[0]) : 0, inside && at + 1 < n_out ? to_f32(p[1]) : 0};
    }
    return s;
  }
  __device__ __forceinline__ void add(const Step& s, const float* u, uint32_t u_stride) {
#pragma unroll
    for (int r = 0; r < 8; ++r)
#pragma unroll
      for (int i = 0; i < 16; ++i) sums[r][0] = fmaf(u[r * u_stride + i], s.row[i].x, sums[r][0]), sums[r][1] = fmaf(u[r * u_stride + i], s.row[i].y, sums[r][1]);
  }
  template <class F>
  __device__ __forceinline__ void each(F&& f) const {
#pragma unroll
    for (int r = 0; r < 8; ++r)
#pragma unroll
      for (int j = 0; j < 2; ++j) f(r, 2 * (threadIdx.x % 32) + j, sums[r][j]);
  }
};

// Block (column part, slice of the inputs, slab of rows). Each warp lists which inputs of its part of the slice are not zero and
// adds up their rows of w; the block leaves its sums, and the one that comes last adds all to x in the order of the slices.
template <class Group>
__global__ void __launch_bounds__(kThreads, 1) skipping_kernel(__grid_constant__ const SkipPlan plan) {
  using T = typename Group::Weight;
  using U = typename Group::Input;
  constexpr uint32_t kRows = Group::kRows, kSteps = Group::kSteps;
  extern __shared__ __align__(128) char shared[];
  __shared__ bool is_last;
  let_next_start();
  if (blockIdx.z == 0) fetch_ahead(plan.p.ahead, blockIdx.y * gridDim.x + blockIdx.x, gridDim.x * gridDim.y);
  const SkippingProduct& p = plan.p;
  const uint32_t first_row = blockIdx.z * kRows, used = static_cast<uint32_t>(p.used[p.count_index]);
  wait_for_inputs();
  if (first_row >= used) return;
  const uint32_t n_rows = min(kRows, used - first_row), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t n_groups = plan.cut.n_groups, parts = kWarps / n_groups, part = warp / n_groups, size = plan.cut.part;
  const uint32_t begin = min(p.n_in, blockIdx.y * plan.cut.slice + part * size), n = min(min(size, plan.cut.slice - min(plan.cut.slice, part * size)), p.n_in - begin);

  const uint32_t stride = size + 16 + 8;  // of u in elements: rows start in different banks
  U* u = reinterpret_cast<U*>(shared) + static_cast<uint64_t>(warp) * kRows * stride;  // [kRows][stride], only what is listed
  auto* list = reinterpret_cast<uint16_t*>(reinterpret_cast<U*>(shared) + static_cast<uint64_t>(kWarps) * kRows * stride) + warp * (size + 16);
  const U* from = static_cast<const U*>(p.u) + static_cast<uint64_t>(first_row) * p.n_in + begin;
  uint32_t listed = 0;
  for (uint32_t base = 0; base < n; base += 32) {
    const uint32_t f = base + lane;
    U mine[kRows];
    bool any = false;
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r) {
      mine[r] = f < n && r < n_rows ? from[static_cast<uint64_t>(r) * p.n_in + f] : from_f32<U>(0);
      any |= to_f32(mine[r]) != 0;
    }
    const uint32_t ballot = __ballot_sync(~0u, any);
    if (any) {
      const uint32_t at = listed + __popc(ballot & ((1u << lane) - 1));
      list[at] = static_cast<uint16_t>(f);
#pragma unroll
      for (uint32_t r = 0; r < kRows; ++r) u[r * stride + at] = mine[r];
    }
    listed += __popc(ballot);
  }
  if (lane < 16) {  // a whole number of steps
    list[listed + lane] = kNone;
#pragma unroll
    for (uint32_t r = 0; r < kRows; ++r) u[r * stride + listed + lane] = from_f32<U>(0);
  }
  __syncwarp();

  Group group;
  const uint32_t column = (blockIdx.x * n_groups + warp % n_groups) * kGroup;
  const T* w = static_cast<const T*>(p.w) + static_cast<uint64_t>(begin) * p.n_out;
  typename Group::Step steps[kSteps];
#pragma unroll
  for (uint32_t k = 0; k < kSteps; ++k)
    if (16 * k < listed) steps[k] = Group::fetch(w, p.n_out, list + 16 * k, column);
  for (uint32_t i = 0; i < listed; i += 16 * kSteps)
#pragma unroll
    for (uint32_t k = 0; k < kSteps; ++k) {
      const uint32_t at = i + 16 * k;
      if (at >= listed) break;
      group.add(steps[k], u + at, stride);
      if (at + 16 * kSteps < listed) steps[k] = Group::fetch(w, p.n_out, list + at + 16 * kSteps, column);
    }
  __syncthreads();  // all of u has been read: its memory is free for the sums, [warps][kRows][64]
  float* sums = reinterpret_cast<float*>(shared);
  group.each([&](uint32_t r, uint32_t o, float sum) { sums[(warp * kRows + r) * kGroup + o] = sum; });
  __syncthreads();
  const uint32_t width = n_groups * kGroup, first = blockIdx.x * width;
  float* mine = plan.parts + (static_cast<uint64_t>(blockIdx.z) * plan.cut.slices + blockIdx.y) * kRows * p.n_out;
  for (uint32_t i = threadIdx.x; i < n_rows * width; i += kThreads) {
    const uint32_t r = i / width, o = i % width;
    if (first + o >= p.n_out) continue;
    float sum = 0;
    for (uint32_t k = 0; k < parts; ++k) sum += sums[((k * n_groups + o / kGroup) * kRows + r) * kGroup + o % kGroup];
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

template <class Group>
Error launch_skipping(const SkippingProduct& p, void* scratch, Stream stream) {
  constexpr uint32_t kRows = Group::kRows;
  const uint32_t n_slabs = (p.n_rows + kRows - 1) / kRows;
  const SkipPlan plan{p, cut(p.n_out, p.n_in, n_slabs), static_cast<uint32_t*>(scratch), reinterpret_cast<float*>(static_cast<char*>(scratch) + kTickets)};
  const uint32_t size = plan.cut.part, lists = kWarps * (kRows * (size + 24) * static_cast<uint32_t>(sizeof(typename Group::Input)) + (size + 16) * 2);
  const uint32_t shared = std::max(lists, kWarps * kRows * kGroup * 4);
  const auto kernel = skipping_kernel<Group>;
  if (const Error e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)); e != cudaSuccess) return e;
  return launch(kernel, dim3(plan.cut.columns, plan.cut.slices, n_slabs), dim3(kThreads), shared, stream, plan);
}

uint32_t slab_rows(const SkippingProduct& p) { return p.weights == DUET_BF16 && p.n_rows > 8 ? 16 : 8; }

}  // namespace

Error products(const Products& p, Stream stream) {
  const Choice c = choose(p);
  if (c.tiles > 0) return c.tiles == 2 ? launch_product<2>(c, stream) : launch_product<1>(c, stream);
  uint32_t n_outputs = 0;
  for (uint32_t i = 0; i < p.n; ++i) n_outputs += p.item[i].n_out;
  const dim3 grid(std::min((n_outputs + kWarps - 1) / kWarps, 4u * static_cast<uint32_t>(multiprocessors())), (p.n_rows + 7) / 8);
  const auto kernel = p.weights == DUET_BF16 ? plain_kernel<bf16, bf16> : p.weights == DUET_F16 ? plain_kernel<f16, float> : plain_kernel<float, float>;
  return launch(kernel, grid, dim3(kThreads), 0, stream, p, n_outputs);
}

duet_gpu::Ahead ahead_of(const Products& p, uint32_t n_followed, uint64_t skip, uint64_t bytes) {
  const Choice c = choose(p);
  duet_gpu::Ahead a;
  if (c.tiles == 0) return a;
  const Product& first = p.item[0];
  for (uint32_t i = 0; i < n_followed; ++i) a.bytes += static_cast<uint64_t>(p.item[i].n_out) * p.item[i].n_in * 2;
  a.base = static_cast<const char*>(first.w);
  a.item_bytes = 16 * (kWarps >> c.plan.split[0]) * first.n_in * 2;
  a.n_items = c.plan.first_item[p.n];
  a.n_blocks = c.blocks;
  a.skip = skip / c.blocks & ~15ull;
  a.piece = static_cast<uint32_t>(std::min(bytes, a.bytes) / c.blocks) & ~15u;
  return a;
}

uint64_t skipping_scratch_bytes(const SkippingProduct& p) {
  const uint64_t rows = slab_rows(p), n_slabs = (p.n_rows + rows - 1) / rows;
  return kTickets + n_slabs * cut(p.n_out, p.n_in, static_cast<uint32_t>(n_slabs)).slices * rows * p.n_out * sizeof(float);
}

Error skipping_product(const SkippingProduct& p, void* scratch, Stream stream) {
  if (p.weights == DUET_F32) return launch_skipping<PlainGroup<float>>(p, scratch, stream);
  if (p.weights == DUET_F16) return launch_skipping<PlainGroup<f16>>(p, scratch, stream);
  if (slab_rows(p) == 8) return launch_skipping<BrainGroup<1>>(p, scratch, stream);
  return launch_skipping<BrainGroup<2>>(p, scratch, stream);
}

}  // namespace duet_cuda
