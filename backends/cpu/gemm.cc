#include "gemm.h"

#include <omp.h>

#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace duet_cpu {

using dnnl::memory;

OneOpenMpThread::OneOpenMpThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
OneOpenMpThread::~OneOpenMpThread() { omp_set_num_threads(before_); }

Gemms::Gemms() : engine_(dnnl::engine::kind::cpu, 0) {
  const OneOpenMpThread one;
  // Older CPUs get bf16 from oneDNN too, but emulated: there f32 on the widened values is faster and as exact.
  if (!has_bf16_dot()) return;
  try {
    has_bf16_ = std::string_view(make(64, true, kTileRows)->desc.impl_info_str()).find("ref") == std::string_view::npos;
  } catch (const dnnl::error& e) {
    if (e.status == dnnl_out_of_memory) throw;  // says nothing about the machine
  }
}

std::unique_ptr<Gemm> Gemms::make(uint32_t depth, bool bf16, size_t n_rows) {
  const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::dim rows = static_cast<memory::dim>(n_rows), columns = kTileColumns;
  const memory::desc a({rows, depth}, type, memory::format_tag::ab);
  const memory::desc b({depth, columns}, type, bf16 ? memory::format_tag::BA16a64b2a : memory::format_tag::ab);
  const memory::desc c({rows, columns}, memory::data_type::f32, memory::format_tag::ab);
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc desc(engine_, a, b, c, attr);
#else
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(a, b, c), attr, engine_);
#endif
  return std::unique_ptr<Gemm>(new Gemm{0, depth, bf16, n_rows, false, desc.scratchpad_desc().get_size(), desc, dnnl::matmul(desc)});
}

namespace {

// Runs the product on a block of equal rows and compares their results.
bool rows_alike(const Gemms& all, const Gemm& g) {
  const size_t element = g.bf16 ? 2 : 4, depth = g.depth + g.depth % 2;  // pairs of bf16
  const auto aligned = [](size_t bytes) { return std::unique_ptr<void, decltype(&std::free)>(std::aligned_alloc(64, (bytes / 64 + 1) * 64), std::free); };
  const auto rows = aligned(g.rows * g.depth * element), panel = aligned(depth * kTileColumns * element), tile = aligned(g.rows * kTileColumns * 4), scratch = aligned(g.scratch_bytes);
  if (!rows || !panel || !tile || !scratch) throw std::bad_alloc();
  uint32_t random = 1;
  const auto fill = [&](void* to, size_t n) {  // numbers in (-1, 1)
    for (size_t i = 0; i < n; ++i) {
      const float value = static_cast<float>(static_cast<int32_t>(random = random * 1664525u + 1013904223u)) * 0x1p-31f;
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      const auto half = static_cast<uint16_t>(bits >> 16);
      std::memcpy(static_cast<char*>(to) + i * element, g.bf16 ? static_cast<const void*>(&half) : &bits, element);
    }
  };
  fill(rows.get(), g.depth);
  for (size_t r = 1; r < g.rows; ++r) std::memcpy(static_cast<char*>(rows.get()) + r * g.depth * element, rows.get(), g.depth * element);
  fill(panel.get(), depth * kTileColumns);
  GemmThread thread(all);
  Gemm first = g;
  first.index = 0;
  thread.prepare(first);
  thread.run(first, rows.get(), panel.get(), static_cast<float*>(tile.get()), scratch.get());
  const auto* out = static_cast<const float*>(tile.get());
  for (size_t r = 1; r < kTileRows; ++r)
    if (std::memcmp(out, out + r * kTileColumns, kTileColumns * sizeof(float)) != 0) return false;
  return true;
}

}  // namespace

const Gemm* Gemms::get(uint32_t depth, bool bf16) {
  const std::lock_guard lock(mutex_);
  const auto usable = [](const Gemm& g) { return g.alike ? &g : nullptr; };
  for (const auto& g : all_)
    if (g->depth == depth && g->bf16 == bf16) return usable(*g);
  const OneOpenMpThread one;
  std::unique_ptr<Gemm> g;
  for (const size_t rows : {kTileRows, kMaxTileRows}) {
    g = make(depth, bf16, rows);
    if ((g->alike = rows_alike(*this, *g))) break;
  }
  g->index = static_cast<uint32_t>(all_.size());
  all_.push_back(std::move(g));
  return usable(*all_.back());
}

void GemmThread::prepare(const Gemm& g) {
  if (g.index >= arguments_.size()) arguments_.resize(g.index + 1);
  Arguments& a = arguments_[g.index];
  if (a.rows) return;
  const dnnl::engine e = g.desc.get_engine();
  a.rows = memory(g.desc.src_desc(), e, DNNL_MEMORY_NONE);
  a.panel = memory(g.desc.weights_desc(), e, DNNL_MEMORY_NONE);
  a.tile = memory(g.desc.dst_desc(), e, DNNL_MEMORY_NONE);
  a.scratch = memory(g.desc.scratchpad_desc(), e, DNNL_MEMORY_NONE);
}

void GemmThread::run(const Gemm& g, const void* rows, const void* panel, float* tile, void* scratch) {
  Arguments& a = arguments_[g.index];
  a.rows.set_data_handle(const_cast<void*>(rows));
  a.panel.set_data_handle(const_cast<void*>(panel));
  a.tile.set_data_handle(tile);
  a.scratch.set_data_handle(scratch);
  const dnnl_exec_arg_t args[] = {
      {DNNL_ARG_SRC, a.rows.get()}, {DNNL_ARG_WEIGHTS, a.panel.get()}, {DNNL_ARG_DST, a.tile.get()}, {DNNL_ARG_SCRATCHPAD, a.scratch.get()}};
  dnnl::error::wrap_c_api(dnnl_primitive_execute(g.primitive.get(), stream_.get(), 4, args), "a matrix product failed");
}

}  // namespace duet_cpu
