// The objects behind the opaque types of duet_plugin.h, and the device that makes them.
#pragma once
#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cublas.h"
#include "duet_plugin.h"
#include "duet_quantised.h"

namespace duet_cuda {

struct Failure : std::exception {
  duet_status code;
  std::string text;
  Failure(duet_status c, std::string t) : code(c), text(std::move(t)) {}
  const char* what() const noexcept override { return text.c_str(); }
};

// Device memory with an owner.
class Memory {
 public:
  Memory() = default;
  Memory(Memory&& o) noexcept : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  Memory& operator=(Memory&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }
  ~Memory() { cudaFree(data_); }
  char* data() const { return static_cast<char*>(data_); }
  uint64_t bytes() const { return bytes_; }

 private:
  friend struct Device;
  void* data_ = nullptr;
  uint64_t bytes_ = 0;
};

struct Device {
  const duetp_host* host;
  duetp_device table;
  int index;
  int compute_major;  // of the compute capability
  const char* resident;  // DUET_CUDA_RESIDENT: 0, for one sequence to take kernels of its own for every step; null, or anything else: where it can, one for all (resident/)
  cudaStream_t setup;  // for what must be done before a queue's next work, also while that queue records
  Cublas cublas;
  std::mutex fault_mutex;
  std::string fault;  // the first error after which the driver refuses everything; empty while all is well, and then never changed

  duet_status fail(duet_status code, const char* text) const { return host->fail(host->self, code, text); }
  // Throws Failure unless `e` is success; `what` is what was being done.
  void check(cudaError_t e, const char* what);
  void check_alive();  // throws the fault, if there has been one that nobody has met yet
  bool is_lost();      // a fault has been met
  std::string free_memory() const;  // "5 of 8 bytes are free"
  // Uninitialised device memory; on failure the message says what for, how much was needed and how much is free.
  Memory allocate(uint64_t bytes, const char* what);
  void zero(const Memory& m);  // and waits for it
};

// Whether the driver's context is lost after this error: it then refuses everything that this process asks of the device.
bool loses_device(cudaError_t e);
extern const char* const kLost;  // what to do then, as the end of a sentence

// Makes a device the calling thread's, and gives the thread back its own.
class OnDevice {
 public:
  explicit OnDevice(int index) {
    result = cudaGetDevice(&before_);
    changed_ = result == cudaSuccess && before_ != index;
    if (changed_) result = cudaSetDevice(index);
  }
  ~OnDevice() {
    if (changed_) (void)cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  cudaError_t result;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// Runs f at the border: on this device, no exception comes out, and after a fault of the device f does not run at all.
template <class F>
duet_status guarded(void* self, F&& f) {
  Device& d = *static_cast<Device*>(self);
  try {
    if (d.is_lost()) throw Failure(DUET_E_DEVICE, d.fault);
    const OnDevice here(d.index);
    d.check(here.result, "choosing the device");
    f(d);
    return DUET_OK;
  } catch (const Failure& e) {
    return d.fail(e.code, e.what());
  } catch (const std::bad_alloc&) {
    return d.fail(DUET_E_MEMORY, "the CUDA backend is out of host memory");
  } catch (const std::exception& e) {
    return d.fail(DUET_E_INTERNAL, e.what());
  }
}

void fill_memory_slots(duetp_device& table);  // memory.cc
void fill_layer_slots(duetp_device& table);   // layer.cc
void fill_state_slots(duetp_device& table);   // state.cc
void fill_queue_slots(duetp_device& table);   // queue.cc
extern const duetp_ops kOps;                  // stages.cc
const char* refuses(void* self, const duetp_shape* shape, duet_dtype weights, uint32_t rung);  // layer.cc

}  // namespace duet_cuda

struct duetp_buffer {
  duet_cuda::Memory memory;
};

// All weights of a layer in one piece of device memory. Vectors are f32. Matrices have the layer's dtype and lie as the kernels
// read them: the products' [out,in] (the low-rank pairs too, which come as [in,out]), but ffn_value [F,C], so that a zero of
// relu^2 is a row that need not be read. R, K and V follow one another. q8 and q4 lie as they are stored (duet_quantised.h),
// but ffn_value group after group instead of tile after tile: who multiplies a few groups by all tiles reads them in one piece.
struct duetp_layer {
  duetp_shape shape;
  uint32_t index;
  duet_dtype weights;
  duet_cuda::Memory memory;
  uint64_t offset[DUETP_T_COUNT];  // of the tensor in `memory`; kAbsent where there is none
  uint64_t scale_offset[DUETP_T_COUNT], minimum_offset[DUETP_T_COUNT];  // the same of q8's and q4's
  uint32_t rows[DUETP_T_COUNT], columns[DUETP_T_COUNT];  // as they lie in memory; of q8 and q4 outputs and inputs
  bool transposed[DUETP_T_COUNT];                        // against the canonical form
  static constexpr uint64_t kAbsent = ~0ull;
  bool bf16() const { return weights == DUET_BF16; }
  bool quantised() const { return duetp_is_quantised(weights); }
  bool by_groups(uint32_t id) const { return quantised() && id == DUETP_T_FFN_VALUE; }
  bool has(uint32_t id) const { return offset[id] != kAbsent; }
  const void* at(uint64_t offset) const { return offset != kAbsent ? memory.data() + offset : nullptr; }
  const void* matrix(uint32_t id) const { return at(offset[id]); }
  const void* scale(uint32_t id) const { return at(scale_offset[id]); }
  const void* minimum(uint32_t id) const { return at(minimum_offset[id]); }
  const float* vector(uint32_t id) const { return static_cast<const float*>(matrix(id)); }
};

// [n_slots][L]: att_x f32 [C], S as `stored` says [H][N value][N key], ffn_x f32 [C]
struct duetp_state {
  duetp_shape shape;
  uint32_t n_slots;
  duet_dtype stored;     // f32, bf16 or f16
  uint64_t layer, slot;  // bytes of a layer, of a slot
  duet_cuda::Memory memory;
  uint64_t matrices() const { return static_cast<uint64_t>(shape.n_embd) * shape.head_size; }  // numbers in S of a layer
  uint32_t stored_bytes() const { return stored == DUET_F32 ? 4 : 2; }
  // Of slot 0, and how many of their elements lie between slots
  float* att_x(uint32_t l) const { return reinterpret_cast<float*>(memory.data() + l * layer); }
  float* ffn_x(uint32_t l) const { return reinterpret_cast<float*>(memory.data() + (l + 1) * layer) - shape.n_embd; }
  void* wkv(uint32_t l) const { return att_x(l) + shape.n_embd; }
  uint64_t vector_stride() const { return slot / sizeof(float); }
  uint64_t wkv_stride() const { return slot / stored_bytes(); }
};
