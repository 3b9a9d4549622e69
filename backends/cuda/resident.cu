// All layers for one token, without a kernel's end between a step and the next. One block a multiprocessor. Its last warp
// copies the block's share of all weights, in the order in which they are used, into a ring in shared memory, as far ahead as
// the ring takes them: it waits for no result, so that the memory is busy while the other warps wait for each other's blocks.
// But few copies are under way at a time: what blocks tell each other would wait in the same queues.
// What blocks tell each other are numbers that carry the step they belong to: who needs one looks until it is there, and no
// barrier of all blocks is needed. A layer has five steps:
//   1  token shift of time mix; rows of receptance, key, value and of the first low-rank matrices
//   2  a block a head: the second low-rank matrices' rows of it, wkv, norm and gate
//   3  rows of output, added to x, of which each block keeps a part
//   4  token shift of channel mix; rows of key, and for each input u of relu^2 that is not zero u times its row of value, for
//      all outputs at once: a block's part of a sum over blocks
//   5  columns of these sums, added to x
// Every block waits in step 1 for x of all blocks, so that none is a layer ahead: a number is written again only after all
// have read it. All sums have a fixed order.
#include "resident.h"

#include <algorithm>
#include <utility>

#include "barrier.h"
#include "device.h"
#include "fragment.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace {

using duet_gpu::bf16;
using duet_gpu::Error;

constexpr uint32_t kWarps = 16, kWorkers = 32 * kWarps, kThreads = kWorkers + 32;
constexpr uint32_t kStages = 11, kStageBytes = 16 << 10;
constexpr uint32_t kUnderWay = 4;             // stages whose copies have not ended
constexpr uint32_t kPairs = 4;                // of columns, of a thread
constexpr uint32_t kMaxWidth = 2 * kPairs * kWorkers;
constexpr uint32_t kMaxLayers = 128;
constexpr uint32_t kHead = 64;                // elements
constexpr uint32_t kMaxInputs = 4;            // different inputs of a block's rows in step 1
constexpr uint32_t kTile = 16;                // rows of key between which rows of value are fetched
constexpr uint32_t kMaxSlice = 1024;          // rows of key of a block
constexpr uint32_t kMaxOwn = 64;              // elements of x of a block
constexpr uint32_t kMaxHeard = 9;             // blocks' parts that a thread waits for at a time
constexpr uint32_t kPatience = 1u << 26;      // looks at what should come before the kernel gives up: rather a fault than a hang

// ---- what the host hands over ----

struct Plan {
  const char* layer[kMaxLayers];
  uint32_t offset[2][DUETP_T_COUNT];  // of tensors in a layer's memory: of layer 0, of the others
  uint32_t first, n, C, F, n_head, rank[4];  // ranks: w, a, v, g, in the order of DUETP_T_W1
  float ln_eps, gn_eps;
  Resident a;
};

struct Share {
  uint32_t begin, end;
};
__device__ __forceinline__ Share share(uint32_t n) { return {n * blockIdx.x / gridDim.x, n * (blockIdx.x + 1) / gridDim.x}; }

// The products of step 1, one after another: r, k, v and the low-rank w, a, v, g
constexpr uint32_t kProducts = 7;
__host__ __device__ __forceinline__ uint32_t product_rows(uint32_t product, uint32_t C, const uint32_t (&rank)[4], bool first_layer) {
  return product < 3 ? C : product == 5 && first_layer ? 0 : rank[product - 3];
}
__device__ __forceinline__ uint32_t matrix_of(uint32_t product) { return product < 3 ? DUETP_T_RECEPTANCE + product : DUETP_T_W1 + product - 3; }
__device__ __forceinline__ uint32_t mix_of(uint32_t product) {
  constexpr uint32_t kMix[kProducts] = {DUETP_T_X_R, DUETP_T_X_K, DUETP_T_X_V, DUETP_T_X_W, DUETP_T_X_A, DUETP_T_X_V, DUETP_T_X_G};
  return kMix[product];
}
// The rows of products that are a block's
struct Products {
  uint32_t n;
  struct {
    uint32_t product, begin, end;
  } of[kMaxInputs];
};
__device__ void divide_products(const Plan& p, bool first_layer, Products& out) {
  uint32_t n = 0, at = 0;
  for (uint32_t q = 0; q < kProducts; ++q) n += product_rows(q, p.C, p.rank, first_layer);
  const Share mine = share(n);
  out.n = 0;
  for (uint32_t q = 0; q < kProducts; ++q) {
    const uint32_t rows = product_rows(q, p.C, p.rank, first_layer), begin = max(at, mine.begin), end = min(at + rows, mine.end);
    if (begin < end) out.of[out.n++] = {q, begin - at, end - at};
    at += rows;
  }
}
__device__ __forceinline__ uint32_t rows_of_stage(uint32_t n_in) { return kStageBytes / (2 * n_in); }
// Of the second low-rank matrices, which tensor cores take sixteen rows at a time of
__device__ __forceinline__ uint32_t low_rows_of_stage(uint32_t rank) { return min(kHead, rows_of_stage(rank) & ~15u); }

// ---- the ring ----

struct Shared {
  uint64_t full[kStages], empty[kStages], ready[2];  // ready: u of a tile
  float sums[4][kWarps];
  float u[kMaxSlice];
  float low[4][4][kHead];  // second low-rank products: a quarter of the inputs each
  float decay[kHead], k[kHead], v[kHead], minus_kk[kHead], b[kHead], r[kHead], g[kHead], y[kHead];
  float x[kMaxOwn];
  float columns[kWarps][32];
  Products products[2];  // of layer 0, of the others
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

struct Ring {
  char* data;
  Shared& s;
  uint32_t stage = 0, parity = 0, opened = 0;
  __device__ char* memory() const { return data + stage * kStageBytes; }
  __device__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
  // The copying thread's: room for a stage of so many bytes
  __device__ void open(uint32_t bytes) {
    const uint32_t before = stage >= kUnderWay ? stage - kUnderWay : stage + kStages - kUnderWay;
    if (opened >= kUnderWay) wait_for([&] { return barrier_passed_soon(&s.full[before], before > stage ? parity ^ 1 : parity); });
    ++opened;
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

__device__ __noinline__ void copy_rows(Ring& ring, const bf16* from, uint32_t n_rows, uint32_t n_in, uint32_t at_once) {
  for (uint32_t row = 0; row < n_rows; row += at_once) {
    const uint32_t bytes = min(at_once, n_rows - row) * n_in * 2;
    ring.open(bytes);
    ring.copy(0, from + static_cast<uint64_t>(row) * n_in, bytes);
    ring.next();
  }
}

// Vectors f32 [C], as many to a stage as it holds. vector(i) is the i-th.
__device__ __forceinline__ uint32_t vectors_of_stage(uint32_t C) { return kStageBytes / (4 * C); }
template <class F>
__device__ void copy_vectors(Ring& ring, uint32_t n, uint32_t C, F&& vector) {
  const uint32_t at_once = vectors_of_stage(C);
#pragma unroll 1
  for (uint32_t i = 0; i < n; i += at_once) {
    const uint32_t here = min(at_once, n - i);
    ring.open(here * C * 4);
#pragma unroll 1
    for (uint32_t j = 0; j < here; ++j) ring.copy(j * C * 4, vector(i + j), C * 4);
    ring.next();
  }
}

// Which inputs of a tile are not zero
__device__ __forceinline__ uint32_t nonzero(const float* u, uint32_t n) {
  uint32_t mask = 0;
  for (uint32_t i = 0; i < n; ++i) mask |= (u[i] != 0 ? 1u : 0u) << i;
  return mask;
}

__device__ __noinline__ void copy_values(Ring& ring, const bf16* value, uint32_t mask, uint32_t C) {
  const uint32_t at_once = rows_of_stage(C);
  while (mask != 0) {
    const uint32_t n = min(at_once, static_cast<uint32_t>(__popc(mask)));
    ring.open(n * C * 2);
    for (uint32_t i = 0; i < n; ++i, mask &= mask - 1) ring.copy(i * C * 2, value + static_cast<uint64_t>(__ffs(mask) - 1) * C, C * 2);
    ring.next();
  }
}

// The vectors of a token shift: weight and bias of its norm, the state's vector if there is a state, and the mixes
__device__ __forceinline__ const float* shift_vector(const Plan& p, const Layer& l, bool is_channel_mix, const float* state, uint32_t i) {
  if (i == 0) return l.vector(is_channel_mix ? DUETP_T_LN2_W : DUETP_T_LN1_W);
  if (i == 1) return l.vector(is_channel_mix ? DUETP_T_LN2_B : DUETP_T_LN1_B);
  if (i == 2 && state) return state;
  return l.vector(is_channel_mix ? static_cast<uint32_t>(DUETP_T_FFN_X_K) : mix_of(l.products().of[i - (state ? 3 : 2)].product));
}
__device__ __forceinline__ uint32_t n_shift_vectors(const Layer& l, bool is_channel_mix, bool has_state) { return 2 + has_state + (is_channel_mix ? 1 : l.products().n); }

// Of a layer: att_x [C], S [H, N, N], ffn_x [C]; null without a state
__device__ __forceinline__ float* state_of(const Plan& p, uint32_t layer, int32_t slot) {
  return slot < 0 ? nullptr : p.a.state + layer * p.a.layer_stride + static_cast<uint64_t>(slot) * p.a.slot_stride;
}

// The head's vectors in the order in which they come through the ring, kHead elements each
enum HeadVector { kW0, kA0, kV0, kKK, kKA, kRK, kLnW, kLnB, kHeadVectors };
__device__ void copy_head(const Plan& p, Ring& ring, const Layer& l, const float* S) {
  constexpr uint32_t kIds[kHeadVectors] = {DUETP_T_W0, DUETP_T_A0, DUETP_T_V0, DUETP_T_K_K, DUETP_T_K_A, DUETP_T_R_K, DUETP_T_LN_X_W, DUETP_T_LN_X_B};
  const uint32_t head = blockIdx.x;
#pragma unroll 1
  for (uint32_t m = 0; m < 4; ++m)
    if (m != 2 || !l.is_first) copy_rows(ring, l.matrix(DUETP_T_W2 + m) + static_cast<uint64_t>(head) * kHead * p.rank[m], kHead, p.rank[m], low_rows_of_stage(p.rank[m]));
  ring.open((kHeadVectors - l.is_first) * kHead * 4);
#pragma unroll 1
  for (uint32_t i = 0; i < kHeadVectors; ++i)
    if (i != kV0 || !l.is_first) ring.copy(i * kHead * 4, l.vector(kIds[i]) + head * kHead, kHead * 4);
  ring.next();
  if (!S) return;
  ring.open(kHead * kHead * 4);
  ring.copy(0, S + static_cast<uint64_t>(head) * kHead * kHead, kHead * kHead * 4);
  ring.next();
}

__device__ void copy_layers(const Plan& p, Ring ring) {
  const uint32_t C = p.C;
  const int32_t slot = p.a.slots[0];
  uint32_t tiles = 0;  // that are over
  for (uint32_t i = 0; i < p.n; ++i) {
    const Layer l(p, i, ring.s);
    const float *att_x = state_of(p, p.first + i, slot), *ffn_x = att_x ? att_x + C + static_cast<uint64_t>(C) * kHead : nullptr;
    const auto shift = [&](bool is_channel_mix, const float* state) {
      copy_vectors(ring, n_shift_vectors(l, is_channel_mix, state), C, [&](uint32_t k) { return shift_vector(p, l, is_channel_mix, state, k); });
    };
    shift(false, att_x);
    const Products& products = l.products();
    for (uint32_t j = 0; j < products.n; ++j) {
      const auto& q = products.of[j];
      copy_rows(ring, l.matrix(matrix_of(q.product)) + static_cast<uint64_t>(q.begin) * C, q.end - q.begin, C, rows_of_stage(C));
    }
    if (blockIdx.x < p.n_head) copy_head(p, ring, l, att_x ? att_x + C : nullptr);
    const Share outputs = share(C), inner = share(p.F);
    copy_rows(ring, l.matrix(DUETP_T_OUTPUT) + static_cast<uint64_t>(outputs.begin) * C, outputs.end - outputs.begin, C, rows_of_stage(C));
    shift(true, ffn_x);
    const uint32_t n = inner.end - inner.begin;
    const auto tile = [&](uint32_t at) { return min(kTile, n - at); };
#pragma unroll 1
    for (uint32_t at = 0; at < n + kTile; at += kTile) {  // value is a tile behind key
      if (at < n) copy_rows(ring, l.matrix(DUETP_T_FFN_KEY) + static_cast<uint64_t>(inner.begin + at) * C, tile(at), C, rows_of_stage(C));
      if (at < kTile) continue;
      const uint32_t before = at - kTile;
      wait_for([&] { return barrier_passed_soon(&ring.s.ready[tiles % 2], tiles / 2 % 2); });
      ++tiles;
      copy_values(ring, l.matrix(DUETP_T_FFN_VALUE) + static_cast<uint64_t>(inner.begin + before) * C, nonzero(ring.s.u + before, tile(before)), C);
    }
  }
}

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
__device__ __noinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// A thread's columns: the pairs from 2 (thread + kWorkers j), so that neighbours read side by side
struct Columns {
  float2 v[kPairs];
};
__device__ __forceinline__ uint32_t pair(int j) { return threadIdx.x + kWorkers * j; }
// f(j, column) for each pair that is inside
template <class F>
__device__ __forceinline__ void for_pairs(uint32_t n, F&& f) {
#pragma unroll
  for (int j = 0; j < kPairs; ++j)
    if (2 * pair(j) < n) f(j, 2 * pair(j));
}
__device__ __forceinline__ Columns read_columns(const float* p, uint32_t n) {
  Columns c{};
  for_pairs(n, [&](int j, uint32_t at) { c.v[j] = *reinterpret_cast<const float2*>(p + at); });
  return c;
}
__device__ __forceinline__ void write_columns(float* p, uint32_t n, const Columns& c) {
  for_pairs(n, [&](int j, uint32_t at) { *reinterpret_cast<float2*>(p + at) = c.v[j]; });
}

// Reads vectors that come through the ring, one after another.
struct Vectors {
  Ring& ring;
  const uint32_t C, n;
  uint32_t i = 0, in_stage = 0;
  const char* stage = nullptr;
  __device__ Columns next() {
    if (in_stage == 0) stage = reinterpret_cast<const char*>(ring.take());
    const Columns c = read_columns(reinterpret_cast<const float*>(stage) + in_stage * C, C);
    if (++in_stage == vectors_of_stage(C)) in_stage = 0;
    if (++i == n) in_stage = 0;
    if (in_stage == 0) ring.give_back();
    return c;
  }
};

// A number that carries the step it belongs to, in one word of 64 bits, which is written and read as a whole
__device__ __forceinline__ void tell(uint64_t* to, float x, uint32_t step) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(static_cast<uint64_t>(step) << 32 | __float_as_uint(x)) : "memory");
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
  __device__ float operator[](int i) const { return __uint_as_float(static_cast<uint32_t>(word[i])); }
};
template <int n>
__device__ __forceinline__ Told<n> hear(const uint64_t* from, uint32_t step) {
  Told<n> t;
  wait_for([&] { return t.look(from), t.is_of(step); });
  return t;
}
__device__ __forceinline__ Columns hear_columns(const uint64_t* from, uint32_t n, uint32_t step) {
  Told<2> t[kPairs];
  wait_for([&] {
    bool all = true;
    for_pairs(n, [&](int j, uint32_t at) { t[j].look(from + at); });
    for_pairs(n, [&](int j, uint32_t) { all = all && t[j].is_of(step); });
    return all;
  });
  Columns c{};
  for_pairs(n, [&](int j, uint32_t) { c.v[j] = {t[j][0], t[j][1]}; });
  return c;
}
__device__ __forceinline__ void to_inputs(char* inputs, uint32_t n, const Columns& c) {  // bf16
  for_pairs(n, [&](int j, uint32_t at) { reinterpret_cast<__nv_bfloat162*>(inputs)[at / 2] = __floats2bfloat162_rn(c.v[j].x, c.v[j].y); });
}

// What becomes of a row's sum
enum class Use { tell, tell_tanh, tell_sigmoid, add_to_x, square };

// Rows of a matrix in the ring times x in shared memory, n pieces of 8 inputs each, a row a warp. `taken` counts rows, so that they go round.
// Not inline, like all that is used more than once: the instructions of a layer should stay in the cache.
__device__ __noinline__ uint32_t multiply_rows(char* data, Shared* s, uint32_t stage, uint32_t n_rows, const uint4* x, uint32_t n, uint32_t taken, Use use, uint64_t* told, float* kept, uint32_t step) {
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, at_once = rows_of_stage(8 * n);
  Ring ring{data, *s, stage >> 1, stage & 1};
  for (uint32_t first = 0; first < n_rows; first += at_once) {
    const uint32_t here = min(at_once, n_rows - first);
    const uint4* w = ring.take();
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
        } else {
          if (use == Use::tell_tanh) sum = tanhf(sum);
          if (use == Use::tell_sigmoid) sum = sigmoid(sum);
          if (use == Use::add_to_x) sum = kept[row] += sum;
          tell(told + row, sum, step);
        }
      }
    }
    ring.give_back();
    taken += here;
  }
  return ring.stage << 1 | ring.parity;
}

struct Worker {
  const Plan& p;
  Shared& s;
  Ring ring;
  char* scratch;  // inputs of products, bf16 [kMaxInputs, C], or sums of value, f32 [kWorkers, 8]
  uint32_t step;  // of the layer: what numbers carry
  const ResidentScratch& told = p.a.scratch;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Share own = share(p.C), inner = share(p.F);  // of x, of key's rows
  uint32_t tiles = 0;

  __device__ uint4* input(uint32_t i) const { return reinterpret_cast<uint4*>(scratch) + i * (p.C / 8); }

  // The sum over all threads; `which` of the arrays is free again after the next meeting of workers.
  __device__ float sum(float x, uint32_t which) const {
    x = lane_sum<32>(x);
    if (lane == 0) s.sums[which][warp] = x;
    workers_meet();
    float total = 0;
#pragma unroll
    for (uint32_t i = 0; i < kWarps; ++i) total += s.sums[which][i];
    return total;
  }

  __device__ void rows(uint32_t n_rows, const uint4* x, uint32_t& taken, Use use, uint64_t* told, float* kept = nullptr) {
    const uint32_t now = multiply_rows(ring.data, &s, ring.stage << 1 | ring.parity, n_rows, x, p.C / 8, taken, use, told, kept, step);
    ring.stage = now >> 1, ring.parity = now & 1;
    taken += n_rows;
  }

  // The norm of x and its mixes with the one before, which `state` holds (null: zeros) and `kept` gets, in this block alone
  __device__ void shift(const Layer& l, bool is_channel_mix, bool is_first_of_run, const float* state, float* kept) {
    const uint32_t C = p.C;
    Columns y = is_first_of_run && !is_channel_mix ? read_columns(p.a.x, C) : hear_columns(is_channel_mix ? told.x_output : told.x_mixed, C, is_channel_mix ? step : step - 1);
    float total = 0, square = 0;
    for_pairs(C, [&](int j, uint32_t) { total += y.v[j].x + y.v[j].y; });
    const float mean = sum(total, 0) / C;
    for_pairs(C, [&](int j, uint32_t) {
      y.v[j] = {y.v[j].x - mean, y.v[j].y - mean};
      square += y.v[j].x * y.v[j].x + y.v[j].y * y.v[j].y;
    });
    const float scale = rsqrtf(sum(square, 1) / C + p.ln_eps);
    Vectors vectors{ring, C, n_shift_vectors(l, is_channel_mix, state)};
    const Columns w = vectors.next(), b = vectors.next(), before = state ? vectors.next() : Columns{};
    for_pairs(C, [&](int j, uint32_t) { y.v[j] = {y.v[j].x * scale * w.v[j].x + b.v[j].x, y.v[j].y * scale * w.v[j].y + b.v[j].y}; });
#pragma unroll 1
    for (uint32_t i = 0; vectors.i < vectors.n; ++i) {
      const Columns m = vectors.next();
      Columns out;
      for_pairs(C, [&](int j, uint32_t) { out.v[j] = {y.v[j].x + (before.v[j].x - y.v[j].x) * m.v[j].x, y.v[j].y + (before.v[j].y - y.v[j].y) * m.v[j].y}; });
      to_inputs(scratch + i * C * 2, C, out);
    }
    if (kept) write_columns(kept, C, y);
    workers_meet();
  }

  __device__ void time_mix_products(const Layer& l) {
    const Products& products = l.products();
    uint32_t taken = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < products.n; ++i) {
      const uint32_t q = products.of[i].product, begin = products.of[i].begin;
      uint64_t* to = q < 3 ? told.rkv + q * p.C : told.low;
#pragma unroll 1
      for (uint32_t j = 3; j < q; ++j) to += p.rank[j - 3];
      rows(products.of[i].end - begin, input(i), taken, q == 3 ? Use::tell_tanh : q == 6 ? Use::tell_sigmoid : Use::tell, to + begin);
    }
  }

  // The second low-rank products of the head's channels by the tensor core: a warp has sixteen rows and a quarter of the inputs.
  __device__ void low_products(const Layer& l) {
    const uint32_t n_hidden = p.rank[0] + p.rank[1] + p.rank[2] + p.rank[3], missing = p.rank[0] + p.rank[1];
    workers_meet();  // all have read what the inputs were before
#pragma unroll 1
    for (uint32_t j = threadIdx.x; j < n_hidden; j += kWorkers)
      if (!l.is_first || j < missing || j >= missing + p.rank[2]) reinterpret_cast<bf16*>(scratch)[j] = __float2bfloat16_rn(hear<1>(told.low + j, step)[0]);
    workers_meet();
    const uint32_t g = lane / 4, t = lane % 4, row = warp / 4 * 16, quarter = warp % 4;
    const uint4* hidden = input(0);
#pragma unroll 1
    for (uint32_t m = 0; m < 4; ++m) {
      const uint32_t n = p.rank[m] / 8, at_once = low_rows_of_stage(p.rank[m]);
      if (m != 2 || !l.is_first)
#pragma unroll 1
        for (uint32_t first = 0; first < kHead; first += at_once) {
          const uint4* w = ring.take();
          if (row >= first && row < first + at_once) {
            Sums sums;
            const uint4 *low = w + (row - first + g) * n, *high = low + 8 * n;
            for (uint32_t j = 4 * quarter + t; j < (n + 3) / 4 * 4; j += 16) {  // the four lanes of a row go together
              const bool inside = j < n;
              const uint4 zero{0, 0, 0, 0}, a = inside ? low[j] : zero, b = inside ? high[j] : zero, x = inside && g == 0 ? hidden[j] : zero;
              multiply(sums, a.x, b.x, a.y, b.y, x.x, x.y);
              multiply(sums, a.z, b.z, a.w, b.w, x.z, x.w);
            }
            if (t == 0) s.low[m][quarter][row + g] = sums.v[0], s.low[m][quarter][row + g + 8] = sums.v[2];
          }
          ring.give_back();
        }
      hidden += n;
    }
    workers_meet();
  }

  // The sums of a and b over the first two warps, to their threads. Nobody else comes.
  __device__ float2 head_sum(float a, float b, uint32_t which) const {
    a = lane_sum<32>(a), b = lane_sum<32>(b);
    if (lane == 0) s.sums[2 + which][2 * warp] = a, s.sums[2 + which][2 * warp + 1] = b;
    asm volatile("bar.sync 2, 64;" ::: "memory");
    return {s.sums[2 + which][0] + s.sums[2 + which][2], s.sums[2 + which][1] + s.sums[2 + which][3]};
  }

  // The head of this block's number. The first two warps have its channels, each warp four rows of S.
  __device__ void head(const Layer& l, float* state) {
    const uint32_t C = p.C, i = threadIdx.x, channel = blockIdx.x * kHead + i;
    float r = 0, k = 0, v = 0, v_first = 0;
    if (i < kHead) {
      if (!l.is_first) v_first = __ldcg(p.a.v_first + channel);
      Told<1> heard[3];
      wait_for([&] {
#pragma unroll
        for (int j = 0; j < 3; ++j) heard[j].look(told.rkv + j * C + channel);
        return heard[0].is_of(step) && heard[1].is_of(step) && heard[2].is_of(step);
      });
      r = heard[0][0], k = heard[1][0], v = heard[2][0];
    }
    low_products(l);
    const float* weights = reinterpret_cast<const float*>(ring.take());
    float ln_w = 0, ln_b = 0, bonus = 0;
    if (i < kHead) {
      const auto weight = [&](HeadVector which) { return weights[which * kHead + i]; };
      const auto low = [&](uint32_t m) { return (s.low[m][0][i] + s.low[m][1][i]) + (s.low[m][2][i] + s.low[m][3][i]); };
      ln_w = weight(kLnW), ln_b = weight(kLnB);
      const float a = sigmoid(weight(kA0) + low(1));
      s.decay[i] = expf(-0.60653065971263342f * sigmoid(weight(kW0) + low(0)));
      if (!l.is_first)
        v += (v_first - v) * sigmoid(weight(kV0) + low(2));
      else
        p.a.v_first[channel] = v;
      float kk = k * weight(kKK);
      k *= 1.0f + (a - 1.0f) * weight(kKA);
      s.r[i] = r, s.k[i] = k, s.v[i] = v, s.g[i] = low(3);
      const float2 sums = head_sum(kk * kk, r * k * weight(kRK), 0);
      kk /= fmaxf(sqrtf(sums.x), 1e-12f);
      s.minus_kk[i] = -kk, s.b[i] = kk * a;
      bonus = sums.y;
    }
    ring.give_back();
    float2* mine = state ? reinterpret_cast<float2*>(state + (static_cast<uint64_t>(blockIdx.x) * kHead + 4 * warp) * kHead) + lane : nullptr;
    float2 S[4] = {};
    if (mine) {
      const float2* rows = reinterpret_cast<const float2*>(ring.take()) + 4 * warp * (kHead / 2) + lane;
#pragma unroll
      for (int j = 0; j < 4; ++j) S[j] = rows[j * (kHead / 2)];
      ring.give_back();
    }
    workers_meet();
    const auto keys = [&](const float* of) { return reinterpret_cast<const float2*>(of)[lane]; };
    const float2 minus_kk = keys(s.minus_kk), b = keys(s.b), w = keys(s.decay), k2 = keys(s.k), r2 = keys(s.r);
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
      if (mine) __stcs(mine + j * (kHead / 2), S[j]);
      y[j] = S[j].x * r2.x + S[j].y * r2.y;
    }
#pragma unroll
    for (int d = 16; d > 0; d /= 2)
#pragma unroll
      for (int j = 0; j < 4; ++j) y[j] += __shfl_xor_sync(~0u, y[j], d);
    if (lane == 0) *reinterpret_cast<float4*>(s.y + 4 * warp) = {y[0], y[1], y[2], y[3]};
    workers_meet();
    if (i >= kHead) return;
    const float own_y = s.y[i], mean = head_sum(own_y, 0, 1).x / kHead, centred = own_y - mean;
    const float scale = rsqrtf(head_sum(centred * centred, 0, 0).x / kHead + p.gn_eps);
    tell(told.gated + channel, (centred * scale * ln_w + ln_b + bonus * v) * s.g[i], step);
  }

  __device__ void output() {
    const Columns gated = hear_columns(told.gated, p.C, step);
    workers_meet();  // all have read what the inputs were before
    to_inputs(scratch, p.C, gated);
    workers_meet();
    uint32_t taken = 0;
    rows(own.end - own.begin, input(0), taken, Use::add_to_x, told.x_output + own.begin, s.x);
  }

  __device__ void channel_mix() {
    const uint32_t n = inner.end - inner.begin, across = p.C / 8, abreast = kWorkers / across, group = threadIdx.x / across, at_once = rows_of_stage(p.C);
    const auto tile = [&](uint32_t at) { return min(kTile, n - at); };
    float sums[8] = {};
    uint32_t taken = 0, turn = 0;
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
      for (uint32_t mask = __ballot_sync(~0u, lane < tile(before_at) && s.u[before_at + lane % kTile] != 0); mask != 0;) {
        const uint32_t here = min(at_once, static_cast<uint32_t>(__popc(mask)));
        const uint4* rows_of_value = ring.take();
#pragma unroll 2
        for (uint32_t i = 0; i < here; ++i, mask &= mask - 1) {
          const bool is_mine = turn == group;
          if (++turn == abreast) turn = 0;
          if (!is_mine) continue;
          const float u = s.u[before_at + __ffs(mask) - 1];
          const uint4 v = rows_of_value[i * across + threadIdx.x - group * across];
          const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[2 * j] = fmaf(u, low_half(words[j]), sums[2 * j]), sums[2 * j + 1] = fmaf(u, high_half(words[j]), sums[2 * j + 1]);
        }
        ring.give_back();
      }
    }
    tiles += (n + kTile - 1) / kTile;

    // every warp's last u came after its last row: nobody reads the inputs any more once all are here
    float* of_groups = reinterpret_cast<float*>(scratch);  // [abreast, C]
    workers_meet();
    if (group < abreast) {
      float4* to = reinterpret_cast<float4*>(of_groups + group * p.C + 8 * (threadIdx.x - group * across));
      to[0] = {sums[0], sums[1], sums[2], sums[3]}, to[1] = {sums[4], sums[5], sums[6], sums[7]};
    }
    workers_meet();
#pragma unroll 1
    for (uint32_t c = threadIdx.x; c < p.C; c += kWorkers) {
      float sum = of_groups[c];
#pragma unroll 1
      for (uint32_t g = 1; g < abreast; ++g) sum += of_groups[g * p.C + c];
      tell(told.parts + static_cast<uint64_t>(blockIdx.x) * p.C + c, sum, step);
    }
  }

  __device__ void add_parts(bool is_last_of_run) {
#pragma unroll 1
    for (uint32_t first = own.begin; first < own.end; first += 32) {
      const uint32_t c = first + lane;
      float total = 0;
      if (c < own.end)
#pragma unroll 1
        for (uint32_t b = warp; b < gridDim.x; b += kMaxHeard * kWarps) {
          Told<1> t[kMaxHeard];
          wait_for([&] {
            bool all = true;
#pragma unroll
            for (uint32_t j = 0; j < kMaxHeard; ++j)
              if (const uint32_t of = b + j * kWarps; of < gridDim.x) t[j].look(told.parts + static_cast<uint64_t>(of) * p.C + c);
#pragma unroll
            for (uint32_t j = 0; j < kMaxHeard; ++j) all = all && (b + j * kWarps >= gridDim.x || t[j].is_of(step));
            return all;
          });
#pragma unroll
          for (uint32_t j = 0; j < kMaxHeard; ++j) total += b + j * kWarps < gridDim.x ? t[j][0] : 0;
        }
      s.columns[warp][lane] = total;
      workers_meet();
      if (warp == 0 && c < own.end) {
        float x = s.x[c - own.begin];
#pragma unroll
        for (uint32_t i = 0; i < kWarps; ++i) x += s.columns[i][lane];
        s.x[c - own.begin] = x;
        tell(told.x_mixed + c, x, step);
        if (is_last_of_run) p.a.x[c] = x;
      }
      if (first + 32 < own.end) workers_meet();
    }
  }

  __device__ void run() {
    const int32_t slot = p.a.slots[0];
    const bool keeps = blockIdx.x == gridDim.x - 1 && slot >= 0;  // the token shifts' vectors
    if (threadIdx.x < own.end - own.begin) s.x[threadIdx.x] = p.a.x[own.begin + threadIdx.x];
    for (uint32_t i = 0; i < p.n; ++i, ++step) {
      const Layer l(p, i, s);
      float *att_x = state_of(p, p.first + i, slot), *S = att_x ? att_x + p.C : nullptr, *ffn_x = att_x ? S + static_cast<uint64_t>(p.C) * kHead : nullptr;
#pragma unroll 1
      for (const bool is_channel_mix : {false, true}) {
        float *kept = told.kept, *state = is_channel_mix ? ffn_x : att_x;
        shift(l, is_channel_mix, i == 0, state, keeps ? kept : nullptr);
        if (is_channel_mix) {
          channel_mix();
          add_parts(i + 1 == p.n);
        } else {
          time_mix_products(l);
          if (blockIdx.x < p.n_head) head(l, S);
          output();
        }
        if (keeps) write_columns(state, p.C, read_columns(kept, p.C));  // every head is there, or every part: all blocks have read the one before
      }
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
    for (const bool first : {true, false}) divide_products(p, first, s.products[first ? 0 : 1]);
    barriers_are_made();
  }
  __syncthreads();
  Ring ring{memory, s};
  if (threadIdx.x >= kWorkers) {
    if (threadIdx.x == kWorkers) copy_layers(p, ring);
    return;
  }
  const ResidentScratch& told = p.a.scratch;
  const uint32_t step = told.steps[0] + 1;
  Worker worker{p, s, ring, scratch, step};
  worker.run();
  if (threadIdx.x == 0 && atomicInc(told.steps + 1, gridDim.x - 1) == gridDim.x - 1) told.steps[0] = step - 1 + p.n;  // the last one, for the next run
}

uint32_t scratch_bytes(uint32_t C) { return std::max(kMaxInputs * C * 2, kWorkers * 8 * 4); }
uint32_t shared_bytes(uint32_t C) { return kStages * kStageBytes + (sizeof(Shared) + 15) / 16 * 16 + scratch_bytes(C); }

}  // namespace

bool resident_takes(const duetp_layer& l) {
  const duetp_shape& s = l.shape;
  const uint32_t blocks = multiprocessors(), C = s.n_embd;
  if (duet_gpu::device_attribute(cudaDevAttrComputeCapabilityMajor, 0) < 9 || duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) < static_cast<int>(shared_bytes(C))) return false;
  if (l.weights != DUET_BF16 || s.head_size != kHead || C > kMaxWidth || s.n_head > blocks || (C + blocks - 1) / blocks > kMaxOwn || (s.n_ffn + blocks - 1) / blocks > kMaxSlice || s.n_layer > kMaxLayers) return false;
  const uint32_t rank[4] = {s.rank_w, s.rank_a, s.rank_v, s.rank_g};
  uint32_t ranks = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    if (rank[i] % 8 != 0 || rank[i] * 2 * 16 > kStageBytes) return false;
    ranks += rank[i];
  }
  if (ranks * 2 > scratch_bytes(C)) return false;
  for (const bool first : {false, true}) {  // how many products a block's rows belong to
    uint32_t n = 0;
    for (uint32_t q = 0; q < kProducts; ++q) n += product_rows(q, C, rank, first);
    for (uint32_t b = 0; b < blocks; ++b) {
      uint32_t at = 0, products = 0;
      for (uint32_t q = 0; q < kProducts; ++q) {
        const uint32_t rows = product_rows(q, C, rank, first);
        if (std::max(at, n * b / blocks) < std::min(at + rows, n * (b + 1) / blocks)) ++products;
        at += rows;
      }
      if (products > kMaxInputs) return false;
    }
  }
  return true;
}

uint64_t resident_scratch_bytes(const duetp_shape& s) {
  const uint64_t words = 7ull * s.n_embd + s.rank_w + s.rank_a + s.rank_v + s.rank_g + static_cast<uint64_t>(multiprocessors()) * s.n_embd;
  return (words + 1) * sizeof(uint64_t);
}

ResidentScratch lay_out_resident(void* memory, const duetp_shape& s) {
  ResidentScratch r{};
  uint64_t* at = static_cast<uint64_t*>(memory);
  const auto next = [&](uint64_t words) { return std::exchange(at, at + words); };
  r.rkv = next(3 * s.n_embd);
  r.gated = next(s.n_embd);
  r.x_output = next(s.n_embd);
  r.x_mixed = next(s.n_embd);
  r.parts = next(static_cast<uint64_t>(multiprocessors()) * s.n_embd);
  r.low = next(s.rank_w + s.rank_a + s.rank_v + s.rank_g);
  r.kept = reinterpret_cast<float*>(next((s.n_embd + 1) / 2));
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
  p.ln_eps = s.ln_eps, p.gn_eps = s.gn_eps;
  p.a = a;
  const uint32_t shared = shared_bytes(s.n_embd);
  if (const Error e = cudaFuncSetAttribute(resident_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)); e != cudaSuccess) return e;
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
