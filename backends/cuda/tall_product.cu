// Tiles of 128 outputs by up to 128 rows, by the warpgroup products of Hopper with the weights as the left operand. What is to be
// read, tile after tile and product after product, is a row of units of 64 inputs; each block takes an equal share of it, so that all
// multiprocessors read the same number of bytes whatever the shapes are. A tile that shares divide is added up in their order
// by the block that comes last. Of more rows each block of rows has its own shares.
#include "tall_product.h"

#include <cuda.h>

#include <algorithm>

#include "finish.h"
#include "hopper.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::bf16;
using duet_gpu::launch;
using duet_gpu::let_next_start;
using duet_gpu::wait_for_inputs;

constexpr uint32_t kGroups = 2, kConsumers = kGroups * 128, kThreads = kConsumers + 128;  // warpgroups that multiply, and one of which a thread copies
constexpr uint32_t kOutputs = 64 * kGroups;   // of a tile
constexpr uint32_t kInputs = 64;              // of a unit: 128 bytes of a row
constexpr uint32_t kPart = 64 * kInputs * 2;  // bytes of a warpgroup's outputs of a unit
constexpr uint32_t kMaxRows = 128;            // of a block
constexpr uint32_t kMaxShares = 160;
constexpr uint32_t kWhole = 8;                // a tile of so few units is not divided
constexpr uint32_t kLeast = 4;                // units of a share, if there are few
template <uint32_t kRows>
constexpr uint32_t kSlice = kRows < 32 ? kRows : 32;  // rows that are stored at a time
constexpr uint32_t kSliceStride = kOutputs + 4;  // floats: rows 2 t of four lanes are 8 banks apart

// A stage of the ring has 64 outputs of each warpgroup, [64 outputs][64 inputs] or, if in-major, [64 inputs][64 outputs], then x, [kRows][64].
template <uint32_t kRows>
constexpr uint32_t kStageBytes = kGroups * kPart + kRows * kInputs * 2;
template <uint32_t kRows>
constexpr uint32_t kStages = (200u << 10) / kStageBytes<kRows>;
template <uint32_t kRows>
constexpr uint32_t kShared = 1024 + kStages<kRows> * (kStageBytes<kRows> + 16) + kSlice<kRows> * kSliceStride * 4;  // alignment, stages and their barriers, slice

struct Item {
  uint32_t n_k, n_tiles, first_unit, first_tile;
};

struct Plan {
  CUtensorMap w[8], x[8];
  Product product[8];
  Item item[8];
  uint32_t n, n_shares, n_tiles;
  uint32_t begin[kMaxShares + 1];  // the first unit of each share
  const int32_t* used;
  uint32_t count_index;
  uint32_t* tickets;  // [row blocks][tiles]
  float* parts;       // [row blocks][shares][2: of the share's first tile, of its last][outputs * rows, as threads hold them]
};
static_assert(sizeof(Plan) <= 4096, "arguments of a kernel");

#if defined(DUET_HAS_TILES)
struct Place {
  uint32_t product, tile, k;
};
__device__ __forceinline__ Place place(const Plan& plan, uint32_t unit) {
  Place p{0, 0, 0};
  while (p.product + 1 < plan.n && unit >= plan.item[p.product + 1].first_unit) ++p.product;
  unit -= plan.item[p.product].first_unit;
  p.tile = unit / plan.item[p.product].n_k;
  p.k = unit % plan.item[p.product].n_k;
  return p;
}
__device__ __forceinline__ void next_tile(const Plan& plan, Place& p) {
  p.k = 0;
  if (++p.tile == plan.item[p.product].n_tiles) p.tile = 0, ++p.product;
}

__device__ __forceinline__ void consumers_meet() { asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory"); }

// Four outputs of a row; old: what is there, for add
__device__ __forceinline__ void store_four(const Product& p, uint32_t row, uint32_t output, float4 v, float4 old) {
  const uint64_t at = static_cast<uint64_t>(row) * p.n_out + output;
  if (p.n_out % 4 != 0) {
    const float sums[4] = {v.x, v.y, v.z, v.w};
    for (uint32_t i = 0; i < 4 && output + i < p.n_out; ++i) finish<bf16>(p, at + i, sums[i]);
  } else if (output < p.n_out) {
    if (p.finish == Finish::store || p.finish == Finish::add) {
      *reinterpret_cast<float4*>(static_cast<float*>(p.y) + at) = {v.x + old.x, v.y + old.y, v.z + old.z, v.w + old.w};
    } else {
      const __nv_bfloat162 low = __floats2bfloat162_rn(finished(p.finish, v.x), finished(p.finish, v.y)), high = __floats2bfloat162_rn(finished(p.finish, v.z), finished(p.finish, v.w));
      *reinterpret_cast<uint2*>(static_cast<bf16*>(p.y) + at) = {*reinterpret_cast<const uint32_t*>(&low), *reinterpret_cast<const uint32_t*>(&high)};
    }
  }
}
#endif

// For how many blocks a multiprocessor's registers must suffice. Shared memory has room for one: what one leaves of registers is for the kernel after it, which then starts early.
template <uint32_t kRows>
constexpr uint32_t kBlocks = kRows < 128 ? 2 : 1;

template <uint32_t kRows, bool kInMajor>
__global__ void __launch_bounds__(kThreads, kBlocks<kRows>) tall_kernel(__grid_constant__ const Plan plan) {
#if defined(DUET_HAS_TILES)
  constexpr uint32_t kStage = kStageBytes<kRows>, n_stages = kStages<kRows>, kTileFloats = kOutputs * kRows;
  extern __shared__ char shared[];
  __shared__ bool is_last;
  let_next_start();
  const uint32_t share = blockIdx.x % plan.n_shares, row_block = blockIdx.x / plan.n_shares, row = row_block * kRows;
  const uint32_t used = static_cast<uint32_t>(plan.used[plan.count_index]), begin = plan.begin[share], end = plan.begin[share + 1];
  if (row >= used) return wait_for_inputs();
  const uint32_t ring = (shared_address(shared) + 1023) / 1024 * 1024;
  uint64_t *full = reinterpret_cast<uint64_t*>(shared + (ring - shared_address(shared)) + n_stages * kStage), *empty = full + n_stages;
  float* slice = reinterpret_cast<float*>(empty + n_stages);  // [kSlice<kRows>][kSliceStride]

  const bool copies = threadIdx.x == kConsumers;
  const uint64_t once = gridDim.x == plan.n_shares ? read_once() : read_often(), often = read_often();
  const auto copy_weights = [&](const Place& p, uint32_t stage) {
    const uint32_t to = ring + stage * kStage;
    barrier_expect(full + stage, kStage);
    if constexpr (kInMajor) {
#pragma unroll
      for (uint32_t i = 0; i < kGroups; ++i) copy_box(to + i * kPart, plan.w + p.product, p.tile * kOutputs + 64 * i, p.k * kInputs, full + stage, once);
    } else {
      copy_box(to, plan.w + p.product, p.k * kInputs, p.tile * kOutputs, full + stage, once);
    }
  };
  const auto copy_x = [&](const Place& at, uint32_t stage) {
    copy_box(ring + stage * kStage + kGroups * kPart, plan.x + at.product, at.k * kInputs, row, full + stage, often);
  };
  const auto advance = [&](Place& p) {
    if (++p.k == plan.item[p.product].n_k) next_tile(plan, p);
  };
  const uint32_t ahead = min(n_stages, end - begin);
  Place p = place(plan, begin);
  const Place first = p;
  if (copies) {
    for (uint32_t i = 0; i < n_stages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, kConsumers / 32);
    }
    barriers_made();
    // the weights of the first stages come before the inputs are there
    for (uint32_t i = 0; i < ahead; ++i, advance(p)) copy_weights(p, i);
  }
  __syncthreads();
  wait_for_inputs();
  if (threadIdx.x >= kConsumers) {
    registers_down<kBlocks<kRows> == 2 ? 32 : 40>();
    if (copies) {
      Place at = first;
      for (uint32_t i = 0; i < ahead; ++i, advance(at)) copy_x(at, i);
      uint32_t stage = 0, parity = 0;
      for (uint32_t unit = begin + ahead; unit < end; ++unit, advance(p)) {
        barrier_wait(empty + stage, parity);
        copy_weights(p, stage);
        copy_x(p, stage);
        if (++stage == n_stages) stage = 0, parity ^= 1;
      }
    }
  } else {
    registers_up<kBlocks<kRows> == 2 ? 104 : 232>();
    const uint32_t group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t n_rows = min(kRows, used - row);
    float sums[kRows / 2];
    uint32_t stage = 0, parity = 0;
    p = first;
    for (uint32_t unit = begin; unit < end; next_tile(plan, p)) {
      const Item& item = plan.item[p.product];
      const uint32_t n = min(item.n_k - p.k, end - unit);
      uint32_t before = 0;  // the stage before, which is read until the next products are under way
      for (uint32_t i = 0; i < n; ++i) {
        barrier_wait(full + stage, parity);
        const uint32_t at = ring + stage * kStage;
        uint64_t x = operand(at + kGroups * kPart), w = operand(at + group * kPart);
        tiles_begin();
#pragma unroll
        for (uint32_t k = 0; k < kInputs / 16; ++k) {
          multiply_tile<kInMajor>(sums, w, x, i + k > 0);
          w = next_operand<kInMajor>(w);
          x = next_operand<false>(x);
        }
        tiles_commit();
        if (i > 0) {
          tiles_wait<1>();
          if (lane == 0) barrier_arrive(empty + before);
        }
        before = stage;
        if (++stage == n_stages) stage = 0, parity ^= 1;
      }
      tiles_wait<0>();
      if (lane == 0) barrier_arrive(empty + before);
      settle(sums);

      const uint32_t tile_begin = unit - p.k, tile_end = tile_begin + item.n_k;
      unit += n;
      if (n < item.n_k) {
        float4* part = reinterpret_cast<float4*>(plan.parts + static_cast<uint64_t>(2 * blockIdx.x + (begin < tile_begin ? 1 : 0)) * kTileFloats) + threadIdx.x;
#pragma unroll
        for (uint32_t i = 0; i < kRows / 8; ++i) part[i * kConsumers] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
        uint32_t from = share, to = share;  // the shares that have a part of this tile
        while (plan.begin[from] > tile_begin) --from;
        while (plan.begin[to + 1] < tile_end) ++to;
        __threadfence();
        consumers_meet();
        if (threadIdx.x == 0) is_last = atomicInc(plan.tickets + row_block * plan.n_tiles + item.first_tile + p.tile, to - from) == to - from;
        consumers_meet();
        if (!is_last) continue;
        __threadfence();
        for (uint32_t s = from; s <= to; ++s) {
          const uint64_t of = row_block * plan.n_shares + s;
          const float4* other = reinterpret_cast<const float4*>(plan.parts + (2 * of + (plan.begin[s] < tile_begin ? 1 : 0)) * kTileFloats) + threadIdx.x;
#pragma unroll
          for (uint32_t i = 0; i < kRows / 8; ++i) {
            const float4 v = __ldcg(other + i * kConsumers);
            float* sum = sums + 4 * i;
            sum[0] = s == from ? v.x : sum[0] + v.x, sum[1] = s == from ? v.y : sum[1] + v.y;
            sum[2] = s == from ? v.z : sum[2] + v.z, sum[3] = s == from ? v.w : sum[3] + v.w;
          }
        }
      }

      // through shared memory, so that whole lines are stored
      const Product& product = plan.product[p.product];
      constexpr uint32_t kRowsOfSlice = kSlice<kRows>, kFours = kOutputs / 4, kEach = kRowsOfSlice * kFours / kConsumers;
#pragma unroll
      for (uint32_t s = 0; s < kRows / kRowsOfSlice; ++s) {
        if (s * kRowsOfSlice >= n_rows) break;
        float4 old[kEach];
#pragma unroll
        for (uint32_t i = 0; i < kEach; ++i) {
          const uint32_t r = s * kRowsOfSlice + (threadIdx.x + i * kConsumers) / kFours, output = p.tile * kOutputs + (threadIdx.x + i * kConsumers) % kFours * 4;
          const bool wanted = product.finish == Finish::add && product.n_out % 4 == 0 && r < n_rows && output < product.n_out;
          old[i] = wanted ? *reinterpret_cast<const float4*>(static_cast<const float*>(product.y) + static_cast<uint64_t>(row + r) * product.n_out + output) : float4{0, 0, 0, 0};
        }
        consumers_meet();  // the slice before has been read
#pragma unroll
        for (uint32_t i = 0; i < kRowsOfSlice / 2; ++i)
          slice[(i / 4 * 8 + 2 * t + i % 2) * kSliceStride + 64 * group + 16 * warp + g + i % 4 / 2 * 8] = sums[s * (kRowsOfSlice / 2) + i];
        consumers_meet();
#pragma unroll
        for (uint32_t i = 0; i < kEach; ++i) {
          const uint32_t r = (threadIdx.x + i * kConsumers) / kFours, o = (threadIdx.x + i * kConsumers) % kFours * 4;
          if (s * kRowsOfSlice + r < n_rows) store_four(product, row + s * kRowsOfSlice + r, p.tile * kOutputs + o, *reinterpret_cast<const float4*>(slice + r * kSliceStride + o), old[i]);
        }
      }
    }
  }
#endif
}

// ---- host ----

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                            CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
// The driver's function, without linking against the driver; null if it has none.
Encode encoder() {
  static const Encode encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found{};
    const cudaError_t e = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
    if (e != cudaSuccess) (void)cudaGetLastError();
    return e == cudaSuccess && found == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(f) : nullptr;
  }();
  return encode;
}

// matrix [height, width] in boxes of 64 elements of `box` rows
Error describe(CUtensorMap& map, const void* matrix, uint64_t height, uint64_t width, uint32_t box) {
  const cuuint64_t size[2] = {width, height}, stride[1] = {width * 2};
  const cuuint32_t boxes[2] = {64, box}, steps[2] = {1, 1};
  const CUresult r = encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(matrix), size, stride, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return r == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

struct Choice {
  Plan plan{};
  uint32_t rows, row_blocks;
};

uint32_t cut_up(Plan& plan, const Products& p) {  // into tiles; units of all
  uint32_t units = 0;
  plan.n_tiles = 0;
  for (uint32_t i = 0; i < p.n; ++i) {
    Item& item = plan.item[i];
    item = {(p.item[i].n_in + kInputs - 1) / kInputs, (p.item[i].n_out + kOutputs - 1) / kOutputs, units, plan.n_tiles};
    units += item.n_k * item.n_tiles;
    plan.n_tiles += item.n_tiles;
  }
  return units;
}

// A short tile is not worth the adding up.
uint32_t to_whole_tile(const Plan& plan, uint32_t unit) {
  uint32_t i = plan.n;
  while (plan.item[--i].first_unit > unit) {
  }
  const uint32_t n_k = plan.item[i].n_k, k = (unit - plan.item[i].first_unit) % n_k;
  return n_k > kWhole ? unit : k < n_k - k ? unit - k : unit + n_k - k;
}

Choice choose(const Products& p) {
  Choice c;
  c.rows = 8;
  while (c.rows < kMaxRows && c.rows < p.n_rows) c.rows *= 2;
  c.row_blocks = (p.n_rows + c.rows - 1) / c.rows;
  c.plan.n = p.n;
  c.plan.used = p.used, c.plan.count_index = p.count_index;
  std::copy_n(p.item, p.n, c.plan.product);
  const uint32_t units = cut_up(c.plan, p), shares = std::clamp(units / kLeast, 1u, std::clamp(multiprocessors() / c.row_blocks, 1u, kMaxShares));
  c.plan.n_shares = shares;
  for (uint32_t i = 0; i < shares; ++i) c.plan.begin[i] = to_whole_tile(c.plan, static_cast<uint32_t>(static_cast<uint64_t>(units) * i / shares));
  c.plan.begin[shares] = units;
  return c;
}

template <uint32_t kRows>
Error launch_tall(const Choice& c, bool in_major, Stream stream) {
  const auto kernel = in_major ? tall_kernel<kRows, true> : tall_kernel<kRows, false>;
  if (const Error e = allow_shared(kernel); e != cudaSuccess) return e;
  return launch(kernel, dim3(c.plan.n_shares * c.row_blocks), dim3(kThreads), kShared<kRows>, stream, c.plan);
}

}  // namespace

bool tall_takes(const TallProducts& t) {
#if defined(DUET_CUDA_90A)
  const Products& p = t.products;
  if (p.weights != DUET_BF16 || p.n_rows == 0 || duet_gpu::device_attribute(cudaDevAttrComputeCapabilityMajor, 0) != 9) return false;
  if (max_shared() < std::max({kShared<8>, kShared<16>, kShared<32>, kShared<64>, kShared<kMaxRows>}) || !encoder()) return false;
  for (uint32_t i = 0; i < p.n; ++i) {
    const Product& product = p.item[i];
    if (product.n_in % 8 != 0 || (t.in_major && product.n_out % 8 != 0)) return false;
    if (reinterpret_cast<uintptr_t>(product.w) % 16 != 0 || reinterpret_cast<uintptr_t>(product.x) % 16 != 0 || reinterpret_cast<uintptr_t>(product.y) % 16 != 0) return false;
  }
  return true;
#else
  return (void)t, false;  // the kernels of other architectures are empty
#endif
}

SkippingScratch tall_scratch(const TallProducts& t) {
  const Choice c = choose(t.products);
  return {static_cast<uint64_t>(c.row_blocks) * c.plan.n_tiles * sizeof(uint32_t), 2ull * c.row_blocks * c.plan.n_shares * kOutputs * c.rows * sizeof(float)};
}

Error tall_products(const TallProducts& t, void* tickets, void* parts, Stream stream) {
  const Products& p = t.products;
  Choice c = choose(p);
  c.plan.tickets = static_cast<uint32_t*>(tickets);
  c.plan.parts = static_cast<float*>(parts);
  for (uint32_t i = 0; i < p.n; ++i) {
    const Product& product = p.item[i];
    Error e = t.in_major ? describe(c.plan.w[i], product.w, product.n_in, product.n_out, kInputs) : describe(c.plan.w[i], product.w, product.n_out, product.n_in, kOutputs);
    if (e == cudaSuccess) e = describe(c.plan.x[i], product.x, p.n_rows, product.n_in, c.rows);
    if (e != cudaSuccess) return e;
  }
  switch (c.rows) {
    case 8: return launch_tall<8>(c, t.in_major, stream);
    case 16: return launch_tall<16>(c, t.in_major, stream);
    case 32: return launch_tall<32>(c, t.in_major, stream);
    case 64: return launch_tall<64>(c, t.in_major, stream);
    default: return launch_tall<kMaxRows>(c, t.in_major, stream);
  }
}

}  // namespace duet_cuda
