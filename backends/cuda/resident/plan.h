// What the host hands to the kernel, and which rows and columns are a block's.
#pragma once
#include <algorithm>

#include "resident/resident.h"

namespace duet_cuda::resident {

using duet_gpu::bf16;

constexpr uint32_t kWarps = 16, kWorkers = 32 * kWarps, kThreads = kWorkers + 32;
constexpr uint32_t kStages = 12, kStageBytes = 16 << 10;
constexpr uint32_t kUnderWay = 4, kUnderWayMeanwhile = 1;  // stages whose copies have not ended; while blocks wait for each other
constexpr uint32_t kFours = 2;                // of inputs, of a thread
constexpr uint32_t kMaxWidth = 4 * kFours * kWorkers;
constexpr uint32_t kMaxBlocks = 160;
constexpr uint32_t kMaxLayers = 128;
constexpr uint32_t kHead = 64;                // elements
constexpr uint32_t kMaxInputs = 2;            // of a block's rows in step 3
constexpr uint32_t kMaxSections = 4;          // products that they belong to
constexpr uint32_t kTile = 16;                // rows of key between which rows of value are fetched
constexpr uint32_t kMaxSlice = 256;           // rows of key of a block
constexpr uint32_t kMaxOwn = 64;              // columns of x of a block, a pair a lane
constexpr uint32_t kMaxHeard = 9;             // blocks' parts that a thread waits for at a time
constexpr uint32_t kPatience = 1u << 26;      // looks at what should come before the kernel gives up: rather a fault than a hang

struct Plan {
  const char* layer[kMaxLayers];
  uint32_t offset[2][DUETP_T_COUNT];  // of tensors in a layer's memory: of layer 0, of the others
  uint32_t first, n, C, F, n_head, rank[4];  // ranks: w, a, v, g, in the order of DUETP_T_W1
  bool skips;  // rows of value whose input is zero; otherwise all are read ahead of time
  uint32_t at_once, abreast;  // rows of C inputs in a stage; rows of value at which the threads work, 8 columns each
  uint32_t low_begin[5], low_at_once[4], low_stage[2][5];  // of second low-rank matrices: the first input, rows in a stage, the first stage (of layer 0, of the others)
  float ln_eps, gn_eps, reciprocal_of_C;
  Resident a;
};

struct Share {
  uint32_t begin, end;
};
__device__ __forceinline__ Share share(uint32_t n) { return {n * blockIdx.x / gridDim.x, n * (blockIdx.x + 1) / gridDim.x}; }
// Columns of x
__device__ __forceinline__ uint32_t columns_before(uint32_t C, uint32_t block) { return C / 2 * block / gridDim.x * 2; }

// The inputs that a token shift makes, and the products of step 3, one after another
enum Mix : uint32_t { kMixR, kMixW, kMixK, kMixV, kMixA, kMixG, kTimeMixes, kMixChannel = kTimeMixes, kMixes };
__device__ __forceinline__ uint32_t mix_tensor(uint32_t mix) { return mix == kMixChannel ? DUETP_T_FFN_X_K : DUETP_T_X_R + mix; }
enum ProductOf : uint32_t { kR, kK, kV, kLowV, kLowW, kLowA, kLowG, kProducts };  // v's together: they have one input
__host__ __device__ __forceinline__ uint32_t low_of(uint32_t product) { return product == kLowV ? 2 : product == kLowG ? 3 : product - kLowW; }  // in the order of DUETP_T_W1
__host__ __device__ __forceinline__ uint32_t product_rows(uint32_t product, uint32_t C, const uint32_t (&rank)[4], bool first_layer) {
  return product <= kV ? C : product == kLowV && first_layer ? 0 : rank[low_of(product)];
}
__device__ __forceinline__ uint32_t matrix_of(uint32_t product) { return product <= kV ? DUETP_T_RECEPTANCE + product : DUETP_T_W1 + low_of(product); }
__host__ __device__ __forceinline__ uint32_t mix_of(uint32_t product) {
  return product == kR ? kMixR : product == kK ? kMixK : product <= kLowV ? kMixV : product == kLowW ? kMixW : product == kLowA ? kMixA : kMixG;
}
// A head's vectors in the order in which they come through the ring, kHead elements each
enum HeadVector : uint32_t { kW0, kA0, kV0, kKK, kKA, kRK, kLnW, kLnB, kHeadVectors };
// What a head's block copies in step 4, and the row before which a block's rows of step 3 begin: with the head's bytes all
// blocks copy as much, and heads need not wait for theirs.
__host__ __device__ __forceinline__ uint32_t head_bytes(const uint32_t (&rank)[4], bool first_layer) {
  return kHead * (2 * (rank[0] + rank[1] + (first_layer ? 0 : rank[2]) + rank[3]) + 4 * (kHeadVectors + kHead));  // of a state in f32
}
__host__ __device__ __forceinline__ uint32_t rows_before(uint32_t block, uint32_t blocks, uint32_t n_rows, uint32_t C, uint32_t n_head, uint32_t head_bytes) {
  const uint64_t all = 2ull * n_rows * C + static_cast<uint64_t>(n_head) * head_bytes, to_here = all * block / blocks, of_heads = static_cast<uint64_t>(block < n_head ? block : n_head) * head_bytes;
  return to_here < of_heads ? 0 : static_cast<uint32_t>((to_here - of_heads) / (2 * C));
}
// The rows of products that are a block's
struct Products {
  uint32_t n, n_inputs, inputs;  // inputs: which of Mix, a byte each
  struct {
    uint32_t product, input, begin, end;
  } of[kMaxSections];
};
// False if they are more than there is room for
__host__ __device__ inline bool divide_products(uint32_t C, const uint32_t (&rank)[4], uint32_t n_head, bool first_layer, uint32_t block, uint32_t blocks, Products& out) {
  uint32_t n = 0, at = 0;
  for (uint32_t q = 0; q < kProducts; ++q) n += product_rows(q, C, rank, first_layer);
  const uint32_t bytes = head_bytes(rank, first_layer);
  const Share mine{rows_before(block, blocks, n, C, n_head, bytes), rows_before(block + 1, blocks, n, C, n_head, bytes)};
  out.n = out.n_inputs = out.inputs = 0;
  for (uint32_t q = 0; q < kProducts; ++q) {
    const uint32_t rows = product_rows(q, C, rank, first_layer), begin = mine.begin > at ? mine.begin - at : 0, end = mine.end > at ? (mine.end - at < rows ? mine.end - at : rows) : 0;
    at += rows;
    if (begin >= end) continue;
    const bool has_input = out.n > 0 && mix_of(out.of[out.n - 1].product) == mix_of(q);
    if (out.n == kMaxSections || (!has_input && out.n_inputs == kMaxInputs)) return false;
    if (!has_input) out.inputs |= mix_of(q) << 8 * out.n_inputs++;
    out.of[out.n++] = {q, out.n_inputs - 1, begin, end};
  }
  return true;
}

inline uint32_t rows_of_stage(uint32_t n_in) { return kStageBytes / (2 * n_in); }
// Of the second low-rank matrices, which tensor cores take sixteen rows at a time of
inline uint32_t low_rows_of_stage(uint32_t rank) { return rank == 0 ? 0 : std::min(kHead, rows_of_stage(rank) & ~15u); }
inline uint32_t low_stages(uint32_t rank) { return rank == 0 ? 0 : (kHead + low_rows_of_stage(rank) - 1) / low_rows_of_stage(rank); }

}  // namespace duet_cuda::resident
