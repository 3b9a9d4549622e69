// One pass over a frame: the steps of which both the stages (stages.cc) and whole layers (layers.cc) are made. Each enqueues.
#pragma once
#include "gpu/gate.h"
#include "gpu/norm.h"
#include "gpu/wkv.h"
#include "product.h"
#include "queue.h"
#include "tall_product.h"

namespace duet_cuda {

template <class T = void>
T* pointer(const duetp_ref& r) {
  return r.buf ? reinterpret_cast<T*>(r.buf->memory.data() + r.off) : nullptr;
}

struct Pass {
  duetp_queue& q;
  const duetp_frame& frame;
  duetp_state* state;  // null for stages without one
  duet_mode mode;
  duet_dtype weights;
  uint32_t n_embd;
  Scratch scratch;
  duet_gpu::Packed packed;

  Pass(duetp_queue& queue, const duetp_frame& f, duetp_state* s, duet_mode m, const duetp_layer& any_layer);
  bool bf16() const { return weights == DUET_BF16; }
  bool single() const { return mode == DUET_MODE_RECURRENT; }
  void check(cudaError_t e, const char* stage) const { q.check(e, stage); }

  void place() const;  // fills scratch.places; before the two below
  void shift_mix(const duetp_layer& l, const float* x, void* const (&out)[6]) const;
  void channel_shift(const duetp_layer& l, const float* x, void* out) const;

  // Independent products of the used tokens with matrices of `l`, each one with its own input.
  struct Linear {
    uint32_t id;  // DUETP_T_*
    const void* x;
    void* y;
    Finish finish;
    float* before = nullptr;  // [n_tokens, n_out] for a finish with a function: what it is applied to, if cuBLAS computes it
  };
  void linear(const duetp_layer& l, const std::vector<Linear>& products) const;
  // The same without cuBLAS, of n_rows rows at most, used[count_index] in use.
  void multiply(const duetp_layer& l, const std::vector<Linear>& products, uint32_t n_rows, uint32_t count_index) const;
  // Whether linear() has cuBLAS compute them, one by one; else they are one launch.
  bool by_cublas(const duetp_layer& l, const std::vector<Linear>& products) const;
  void add_channel_value(const duetp_layer& l, const void* u, float* x) const;  // x += value u

  void wkv(const duet_gpu::Wkv& a) const;
  duet_gpu::Wkv wkv_arguments(const duetp_layer& l) const;  // all but the tensors

 private:
  enum class By { few, tall, cublas };  // product.h, tall_product.h, cublas.h
  By best(const TallProducts& t, bool may_be_cublas) const;
  TallProducts launch_of(const duetp_layer& l, const std::vector<Linear>& products, uint32_t n_rows, uint32_t count_index) const;
  void tall(const TallProducts& t) const;
  duet_gpu::ShiftMix shift(const duetp_layer& l, const float* x, float* state) const;  // what both token shifts share
};

duet_gpu::PrepareWeights prepare_weights(const duetp_layer& l);
duet_gpu::NormGateWeights norm_gate_weights(const duetp_layer& l);
duet_gpu::Norm norm(const duetp_layer& l, uint32_t weight_id, uint32_t bias_id);

duet_status run_layers(void* self, duetp_queue* q, const duetp_step* a);  // layers.cc: rung 2

}  // namespace duet_cuda
