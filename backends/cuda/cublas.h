// Products of many rows by cuBLASLt, which is opened when it is first wanted and need not be there: product.h then serves.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

#include "duet_plugin.h"

namespace duet_cuda {

// y[b] = x[b] W[b]^T (+ y[b]) for b < batch; x [rows, n_in], W [n_out, n_in] (in_major: [n_in, n_out]), y [rows, n_out], each
// batch right after the one before. x and W have the dtype `input` (bf16 or f32; f32 is never TF32), sums are f32.
struct Gemm {
  const void *x, *w;
  void* y;
  uint32_t rows, n_in, n_out, batch = 1;
  duet_dtype input, output;  // output f32, or bf16 with bf16 inputs
  bool in_major = false, add = false;
};

class Cublas {
 public:
  Cublas();
  ~Cublas();
  // False when the library is not there; the first call then tells the host why.
  bool available(const duetp_host& host);
  // workspace: device memory of this stream alone. Throws Failure.
  void run(const Gemm& g, void* workspace, uint64_t workspace_bytes, cudaStream_t stream);

 private:
  struct Library;
  struct Plan;
  std::string open();  // "", or why not
  const Plan& plan(const Gemm& g, uint64_t workspace_bytes);
  std::once_flag opened_;
  std::unique_ptr<Library> library_;
  std::mutex mutex_;
  using Key = std::tuple<uint32_t, uint32_t, uint32_t, uint32_t, duet_dtype, duet_dtype, bool, bool>;
  std::map<Key, std::unique_ptr<Plan>> plans_;
};

}  // namespace duet_cuda
