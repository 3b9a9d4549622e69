// The objects behind the opaque types of duet_plugin.h, and the device that makes them.
#pragma once
#include <atomic>
#include <dnnl.hpp>
#include <new>
#include <utility>

#include "duet_plugin.h"
#include "gemm.h"
#include "kernels.h"

struct duetp_buffer {
  char* data;  // 64-byte aligned
  uint64_t bytes;
};

// Weights stay where the host has them (DUETP_CAP_BORROWS_WEIGHTS): the one layout that both modes read is the canonical one. But
// for the value matrix of channel mix, unless quantised: recurrent mode wants it as [F,C], so that an input that is zero costs no
// row, and as soon as there is such a copy both modes read that. Products of panels give the same bits with either.
struct duetp_layer {
  duetp_shape shape;
  uint32_t index;
  duet_dtype weights;
  bool bf16;  // matrix inputs are bf16
  const float* vector[DUETP_T_COUNT];  // NULL where there is none, and for matrices
  duet_cpu::Matrix matrix[DUETP_T_COUNT];
  uint64_t bytes[DUETP_T_COUNT];
  duet_cpu::Matrix value_by_inputs;
  std::atomic<void*> value;  // what that reads, the host's memory; NULL = not made yet
  const duet_cpu::Gemm* gemm[DUETP_T_COUNT];  // the product that parallel mode uses for this matrix

  bool has_value_by_inputs() const { return value.load(std::memory_order_acquire) != nullptr; }
  const duet_cpu::Matrix& weights_of(uint32_t id) const { return id == DUETP_T_FFN_VALUE && has_value_by_inputs() ? value_by_inputs : matrix[id]; }
};

// f32 [n_slots][L]: att_x [C], S [H][N][wkv_stride(N)] (key row, value column), ffn_x [C]; parts are padded to 64 bytes
struct duetp_state {
  duetp_shape shape;
  uint32_t n_slots;
  uint64_t c, s, layer, slot;  // floats: a padded vector, all heads' S, a layer, a slot
  float* data;
  float* att_x(int32_t i, uint32_t l) const { return data + static_cast<uint64_t>(i) * slot + l * layer; }
  float* wkv(int32_t i, uint32_t l) const { return att_x(i, l) + c; }
  float* ffn_x(int32_t i, uint32_t l) const { return wkv(i, l) + s; }
};

namespace duet_cpu {

inline void* address(duetp_ref r) { return r.buf ? r.buf->data + r.off : nullptr; }

inline bool takes_weights(duet_dtype t) { return t == DUET_F32 || t == DUET_BF16 || t == DUET_F16 || t == DUET_I8 || t == DUET_I4; }
constexpr const char* kWeightsTaken = "the CPU backend takes weights in f32, bf16, f16, q8 and q4 only";

struct Device {
  duetp_host host;
  duetp_device table;
  Gemms gemms;
  duet_status fail(duet_status code, const char* text) const { return host.fail(host.self, code, text); }
};

extern const duetp_ops kOps;                 // stages.cc
void fill_memory_slots(duetp_device& table); // memory.cc
void fill_queue_slots(duetp_device& table);  // queue.cc

// 64-byte aligned memory of the host, in huge pages where there is much of it: activations are walked in steps of n_embd, so
// that small pages would overflow the TLB. NULL when there is no more.
void* memory(const Device& d, uint64_t bytes);
void* zeroed(const Device& d, uint64_t bytes);

// What the C++ library and oneDNN throw, as a status; inside a catch block only.
inline duet_status thrown_status() {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    return DUET_E_MEMORY;
  } catch (const dnnl::error& e) {
    return e.status == dnnl_out_of_memory ? DUET_E_MEMORY : DUET_E_DEVICE;
  } catch (...) {
    return DUET_E_INTERNAL;
  }
}

// Runs f, which may throw, at the border.
template <class F>
duet_status guarded(const duetp_host& host, F&& f) {
  try {
    return f();
  } catch (const std::exception& e) {
    const duet_status status = thrown_status();
    return host.fail(host.self, status, status == DUET_E_MEMORY ? "the CPU backend is out of memory" : e.what());
  }
}
template <class F>
duet_status guarded(const Device& d, F&& f) {
  return guarded(d.host, std::forward<F>(f));
}

}  // namespace duet_cpu
