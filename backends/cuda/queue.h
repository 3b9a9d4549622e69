// A queue is a CUDA stream with what its work needs beside it: staging memory of the host, scratch memory of the device.
#pragma once
#include "device.h"
#include "gpu/norm.h"

namespace duet_cuda {

// Page-locked host memory, from which and to which copies run by themselves.
class Pinned {
 public:
  Pinned(Device& d, uint64_t bytes) : bytes_(bytes) {
    const cudaError_t e = cudaMallocHost(&data_, bytes);
    if (e == cudaErrorMemoryAllocation) (void)cudaGetLastError(), throw std::bad_alloc();  // of the host, not of the device
    d.check(e, "page-locked memory of the host");
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  char* data() const { return static_cast<char*>(data_); }
  uint64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  uint64_t bytes_;
};

// What the layers of one pass write and read among themselves; [n_tokens, C] unless said otherwise. "m" has the dtype of
// matrix inputs. Tensors that are never alive together share memory.
struct Scratch {
  duet_gpu::Place* places;  // [n_tokens]
  char* mixed[6];           // m: r, w, k, v, a, g as DUETP_SHIFT_MIX_OUT_* numbers them
  char* rkv_inputs;         // m: those of r, k and v, one right after the other
  char* gated;              // m: norm_gate's output (shares one of mixed)
  char* channel;            // m: channel mix's input (shares one of mixed)
  char* low;                // m: the four low-rank hidden vectors, each [n_tokens, rank]
  float* low_f32;           // the same before their activations
  float *r, *k, *v, *w, *a, *lv, *g, *kk;  // r, k and v right after one another
  float* y;                 // shares lv
  char* inner;              // m [n_tokens, F]: relu^2 of channel mix
  float* inner_f32;         // the same before relu^2
  char* wkv;                // what wkv needs to cut along time; null: it would not
  char* hidden;             // m [rows, C]: the head's input
};

}  // namespace duet_cuda

struct duetp_queue {
  duet_cuda::Device& device;
  cudaStream_t stream = nullptr;
  bool recorded = false;  // ever: then recordings may name outgrown memory
  std::vector<duet_cuda::Memory> scratch, tickets, parts, rounded, resident, sampling;  // the last of each is in use
  std::unique_ptr<duet_cuda::Pinned> up, down;
  uint64_t up_used = 0, down_used = 0;
  struct Download {
    void* dst;
    uint64_t from, n;  // in `down`
  };
  std::vector<Download> downloads;  // to be finished by queue_wait
  duet_cuda::Memory workspace;      // cuBLAS's

  explicit duetp_queue(duet_cuda::Device& d);
  ~duetp_queue();
  void check(cudaError_t e, const char* what) { device.check(e, what); }
  void wait();
  void gemm(const duet_cuda::Gemm& g);
  // Scratch for a pass of that many tokens, sequences and rows of the head; lives until the next call of it, or in a recording for good.
  duet_cuda::Scratch reserve(const duetp_shape& shape, duet_dtype weights, uint32_t n_tokens, uint32_t n_seqs, uint32_t n_rows);
  // What a product needs to add up its parts in a fixed order (product.h)
  char* reserve_tickets(uint64_t bytes) { return grow(tickets, bytes, "tickets of a product"); }
  char* reserve_parts(uint64_t bytes) { return grow(parts, bytes, "scratch memory of a product"); }
  char* reserve_rounded(uint64_t bytes) { return grow(rounded, bytes, "rounded inputs of a product"); }  // where weights are quantised
  char* reserve_resident(uint64_t bytes) { return grow(resident, bytes, "what the blocks of layers tell each other"); }
  char* reserve_sampling(uint64_t bytes) { return grow(sampling, bytes, "scratch memory of sampling"); }

 private:
  char* grow(std::vector<duet_cuda::Memory>& m, uint64_t bytes, const char* what);
};
