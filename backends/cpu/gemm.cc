#include "gemm.h"

#include <omp.h>
#include <signal.h>

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
  return std::unique_ptr<Gemm>(new Gemm{0, depth, bf16, n_rows, false, 0, desc.scratchpad_desc().get_size(), desc, dnnl::matmul(desc)});
}

namespace {

// One block of a product, to be tried on random numbers in (-1, 1).
class Trial {
 public:
  Trial(const Gemms& all, const Gemm& g) : g_(g), thread_(all) {
    g_.index = 0;
    thread_.prepare(g_);
    fill(weights_.get(), kTileColumns);
    pack_panel(matrix(), 0, kTileColumns, g.bf16, panel_.get());
  }
  // Whether equal rows have equal results
  bool rows_alike() {
    fill(rows_.get(), 1);
    for (size_t r = 1; r < g_.rows; ++r) std::memcpy(rows_.get() + r * row_bytes(), rows_.get(), row_bytes());
    const float* out = run();
    for (size_t r = 1; r < kTileRows; ++r)
      if (std::memcmp(out, out + r * kTileColumns, kTileColumns * sizeof(float)) != 0) return false;
    return true;
  }
  // oneDNN 2.6 takes blocks of 512 inputs up to a depth of 1024, and of 1024 beyond that.
  size_t token_block() {
    if (!g_.bf16 || !takes_tokens(matrix())) return 0;
    fill(rows_.get(), g_.rows);
    const float* out = run();
    const Memory spread = aligned(spread_bytes(g_.depth)), turned = aligned(kTileColumns * row_bytes()), memory = aligned(kTokens * kTileColumns * sizeof(float));
    spread_tokens(rows_.get(), kTokens, g_.depth, spread.get());
    transpose(weights_.get(), m_bytes(true), kTileColumns, g_.depth, 0, kTileColumns, turned.get());
    Matrix columns = matrix();
    columns.data = turned.get();
    columns.in_major = true;
    auto* tile = reinterpret_cast<float*>(memory.get());
    const auto same = [&] { return std::memcmp(out, tile, kTokens * kTileColumns * sizeof(float)) == 0; };
    for (const size_t block : {size_t{512}, size_t{1024}, size_t{g_.depth}}) {
      multiply_tokens(matrix(), 0, kTileColumns, spread.get(), kTokens, block, tile, {});
      if (!same()) continue;
      multiply_columns_bf16_dot(columns, 0, kTileColumns, rows_.get(), kTokens, block, tile);
      return same() ? block : 0;
    }
    return 0;
  }

 private:
  using Memory = std::unique_ptr<char, decltype(&std::free)>;
  static Memory aligned(size_t bytes) {
    void* p = std::aligned_alloc(64, (bytes / 64 + 1) * 64);
    if (!p) throw std::bad_alloc();
    return {static_cast<char*>(p), std::free};
  }
  size_t row_bytes() const { return g_.depth * m_bytes(g_.bf16); }
  Matrix matrix() const { return {weights_.get(), g_.bf16 ? DUET_BF16 : DUET_F32, g_.depth, kTileColumns}; }
  void fill(char* to, size_t n_rows) {
    std::vector<float> row(g_.depth);
    for (size_t r = 0; r < n_rows; ++r) {
      for (float& value : row) value = static_cast<float>(static_cast<int32_t>(random_ = random_ * 1664525u + 1013904223u)) * 0x1p-31f;
      round_row(row.data(), row.size(), g_.bf16, to + r * row_bytes());
    }
  }
  const float* run() {
    auto* tile = reinterpret_cast<float*>(tile_.get());
    thread_.run(g_, rows_.get(), panel_.get(), tile, scratch_.get());
    return tile;
  }

  Gemm g_;
  GemmThread thread_;
  Memory rows_ = aligned(g_.rows * row_bytes()), weights_ = aligned(kTileColumns * row_bytes());
  Memory panel_ = aligned(padded_depth(g_.depth, g_.bf16) * kTileColumns * m_bytes(g_.bf16));
  Memory tile_ = aligned(g_.rows * kTileColumns * sizeof(float)), scratch_ = aligned(g_.scratch_bytes);
  uint32_t random_ = 1;
};

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
    Trial trial(*this, *g);
    if (!(g->alike = trial.rows_alike())) continue;
    g->token_block = trial.token_block();
    break;
  }
  g->index = static_cast<uint32_t>(all_.size());
  all_.push_back(std::move(g));
  return usable(*all_.back());
}

namespace {

// oneDNN's kernels of f32 for AVX2 move the stack pointer into a buffer of theirs, where the frame of a signal handler would not fit
// and destroy the heap. So a signal waits for the product, some tens of microseconds. Those of faults cannot wait.
class SignalsWait {
 public:
  SignalsWait() {
    sigset_t those;
    ::sigfillset(&those);
    for (const int fault : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT}) ::sigdelset(&those, fault);
    ::pthread_sigmask(SIG_BLOCK, &those, &before_);
  }
  ~SignalsWait() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

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
  const SignalsWait until_done;
  dnnl::error::wrap_c_api(dnnl_primitive_execute(g.primitive.get(), stream_.get(), 4, args), "a matrix product failed");
}

}  // namespace duet_cpu
