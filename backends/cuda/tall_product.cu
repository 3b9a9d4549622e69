// Tiles of 128 or 256 outputs by all rows, by the warpgroup products of Hopper with the weights as the left operand. What is to be
// read, tile after tile and product after product, is a row of units of 64 inputs; each block takes an equal share of it, so that all
// multiprocessors read the same number of bytes whatever the shapes are. A tile that shares divide is added up in their order
// by the block that comes last.
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
constexpr uint32_t kInputs = 64;        // of a unit: 128 bytes of a row
constexpr uint32_t kPart = 64 * kInputs * 2;  // bytes of 64 outputs of a unit
constexpr uint32_t kMaxShares = 160, kMaxStages = 16;
constexpr uint32_t kWhole = 8;          // a tile of so few units is not divided
constexpr uint32_t kLeast = 4;          // units of a share, if there are few
constexpr uint32_t kSlice = 32;         // rows that are stored at a time
constexpr uint32_t kBarriers = 2 * kMaxStages * 8;

struct Item {
  uint32_t n_k, n_tiles, first_unit, first_tile;
};

struct Plan {
  CUtensorMap w[8], x[8];
  Product product[8];
  Item item[8];
  uint32_t n, n_shares, n_tiles, stages;
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

template <uint32_t kRows, uint32_t kParts>
constexpr uint32_t kStageBytes = kGroups * kParts * kPart + kRows * kInputs * 2;
template <uint32_t kParts>
constexpr uint32_t kStoreStride = kGroups * kParts * 64 + 4;  // floats: rows 2 t of four lanes are 8 banks apart
template <uint32_t kParts>
constexpr uint32_t kOtherBytes = kSlice * kStoreStride<kParts> * 4 + kBarriers + 1024;  // what is not the ring: slice, barriers, alignment

// Blocks that a multiprocessor's registers suffice for: the sums take kRows * kParts / 2 of a thread's
template <uint32_t kRows, uint32_t kParts>
constexpr uint32_t kBlocks = kRows * kParts < 128 ? 2 : 1;

// A stage of the ring has kParts * 64 outputs of each warpgroup, [64 outputs][64 inputs] or, if in-major, [64 inputs][64 outputs], then x, [kRows][64].
template <uint32_t kRows, uint32_t kParts, bool kInMajor>
__global__ void __launch_bounds__(kThreads, kBlocks<kRows, kParts>) tall_kernel(__grid_constant__ const Plan plan) {
#if defined(DUET_HAS_TILES)
  constexpr uint32_t kOutputs = kGroups * kParts * 64, kStage = kStageBytes<kRows, kParts>, kTileFloats = kOutputs * kRows;
  extern __shared__ char shared[];
  __shared__ bool is_last;
  let_next_start();
  const uint32_t share = blockIdx.x % plan.n_shares, row_block = blockIdx.x / plan.n_shares, row = row_block * kRows;
  const uint32_t used = static_cast<uint32_t>(plan.used[plan.count_index]), begin = plan.begin[share], end = plan.begin[share + 1];
  if (row >= used) return wait_for_inputs();
  const uint32_t ring = (shared_address(shared) + 1023) / 1024 * 1024, n_stages = plan.stages;
  const uint32_t full = ring + n_stages * kStage, empty = full + kMaxStages * 8;  // barriers, 8 bytes each
  float* slice = reinterpret_cast<float*>(shared + (full - shared_address(shared)) + kBarriers);  // [kSlice][kStoreStride]

  if (threadIdx.x >= kConsumers) {
    registers_down<kBlocks<kRows, kParts> == 2 ? 32 : 40>();
    const bool copies = threadIdx.x == kConsumers;
    const uint64_t once = gridDim.x == plan.n_shares ? read_once() : read_often();
    const auto copy_weights = [&](const Place& p, uint32_t stage) {
      const uint32_t to = ring + stage * kStage, barrier = full + 8 * stage;
      barrier_expect(barrier, kStage);
      if constexpr (kInMajor) {
#pragma unroll
        for (uint32_t i = 0; i < kGroups * kParts; ++i) copy_box(to + i * kPart, plan.w + p.product, p.tile * kOutputs + 64 * i, p.k * kInputs, barrier, once);
      } else {
        copy_box(to, plan.w + p.product, p.k * kInputs, p.tile * kOutputs, barrier, once);
      }
    };
    const auto advance = [&](Place& p) {
      if (++p.k == plan.item[p.product].n_k) next_tile(plan, p);
    };
    const uint64_t often = read_often();
    const auto copy_x = [&](const Place& at, uint32_t stage) {
      copy_box(ring + stage * kStage + kGroups * kParts * kPart, plan.x + at.product, at.k * kInputs, row, full + 8 * stage, often);
    };
    const uint32_t ahead = min(n_stages, end - begin);
    Place p = place(plan, begin), first = p;
    if (copies) {
      for (uint32_t i = 0; i < n_stages; ++i) {
        barrier_init(full + 8 * i, 1);
        barrier_init(empty + 8 * i, kConsumers / 32);
      }
      barriers_made();
      // the weights of the first stages come before the inputs are there
      for (uint32_t i = 0; i < ahead; ++i, advance(p)) copy_weights(p, i);
    }
    __syncthreads();
    wait_for_inputs();
    if (copies) {
      for (uint32_t i = 0; i < ahead; ++i, advance(first)) copy_x(first, i);
      uint32_t stage = 0, parity = 0;
      for (uint32_t unit = begin + ahead; unit < end; ++unit, advance(p)) {
        barrier_wait(empty + 8 * stage, parity);
        copy_weights(p, stage);
        copy_x(p, stage);
        if (++stage == n_stages) stage = 0, parity ^= 1;
      }
    }
  } else {
    registers_up<kBlocks<kRows, kParts> == 2 ? 104 : 232>();
    __syncthreads();
    wait_for_inputs();
    const uint32_t group = threadIdx.x / 128, warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t n_rows = min(kRows, used - row);
    float sums[kParts][kRows / 2];
    uint32_t stage = 0, parity = 0;
    Place p = place(plan, begin);
    for (uint32_t unit = begin; unit < end; next_tile(plan, p)) {
      const Item& item = plan.item[p.product];
      const uint32_t n = min(item.n_k - p.k, end - unit);
      uint32_t before = 0;  // the stage before, which is read until the next products are under way
      for (uint32_t i = 0; i < n; ++i) {
        barrier_wait(full + 8 * stage, parity);
        const uint32_t at = ring + stage * kStage;
        uint64_t x = operand(at + kGroups * kParts * kPart), w[kParts];
#pragma unroll
        for (uint32_t m = 0; m < kParts; ++m) w[m] = operand(at + (group * kParts + m) * kPart);
        tiles_begin();
#pragma unroll
        for (uint32_t k = 0; k < kInputs / 16; ++k) {
#pragma unroll
          for (uint32_t m = 0; m < kParts; ++m) {
            multiply_tile<kInMajor>(sums[m], w[m], x, i + k > 0);
            w[m] = next_operand<kInMajor>(w[m]);
          }
          x = next_operand<false>(x);
        }
        tiles_commit();
        if (i > 0) {
          tiles_wait<1>();
          if (lane == 0) barrier_arrive(empty + 8 * before);
        }
        before = stage;
        if (++stage == n_stages) stage = 0, parity ^= 1;
      }
      tiles_wait<0>();
      if (lane == 0) barrier_arrive(empty + 8 * before);
#pragma unroll
      for (uint32_t m = 0; m < kParts; ++m) settle(sums[m]);

      const uint32_t tile_begin = unit - p.k, tile_end = tile_begin + item.n_k;
      unit += n;
      if (n < item.n_k) {
        float4* part = reinterpret_cast<float4*>(plan.parts + static_cast<uint64_t>(2 * blockIdx.x + (begin < tile_begin ? 1 : 0)) * kTileFloats) + threadIdx.x;
#pragma unroll
        for (uint32_t m = 0; m < kParts; ++m)
#pragma unroll
          for (uint32_t i = 0; i < kRows / 8; ++i) part[(m * (kRows / 8) + i) * kConsumers] = {sums[m][4 * i], sums[m][4 * i + 1], sums[m][4 * i + 2], sums[m][4 * i + 3]};
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
          for (uint32_t m = 0; m < kParts; ++m)
#pragma unroll
            for (uint32_t i = 0; i < kRows / 8; ++i) {
              const float4 v = __ldcg(other + (m * (kRows / 8) + i) * kConsumers);
              float* sum = sums[m] + 4 * i;
              sum[0] = s == from ? v.x : sum[0] + v.x, sum[1] = s == from ? v.y : sum[1] + v.y;
              sum[2] = s == from ? v.z : sum[2] + v.z, sum[3] = s == from ? v.w : sum[3] + v.w;
            }
        }
      }

      // through shared memory, so that whole lines are stored
      const Product& product = plan.product[p.product];
      constexpr uint32_t kFours = kOutputs / 4, kEach = kSlice * kFours / kConsumers;
#pragma unroll
      for (uint32_t s = 0; s < kRows / kSlice; ++s) {
        if (s * kSlice >= n_rows) break;
        float4 old[kEach];
#pragma unroll
        for (uint32_t i = 0; i < kEach; ++i) {
          const uint32_t r = s * kSlice + (threadIdx.x + i * kConsumers) / kFours, output = p.tile * kOutputs + (threadIdx.x + i * kConsumers) % kFours * 4;
          const bool wanted = product.finish == Finish::add && product.n_out % 4 == 0 && r < n_rows && output < product.n_out;
          old[i] = wanted ? *reinterpret_cast<const float4*>(static_cast<const float*>(product.y) + static_cast<uint64_t>(row + r) * product.n_out + output) : float4{0, 0, 0, 0};
        }
        consumers_meet();  // the slice before has been read
#pragma unroll
        for (uint32_t m = 0; m < kParts; ++m)
#pragma unroll
          for (uint32_t i = 0; i < kSlice / 2; ++i)
            slice[(i / 4 * 8 + 2 * t + i % 2) * kStoreStride<kParts> + (group * kParts + m) * 64 + 16 * warp + g + i % 4 / 2 * 8] = sums[m][s * (kSlice / 2) + i];
        consumers_meet();
#pragma unroll
        for (uint32_t i = 0; i < kEach; ++i) {
          const uint32_t r = (threadIdx.x + i * kConsumers) / kFours, o = (threadIdx.x + i * kConsumers) % kFours * 4;
          if (s * kSlice + r < n_rows) store_four(product, row + s * kSlice + r, p.tile * kOutputs + o, *reinterpret_cast<const float4*>(slice + r * kStoreStride<kParts> + o), old[i]);
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
  uint32_t rows, parts, row_blocks, shared;
};

uint32_t cut_up(Plan& plan, const Products& p, uint32_t outputs) {  // into tiles of so many; units of all
  uint32_t units = 0;
  plan.n_tiles = 0;
  for (uint32_t i = 0; i < p.n; ++i) {
    Item& item = plan.item[i];
    item = {(p.item[i].n_in + kInputs - 1) / kInputs, (p.item[i].n_out + outputs - 1) / outputs, units, plan.n_tiles};
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

template <uint32_t kRows, uint32_t kParts>
void choose_ring(Choice& c, uint32_t ring) {
  constexpr uint32_t kOther = kOtherBytes<kParts>;
  // a kernel of few registers leaves room for the next one's block, which then fills its ring while this one adds up
  const uint32_t room = ring > 0 ? ring : (kBlocks<kRows, kParts> == 2 ? 113 << 10 : max_shared()) - kOther;
  c.plan.stages = std::clamp(std::min(room, max_shared() - kOther) / kStageBytes<kRows, kParts>, 2u, kMaxStages);
  c.shared = c.plan.stages * kStageBytes<kRows, kParts> + kOther;
}

Choice choose(const TallProducts& t, const TallTuning& tuning) {
  const Products& p = t.products;
  Choice c;
  c.rows = p.n_rows <= 32 ? 32 : p.n_rows <= 64 ? 64 : p.n_rows <= 128 ? 128 : 256;
  c.row_blocks = (p.n_rows + c.rows - 1) / c.rows;
  c.plan.n = p.n;
  c.plan.used = p.used, c.plan.count_index = p.count_index;
  std::copy_n(p.item, p.n, c.plan.product);
  uint32_t shares = std::clamp(multiprocessors() / c.row_blocks, 1u, kMaxShares);
  uint32_t units = cut_up(c.plan, p, 128);
  // wide tiles read x less often, but leave more to add up
  c.parts = tuning.outputs > 0 ? tuning.outputs / 64 : units >= 40 * shares ? 2 : 1;
  if (c.rows == 256) c.parts = 1;
  if (c.parts == 2) units = cut_up(c.plan, p, 256);
  c.plan.n_shares = shares = std::clamp(units / kLeast, 1u, shares);
  for (uint32_t i = 0; i < shares; ++i) c.plan.begin[i] = to_whole_tile(c.plan, static_cast<uint32_t>(static_cast<uint64_t>(units) * i / shares));
  c.plan.begin[shares] = units;
  const auto ring = c.rows == 32    ? (c.parts == 2 ? choose_ring<32, 2> : choose_ring<32, 1>)
                    : c.rows == 64  ? (c.parts == 2 ? choose_ring<64, 2> : choose_ring<64, 1>)
                    : c.rows == 128 ? (c.parts == 2 ? choose_ring<128, 2> : choose_ring<128, 1>)
                                    : choose_ring<256, 1>;
  ring(c, tuning.ring);
  return c;
}

template <uint32_t kRows, uint32_t kParts>
Error launch_tall(const Choice& c, bool in_major, Stream stream) {
  const auto kernel = in_major ? tall_kernel<kRows, kParts, true> : tall_kernel<kRows, kParts, false>;
  if (const Error e = allow_shared(kernel); e != cudaSuccess) return e;
  return launch(kernel, dim3(c.plan.n_shares * c.row_blocks), dim3(kThreads), c.shared, stream, c.plan);
}

}  // namespace

bool tall_takes(const TallProducts& t) {
  const Products& p = t.products;
  if (p.weights != DUET_BF16 || duet_gpu::device_attribute(cudaDevAttrComputeCapabilityMajor, 0) != 9 || !encoder()) return false;
  for (uint32_t i = 0; i < p.n; ++i) {
    const Product& product = p.item[i];
    if (product.n_in % 8 != 0 || (t.in_major && product.n_out % 8 != 0)) return false;
    if (reinterpret_cast<uintptr_t>(product.w) % 16 != 0 || reinterpret_cast<uintptr_t>(product.x) % 16 != 0 || reinterpret_cast<uintptr_t>(product.y) % 16 != 0) return false;
  }
  return true;
}

SkippingScratch tall_scratch(const TallProducts& p, const TallTuning& tuning) {
  const Choice c = choose(p, tuning);
  return {static_cast<uint64_t>(c.row_blocks) * c.plan.n_tiles * sizeof(uint32_t), 2ull * c.row_blocks * c.plan.n_shares * c.parts * kGroups * 64 * c.rows * sizeof(float)};
}

Error tall_products(const TallProducts& t, void* tickets, void* parts, Stream stream, const TallTuning& tuning) {
  Choice c = choose(t, tuning);
  c.plan.tickets = static_cast<uint32_t*>(tickets);
  c.plan.parts = static_cast<float*>(parts);
  const Products& p = t.products;
  for (uint32_t i = 0; i < p.n; ++i) {
    const Product& product = p.item[i];
    Error e = t.in_major ? describe(c.plan.w[i], product.w, product.n_in, product.n_out, kInputs) : describe(c.plan.w[i], product.w, product.n_out, product.n_in, kGroups * c.parts * 64);
    if (e == cudaSuccess) e = describe(c.plan.x[i], product.x, p.n_rows, product.n_in, c.rows);
    if (e != cudaSuccess) return e;
  }
  if (c.rows == 32) return c.parts == 2 ? launch_tall<32, 2>(c, t.in_major, stream) : launch_tall<32, 1>(c, t.in_major, stream);
  if (c.rows == 64) return c.parts == 2 ? launch_tall<64, 2>(c, t.in_major, stream) : launch_tall<64, 1>(c, t.in_major, stream);
  if (c.rows == 128) return c.parts == 2 ? launch_tall<128, 2>(c, t.in_major, stream) : launch_tall<128, 1>(c, t.in_major, stream);
  return launch_tall<256, 1>(c, t.in_major, stream);
}

}  // namespace duet_cuda
