// Products of many rows with q8 and q4 weights: inputs are rounded once, then tiles of the output are computed from shared memory.
#include <algorithm>

#include "finish.h"
#include "quantised_group.h"
#include "quantised_product.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::launch;
using duet_gpu::let_next_start;
using duet_gpu::wait_for_inputs;

constexpr uint32_t kThreads = 256;

// ---- rounding ----

struct RoundPlan {
  struct Input {
    const float* x;
    uint32_t n_in, groups;
    Rounded to;
  };
  Input input[8];
  const int32_t* used;
  uint32_t count_index, n_rows;  // as counted_rows() counts them
};

// Block (32 groups, input): eight lanes a group, group after group of row after row.
template <int kBits>
__global__ void __launch_bounds__(kThreads) round_kernel(__grid_constant__ const RoundPlan plan) {
  let_next_start();
  const RoundPlan::Input& in = plan.input[blockIdx.y];
  const uint32_t unit = blockIdx.x * (kThreads / 8) + threadIdx.x / 8, row = unit / in.groups, group = unit % in.groups, k = threadIdx.x % 8;
  const bool inside = row < static_cast<uint32_t>(plan.used[plan.count_index]);
  wait_for_inputs();
  const RoundedEighth e = round_eighth(inside ? read_eighth(in.x + static_cast<uint64_t>(row) * in.n_in, in.n_in, group, k) : Eighth{});
  if (!inside) return;
  auto* words = reinterpret_cast<uint32_t*>(in.to.q + (static_cast<uint64_t>(row) * in.groups + group) * kGroup);
  words[word_place<kBits>(k)] = e.word[0], words[word_place<kBits>(8 + k)] = e.word[1];
  const uint64_t at = static_cast<uint64_t>(group) * plan.n_rows + row;
  if (k == 0) in.to.scale[at] = e.scale;
  if (k == 1 && kBits == 4) in.to.sum[at] = e.sum;
}

// Where the inputs of p go, those that are the same together; `bytes` in all
RoundPlan plan_rounding(const Products& p, RoundedInputs& out, uint32_t& n, uint64_t& bytes) {
  RoundPlan plan{};
  plan.used = p.used, plan.count_index = p.count_index, plan.n_rows = counted_rows(p);
  n = 0, bytes = 0;
  for (uint32_t i = 0; i < p.n; ++i) {
    const Product& item = p.item[i];
    uint32_t same = 0;
    while (same < n && (plan.input[same].x != item.x || plan.input[same].n_in != item.n_in)) ++same;
    if (same == n) {
      const uint32_t groups = groups_of(item);
      const uint64_t units = static_cast<uint64_t>(groups) * plan.n_rows;
      char* at = static_cast<char*>(p.rounded) + bytes;
      const Rounded to{at, reinterpret_cast<float*>(at + units * kGroup), reinterpret_cast<float*>(at + units * kGroup) + units};
      plan.input[n++] = {static_cast<const float*>(item.x), item.n_in, groups, to};
      bytes += units * (kGroup + 2 * sizeof(float));
    }
    out.of[i] = plan.input[same].to;
  }
  return plan;
}

// ---- tiles ----

constexpr uint32_t kStages = 4, kTilesOfBlock = 8, kOutputs = kTilesOfBlock * kTile, kRows = kRowsOfTile;
constexpr uint32_t kStride = kOutputs + 4;  // of the sums in shared memory

struct TilePlan {
  Products products;
  RoundedInputs inputs;
  uint32_t first_block[9];  // of a product, in blockIdx.y
};

// What a group needs, in shared memory.
template <int kBits>
struct Stage {
  char w[kTilesOfBlock * GroupWeights<kBits>::kBytes];
  char x[kRows * kGroup];
  char x_scale[kRows * 4];
  char x_sum[kBits == 4 ? kRows * 4 : 16];
  char scale[kOutputs * 2];
  char minimum[kBits == 4 ? kOutputs * 2 : 16];
};

// Block (rows, outputs). Warp (i % 4, i / 4) has two stored tiles of outputs and 64 rows; groups pass through a ring of stages.
template <int kBits>
__global__ void __launch_bounds__(kThreads, 2) tile_kernel(__grid_constant__ const TilePlan plan) {
  extern __shared__ __align__(128) char shared[];
  constexpr uint32_t kBytes = GroupWeights<kBits>::kBytes, kChunks = kBytes / 16;
  auto* stages = reinterpret_cast<Stage<kBits>*>(shared);
  let_next_start();
  const uint32_t warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const uint32_t row = blockIdx.x * kRows, used = static_cast<uint32_t>(plan.products.used[plan.products.count_index]);
  uint32_t which = 0;
  while (blockIdx.y >= plan.first_block[which + 1]) ++which;
  const Product& p = plan.products.item[which];
  const Rounded& x = plan.inputs.of[which];
  const uint32_t groups = groups_of(p), n_tiles = tiles_of(p), first_tile = (blockIdx.y - plan.first_block[which]) * kTilesOfBlock, all_rows = counted_rows(plan.products);

  const Places places(p);
  // tiles beyond the last are the last again: what becomes of them is not stored
  const auto copy_weights = [&](uint32_t group) {
    Stage<kBits>& s = stages[group % kStages];
    for (uint32_t i = threadIdx.x; i < kTilesOfBlock * kChunks; i += kThreads) {
      const uint32_t tile = min(first_tile + i / kChunks, n_tiles - 1);
      copy_16(s.w + i * 16, static_cast<const char*>(p.w) + places.at(tile, group) * kBytes + i % kChunks * 16);
    }
    const uint32_t i = threadIdx.x % 16;
    const uint64_t at = places.at(min(first_tile + i / 2, n_tiles - 1), group) * (2 * kTile) + i % 2 * 16;
    if (threadIdx.x < 16) copy_16(s.scale + i * 16, static_cast<const char*>(p.scale) + at);
    if (kBits == 4 && threadIdx.x / 16 == 1) copy_16(s.minimum + i * 16, static_cast<const char*>(p.minimum) + at);
  };
  const auto copy_inputs = [&](uint32_t group) {
    Stage<kBits>& s = stages[group % kStages];
    for (uint32_t i = threadIdx.x; i < kRows * 4; i += kThreads) copy_16(s.x + i * 16, x.q + (static_cast<uint64_t>(row + i / 4) * groups + group) * kGroup + i % 4 * 16);
    const uint32_t i = threadIdx.x % 32;
    const uint64_t at = static_cast<uint64_t>(group) * all_rows + row + 4 * i;
    if (threadIdx.x / 32 == 1) copy_16(s.x_scale + i * 16, x.scale + at);
    if (kBits == 4 && threadIdx.x / 32 == 2) copy_16(s.x_sum + i * 16, x.sum + at);
  };
  if (row < used)
    for (uint32_t i = 0; i < kStages - 1 && i < groups; ++i) copy_weights(i);
  wait_for_inputs();
  if (row >= used) return;
  for (uint32_t i = 0; i < kStages - 1; ++i) {
    if (i < groups) copy_inputs(i);
    end_of_copies();
  }

  const uint32_t own_tile = warp % 4 * 2, own_row = warp / 4 * 64;
  Sums sums[2][8];
  for (uint32_t group = 0; group < groups; ++group) {
    wait_for_copies<kStages - 2>();
    __syncthreads();  // this stage is there for all, and the one before it has been read by all
    if (const uint32_t next = group + kStages - 1; next < groups) copy_weights(next), copy_inputs(next);
    end_of_copies();
    const Stage<kBits>& s = stages[group % kStages];
    Operand<kBits> w[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; ++i) {
      GroupWeights<kBits> of_tile;
#pragma unroll
      for (int j = 0; j < GroupWeights<kBits>::kLoads; ++j) of_tile.v[j] = *reinterpret_cast<const uint2*>(s.w + (own_tile + i) * kBytes + j * 256 + place_of_lane());
      const uint32_t at = (own_tile + i) * (2 * kTile) + 4 * g;
      w[i] = operand(of_tile, *reinterpret_cast<const uint32_t*>(s.scale + at), kBits == 4 ? *reinterpret_cast<const uint32_t*>(s.minimum + at) : 0);
    }
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j) {
      const uint32_t r = own_row + 8 * j;
      const uint4 b = *reinterpret_cast<const uint4*>(s.x + (r + g) * kGroup + 16 * t);
      const float2 scale = *reinterpret_cast<const float2*>(s.x_scale + (r + 2 * t) * 4), sum = kBits == 4 ? *reinterpret_cast<const float2*>(s.x_sum + (r + 2 * t) * 4) : float2{0, 0};
#pragma unroll
      for (int i = 0; i < 2; ++i) add_group(sums[i][j], w[i], b, scale, sum);
    }
  }
  wait_for_copies<0>();
  __syncthreads();  // the stages have been read: their memory is free for the sums
  float* results = reinterpret_cast<float*>(shared);  // [rows][kStride]
#pragma unroll
  for (uint32_t i = 0; i < 2; ++i)
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j)
#pragma unroll
      for (uint32_t k = 0; k < 2; ++k)
        *reinterpret_cast<float2*>(results + (own_row + 8 * j + 2 * t + k) * kStride + (own_tile + i) * kTile + 2 * g) = {sums[i][j].v[k], sums[i][j].v[2 + k]};
  __syncthreads();
  const uint32_t n_rows = min(kRows, used - row), first = first_tile * kTile, output = first + threadIdx.x % kOutputs;
  if (output >= p.n_out) return;
  for (uint32_t r = threadIdx.x / kOutputs; r < n_rows; r += kThreads / kOutputs) finish<float>(p, static_cast<uint64_t>(row + r) * p.n_out + output, results[r * kStride + threadIdx.x % kOutputs]);
}

template <int kBits>
Error launch_tiles(const TilePlan& plan, Stream stream) {
  const auto kernel = tile_kernel<kBits>;
  if (const Error e = allow_shared(kernel); e != cudaSuccess) return e;
  const uint32_t shared = std::max<uint32_t>(kStages * sizeof(Stage<kBits>), kRows * kStride * sizeof(float));
  return launch(kernel, dim3((plan.products.n_rows + kRows - 1) / kRows, plan.first_block[plan.products.n]), dim3(kThreads), shared, stream, plan);
}

}  // namespace

uint64_t rounded_bytes(const Products& p) {
  RoundedInputs unused;
  uint32_t n = 0;
  uint64_t bytes = 0;
  plan_rounding(p, unused, n, bytes);
  return bytes;
}

Error round_inputs(const Products& p, RoundedInputs& out, Stream stream) {
  uint32_t n = 0, most = 0;
  uint64_t bytes = 0;
  const RoundPlan plan = plan_rounding(p, out, n, bytes);
  for (uint32_t i = 0; i < n; ++i) most = std::max(most, plan.input[i].groups);
  const dim3 grid((p.n_rows * most * 8 + kThreads - 1) / kThreads, n);
  return launch(p.weights == DUET_I4 ? round_kernel<4> : round_kernel<8>, grid, dim3(kThreads), 0, stream, plan);
}

Error tile_products(const Products& p, const RoundedInputs& inputs, Stream stream) {
  TilePlan plan{};
  plan.products = p, plan.inputs = inputs;
  for (uint32_t i = 0; i < p.n; ++i) plan.first_block[i + 1] = plan.first_block[i] + (tiles_of(p.item[i]) + kTilesOfBlock - 1) / kTilesOfBlock;
  return p.weights == DUET_I4 ? launch_tiles<4>(plan, stream) : launch_tiles<8>(plan, stream);
}

}  // namespace duet_cuda
