// What the host hands to the kernel, and which rows and columns are a block's.
#pragma once
#include <algorithm>

#include "resident/form.h"
#include "resident/resident.h"

namespace duet_cuda::resident {

using duet_gpu::bf16;

constexpr uint32_t kWarps = 16, kWorkers = 32 * kWarps, kThreads = kWorkers + 32;
constexpr uint32_t kUnderWayBytes = 64 << 10, kUnderWayMeanwhile = 1;  // copies that have not ended; stages of them while blocks wait for each other
constexpr uint32_t kMaxWidth = 4096;
constexpr uint32_t kFewWords = 2048;          // up to this width all threads may look for words that are long in coming
constexpr uint32_t kNarrow = 2 * kWorkers;    // up to this width each block makes all norms and the mixes that it needs, two columns a thread
constexpr uint32_t kMaxBlocks = 160;
constexpr uint32_t kMaxLayers = 128;
constexpr uint32_t kHead = 64;                // elements
constexpr uint32_t kMaxInputs = 2;            // of a block's rows in step 3
constexpr uint32_t kMaxSections = 4;          // products that they belong to
constexpr uint32_t kMaxTiles = 8;             // of 16 outputs that a block sums at a time
constexpr uint32_t kBehind = 16;              // rows that value is behind key
constexpr uint32_t kMaxSlice = 256;           // rows of key of a block
constexpr uint32_t kMaxOwn = 64;              // columns of x of a block, a pair a lane
constexpr uint32_t kColumnsBytes = kWarps * kMaxOwn * 4;  // of what the warps sum of them
constexpr uint32_t kPatience = 1u << 26;      // looks at what should come before the kernel gives up: rather a fault than a hang

struct Sizes {
  uint32_t C, F, n_head, rank[4];  // ranks: w, a, v, g, in the order of DUETP_T_W1
  uint32_t rows, bytes;            // outputs that lie together, and their bytes where inputs are C
  uint32_t head_bytes[2];          // what a head's block copies in step 4: of layer 0, of the others
};

struct Plan : Sizes {
  const char* layer[kMaxLayers];
  uint32_t offset[2][DUETP_T_COUNT], scale[2][DUETP_T_COUNT], minimum[2][DUETP_T_COUNT];  // of tensors in a layer's memory: of layer 0, of the others
  uint32_t first, n;
  uint32_t n_owners, n_inner;  // blocks that have columns of x: the last ones; rows of key: the first ones
  bool skips;  // rows of value whose input is zero; otherwise all are read ahead of time
  uint32_t under_way;  // stages whose copies have not ended
  uint32_t at_once, abreast;  // of C inputs in a stage: rows, or groups of a tile; rows of value at which the threads work, 8 columns each
  uint32_t low_begin[5], low_at_once[4], low_stage[2][5];  // of second low-rank matrices: the first input, rows or tiles in a stage, the first stage (of layer 0, of the others)
  float ln_eps, gn_eps, reciprocal_of_C;
  Resident a;
};
static_assert(sizeof(Plan) <= 4096, "what a kernel is given");

struct Share {
  uint32_t begin, end;
};
// Of n blocks' the i-th share of so many things, `together` of which are not divided
__host__ __device__ __forceinline__ Share share(uint32_t things, uint32_t together, uint32_t i, uint32_t n) {
  return {things / together * i / n * together, things / together * (i + 1) / n * together};
}

// The inputs that a token shift makes, and the products of step 3, one after another
enum Mix : uint32_t { kMixR, kMixW, kMixK, kMixV, kMixA, kMixG, kTimeMixes, kMixChannel = kTimeMixes, kMixes };
__device__ __forceinline__ uint32_t mix_tensor(uint32_t mix) { return mix == kMixChannel ? DUETP_T_FFN_X_K : DUETP_T_X_R + mix; }
enum ProductOf : uint32_t { kR, kK, kV, kLowV, kLowW, kLowA, kLowG, kProducts };  // v's together: they have one input
__host__ __device__ __forceinline__ uint32_t low_of(uint32_t product) { return product == kLowV ? 2 : product == kLowG ? 3 : product - kLowW; }  // in the order of DUETP_T_W1
// In tiles of what lies together
__host__ __device__ __forceinline__ uint32_t product_tiles(const Sizes& s, uint32_t product, bool first_layer) {
  return product <= kV ? s.C / s.rows : product == kLowV && first_layer ? 0 : (s.rank[low_of(product)] + s.rows - 1) / s.rows;
}
__device__ __forceinline__ uint32_t matrix_of(uint32_t product) { return product <= kV ? DUETP_T_RECEPTANCE + product : DUETP_T_W1 + low_of(product); }
__host__ __device__ __forceinline__ uint32_t mix_of(uint32_t product) {
  return product == kR ? kMixR : product == kK ? kMixK : product <= kLowV ? kMixV : product == kLowW ? kMixW : product == kLowA ? kMixA : kMixG;
}
// A head's vectors in the order in which they come through the ring, kHead elements each
enum HeadVector : uint32_t { kW0, kA0, kV0, kKK, kKA, kRK, kLnW, kLnB, kHeadVectors };
// The tile before which a block's of step 3 begin: with the head's bytes all blocks copy as much, and heads need not wait for theirs.
__host__ __device__ __forceinline__ uint32_t tiles_before(const Sizes& s, uint32_t n_tiles, bool first_layer, uint32_t block, uint32_t blocks) {
  const uint64_t of_head = s.head_bytes[first_layer ? 0 : 1], all = static_cast<uint64_t>(n_tiles) * s.bytes + s.n_head * of_head;
  const uint64_t to_here = all * block / blocks, of_heads = (block < s.n_head ? block : s.n_head) * of_head;
  return to_here < of_heads ? 0 : static_cast<uint32_t>((to_here - of_heads) / s.bytes);
}
// The tiles of products that are a block's
struct Products {
  uint32_t n, n_inputs, inputs;  // inputs: which of Mix, a byte each
  struct {
    uint32_t product, input, begin, end;
  } of[kMaxSections];
};
// False if they are more than there is room for
__host__ __device__ inline bool divide_products(const Sizes& s, bool first_layer, uint32_t block, uint32_t blocks, Products& out) {
  uint32_t n = 0, at = 0;
  for (uint32_t q = 0; q < kProducts; ++q) n += product_tiles(s, q, first_layer);
  const Share mine{tiles_before(s, n, first_layer, block, blocks), tiles_before(s, n, first_layer, block + 1, blocks)};
  out.n = out.n_inputs = out.inputs = 0;
  for (uint32_t q = 0; q < kProducts; ++q) {
    const uint32_t tiles = product_tiles(s, q, first_layer), begin = mine.begin > at ? mine.begin - at : 0, end = mine.end > at ? (mine.end - at < tiles ? mine.end - at : tiles) : 0;
    at += tiles;
    if (begin >= end) continue;
    const bool has_input = out.n > 0 && mix_of(out.of[out.n - 1].product) == mix_of(q);
    if (out.n == kMaxSections || (!has_input && out.n_inputs == kMaxInputs)) return false;
    if (!has_input) out.inputs |= mix_of(q) << 8 * out.n_inputs++;
    out.of[out.n++] = {q, out.n_inputs - 1, begin, end};
  }
  return s.rows == 1 || mine.end - mine.begin <= kMaxTiles;
}

}  // namespace duet_cuda::resident
