// oneDNN, the way parallel mode uses it: always [rows, depth] x [depth, 64] -> f32 [rows, 64], on one thread, with a right-hand
// side that pack_panel wrote, unless our own kernels give the same without one. Fixed blocks keep a row's bits the same in every
// batch, if the product treats all rows of a block alike. With 32 rows it does so on AVX-512 and SSE4; on AVX2 it takes six rows at
// a time, and the last two of 32 in another order, so there a block is padded to 36. This is not taken on trust: get() tries it.
// Measurements: lab/notes.md.
#pragma once
#include <cstddef>
#include <cstdint>
#include <dnnl.hpp>
#include <memory>
#include <mutex>
#include <vector>

namespace duet_cpu {

struct Gemm {  // one depth and type; shared by all threads
  uint32_t index, depth;
  bool bf16;
  size_t rows;  // 32, or kMaxTileRows
  bool alike;   // equal rows of a block give equal bits
  size_t token_block;  // our own kernels by blocks of so many inputs give the same, without panels; 0 = they do not
  size_t scratch_bytes;
  dnnl::matmul::primitive_desc desc;
  dnnl::matmul primitive;
};

// The products that the layers of one device need. Created while loading, never while running.
class Gemms {
 public:
  Gemms();
  bool has_bf16() const { return has_bf16_; }  // else bf16 weights are widened while packing
  // NULL where no block's rows are alike: our own kernels do it. [any-thread]; throws dnnl::error, std::bad_alloc
  const Gemm* get(uint32_t depth, bool bf16);
  const dnnl::engine& engine() const { return engine_; }

 private:
  std::unique_ptr<Gemm> make(uint32_t depth, bool bf16, size_t rows);

  dnnl::engine engine_;
  bool has_bf16_ = false;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Gemm>> all_;
};

// One thread's oneDNN objects: a stream, and arguments whose pointers change from call to call.
class GemmThread {
 public:
  explicit GemmThread(const Gemms& gemms) : stream_(gemms.engine()) {}
  void prepare(const Gemm& g);  // may allocate; before run
  // rows: (m) [g.rows, depth]; tile: f32 [g.rows, 64]
  void run(const Gemm& g, const void* rows, const void* panel, float* tile, void* scratch);

 private:
  struct Arguments {
    dnnl::memory rows, panel, tile, scratch;
  };
  dnnl::stream stream_;
  std::vector<Arguments> arguments_;  // by Gemm::index
};

// While it lives, OpenMP inside this thread means one thread: oneDNN then starts none.
class OneOpenMpThread {
 public:
  OneOpenMpThread();
  ~OneOpenMpThread();

 private:
  int before_;
};

}  // namespace duet_cpu
