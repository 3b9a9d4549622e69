#include <cstring>

#include "phases.h"

namespace duet_cpu {
namespace {

const float* in(const Call& c, uint32_t i) { return static_cast<const float*>(c.in[i]); }
float* out(const Call& c, uint32_t i) { return static_cast<float*>(c.out[i]); }

}  // namespace

void prepare_heads(const Call& c, Worker&, uint32_t, size_t head, size_t t0, size_t t1) {
  const duetp_layer& l = *c.layer;
  const bool first = c.layer_index == 0;
  const Prepare p{in(c, DUETP_PREPARE_IN_K), in(c, DUETP_PREPARE_IN_V), in(c, DUETP_PREPARE_IN_LW), in(c, DUETP_PREPARE_IN_LA),
                  first ? nullptr : in(c, DUETP_PREPARE_IN_LV), first ? nullptr : in(c, DUETP_PREPARE_IN_V_FIRST),
                  out(c, DUETP_PREPARE_OUT_K), out(c, DUETP_PREPARE_OUT_V), out(c, DUETP_PREPARE_OUT_W_RAW), out(c, DUETP_PREPARE_OUT_A),
                  out(c, DUETP_PREPARE_OUT_KK), first ? out(c, DUETP_PREPARE_OUT_V_FIRST) : nullptr,
                  l.vector[DUETP_T_W0], l.vector[DUETP_T_A0], l.vector[DUETP_T_V0], l.vector[DUETP_T_K_K], l.vector[DUETP_T_K_A],
                  l.shape.n_embd, l.shape.head_size};
  prepare(p, head, t0, t1);
}

void wkv_heads(const Call& c, Worker& w, uint32_t q, size_t head, size_t t0, size_t t1) {
  const size_t N = c.layer->shape.head_size, size = N * wkv_stride(N);
  const Wkv p{in(c, DUETP_WKV_IN_R), in(c, DUETP_WKV_IN_W_RAW), in(c, DUETP_WKV_IN_K), in(c, DUETP_WKV_IN_V), in(c, DUETP_WKV_IN_KK), in(c, DUETP_WKV_IN_A),
              out(c, DUETP_WKV_OUT_Y), c.layer->shape.n_embd, N};
  const int32_t slot = c.slots[q];
  float* S = slot < 0 ? w.state : c.state->wkv(slot, c.layer_index) + head * size;
  if (slot < 0 && t0 == static_cast<size_t>(c.starts[q])) std::memset(S, 0, size * sizeof(float));
  wkv(p, head, t0, t1, S, w.wkv);
}

void norm_gate_heads(const Call& c, Worker&, uint32_t, size_t head, size_t t0, size_t t1) {
  const duetp_layer& l = *c.layer;
  const NormGate p{in(c, DUETP_NORM_GATE_IN_Y), in(c, DUETP_NORM_GATE_IN_R), in(c, DUETP_NORM_GATE_IN_K), in(c, DUETP_NORM_GATE_IN_V), in(c, DUETP_NORM_GATE_IN_G),
                   l.vector[DUETP_T_LN_X_W], l.vector[DUETP_T_LN_X_B], l.vector[DUETP_T_R_K], c.out[DUETP_NORM_GATE_OUT], l.shape.n_embd, l.shape.head_size,
                   l.shape.gn_eps, l.bf16};
  norm_gate(p, head, t0, t1);
}

}  // namespace duet_cpu
