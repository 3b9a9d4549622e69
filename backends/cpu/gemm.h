// oneDNN, the way parallel mode uses it: always [32, depth] x [depth, 64] -> f32 [32, 64], on one thread, with a right-hand
// side that pack_panel wrote. Fixed blocks keep a row's bits the same in every batch; docs and measurements: lab/notes.md.
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
  size_t scratch_bytes;
  dnnl::matmul::primitive_desc desc;
  dnnl::matmul primitive;
};

// The products that the layers of one device need. Created while loading, never while running.
class Gemms {
 public:
  Gemms();
  bool has_bf16() const { return has_bf16_; }  // else bf16 weights are widened while packing
  const Gemm* get(uint32_t depth, bool bf16);  // [any-thread]; throws dnnl::error, std::bad_alloc
  const dnnl::engine& engine() const { return engine_; }

 private:
  std::unique_ptr<Gemm> make(uint32_t depth, bool bf16);

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
  // rows: (m) [32, depth]; tile: f32 [32, 64]
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
