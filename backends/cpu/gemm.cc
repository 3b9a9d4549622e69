#include "gemm.h"

#include <omp.h>

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
    has_bf16_ = std::string_view(make(64, true)->desc.impl_info_str()).find("ref") == std::string_view::npos;
  } catch (const dnnl::error&) {
  }
}

std::unique_ptr<Gemm> Gemms::make(uint32_t depth, bool bf16) {
  const auto type = bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const memory::dim rows = kTileRows, columns = kTileColumns;
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
  return std::unique_ptr<Gemm>(new Gemm{0, depth, bf16, desc.scratchpad_desc().get_size(), desc, dnnl::matmul(desc)});
}

const Gemm* Gemms::get(uint32_t depth, bool bf16) {
  const std::lock_guard lock(mutex_);
  for (const auto& g : all_)
    if (g->depth == depth && g->bf16 == bf16) return g.get();
  const OneOpenMpThread one;
  all_.push_back(make(depth, bf16));
  all_.back()->index = static_cast<uint32_t>(all_.size() - 1);
  return all_.back().get();
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
