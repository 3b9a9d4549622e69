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
#include "resident/resident.h"

#include <algorithm>
#include <utility>

#include "device.h"
#include "resident/copier.h"
#include "resident/layers.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace resident {
namespace {

// Where there are no bulk copies resident_takes refuses.
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(__grid_constant__ const Plan p) {
  extern __shared__ __align__(128) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory + kStages * kStageBytes);
  char* scratch = memory + kStages * kStageBytes + (sizeof(Shared) + 15) / 16 * 16;
  if (p.a.used[0] == 0 || p.a.starts[1] == 0) return;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], kWarps * kArrivalsOfWarp);
    for (uint64_t& r : s.ready) barrier_init(&r, kWarps * kArrivalsOfWarp);
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
  Layers(p, s, ring, scratch, step).run();
  if (threadIdx.x == 0 && atomicInc(told.steps + 1, gridDim.x - 1) == gridDim.x - 1) told.steps[0] = step - 1 + p.n;  // the last one, for the next run
}

constexpr uint32_t scratch_bytes(uint32_t C) { return std::max(kMaxInputs * C * 2, kWorkers * 8 * 4); }
constexpr uint32_t shared_bytes(uint32_t C) { return kStages * kStageBytes + (sizeof(Shared) + 15) / 16 * 16 + scratch_bytes(C); }
static_assert(shared_bytes(kMaxWidth) <= 227u << 10, "an H100 has no more");

}  // namespace
}  // namespace resident

using namespace resident;
using duet_gpu::Error;

bool resident_takes(const duetp_layer& l) {
  const duetp_shape& s = l.shape;
  const uint32_t blocks = multiprocessors(), C = s.n_embd;
  if (duet_gpu::device_attribute(cudaDevAttrComputeCapabilityMajor, 0) < 9 || duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) < static_cast<int>(shared_bytes(C))) return false;
  // Each warp hears a part of some block: there are as many blocks.
  if (l.weights != DUET_BF16 || s.head_size != kHead || C > kMaxWidth || blocks < kWarps || blocks > kMaxBlocks || s.n_head > blocks || (C / 2 + blocks - 1) / blocks * 2 > kMaxOwn || (s.n_ffn + blocks - 1) / blocks > kMaxSlice || s.n_layer > kMaxLayers) return false;
  const uint32_t rank[4] = {s.rank_w, s.rank_a, s.rank_v, s.rank_g};
  uint32_t ranks = 0, stages = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    if (rank[i] % 8 != 0 || rank[i] * 2 * 16 > kStageBytes) return false;
    ranks += rank[i], stages += low_stages(rank[i]);
  }
  // Warps give back stages of other warps' matrices without a look at them: they must not come round to the same one.
  if (ranks * 2 > scratch_bytes(C) || stages > kStages) return false;
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
  // Where the ring holds a block's share of a whole layer, rows that meet zeros cost less than waiting to know which they are.
  p.skips = 2ull * p.C * (4 * p.C + 2 * p.F) / multiprocessors() > kStages * kStageBytes;
  for (uint32_t i = 0; i < 4; ++i) {
    p.low_begin[i + 1] = p.low_begin[i] + p.rank[i], p.low_at_once[i] = low_rows_of_stage(p.rank[i]);
    for (const uint32_t later : {0, 1}) p.low_stage[later][i + 1] = p.low_stage[later][i] + (i == 2 && later == 0 ? 0 : low_stages(p.rank[i]));
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
