// All layers for one token, without a kernel's end between a step and the next. One block a multiprocessor. Its last warp
// copies the block's share of all weights, in the order in which they are used, into a ring in shared memory, as far ahead as
// the ring takes them: it waits for no result, so that the memory is busy while the other warps wait for each other's blocks.
// But few copies are under way at a time: what blocks tell each other would wait in the same queues.
// What blocks tell each other are numbers that carry the step they belong to: who needs one looks until it is there, and no
// barrier of all blocks is needed. Each block keeps some columns of x, and a layer has these steps, after each of which what is
// in brackets is told:
//   1  time mix's norm: sum and squares of the block's columns [them]
//   2  its token shift, the block's columns [six inputs]
//   3  rows of receptance, key, value and of the first low-rank matrices [their sums]
//   4  a block a head: the second low-rank matrices' rows of it, wkv, norm and gate [the output's inputs]
//   5  rows of output, added to x; channel mix's norm, as in 1 [sum and squares]
//   6  its token shift [one input]
//   7  rows of key, and for each input u of relu^2 that is not zero u times its row of value, for all outputs at once [the
//      block's part of sums over all blocks]; then the block's columns of these sums, added to x
// What one has heard comes from all blocks at least every second step, so that none is a layer ahead: a number is written again
// only after all have read it. All sums have a fixed order.
#include "resident.h"

#include <algorithm>
#include <utility>

#include "barrier.h"
#include "device.h"
#include "fragment.h"
#include "gpu/stored.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::bf16;
using duet_gpu::Error;

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

// ---- what the host hands over ----

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

// ---- the ring ----

struct Shared {
  uint64_t full[kStages], empty[kStages], ready[2];  // ready: u of a tile
  volatile uint32_t is_waiting;  // this block for others
  float sums[2][4];
  float u[kMaxSlice];
  alignas(16) float low[4][kHead];  // of the second low-rank products: decay, a, how much of the first layer's v, g
  alignas(16) float rkv[3 * kHead], k[kHead], v[kHead], minus_kk[kHead], b[kHead], y[kHead];
  float x[kMaxOwn];
  float2 time_shift[3 + kTimeMixes][kMaxOwn / 2], channel_shift[4][kMaxOwn / 2];  // weight and bias of the norm, the vector before, the mixes: the block's columns
  float columns[kWarps][32];
  Products products[2];  // of layer 0, of the others
  Share own, inner;      // this block's columns of x, rows of key
};

struct Layer {
  const char* memory;
  const uint32_t* offset;
  const Shared& s;
  bool is_first;
  __device__ Layer(const Plan& p, uint32_t i, const Shared& shared) : memory(p.layer[i]), offset(p.offset[p.first + i > 0]), s(shared), is_first(p.first + i == 0) {}
  __device__ const Products& products() const { return s.products[is_first ? 0 : 1]; }  // this block's rows
  __device__ const bf16* matrix(uint32_t id) const { return reinterpret_cast<const bf16*>(memory + offset[id]); }
  __device__ const float* vector(uint32_t id) const { return reinterpret_cast<const float*>(memory + offset[id]); }
};

template <class Passed>
__device__ __forceinline__ void wait_for(Passed&& passed) {
  for (uint32_t looks = 0; !passed();)
    if (++looks == kPatience) __trap();
}

// The same for all lanes of a warp: until it is so for each of them, so that they stay together. Shuffles of lanes that are apart
// take the better part of a microsecond.
template <class Passed>
__device__ __forceinline__ void warp_waits_for(Passed&& passed) {
  for (uint32_t looks = 0; !__all_sync(~0u, passed());)
    if (++looks == kPatience) __trap();
}

struct Ring {
  char* data;
  Shared& s;
  uint32_t stage = 0, parity = 0;
  __device__ char* memory() const { return data + stage * kStageBytes; }
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  // The copying thread's: room for a stage of so many bytes
  __device__ void open(uint32_t bytes) {
    const uint32_t under_way = s.is_waiting ? kUnderWayMeanwhile : kUnderWay, before = stage >= under_way ? stage - under_way : stage + kStages - under_way;
    wait_for([&] { return barrier_passed_soon(&s.full[before], before > stage ? parity ^ 1 : parity); });
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
// What is not inline has the ring's place by value: addresses of variables would put them into memory.

struct Place {
  uint32_t stage, parity;
};

__device__ __noinline__ Place copy_rows(char* data, Shared* s, Place at, const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
  Ring ring{data, *s, at.stage, at.parity};
#pragma unroll 1
  for (uint32_t row = 0; row < n_rows; row += at_once) {
    const uint32_t bytes = min(at_once, n_rows - row) * n_in * 2;
    ring.open(bytes);
    ring.copy(0, from + static_cast<uint64_t>(row) * n_in, bytes);
    ring.next();
  }
  return {ring.stage, ring.parity};
}

// Which inputs of a tile are not zero
__device__ __forceinline__ uint32_t nonzero(const float* u, uint32_t n) {
  uint32_t mask = 0;
  for (uint32_t i = 0; i < n; ++i) mask |= (u[i] != 0 ? 1u : 0u) << i;
  return mask;
}

__device__ __noinline__ Place copy_values(char* data, Shared* s, Place at, const bf16* value, uint32_t mask, uint32_t C, uint32_t at_once) {
  Ring ring{data, *s, at.stage, at.parity};
#pragma unroll 1
  while (mask != 0) {
    const uint32_t n = min(at_once, static_cast<uint32_t>(__popc(mask)));
    ring.open(n * C * 2);
#pragma unroll 1
    for (uint32_t i = 0; i < n; ++i, mask &= mask - 1) ring.copy(i * C * 2, value + static_cast<uint64_t>(__ffs(mask) - 1) * C, C * 2);
    ring.next();
  }
  return {ring.stage, ring.parity};
}

// What a layer has of the state of a slot; null without a state
struct StateOf {
  float* att_x;  // [C]
  char* S;       // [H, N, N], in p.a.stored
  float* ffn_x;  // [C]
  __device__ StateOf(const Plan& p, uint32_t layer, int32_t slot) : att_x(nullptr), S(nullptr), ffn_x(nullptr) {
    if (slot < 0) return;
    char* of_layer = p.a.state + layer * p.a.layer_stride + static_cast<uint64_t>(slot) * p.a.slot_stride;
    att_x = reinterpret_cast<float*>(of_layer);
    S = of_layer + p.C * sizeof(float);
    ffn_x = reinterpret_cast<float*>(S + p.C * kHead * p.a.stored_bytes);
  }
};

__constant__ const uint32_t kHeadTensors[kHeadVectors] = {DUETP_T_W0, DUETP_T_A0, DUETP_T_V0, DUETP_T_K_K, DUETP_T_K_A, DUETP_T_R_K, DUETP_T_LN_X_W, DUETP_T_LN_X_B};

struct Copier {
  const Plan& p;
  Ring ring;

  __device__ void move_to(Place at) { ring.stage = at.stage, ring.parity = at.parity; }
  __device__ void rows(const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
    move_to(copy_rows(ring.data, &ring.s, {ring.stage, ring.parity}, from, n_rows, n_in, at_once));
  }

  __device__ void head(const Layer& l, const char* S) {
    const uint32_t head = blockIdx.x, bytes = kHead * kHead * p.a.stored_bytes;
    if (S) {
      ring.open(bytes);
      ring.copy(0, S + static_cast<uint64_t>(head) * bytes, bytes);
      ring.next();
    }
    ring.open((kHeadVectors - l.is_first) * kHead * 4);
#pragma unroll 1
    for (uint32_t i = 0; i < kHeadVectors; ++i)
      if (i != kV0 || !l.is_first) ring.copy(i * kHead * 4, l.vector(kHeadTensors[i]) + head * kHead, kHead * 4);
    ring.next();
#pragma unroll 1
    for (uint32_t m = 0; m < 4; ++m)
      if (m != 2 || !l.is_first) rows(l.matrix(DUETP_T_W2 + m) + static_cast<uint64_t>(head) * kHead * p.rank[m], kHead, p.rank[m], p.low_at_once[m]);
  }

  __device__ void run() {
    const uint32_t C = p.C;
    const int32_t slot = p.a.slots[0];
    uint32_t tiles = 0;  // that are over
#pragma unroll 1
    for (uint32_t i = 0; i < p.n; ++i) {
      const Layer l(p, i, ring.s);
#pragma unroll 1
      for (uint32_t j = 0; j < l.products().n; ++j) {
        const auto& q = l.products().of[j];
        rows(l.matrix(matrix_of(q.product)) + static_cast<uint64_t>(q.begin) * C, q.end - q.begin, C, p.at_once);
      }
      if (blockIdx.x < p.n_head) head(l, StateOf(p, p.first + i, slot).S);
      const Share own = ring.s.own, inner = ring.s.inner;
      rows(l.matrix(DUETP_T_OUTPUT) + static_cast<uint64_t>(own.begin) * C, own.end - own.begin, C, p.at_once);
      const uint32_t n = inner.end - inner.begin;
      const bf16 *key = l.matrix(DUETP_T_FFN_KEY) + static_cast<uint64_t>(inner.begin) * C, *value = l.matrix(DUETP_T_FFN_VALUE) + static_cast<uint64_t>(inner.begin) * C;
#pragma unroll 1
      for (uint32_t at = 0; at < n + kTile; at += kTile) {  // value is a tile behind key
        if (at < n) rows(key + static_cast<uint64_t>(at) * C, min(kTile, n - at), C, p.at_once);
        if (at < kTile) continue;
        const uint32_t before = at - kTile;
        const bf16* rows_of_tile = value + static_cast<uint64_t>(before) * C;
        const uint32_t n_rows = min(kTile, n - before);
        if (!p.skips) {
          rows(rows_of_tile, n_rows, C, p.at_once);
          continue;
        }
        wait_for([&] { return barrier_passed_soon(&ring.s.ready[tiles % 2], tiles / 2 % 2); });
        ++tiles;
        move_to(copy_values(ring.data, &ring.s, {ring.stage, ring.parity}, rows_of_tile, nonzero(ring.s.u + before, n_rows), C, p.at_once));
      }
    }
  }
};

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
__device__ __forceinline__ float2 lane_sums(float2 x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = {x.x + __shfl_xor_sync(~0u, x.x, d), x.y + __shfl_xor_sync(~0u, x.y, d)};
  return x;
}
// Where the k-th set bit of a tile's mask is
__device__ __forceinline__ uint32_t place_of_bit(uint32_t mask, uint32_t k) {
  uint32_t at = 0;
#pragma unroll
  for (uint32_t width = kTile / 2; width > 0; width /= 2) {
    const uint32_t below = __popc(mask >> at & ((1u << width) - 1));
    if (k >= below) k -= below, at += width;
  }
  return at;
}
__device__ __noinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ void copy_async(float2* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(to)), "l"(__cvta_generic_to_global(from)) : "memory");
}

// An f32 number or two of bf16 that carry the step they belong to, in one word of 64 bits, which is written and read as a whole
__device__ __forceinline__ void tell_bits(uint64_t* to, uint32_t x, uint32_t step) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(static_cast<uint64_t>(step) << 32 | x) : "memory");
}
__device__ __forceinline__ void tell(uint64_t* to, float x, uint32_t step) { tell_bits(to, __float_as_uint(x), step); }
__device__ __forceinline__ void tell(uint64_t* to, float2 x, uint32_t step) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(x.x, x.y);
  tell_bits(to, *reinterpret_cast<const uint32_t*>(&both), step);
}
template <int n>
struct Told {
  uint64_t word[n];
  __device__ void look(const uint64_t* from) {
    if constexpr (n == 1) {
      asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word[0]) : "l"(from) : "memory");
    } else {
#pragma unroll
      for (int i = 0; i < n; i += 2) asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(word[i]), "=l"(word[i + 1]) : "l"(from + i) : "memory");
    }
  }
  __device__ bool is_of(uint32_t step) const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < n; ++i) all = all && static_cast<uint32_t>(word[i] >> 32) == step;
    return all;
  }
  __device__ uint32_t bits(int i) const { return static_cast<uint32_t>(word[i]); }
  __device__ float operator[](int i) const { return __uint_as_float(bits(i)); }
};
// Who looks for what is not there yet stands in the way of those who write it: before all threads look for their words, a warp
// waits for a few of them, one a lane; word(i) is the i-th.
template <class F>
__device__ __forceinline__ void warp_awaits(uint32_t n, uint32_t step, F&& word) {
#pragma unroll 1
  for (uint32_t first = 0; first < n; first += 32) {
    Told<1> t;
    warp_waits_for([&] { return t.look(word(min(first + threadIdx.x % 32, n - 1))), t.is_of(step); });
  }
}

// Two numbers of a state, the i-th pair
template <class Stored>
__device__ __forceinline__ float2 read_pair(const void* p, uint32_t i) { return duet_gpu::unpack<Stored>(static_cast<const uint32_t*>(p)[i]); }
template <>
__device__ __forceinline__ float2 read_pair<float>(const void* p, uint32_t i) { return static_cast<const float2*>(p)[i]; }
template <class Stored>
__device__ __forceinline__ void write_pair(void* p, uint32_t i, float2 x) { __stcs(static_cast<uint32_t*>(p) + i, duet_gpu::pack<Stored>(x.x, x.y)); }
template <>
__device__ __forceinline__ void write_pair<float>(void* p, uint32_t i, float2 x) { __stcs(static_cast<float2*>(p) + i, x); }

// What becomes of a row's sum
enum class Use { tell, tell_tanh, tell_sigmoid, add_to_x, square };

struct Worker {
  const Plan& p;
  Shared& s;
  Ring ring;
  char* scratch;  // inputs of products, bf16 [kMaxInputs, C], or sums of value, f32 [kWorkers, 8]
  uint32_t step;  // of the layer: what numbers carry
  const ResidentScratch& told = p.a.scratch;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint32_t tiles = 0;
  float reference;  // the mean before

  __device__ void is_waiting(bool is) const {
    if (threadIdx.x == 0) s.is_waiting = is;
  }
  __device__ uint4* input(uint32_t i) const { return reinterpret_cast<uint4*>(scratch) + i * (p.C / 8); }

  // Rows of a matrix in the ring times x in shared memory, a row a warp. `taken` counts rows, so that they go round.
  __device__ void rows(uint32_t n_rows, const uint4* x, uint32_t& taken, Use use, uint64_t* told, float* kept = nullptr) {
    const uint32_t n = p.C / 8;
#pragma unroll 1
    for (uint32_t first = 0; first < n_rows; first += p.at_once) {
      const uint32_t here = min(p.at_once, n_rows - first);
      const uint4* w = ring.take();
#pragma unroll 1
      for (uint32_t i = (warp - taken) % kWarps; i < here; i += kWarps) {
        float a = 0, b = 0;
#pragma unroll 4
        for (uint32_t j = lane; j < n; j += 32) multiply_add(w[i * n + j], x[j], a, b);
        float sum = lane_sum<32>(a + b);
        if (lane == 0) {
          const uint32_t row = first + i;
          if (use == Use::square) {
            sum = fmaxf(sum, 0.0f);
            kept[row] = __bfloat162float(__float2bfloat16_rn(sum * sum));
          } else if (use == Use::add_to_x) {
            kept[row] += sum;
          } else {
            if (use == Use::tell_tanh) sum = tanhf(sum);
            if (use == Use::tell_sigmoid) sum = sigmoid(sum);
            tell(told + row, sum, step);
          }
        }
      }
      ring.give_back();
      taken += here;
    }
  }

  // Inputs of products from words of two each, n of [C / 2] words: those that the bytes of `which` number. All meet before it and after it.
  __device__ void hear(const uint64_t* words, uint32_t n = 1, uint32_t which = 0) const {
    constexpr uint32_t kAtOnce = 2;  // inputs: most blocks have no more
    const uint32_t C = p.C;
#pragma unroll 1
    for (uint32_t first = 0; first < n; first += kAtOnce) {
      Told<2> t[kAtOnce][kFours];
      const auto for_fours = [&](auto&& f) {
#pragma unroll
        for (uint32_t i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (uint32_t j = 0; j < kFours; ++j)
            if (const uint32_t at = 2 * (threadIdx.x + kWorkers * j); first + i < n && at < C / 2) f(t[i][j], first + i, at);
      };
      warp_waits_for([&] {
        bool all = true;
        for_fours([&](Told<2>& of, uint32_t i, uint32_t at) { of.look(words + (which >> 8 * i & 0xff) * (C / 2) + at); });
        for_fours([&](const Told<2>& of, uint32_t, uint32_t) { all = all && of.is_of(step); });
        return all;
      });
      for_fours([&](const Told<2>& of, uint32_t i, uint32_t at) { *reinterpret_cast<uint2*>(scratch + (i * C + 2 * at) * 2) = {of.bits(0), of.bits(1)}; });
    }
  }

  // ---- token shift: the first warp, a pair of the block's columns a lane ----

  // What a token shift reads of its own, long before it does
  __device__ void fetch_shift(const Layer& l, bool is_channel_mix, const float* state) const {
    if (warp != 0 || s.own.begin + 2 * lane >= s.own.end) return;
    const uint32_t c = s.own.begin + 2 * lane, first_mix = is_channel_mix ? static_cast<uint32_t>(kMixChannel) : 0, n_mixes = is_channel_mix ? 1 : static_cast<uint32_t>(kTimeMixes);
    float2(*to)[kMaxOwn / 2] = is_channel_mix ? s.channel_shift : s.time_shift;
    copy_async(&to[0][lane], l.vector(is_channel_mix ? DUETP_T_LN2_W : DUETP_T_LN1_W) + c);
    copy_async(&to[1][lane], l.vector(is_channel_mix ? DUETP_T_LN2_B : DUETP_T_LN1_B) + c);
    if (state)
      copy_async(&to[2][lane], state + c);
    else
      to[2][lane] = {0, 0};
#pragma unroll 1
    for (uint32_t i = 0; i < n_mixes; ++i) copy_async(&to[3 + i][lane], l.vector(mix_tensor(first_mix + i)) + c);
  }

  // The norm of x, by the sums of how far its elements are from the mean before, and its mixes with the vector before; `state` (if there is one) gets what the next token will mix with.
  __device__ void shift_own(bool is_channel_mix, float* state) {
    const uint32_t begin = s.own.begin, n = s.own.end - begin, last = gridDim.x - 1;
    const bool inside = 2 * lane < n;
    const float2 x = inside ? *reinterpret_cast<const float2*>(s.x + 2 * lane) : float2{0, 0};
    const float2 d = inside ? float2{x.x - reference, x.y - reference} : float2{0, 0};
    const float2 own = lane_sums({d.x + d.y, d.x * d.x + d.y * d.y});
    uint64_t* sums = told.sums + (is_channel_mix ? 2 * gridDim.x : 0);
    if (lane < 2) tell(sums + 2 * blockIdx.x + lane, lane == 0 ? own.x : own.y, step);

    constexpr uint32_t kOfLane = kMaxBlocks / 32;
    Told<2> t[kOfLane];
    warp_waits_for([&] {
      bool all = true;
#pragma unroll
      for (uint32_t j = 0; j < kOfLane; ++j) t[j].look(sums + 2 * min(lane + 32 * j, last));
#pragma unroll
      for (uint32_t j = 0; j < kOfLane; ++j) all = all && t[j].is_of(step);
      return all;
    });
    float2 total{0, 0};
#pragma unroll
    for (uint32_t j = 0; j < kOfLane; ++j)
      if (lane + 32 * j <= last) total.x += t[j][0], total.y += t[j][1];
    total = lane_sums(total);
    const float off = total.x * p.reciprocal_of_C, mean = reference + off, scale = rsqrtf(fmaxf(fmaf(-off, off, total.y * p.reciprocal_of_C), 0.0f) + p.ln_eps);
    reference = mean;
    if (!inside) return;

    asm volatile("cp.async.wait_all;" ::: "memory");
    const float2(*vectors)[kMaxOwn / 2] = is_channel_mix ? s.channel_shift : s.time_shift;
    const float2 w = vectors[0][lane], b = vectors[1][lane], before = vectors[2][lane];
    const float2 y{(x.x - mean) * scale * w.x + b.x, (x.y - mean) * scale * w.y + b.y};
    const uint32_t pair = begin / 2 + lane;
    const auto mix = [&](uint32_t of, float2 m) { tell(told.mixes + of * (p.C / 2) + pair, float2{y.x + (before.x - y.x) * m.x, y.y + (before.y - y.y) * m.y}, step); };
    if (is_channel_mix) {
      mix(kMixChannel, vectors[3][lane]);
    } else {
#pragma unroll
      for (uint32_t i = 0; i < kTimeMixes; ++i) mix(i, vectors[3 + i][lane]);
    }
    if (state) *reinterpret_cast<float2*>(state + 2 * pair) = y;
  }
  __device__ void shift(bool is_channel_mix, float* state) {
    if (warp == 0) shift_own(is_channel_mix, state);
    workers_meet();  // now the mixes are about to come
  }

  __device__ void time_mix_products(const Layer& l) {
    const Products& products = l.products();
    hear(told.mixes, products.n_inputs, products.inputs);
    workers_meet();
    is_waiting(false);
    uint32_t taken = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < products.n; ++i) {
      const uint32_t q = products.of[i].product, begin = products.of[i].begin;
      uint64_t* to = q <= kV ? told.rkv + q * p.C : told.low + p.low_begin[low_of(q)];
      rows(products.of[i].end - begin, input(products.of[i].input), taken, q == kLowW ? Use::tell_tanh : q == kLowG ? Use::tell_sigmoid : Use::tell, to + begin);
    }
    is_waiting(true);
  }

  // What the head needs of step 3: the low-rank products' inputs, r, k and v
  __device__ void hear_head(const Layer& l) {
    const uint32_t n_hidden = p.low_begin[4], n = n_hidden + 3 * kHead;
    const auto word = [&](uint32_t j) { return j < n_hidden ? told.low + j : told.rkv + (j - n_hidden) / kHead * p.C + blockIdx.x * kHead + (j - n_hidden) % kHead; };
    const auto is_there = [&](uint32_t j) { return j < n && !(l.is_first && j >= p.low_begin[2] && j < p.low_begin[3]); };
    if (warp == 0) warp_awaits(n / 32, step, [&](uint32_t i) { return word(is_there(32 * i + 31) ? 32 * i + 31 : n - 1); });
    workers_meet();  // all have read what the inputs were before
#pragma unroll 1
    for (uint32_t first = 0; first < n; first += 2 * kWorkers) {
      Told<1> t[2];
      const auto for_both = [&](auto&& f) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i)
          if (const uint32_t j = first + threadIdx.x + i * kWorkers; is_there(j)) f(t[i], j);
      };
      warp_waits_for([&] {
        bool all = true;
        for_both([&](Told<1>& of, uint32_t j) { of.look(word(j)); });
        for_both([&](const Told<1>& of, uint32_t) { all = all && of.is_of(step); });
        return all;
      });
      for_both([&](const Told<1>& of, uint32_t j) {
        if (j < n_hidden)
          reinterpret_cast<bf16*>(scratch)[j] = __float2bfloat16_rn(of[0]);
        else
          s.rkv[j - n_hidden] = of[0];
      });
    }
    workers_meet();
  }

  // The second low-rank products of the head's channels by the tensor core, and what becomes of them: sixteen rows of one matrix
  // a warp. `bias`: of rows g and g + 8 of these.
  __device__ void low_products(const Layer& l, float2 bias) {
    const uint32_t g = lane / 4, t = lane % 4, m = warp / 4, row = warp % 4 * 16;
    const uint32_t(&stage)[5] = p.low_stage[l.is_first ? 0 : 1];
    const uint32_t n = p.rank[m] / 8, at_once = p.low_at_once[m], before = stage[m], after = stage[m + 1], end = stage[4];
    const uint4* hidden = input(0) + p.low_begin[m] / 8;
    Sums sums;
#pragma unroll 1
    for (uint32_t i = 0, first = 0; i < end; ++i) {
      if (i >= before && i < after) {
        if (row >= first && row < first + at_once) {
          const uint4 *low = ring.take() + (row - first + g) * n, *high = low + 8 * n;
#pragma unroll 4
          for (uint32_t j = t; j < (n + 3) / 4 * 4; j += 4) {  // the four lanes of a row go together
            const bool inside = j < n;
            const uint4 zero{0, 0, 0, 0}, a = inside ? low[j] : zero, b = inside ? high[j] : zero, x = inside && g == 0 ? hidden[j] : zero;
            multiply(sums, a.x, b.x, a.y, b.y, x.x, x.y);
            multiply(sums, a.z, b.z, a.w, b.w, x.z, x.w);
          }
        }
        first += at_once;
      }
      ring.give_back();
    }
    const auto finish = [&](float x) { return m == 0 ? expf(-0.60653065971263342f * sigmoid(x)) : m == 3 ? x : sigmoid(x); };
    if (t == 0) s.low[m][row + g] = finish(sums.v[0] + bias.x), s.low[m][row + g + 8] = finish(sums.v[2] + bias.y);
    workers_meet();
  }

  // The sums of a and b over the first two warps, to their threads. Nobody else comes.
  __device__ float2 head_sum(float a, float b, uint32_t which) const {
    const float2 own = lane_sums({a, b});
    if (lane == 0) s.sums[which][2 * warp] = own.x, s.sums[which][2 * warp + 1] = own.y;
    asm volatile("bar.sync 2, 64;" ::: "memory");
    return {s.sums[which][0] + s.sums[which][2], s.sums[which][1] + s.sums[which][3]};
  }

  // f(row of the warp's four, something of the type in which the state is stored)
  template <class F>
  __device__ void for_state_rows(F&& f) const {
    const auto each = [&](auto element) {
#pragma unroll
      for (int j = 0; j < 4; ++j) f(j, element);
    };
    if (p.a.stored == DUET_F32)
      each(float());
    else if (p.a.stored == DUET_BF16)
      each(duet_gpu::bf16());
    else
      each(duet_gpu::f16());
  }

  // The head of this block's number. The first two warps have its channels, each warp four rows of S.
  __device__ void head(const Layer& l, char* state) {
    const uint32_t i = threadIdx.x, channel = blockIdx.x * kHead + i;
    const uint32_t first_pair = 4 * warp * (kHead / 2) + lane;  // of S, a row's pairs side by side
    float2 S[4] = {};
    if (state) {
      const void* rows = ring.take();
      for_state_rows([&](int j, auto element) { S[j] = read_pair<decltype(element)>(rows, first_pair + j * (kHead / 2)); });
      ring.give_back();
    }
    const float* weights = reinterpret_cast<const float*>(ring.take());
    const auto weight = [&](HeadVector which) { return weights[which * kHead + i % kHead]; };
    const float k_k = weight(kKK), k_a = weight(kKA), r_k = weight(kRK), ln_w = weight(kLnW), ln_b = weight(kLnB);
    const uint32_t of = warp % 4 * 16 + lane / 4;
    const float2 bias = warp / 4 == 3 ? float2{0, 0} : float2{weights[warp / 4 * kHead + of], weights[warp / 4 * kHead + of + 8]};
    ring.give_back();
    const float v_first = i < kHead && !l.is_first ? __ldcg(p.a.v_first + channel) : 0.0f;
    hear_head(l);
    is_waiting(false);  // what this takes out of the ring should be there again when the other blocks go on
    low_products(l, bias);
    float v = 0, bonus = 0;
    if (i < kHead) {
      const float r = s.rkv[i], k = s.rkv[kHead + i], a = s.low[1][i];
      v = s.rkv[2 * kHead + i];
      if (!l.is_first)
        v += (v_first - v) * s.low[2][i];
      else
        p.a.v_first[channel] = v;
      const float k2 = k * (1.0f + (a - 1.0f) * k_a);
      float kk = k * k_k;
      s.k[i] = k2, s.v[i] = v;
      const float2 sums = head_sum(kk * kk, r * k2 * r_k, 0);
      kk /= fmaxf(sqrtf(sums.x), 1e-12f);
      s.minus_kk[i] = -kk, s.b[i] = kk * a;
      bonus = sums.y;
    }
    workers_meet();
    const auto keys = [&](const float* of) { return reinterpret_cast<const float2*>(of)[lane]; };
    const float2 minus_kk = keys(s.minus_kk), b = keys(s.b), w = keys(s.low[0]), k2 = keys(s.k), r2 = keys(s.rkv);
    float removed[4], y[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) removed[j] = S[j].x * minus_kk.x + S[j].y * minus_kk.y;
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
#pragma unroll
      for (int j = 0; j < 4; ++j) removed[j] += __shfl_xor_sync(~0u, removed[j], d);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float value = s.v[4 * warp + j];
      S[j] = {S[j].x * w.x + removed[j] * b.x + value * k2.x, S[j].y * w.y + removed[j] * b.y + value * k2.y};
      y[j] = S[j].x * r2.x + S[j].y * r2.y;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
#pragma unroll
      for (int j = 0; j < 4; ++j) y[j] += __shfl_xor_sync(~0u, y[j], d);
    if (lane == 0) *reinterpret_cast<float4*>(s.y + 4 * warp) = {y[0], y[1], y[2], y[3]};
    if (state) {
      void* rows = state + static_cast<uint64_t>(blockIdx.x) * kHead * kHead * p.a.stored_bytes;
      for_state_rows([&](int j, auto element) { write_pair<decltype(element)>(rows, first_pair + j * (kHead / 2), S[j]); });
    }
    workers_meet();
    if (i >= kHead) return;
    const float own_y = s.y[i], mean = head_sum(own_y, 0, 1).x / kHead, centred = own_y - mean;
    const float scale = rsqrtf(head_sum(centred * centred, 0, 0).x / kHead + p.gn_eps);
    const float gated = (centred * scale * ln_w + ln_b + bonus * v) * s.low[3][i], neighbour = __shfl_down_sync(~0u, gated, 1);
    if (i % 2 == 0) tell(told.gated + channel / 2, float2{gated, neighbour}, step);
  }

  __device__ void output() {
    if (warp == 0) warp_awaits(p.n_head, step, [&](uint32_t h) { return told.gated + (h + 1) * (kHead / 2) - 1; });
    workers_meet();  // all have read what the inputs were before
    hear(told.gated);
    workers_meet();
    is_waiting(false);
    uint32_t taken = 0;
    rows(s.own.end - s.own.begin, input(0), taken, Use::add_to_x, nullptr, s.x);
    is_waiting(true);
    workers_meet();
  }

  __device__ void channel_mix() {
    const uint32_t n = s.inner.end - s.inner.begin, across = p.C / 8, group = threadIdx.x / across;
    const auto tile = [&](uint32_t at) { return min(kTile, n - at); };
    hear(told.mixes, 1, kMixChannel);
    workers_meet();
    is_waiting(false);
    float sums[8] = {};
    uint32_t taken = 0;
#pragma unroll 1
    for (uint32_t at = 0; at < n + kTile; at += kTile) {
      if (at < n) {
        rows(tile(at), input(0), taken, Use::square, nullptr, s.u + at);
        __syncwarp();
        if (lane == 0) barrier_arrive(&s.ready[(tiles + at / kTile) % 2]);
      }
      if (at < kTile) continue;
      const uint32_t before_at = at - kTile, of = tiles + before_at / kTile;
      wait_for([&] { return barrier_passed_soon(&s.ready[of % 2], of / 2 % 2); });
      const uint32_t wanted = __ballot_sync(~0u, lane < tile(before_at) && (!p.skips || s.u[before_at + lane % kTile] != 0)), n_wanted = __popc(wanted);
      const uint32_t own_row = place_of_bit(wanted, lane);
#pragma unroll 1
      for (uint32_t first = 0; first < n_wanted; first += p.at_once) {
        const uint32_t here = min(p.at_once, n_wanted - first);
        const uint4* rows_of_value = ring.take();
#pragma unroll 2
        for (uint32_t begin = 0; begin < here; begin += p.abreast) {
          const uint32_t i = begin + group, row = __shfl_sync(~0u, own_row, (first + i) % 32);
          if (i >= here || group >= p.abreast) continue;
          const float u = s.u[before_at + row];
          const uint4 v = rows_of_value[i * across + threadIdx.x - group * across];
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[2 * j] = fmaf(u, low_half(words[j]), sums[2 * j]), sums[2 * j + 1] = fmaf(u, high_half(words[j]), sums[2 * j + 1]);
        }
        ring.give_back();
      }
    }
    tiles += (n + kTile - 1) / kTile;
    is_waiting(true);

    // every warp's last u came after its last row: nobody reads the inputs any more once all are here
    float* of_groups = reinterpret_cast<float*>(scratch);  // [abreast, C]
    workers_meet();
    if (group < p.abreast) {
      float4* to = reinterpret_cast<float4*>(of_groups + group * p.C + 8 * (threadIdx.x - group * across));
      to[0] = {sums[0], sums[1], sums[2], sums[3]}, to[1] = {sums[4], sums[5], sums[6], sums[7]};
    }
    workers_meet();
#pragma unroll 1
    for (uint32_t c = threadIdx.x; c < p.C; c += kWorkers) {
      float sum = of_groups[c];
#pragma unroll 1
      for (uint32_t g = 1; g < p.abreast; ++g) sum += of_groups[g * p.C + c];
      tell(told.parts + static_cast<uint64_t>(blockIdx.x) * p.C + c, sum, step);
    }
  }

  __device__ void add_parts(bool is_last_of_run) {
    const uint32_t own_end = s.own.end;
#pragma unroll 1
    for (uint32_t first = s.own.begin; first < own_end; first += 32) {
      const uint32_t c = min(first + lane, own_end - 1);
      float total = 0;
      warp_awaits(1, step, [&](uint32_t) { return told.parts + static_cast<uint64_t>(warp) * p.C + first; });
#pragma unroll 1
      for (uint32_t b = warp; b < gridDim.x; b += kMaxHeard * kWarps) {
        Told<1> t[kMaxHeard];
#pragma unroll
        for (uint32_t j = 0; j < kMaxHeard; ++j) t[j].word[0] = static_cast<uint64_t>(~step) << 32;
        warp_waits_for([&] {
          bool all = true;
#pragma unroll
          for (uint32_t j = 0; j < kMaxHeard; ++j)
            if (const uint32_t of = b + j * kWarps; of < gridDim.x && !t[j].is_of(step)) t[j].look(told.parts + static_cast<uint64_t>(of) * p.C + c), all = false;
          return all;
        });
#pragma unroll
        for (uint32_t j = 0; j < kMaxHeard; ++j) total += t[j][0];  // 0 of blocks that are not
      }
      s.columns[warp][lane] = total;
      workers_meet();
      if (warp == 0 && first + lane < own_end) {
        float x = s.x[c - s.own.begin];
#pragma unroll
        for (uint32_t i = 0; i < kWarps; ++i) x += s.columns[i][lane];
        s.x[c - s.own.begin] = x;
        if (is_last_of_run) p.a.x[c] = x;
      }
      if (first + 32 < own_end) workers_meet();
    }
  }

  __device__ void run() {
    const int32_t slot = p.a.slots[0];
    const auto state_of = [&](uint32_t i) { return StateOf(p, p.first + i, slot); };
    reference = p.a.x[0];
    if (threadIdx.x < s.own.end - s.own.begin) s.x[threadIdx.x] = p.a.x[s.own.begin + threadIdx.x];
    workers_meet();
    fetch_shift(Layer(p, 0, s), false, state_of(0).att_x);
    for (uint32_t i = 0; i < p.n; ++i, ++step) {
      const Layer l(p, i, s);
      const StateOf state = state_of(i);
      shift(false, state.att_x);
      fetch_shift(l, true, state.ffn_x);
      time_mix_products(l);
      if (blockIdx.x < p.n_head) head(l, state.S);
      output();
      shift(true, state.ffn_x);
      if (i + 1 < p.n) fetch_shift(Layer(p, i + 1, s), false, state_of(i + 1).att_x);
      channel_mix();
      add_parts(i + 1 == p.n);
      __syncwarp();
    }
  }
};

// Where there are no bulk copies resident_takes refuses.
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(__grid_constant__ const Plan p) {
  extern __shared__ __align__(128) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory + kStages * kStageBytes);
  char* scratch = memory + kStages * kStageBytes + (sizeof(Shared) + 15) / 16 * 16;
  if (p.a.used[0] == 0 || p.a.starts[1] == 0) return;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], kWarps);
    for (uint64_t& r : s.ready) barrier_init(&r, kWarps);
    for (const bool first : {true, false}) divide_products(p.C, p.rank, p.n_head, first, blockIdx.x, gridDim.x, s.products[first ? 0 : 1]);
    s.is_waiting = true;
    s.own = {columns_before(p.C, blockIdx.x), columns_before(p.C, blockIdx.x + 1)}, s.inner = share(p.F);
    barriers_are_made();
  }
  __syncthreads();
  Ring ring{memory, s};
  if (threadIdx.x >= kWorkers) {
    if (threadIdx.x == kWorkers) Copier{p, ring}.run();
    return;
  }
  const ResidentScratch& told = p.a.scratch;
  const uint32_t step = told.steps[0] + 1;
  Worker worker{p, s, ring, scratch, step};
  worker.run();
  if (threadIdx.x == 0 && atomicInc(told.steps + 1, gridDim.x - 1) == gridDim.x - 1) told.steps[0] = step - 1 + p.n;  // the last one, for the next run
}

constexpr uint32_t scratch_bytes(uint32_t C) { return std::max(kMaxInputs * C * 2, kWorkers * 8 * 4); }
constexpr uint32_t shared_bytes(uint32_t C) { return kStages * kStageBytes + (sizeof(Shared) + 15) / 16 * 16 + scratch_bytes(C); }
static_assert(shared_bytes(kMaxWidth) <= 227u << 10, "an H100 has no more");

}  // namespace

bool resident_takes(const duetp_layer& l) {
  const duetp_shape& s = l.shape;
  const uint32_t blocks = multiprocessors(), C = s.n_embd;
  if (duet_gpu::device_attribute(cudaDevAttrComputeCapabilityMajor, 0) < 9 || duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) < static_cast<int>(shared_bytes(C))) return false;
  if (l.weights != DUET_BF16 || s.head_size != kHead || C > kMaxWidth || blocks > kMaxBlocks || s.n_head > blocks || (C / 2 + blocks - 1) / blocks * 2 > kMaxOwn || (s.n_ffn + blocks - 1) / blocks > kMaxSlice || s.n_layer > kMaxLayers) return false;
  const uint32_t rank[4] = {s.rank_w, s.rank_a, s.rank_v, s.rank_g};
  uint32_t ranks = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    if (rank[i] % 8 != 0 || rank[i] * 2 * 16 > kStageBytes) return false;
    ranks += rank[i];
  }
  if (ranks * 2 > scratch_bytes(C)) return false;
  Products products;
  for (const bool first : {false, true})
    for (uint32_t b = 0; b < blocks; ++b)
      if (!divide_products(C, rank, s.n_head, first, b, blocks, products)) return false;
  return true;
}

uint64_t resident_scratch_bytes(const duetp_shape& s) {
  const uint64_t words = 7ull * s.n_embd + s.rank_w + s.rank_a + s.rank_v + s.rank_g + static_cast<uint64_t>(multiprocessors()) * (4 + s.n_embd);
  return (words + 1) * sizeof(uint64_t);
}

ResidentScratch lay_out_resident(void* memory, const duetp_shape& s) {
  ResidentScratch r{};
  uint64_t* at = static_cast<uint64_t*>(memory);
  const auto next = [&](uint64_t words) { return std::exchange(at, at + words); };
  r.rkv = next(3 * s.n_embd);
  r.sums = next(4 * static_cast<uint64_t>(multiprocessors()));
  r.mixes = next(kMixes * (s.n_embd / 2));
  r.gated = next(s.n_embd / 2);
  r.parts = next(static_cast<uint64_t>(multiprocessors()) * s.n_embd);
  r.low = next(s.rank_w + s.rank_a + s.rank_v + s.rank_g);
  r.steps = reinterpret_cast<uint32_t*>(at);
  return r;
}

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
  p.at_once = rows_of_stage(s.n_embd), p.abreast = kWorkers / (s.n_embd / 8);
  // A ring that holds a block's share of a layer is never what it waits for.
  p.skips = 2ull * p.C * (4 * p.C + 2 * p.F) / multiprocessors() > kStages * kStageBytes;
  for (uint32_t i = 0; i < 4; ++i) {
    p.low_begin[i + 1] = p.low_begin[i] + p.rank[i], p.low_at_once[i] = low_rows_of_stage(p.rank[i]);
    for (const uint32_t later : {0, 1}) p.low_stage[later][i + 1] = p.low_stage[later][i] + (p.rank[i] == 0 || (i == 2 && later == 0) ? 0 : (kHead + p.low_at_once[i] - 1) / p.low_at_once[i]);
  }
  p.ln_eps = s.ln_eps, p.gn_eps = s.gn_eps, p.reciprocal_of_C = 1.0f / s.n_embd;
  p.a = a;
  const uint32_t shared = shared_bytes(s.n_embd);
  const int limit = duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);  // all threads of the process share it: each sets the same
  if (const Error e = cudaFuncSetAttribute(resident_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit); e != cudaSuccess) return e;
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
