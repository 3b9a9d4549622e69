// All layers for one token, without a kernel's end between a step and the next. One block a multiprocessor. Its last warp
// copies the block's share of all weights, in the order in which they are used, into a ring in shared memory, as far ahead as
// the ring takes them: it waits for no result, so that the memory is busy while the other warps wait for each other's blocks.
// But few copies are under way at a time: what blocks tell each other would wait in the same queues.
// What blocks tell each other are numbers that carry the step they belong to: who needs one looks until it is there, and no
// barrier of all blocks is needed. The last blocks own some columns of x each, the first ones have a head, and those up to n_inner rows of
// key. A layer has these steps, after each of which what is in brackets is told:
//   1  time mix's norm: sum and squares of the block's columns [them]
//   2  its token shift, the block's columns [six inputs]; in narrow models 1 and 2 are every block's, of all columns [before: x]
//   3  rows of receptance, key, value and of the first low-rank matrices [their sums]
//   4  a block a head: the second low-rank matrices' rows of it, wkv, norm and gate [the output's inputs]
//   5  rows of output, added to x; channel mix's norm, as in 1 [sum and squares]
//   6  its token shift [one input]
//   7  rows of key, and for each input u of relu^2 that is not zero u times its row of value, for all outputs at once [the
//      block's part of sums over all blocks]; then the block's columns of these sums, added to x
// What one has heard comes from all who have a part in a step at least every second step, so that none is a layer ahead: a number is
// written again only after all who need it have read it. All sums have a fixed order.
// Where a token goes: resident.cu (who has what), layers.h (the steps), on top of token_shift.h (1, 2, 6) and head.h (4); of the weights'
// form bf16_worker.h and bf16_copies.h, or quantised_worker.h and quantised_copies.h.
#include "resident/resident.h"

#include <algorithm>
#include <utility>

#include "device.h"
#include "resident/bf16_copies.h"
#include "resident/bf16_worker.h"
#include "resident/layers.h"
#include "resident/quantised_copies.h"
#include "resident/quantised_worker.h"
#include "shared_memory.h"

namespace duet_cuda {
namespace resident {
namespace {

// Where there are no bulk copies resident_takes refuses.
template <class Copies, class Worker, bool is_narrow>
__global__ void __launch_bounds__(kThreads, 1) resident_kernel(__grid_constant__ const Plan p) {
  using Form = typename Copies::Form;
  extern __shared__ __align__(128) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory + Form::kStages * Form::kStageBytes);
  char* scratch = memory + Form::kStages * Form::kStageBytes + (sizeof(Shared) + 15) / 16 * 16;
  if (p.a.used[0] == 0 || p.a.starts[1] == 0) return;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < Form::kStages; ++i) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], kWarps * kArrivalsOfWarp);
    make_meeting<1, kWorkers>(), make_meeting<2, 64>();
    for (uint64_t& r : s.ready) barrier_init(&r, kWarps * kArrivalsOfWarp);
    for (const bool first : {true, false}) divide_products(p, first, blockIdx.x, gridDim.x, s.products[first ? 0 : 1]);
    s.under_way = kUnderWayMeanwhile, s.slot = p.a.slots[0], s.mean = p.a.x[0];
    const uint32_t without = gridDim.x - p.n_owners;
    s.own = blockIdx.x < without ? Share{0, 0} : share(p.C, Form::kColumns, blockIdx.x - without, p.n_owners);
    s.inner = blockIdx.x < p.n_inner ? share(p.F, Form::kInner, blockIdx.x, p.n_inner) : Share{0, 0};
    barriers_are_made();
  }
  __syncthreads();
  Ring<Form> ring{memory, s};
  if (threadIdx.x >= kWorkers) {
    if (threadIdx.x == kWorkers) Copier<Copies>{{p, ring}}.run();
    return;
  }
  const ResidentScratch& told = p.a.scratch;
  const uint32_t step = told.steps[0] + 1;
  Layers<Worker, is_narrow>(p, s, ring, scratch, step).run();
  if (threadIdx.x == 0 && atomicInc(told.steps + 1, gridDim.x - 1) == gridDim.x - 1) told.steps[0] = step - 1 + p.n;  // the last one, for the next run
}

// What the host has to know of a kernel
struct Kernel {
  void (*run)(Plan);
  uint32_t rows, columns, fewest, inner, hidden, stages, stage_bytes;  // as Form's
  uint32_t units;                                              // 0, or of a stage
  uint32_t unit_bytes;                                         // or of a row's element
  uint32_t (*scratch_bytes)(const Sizes&);
  uint32_t shared_bytes(const Sizes& s) const { return stages * stage_bytes + (sizeof(Shared) + 15) / 16 * 16 + scratch_bytes(s); }
  // Of a row or a tile with so many inputs
  uint32_t bytes(uint32_t n_in) const { return unit_bytes * (units ? groups_in(n_in) : n_in); }
  uint32_t bytes_of_one(uint32_t C) const { return units ? unit_bytes : bytes(C); }  // of what at_once() counts
  // Rows or tiles of a head's low-rank matrix in a stage, of which tensor cores take sixteen rows at a time; 0: it has no room for one
  uint32_t low_at_once(uint32_t rank) const { return rank == 0 ? 0 : units ? std::min(kHead / rows, units / groups_in(rank)) : std::min(kHead, stage_bytes / bytes(rank) & ~15u); }
  uint32_t low_stages(uint32_t rank) const { return rank == 0 ? 0 : (kHead / rows + low_at_once(rank) - 1) / low_at_once(rank); }
  // Rows, or groups of a tile, of C inputs in a stage: equal parts
  uint32_t at_once(uint32_t C) const {
    if (!units) return stage_bytes / bytes(C);
    uint32_t n = std::min(units, C / kGroup);
    while (C / kGroup % n != 0) --n;
    return n;
  }
};
template <class Copies, class Worker>
Kernel kernel_of(bool is_narrow, uint32_t units, uint32_t unit_bytes) {
  using Form = typename Copies::Form;
  return {is_narrow ? resident_kernel<Copies, Worker, true> : resident_kernel<Copies, Worker, false>, Form::kRows, Form::kColumns, Form::kFewest, Form::kInner, Form::kHidden, Form::kStages, Form::kStageBytes, units, unit_bytes, Worker::scratch_bytes};
}
Kernel kernel_of(const duetp_layer& l) {
  const bool is_narrow = l.shape.n_embd <= kNarrow;
  if (l.weights == DUET_I8) return kernel_of<QuantisedCopies<8>, QuantisedWorker<8>>(is_narrow, Quantised<8>::kUnits, Quantised<8>::kUnitBytes);
  if (l.weights == DUET_I4) return kernel_of<QuantisedCopies<4>, QuantisedWorker<4>>(is_narrow, Quantised<4>::kUnits, Quantised<4>::kUnitBytes);
  return kernel_of<Bf16Copies, Bf16Worker>(is_narrow, 0, sizeof(bf16));
}

Sizes sizes_of(const duetp_shape& s, const Kernel& k) {
  Sizes z{s.n_embd, s.n_ffn, s.n_head, {s.rank_w, s.rank_a, s.rank_v, s.rank_g}, k.rows, k.bytes(s.n_embd), {}};
  for (uint32_t later = 0; later < 2; ++later) {
    z.head_bytes[later] = kHead * 4 * (kHeadVectors + kHead);  // of a state in f32
    for (uint32_t m = 0; m < 4; ++m)
      if (m != 2 || later) z.head_bytes[later] += kHead / k.rows * k.bytes(z.rank[m]);
  }
  return z;
}

// Hidden numbers of low-rank pairs, with those that fill up groups
uint32_t counted(uint32_t rank, const Kernel& k) { return (rank + k.hidden - 1) / k.hidden * k.hidden; }

}  // namespace
}  // namespace resident

using namespace resident;
using duet_gpu::Error;

bool resident_takes(const duetp_layer& l) {
  const duetp_shape& s = l.shape;
  if (l.weights != DUET_BF16 && !l.quantised()) return false;
  if (s.head_size != kHead || s.n_embd > kMaxWidth || s.n_layer > kMaxLayers || s.n_ffn % kHead != 0) return false;
  const Kernel k = kernel_of(l);
  const Sizes z = sizes_of(s, k);
  if (duet_gpu::device_attribute(cudaDevAttrComputeCapabilityMajor, 0) < 9 || duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) < static_cast<int>(k.shared_bytes(z))) return false;
  const uint32_t blocks = multiprocessors(), columns = z.C / k.columns, inner = z.F / k.inner;
  const auto most = [&](uint32_t n) { return (n + blocks - 1) / blocks; };
  // Each warp hears a part of some block: there are as many blocks. A group has one block.
  if (blocks < kWarps || blocks > kMaxBlocks || z.n_head > blocks || most(columns) * k.columns > kMaxOwn || most(inner) * k.inner > kMaxSlice) return false;
  uint32_t hidden = 0, stages = 0;
  for (const uint32_t rank : z.rank) {
    if (rank % 8 != 0 || (rank > 0 && k.low_at_once(rank) == 0)) return false;
    hidden += counted(rank, k), stages += k.low_stages(rank);
  }
  // Warps give back stages of other warps' matrices without a look at them: they must not come round to the same one.
  if (stages > k.stages) return false;
  if (k.units ? hidden > std::min(kMaxInputs * z.C, kMaxTiles * kWarps * kTile) : 2 * hidden > k.scratch_bytes(z) - kColumnsBytes) return false;
  resident::Products products;
  for (const bool first : {false, true})
    for (uint32_t b = 0; b < blocks; ++b)
      if (!divide_products(z, first, b, blocks, products)) return false;
  return true;
}

// Whatever the weights' form
static uint64_t hidden_words(const duetp_shape& s) {
  uint64_t n = 0;
  for (const uint32_t rank : {s.rank_w, s.rank_a, s.rank_v, s.rank_g}) n += (rank + kGroup - 1) / kGroup * kGroup;
  return n;
}

uint64_t resident_scratch_bytes(const duetp_shape& s) {
  const uint64_t words = 9ull * s.n_embd + hidden_words(s) + static_cast<uint64_t>(multiprocessors()) * (4 + s.n_embd);
  return (words + 1) * sizeof(uint64_t);
}

ResidentScratch lay_out_resident(void* memory, const duetp_shape& s) {
  ResidentScratch r{};
  uint64_t* at = static_cast<uint64_t*>(memory);
  const auto next = [&](uint64_t words) { return std::exchange(at, at + words); };
  r.rkv = next(3 * s.n_embd);
  r.sums = next(4 * static_cast<uint64_t>(multiprocessors()));
  r.mixes = next(kMixes * (s.n_embd / 2));
  r.x = next(2 * s.n_embd);
  r.gated = next(s.n_embd / 2);
  r.parts = next(static_cast<uint64_t>(multiprocessors()) * s.n_embd);
  r.low = next(hidden_words(s));
  r.steps = reinterpret_cast<uint32_t*>(at);
  return r;
}

Error resident_layers(const Resident& a, duet_gpu::Stream stream) {
  if (a.n == 0) return cudaSuccess;
  const duetp_shape& s = a.layers[a.first]->shape;
  const Kernel k = kernel_of(*a.layers[a.first]);
  Plan p{};
  static_cast<Sizes&>(p) = sizes_of(s, k);
  if (a.n > kMaxLayers) return cudaErrorInvalidValue;
  for (uint32_t i = 0; i < a.n; ++i) {
    const duetp_layer& l = *a.layers[a.first + i];
    p.layer[i] = l.memory.data();
    const duetp_layer& like = *a.layers[l.index == 0 || i == 0 ? a.first + i : a.first + (a.first == 0 ? 1 : 0)];
    for (uint32_t id = 0; id < DUETP_T_COUNT; ++id) {
      const auto place = [&](const uint64_t (&from)[DUETP_T_COUNT], const uint64_t (&same)[DUETP_T_COUNT], uint32_t (&to)[2][DUETP_T_COUNT]) {
        to[l.index > 0][id] = static_cast<uint32_t>(from[id]);
        return from[id] == same[id] && (from[id] == duetp_layer::kAbsent || from[id] <= ~0u);
      };
      if (!place(l.offset, like.offset, p.offset) || !place(l.scale_offset, like.scale_offset, p.scale) || !place(l.minimum_offset, like.minimum_offset, p.minimum)) return cudaErrorInvalidValue;
    }
  }
  p.first = a.first, p.n = a.n;
  p.n_owners = std::min<uint32_t>(multiprocessors(), p.C / k.fewest), p.n_inner = std::min<uint32_t>(multiprocessors(), p.F / k.inner);
  p.at_once = k.at_once(p.C);
  const uint32_t of_stage = p.at_once * k.bytes_of_one(p.C);
  p.under_way = std::clamp((kUnderWayBytes + of_stage / 2) / of_stage, 1u, k.stages - 1);
  p.abreast = kWorkers / (p.C / 8);
  // Where the ring holds a block's share of a whole layer, rows that meet zeros cost less than waiting to know which they are.
  p.skips = 2ull * p.C * (4 * p.C + 2 * p.F) / multiprocessors() > k.stages * k.stage_bytes;
  for (uint32_t i = 0; i < 4; ++i) {
    p.low_begin[i + 1] = p.low_begin[i] + counted(p.rank[i], k), p.low_at_once[i] = k.low_at_once(p.rank[i]);
    for (const uint32_t later : {0, 1}) p.low_stage[later][i + 1] = p.low_stage[later][i] + (i == 2 && later == 0 ? 0 : k.low_stages(p.rank[i]));
  }
  p.ln_eps = s.ln_eps, p.gn_eps = s.gn_eps, p.reciprocal_of_C = 1.0f / s.n_embd;
  p.a = a;
  const int limit = duet_gpu::device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) - kMeetingBytes;  // all threads of the process share it: each sets the same
  if (const Error e = cudaFuncSetAttribute(k.run, cudaFuncAttributeMaxDynamicSharedMemorySize, limit); e != cudaSuccess) return e;
  cudaLaunchAttribute all_at_once{};
  all_at_once.id = cudaLaunchAttributeCooperative;
  all_at_once.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(multiprocessors());
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = k.shared_bytes(p);
  config.stream = stream;
  config.attrs = &all_at_once;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, k.run, p);
}

}  // namespace duet_cuda
