// Products of few rows with q8 and q4 weights, by the tensor core's integers; more rows: quantised_many.cu.
#include "quantised_product.h"

#include <algorithm>

#include "finish.h"
#include "quantised_group.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::launch;
using duet_gpu::let_next_start;
using duet_gpu::wait_for_inputs;

constexpr uint32_t kThreads = 512, kWarps = kThreads / 32;
constexpr uint32_t kFewRows = 64;
constexpr uint32_t kMaxTiles = 4;             // of 8 rows
constexpr uint32_t kInFlight = 16;            // loads of 8 bytes of a lane
constexpr uint32_t kPrefetch = 64 << 10;      // bytes of a block's weights that go to L2 while it waits for its inputs
constexpr uint32_t kRoundedByBlocks = 64 << 10;  // f32 inputs up to so many bytes are rounded by every block; more, beforehand

// How a launch is cut up: item after item, product after product. An item is a stored tile for each of 16 >> split warps, and
// the 2^split warps that share it divide the groups.
struct Plan {
  Products products;
  RoundedInputs inputs;
  bool rounded;  // beforehand
  uint32_t first_item[9];
  uint32_t split[8];
  uint32_t begin_group, end_group;  // which this launch multiplies; of matrices with fewer groups, those there are
  uint32_t most_groups, x_rows;     // of x in shared memory
  uint32_t blocks_of_share;         // 1, or 2: on each multiprocessor
};

struct Range {
  uint32_t begin, end;
};
__host__ __device__ __forceinline__ Range groups_in(const Plan& plan, uint32_t product) {
  const uint32_t n = groups_of(plan.products.item[product]);
  return {plan.begin_group, n < plan.end_group ? n : plan.end_group};
}

// Bytes between rows of x in shared memory: 64 mod 128, so that eight lanes meet no bank twice.
__host__ __device__ __forceinline__ uint32_t x_stride(uint32_t groups) { return (groups | 1) * kGroup; }

struct Work {  // a warp's part of an item
  uint32_t product, tile, group, end_group;
};

__device__ __forceinline__ Work work(const Plan& plan, uint32_t item, uint32_t warp) {
  Work w;
  w.product = 0;
  while (item >= plan.first_item[w.product + 1]) ++w.product;
  const uint32_t split = plan.split[w.product];
  const Range range = groups_in(plan, w.product);
  const uint32_t part = (range.end - range.begin + (1u << split) - 1) >> split;
  w.tile = (item - plan.first_item[w.product]) * (kWarps >> split) + (warp >> split);
  w.group = range.begin + (warp & ((1u << split) - 1)) * part;
  w.end_group = min(range.end, w.group + part);
  return w;
}

// What a lane has in flight. Lane (g, t) has the scales of outputs 2 g and 2 g + 1 in the groups t, 4 + t, ..
template <int kBits>
struct Weights {
  static constexpr uint32_t kGroups = kInFlight / GroupWeights<kBits>::kLoads;
  GroupWeights<kBits> group[kGroups];
  uint32_t scale[kGroups / 4], minimum[kGroups / 4];
};

// Loads of what is read once; zero where not inside. In assembly, so that what is computed with them is not drawn to the loads:
// registers are full.
__device__ __forceinline__ uint2 stream_load_8(const void* p, bool inside) {
  uint2 v;
  asm volatile("{ .reg .pred q; setp.ne.u32 q, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0; @q ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0,%1}, [%2]; }"
               : "=&r"(v.x), "=&r"(v.y)
               : "l"(p), "r"(static_cast<uint32_t>(inside)));
  return v;
}
__device__ __forceinline__ uint32_t stream_load_4(const void* p, bool inside) {
  uint32_t v;
  asm volatile("{ .reg .pred q; setp.ne.u32 q, %2, 0; mov.u32 %0, 0; @q ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1]; }" : "=&r"(v) : "l"(p), "r"(static_cast<uint32_t>(inside)));
  return v;
}

template <int kBits>
__device__ __forceinline__ void load(Weights<kBits>& a, const Plan& plan, const Work& w) {
  const Product& p = plan.products.item[w.product];
  const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const Places places(p);
  const uint64_t next = places.of_group * GroupWeights<kBits>::kBytes;
  const uint32_t n = w.tile < tiles_of(p) && w.group < w.end_group ? w.end_group - w.group : 0;
  const char* from = static_cast<const char*>(p.w) + places.at(w.tile, w.group) * GroupWeights<kBits>::kBytes + place_of_lane();
  const uint64_t scales = places.at(w.tile, w.group + t) * (2 * kTile) + 4 * g, next_four = 4 * places.of_group * (2 * kTile);
#pragma unroll
  for (uint32_t i = 0; i < Weights<kBits>::kGroups; ++i)
#pragma unroll
    for (int j = 0; j < GroupWeights<kBits>::kLoads; ++j) a.group[i].v[j] = stream_load_8(from + i * next + j * 256, i < n);
#pragma unroll
  for (uint32_t i = 0; i < Weights<kBits>::kGroups / 4; ++i) {
    const bool inside = 4 * i + t < n;
    a.scale[i] = stream_load_4(static_cast<const char*>(p.scale) + scales + i * next_four, inside);
    if constexpr (kBits == 4) a.minimum[i] = stream_load_4(static_cast<const char*>(p.minimum) + scales + i * next_four, inside);
  }
}

// x of a slab of rows in shared memory: [x_rows][x_stride], then the scales [groups][kRows], for q4 the sums [groups][kRows].
template <int kBits, uint32_t kRows>
struct SharedInputs {
  char* q;
  float *scale, *sum;
  uint32_t stride;
  __device__ SharedInputs(char* shared, uint32_t rows, uint32_t groups) : q(shared), stride(x_stride(groups)) {
    scale = reinterpret_cast<float*>(shared + rows * stride);
    sum = scale + groups * kRows;
  }
};

template <int kBits, uint32_t kRows>
__device__ __forceinline__ void round_x(const SharedInputs<kBits, kRows>& to, const Product& p, Range range, uint32_t row, uint32_t n_rows) {
  constexpr uint32_t kAtOnce = kRows == 8 ? 1 : 2;  // two blocks have to share the registers
  const uint32_t groups = range.end - range.begin, n = n_rows * groups * 8, k = threadIdx.x % 8;
  const float* x = static_cast<const float*>(p.x) + static_cast<uint64_t>(row) * p.n_in;
  for (uint32_t base = threadIdx.x / 32 * 32; base < n; base += kAtOnce * kThreads) {
    Eighth eighths[kAtOnce];
#pragma unroll
    for (uint32_t j = 0; j < kAtOnce; ++j) {
      const uint32_t i = base + threadIdx.x % 32 + j * kThreads;
      eighths[j] = i < n ? read_eighth(x + static_cast<uint64_t>(i / 8 / groups) * p.n_in, p.n_in, range.begin + i / 8 % groups, k) : Eighth{};
    }
#pragma unroll
    for (uint32_t j = 0; j < kAtOnce; ++j) {
      const uint32_t i = base + threadIdx.x % 32 + j * kThreads, r = i / 8 / groups, group = i / 8 % groups;
      const RoundedEighth e = round_eighth(eighths[j]);
      if (i >= n) continue;
      auto* words = reinterpret_cast<uint32_t*>(to.q + r * to.stride + group * kGroup);
      words[word_place<kBits>(k)] = e.word[0], words[word_place<kBits>(8 + k)] = e.word[1];
      if (k == 0) to.scale[group * kRows + r] = e.scale;
      if (k == 1 && kBits == 4) to.sum[group * kRows + r] = e.sum;
    }
  }
}

template <int kBits, uint32_t kRows>
__device__ __forceinline__ void copy_x(const SharedInputs<kBits, kRows>& to, const Rounded& from, uint32_t all_groups, uint32_t all_rows, Range range, uint32_t row, uint32_t n_rows) {
  const uint32_t groups = range.end - range.begin, chunks = groups * 4;
  const char* q = from.q + (static_cast<uint64_t>(row) * all_groups + range.begin) * kGroup;
  for (uint32_t i = threadIdx.x; i < n_rows * chunks; i += kThreads) copy_16(to.q + i / chunks * to.stride + i % chunks * 16, q + static_cast<uint64_t>(i / chunks) * all_groups * kGroup + i % chunks * 16);
  for (uint32_t i = threadIdx.x; i < groups * kRows / 4; i += kThreads) {
    const uint64_t at = static_cast<uint64_t>(range.begin + i / (kRows / 4)) * all_rows + row + i % (kRows / 4) * 4;
    copy_16(to.scale + 4 * i, from.scale + at);
    if constexpr (kBits == 4) copy_16(to.sum + 4 * i, from.sum + at);
  }
  end_of_copies();
  wait_for_copies<0>();
}

// 8 * kTiles rows of x in shared memory. Weights go from memory to registers in the order in which the tensor core takes them.
// What shared memory holds in place of rows that are not in use becomes sums that nobody reads.
template <int kBits, int kTiles>
__global__ void __launch_bounds__(kThreads, kTiles == 1 ? 2 : 1) quantised_kernel(__grid_constant__ const Plan plan) {
  extern __shared__ __align__(128) char shared[];
  constexpr uint32_t kRows = 8 * kTiles, kGroups = Weights<kBits>::kGroups;
  let_next_start();
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const uint32_t n_items = plan.first_item[plan.products.n];
  // equal shares for all multiprocessors first, then for the two blocks of each
  const uint32_t n_shares = gridDim.x / plan.blocks_of_share, share = blockIdx.x % n_shares, half = blockIdx.x / n_shares;
  const uint32_t from = n_items * share / n_shares, to = n_items * (share + 1) / n_shares, middle = plan.blocks_of_share == 2 ? (from + to + 1) / 2 : to;
  const uint32_t begin = half == 0 ? from : middle, end = half == 0 ? middle : to;
  Work now{};
  Weights<kBits> a;
  if (begin < end) {
    now = work(plan, begin, warp);
    load(a, plan, now);
  }
  if (begin < end && plan.products.item[now.product].by_groups) {  // what follows the registers' part, each warp its own
    const Product& p = plan.products.item[now.product];
    const uint32_t group = now.group + Weights<kBits>::kGroups + lane;
    if (lane < Weights<kBits>::kGroups && group < now.end_group && now.tile < tiles_of(p)) prefetch_l2(static_cast<const char*>(p.w) + Places(p).at(now.tile, group) * GroupWeights<kBits>::kBytes, GroupWeights<kBits>::kBytes);
  } else if (threadIdx.x == 0 && begin < end) {  // the first item too, if they do not hold all of it
    const Product& p = plan.products.item[now.product];
    const uint64_t of_tile = static_cast<uint64_t>(groups_of(p)) * GroupWeights<kBits>::kBytes, of_item = of_tile * (kWarps >> plan.split[now.product]);
    const uint64_t first = (begin - plan.first_item[now.product]) * of_item, next = first + (of_item <= kThreads * kInFlight * 8 ? of_item : 0);
    const uint64_t last = min(of_tile * tiles_of(p), first + (end - begin) * of_item);
    if (next < last) prefetch_l2(static_cast<const char*>(p.w) + next, static_cast<uint32_t>(min(last - next, static_cast<uint64_t>(kPrefetch))));
  }
  const uint32_t row = blockIdx.y * kRows, used = static_cast<uint32_t>(plan.products.used[plan.products.count_index]);
  wait_for_inputs();
  if (row >= used) return;
  const uint32_t n_rows = min(kRows, used - row);

  const SharedInputs<kBits, kRows> x(shared, plan.x_rows, plan.most_groups);
  float* parts = x.scale + (kBits == 4 ? 2 : 1) * plan.most_groups * kRows;  // [2][warps][rows][16]
  const char* own_x = x.q + (kTiles == 1 ? min(g, plan.x_rows - 1) : g) * x.stride + 16 * t;
  uint32_t x_of = ~0u, buffer = 0;
  for (uint32_t item = begin; item < end; ++item, buffer ^= 1) {
    const Range range = groups_in(plan, now.product);
    if (x_of != now.product) {  // all have read the old one: they have written their parts since
      x_of = now.product;
      const Product& p = plan.products.item[x_of];
      if (plan.rounded)
        copy_x(x, plan.inputs.of[x_of], groups_of(p), counted_rows(plan.products), range, row, n_rows);
      else
        round_x(x, p, range, row, n_rows);
      __syncthreads();
    }
    Sums sums[kTiles];
    const Work mine = now;
    while (true) {
#pragma unroll
      for (uint32_t i = 0; i < kGroups; ++i) {
        const uint32_t from_lane = (lane & ~3u) + i % 4, scales = __shfl_sync(~0u, a.scale[i / 4], from_lane), minimums = kBits == 4 ? __shfl_sync(~0u, a.minimum[i / 4], from_lane) : 0;
        if (now.group + i >= now.end_group) continue;
#pragma unroll
        for (uint2& v : a.group[i].v) asm volatile("" : "+r"(v.x), "+r"(v.y)::"memory");  // and no group's work begins before its turn
        const Operand<kBits> w = operand(a.group[i], scales, minimums);
        const uint32_t group = now.group + i - range.begin;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint32_t at = group * kRows + 8 * tile + 2 * t;
          const uint4 b = *reinterpret_cast<const uint4*>(own_x + 8 * tile * x.stride + group * kGroup);
          const float2 scale = *reinterpret_cast<const float2*>(x.scale + at), sum = kBits == 4 ? *reinterpret_cast<const float2*>(x.sum + at) : float2{0, 0};
          add_group(sums[tile], w, b, scale, sum);
        }
      }
      now.group += kGroups;
      if (now.group >= now.end_group) break;
      load(a, plan, now);
    }
    if (item + 1 < end) {  // the next item's weights come while this one's parts are added
      now = work(plan, item + 1, warp);
      load(a, plan, now);
    }
    float* own = parts + (buffer * kWarps + warp) * kTile * kRows;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 2; ++i) *reinterpret_cast<float2*>(own + (8 * tile + 2 * t + i) * kTile + 2 * g) = {sums[tile].v[i], sums[tile].v[2 + i]};
    __syncthreads();
    const uint32_t split = plan.split[mine.product], width = (kWarps >> split) * kTile;
    const Product& p = plan.products.item[mine.product];
    const uint32_t first = (item - plan.first_item[mine.product]) * width;
    for (uint32_t i = threadIdx.x; i < width * n_rows; i += kThreads) {
      const uint32_t r = i / width, o = i % width;
      if (first + o >= p.n_out) continue;
      float sum = 0;
      for (uint32_t k = 0; k < 1u << split; ++k) sum += parts[((buffer * kWarps + (o / kTile << split) + k) * kRows + r) * kTile + o % kTile];
      finish<float>(p, static_cast<uint64_t>(row + r) * p.n_out + first + o, sum);
    }
  }
}

// One row of a wide matrix need not take the room of eight: two blocks of a multiprocessor share it.
uint32_t rows_of_x(const Products& p, uint32_t tiles) { return tiles == 1 ? std::min(8u, p.n_rows) : 8 * tiles; }

// x, and the warps' sums of two items
uint32_t shared_bytes(const Products& p, uint32_t tiles, uint32_t groups) {
  return rows_of_x(p, tiles) * x_stride(groups) + 8 * tiles * (groups * (p.weights == DUET_I4 ? 8 : 4) + 2 * kWarps * kTile * 4);
}

// How few rows are computed: by 1, 2 or 4 tiles of 8 at a time, in one launch or in several of a part of the groups each; or not (0).
struct Choice {
  uint32_t tiles = 0, launches = 1, groups = 0;
};

Choice choose(const Products& p) {
  Choice c;
  if (p.n_rows > kFewRows) return c;
  uint32_t most = 0;
  for (uint32_t i = 0; i < p.n; ++i) most = std::max(most, groups_of(p.item[i]));
  const auto fits = [&](uint32_t tiles, uint32_t groups) { return shared_bytes(p, tiles, groups) <= max_shared(); };
  c.tiles = 1;
  while (c.tiles < kMaxTiles && 8 * c.tiles < p.n_rows) c.tiles *= 2;
  c.groups = most;
  if (p.n == 1 && p.item[0].finish == Finish::add)  // then several launches add up, and read each weight once
    while (c.groups > 1 && !fits(c.tiles, c.groups)) c.groups = (most + c.launches) / (c.launches + 1), ++c.launches;
  c.launches = (most + c.groups - 1) / c.groups;
  while (c.tiles > 0 && !fits(c.tiles, c.groups)) c.tiles /= 2;
  return c;
}

bool rounds_beforehand(const Products& p, const Choice& c) {
  uint64_t most = 0;
  for (uint32_t i = 0; i < p.n; ++i) most = std::max<uint64_t>(most, p.item[i].n_in);
  return c.tiles == 0 || p.n_rows * most * sizeof(float) > kRoundedByBlocks;
}

template <int kBits, int kTiles>
Error launch_few(Plan& plan, const Choice& c, Stream stream) {
  const uint32_t n = multiprocessors(), shared = shared_bytes(plan.products, kTiles, c.groups);
  const auto kernel = quantised_kernel<kBits, kTiles>;
  if (const Error e = allow_shared(kernel); e != cudaSuccess) return e;
  plan.most_groups = c.groups, plan.x_rows = rows_of_x(plan.products, kTiles);
  for (uint32_t i = 0; i < c.launches; ++i) {
    plan.begin_group = i * c.groups, plan.end_group = plan.begin_group + c.groups;
    // no more warps to a tile than have groups in flight, but if need be for an item on every multiprocessor
    const auto cut = [&](uint32_t more) {
      for (uint32_t j = 0; j < plan.products.n; ++j) {
        const Range range = groups_in(plan, j);
        uint32_t& split = plan.split[j];
        for (split = 0; split < 4 && (Weights<kBits>::kGroups << split) < range.end - range.begin; ++split) {}
        split = std::min(4u, split + more);
        plan.first_item[j + 1] = plan.first_item[j] + (tiles_of(plan.products.item[j]) + (kWarps >> split) - 1) / (kWarps >> split);
      }
      return plan.first_item[plan.products.n];
    };
    uint32_t n_items = cut(0);
    for (uint32_t more = 1; more <= 4 && n_items < n; ++more) n_items = cut(more);
    plan.blocks_of_share = n_items > n && kTiles == 1 && 2 * shared <= max_shared() ? 2 : 1;
    const uint32_t blocks = plan.blocks_of_share == 2 ? 2 * n : std::min(n_items, n);
    const Error e = launch(kernel, dim3(blocks, (plan.products.n_rows + 8 * kTiles - 1) / (8 * kTiles)), dim3(kThreads), shared, stream, plan);
    if (e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

template <int kBits>
Error few(Plan& plan, const Choice& c, Stream stream) {
  return c.tiles == 4 ? launch_few<kBits, 4>(plan, c, stream) : c.tiles == 2 ? launch_few<kBits, 2>(plan, c, stream) : launch_few<kBits, 1>(plan, c, stream);
}

}  // namespace

uint64_t products_scratch(const Products& p) {
  if (!duetp_is_quantised(p.weights) || !rounds_beforehand(p, choose(p))) return 0;
  return rounded_bytes(p);
}

Error quantised_products(const Products& p, Stream stream) {
  const Choice c = choose(p);
  Plan plan{};
  plan.products = p;
  plan.rounded = rounds_beforehand(p, c);
  if (plan.rounded)
    if (const Error e = round_inputs(p, plan.inputs, stream); e != cudaSuccess) return e;
  if (c.tiles == 0) return tile_products(p, plan.inputs, stream);
  return p.weights == DUET_I4 ? few<4>(plan, c, stream) : few<8>(plan, c, stream);
}

}  // namespace duet_cuda
