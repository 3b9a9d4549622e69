// Rung 2: a run of layers, with what stands side by side in the equations in one launch.
#include "pass.h"
#include "resident/resident.h"

namespace duet_cuda {
namespace {

// The four low-rank hidden vectors, one after another in scratch
struct Low {
  void *w, *a, *v, *g;
  float *w_f32, *g_f32;
};

Low low(const Pass& p, const duetp_shape& s) {
  const uint64_t size = p.bf16() ? 2 : 4, T = p.frame.n_tokens;
  const auto after = [&](char* at, uint64_t rank) { return at + (T * rank * size + 255) / 256 * 256; };
  Low l{};
  char* at = p.scratch.low;
  l.w = at, at = after(at, s.rank_w);
  l.a = at, at = after(at, s.rank_a);
  l.v = at, at = after(at, s.rank_v);
  l.g = at;
  l.w_f32 = p.scratch.low_f32;
  l.g_f32 = l.w_f32 + (T * s.rank_w + 63) / 64 * 64;
  return l;
}

// The products of a layer, those that do not wait for one another side by side. Layer 0 has no v1 and v2.
struct LayerProducts {
  std::vector<Pass::Linear> rkv, low_in, low_out, output, key;
};

LayerProducts products_of(const Pass& p, const duetp_layer& l, float* x) {
  const Scratch& s = p.scratch;
  const Low h = low(p, l.shape);
  LayerProducts out;
  out.rkv = {{DUETP_T_RECEPTANCE, s.mixed[DUETP_SHIFT_MIX_OUT_R], s.r, Finish::store},
             {DUETP_T_KEY, s.mixed[DUETP_SHIFT_MIX_OUT_K], s.k, Finish::store},
             {DUETP_T_VALUE, s.mixed[DUETP_SHIFT_MIX_OUT_V], s.v, Finish::store}};
  out.low_in = {{DUETP_T_W1, s.mixed[DUETP_SHIFT_MIX_OUT_W], h.w, Finish::tanh_input, h.w_f32},
                {DUETP_T_A1, s.mixed[DUETP_SHIFT_MIX_OUT_A], h.a, Finish::input},
                {DUETP_T_G1, s.mixed[DUETP_SHIFT_MIX_OUT_G], h.g, Finish::sigmoid_input, h.g_f32}};
  out.low_out = {{DUETP_T_W2, h.w, s.w, Finish::store}, {DUETP_T_A2, h.a, s.a, Finish::store}, {DUETP_T_G2, h.g, s.g, Finish::store}};
  if (l.index > 0) {
    out.low_in.push_back({DUETP_T_V1, s.mixed[DUETP_SHIFT_MIX_OUT_V], h.v, Finish::input});
    out.low_out.push_back({DUETP_T_V2, h.v, s.lv, Finish::store});
  }
  out.output = {{DUETP_T_OUTPUT, s.gated, x, Finish::add}};
  out.key = {{DUETP_T_FFN_KEY, s.channel, s.inner, Finish::relu_squared_input, s.inner_f32}};
  return out;
}

void heads_one_token(const Pass& p, const duetp_layer& l, float* v_first) {
  const Scratch& s = p.scratch;
  duet_gpu::RecurrentHeads a{};
  a.prepare = prepare_weights(l);
  a.norm = norm_gate_weights(l);
  a.r = s.r, a.k = s.k, a.v = s.v, a.lw = s.w, a.la = s.a, a.lv = l.index > 0 ? s.lv : nullptr, a.g = s.g;
  a.v_first = v_first;
  a.out = s.gated;
  a.bf16 = p.bf16();
  a.state = p.state->wkv(l.index), a.stored = p.state->stored;
  a.slot_stride = p.state->wkv_stride();
  a.used = p.packed.used, a.starts = p.packed.starts, a.slots = p.packed.slots;
  a.n_seqs = p.frame.n_seqs, a.n_head = l.shape.n_head, a.head_size = l.shape.head_size;
  p.check(duet_gpu::recurrent_heads(a, p.q.stream), "recurrent_heads");
}

void heads(const Pass& p, const duetp_layer& l, float* v_first) {
  const Scratch& s = p.scratch;
  const bool first = l.index == 0;
  duet_gpu::Prepare prepare{};
  prepare.weights = prepare_weights(l);
  prepare.k = s.k, prepare.v = s.v, prepare.lw = s.w, prepare.la = s.a, prepare.lv = first ? nullptr : s.lv;
  prepare.v_first_in = first ? nullptr : v_first, prepare.v_first_out = first ? v_first : nullptr;
  prepare.k_out = s.k, prepare.v_out = s.v, prepare.w_raw = s.w, prepare.a = s.a, prepare.kk = s.kk;
  prepare.used = p.packed.used;
  prepare.n_tokens = p.frame.n_tokens, prepare.n_head = l.shape.n_head, prepare.head_size = l.shape.head_size;
  p.check(duet_gpu::prepare(prepare, p.q.stream), "wkv_prepare");

  duet_gpu::Wkv wkv = p.wkv_arguments(l);
  wkv.r = s.r, wkv.w_raw = s.w, wkv.k = s.k, wkv.v = s.v, wkv.kk = s.kk, wkv.a = s.a, wkv.y = s.y;
  p.wkv(wkv);

  duet_gpu::NormGate gate{};
  gate.weights = norm_gate_weights(l);
  gate.y = s.y, gate.r = s.r, gate.k = s.k, gate.v = s.v, gate.g = s.g;
  gate.out = s.gated;
  gate.bf16 = p.bf16();
  gate.used = p.packed.used;
  gate.n_tokens = p.frame.n_tokens, gate.n_head = l.shape.n_head, gate.head_size = l.shape.head_size;
  p.check(duet_gpu::norm_gate(gate, p.q.stream), "norm_gate");
}

void shift_mix(const Pass& p, const duetp_layer& l, const float* x) {
  const Scratch& s = p.scratch;
  void* const mixed[6] = {s.mixed[0], s.mixed[1], s.mixed[2], s.mixed[3], s.mixed[4], s.mixed[5]};
  p.shift_mix(l, x, mixed);
}

// receptance, key and value of many tokens in one batched product, as both their inputs and their weights follow one another
void rkv_of_many(const Pass& p, const duetp_layer& l) {
  Gemm g{};
  const uint32_t C = l.shape.n_embd;
  g.w = l.matrix(DUETP_T_RECEPTANCE);
  g.x = p.scratch.rkv_inputs;
  g.y = p.scratch.r;
  g.rows = p.frame.n_tokens, g.n_in = C, g.n_out = C, g.batch = 3;
  g.input = p.bf16() ? DUET_BF16 : DUET_F32;
  g.output = DUET_F32;
  p.q.gemm(g);
}

void layer(const Pass& p, const duetp_layer& l, float* x, float* v_first) {
  const LayerProducts products = products_of(p, l, x);
  shift_mix(p, l, x);
  std::vector<Pass::Linear> inputs = products.rkv;
  inputs.insert(inputs.end(), products.low_in.begin(), products.low_in.end());
  if (p.by_cublas(l, inputs)) {
    rkv_of_many(p, l);
    p.linear(l, products.low_in);
  } else {
    p.linear(l, inputs);
  }
  p.linear(l, products.low_out);
  if (p.single() && duet_gpu::recurrent_heads_takes(l.shape.head_size))
    heads_one_token(p, l, v_first);
  else
    heads(p, l, v_first);
  p.linear(l, products.output);
  p.channel_shift(l, x, p.scratch.channel);
  p.linear(l, products.key);
  p.add_channel_value(l, p.scratch.inner, x);
}

bool is_resident(const Pass& p, const duetp_step& a) {
  const duetp_layer& any = *a.layers[a.first_layer];
  const char* wanted = p.q.device.resident;
  return (!wanted || *wanted != '0') && p.single() && a.frame->n_tokens == 1 && a.frame->n_seqs == 1 && resident_takes(any);
}

// One token of one sequence
void run_resident(const Pass& p, const duetp_step& a) {
  const duetp_shape& shape = a.layers[a.first_layer]->shape;
  Resident r{};
  r.layers = a.layers;
  r.first = a.first_layer, r.n = a.n_layer;
  r.x = pointer<float>(a.x), r.v_first = pointer<float>(a.v_first);
  r.state = reinterpret_cast<char*>(p.state->att_x(0));
  r.stored = p.state->stored, r.stored_bytes = p.state->stored_bytes();
  r.layer_stride = p.state->layer, r.slot_stride = p.state->slot;
  r.used = p.packed.used, r.starts = p.packed.starts, r.slots = p.packed.slots;
  r.scratch = lay_out_resident(p.q.reserve_resident(resident_scratch_bytes(shape)), shape);
  p.check(resident_layers(r, p.q.stream), "layers");
}

}  // namespace

duet_status run_layers(void* self, duetp_queue* q, const duetp_step* a) {
  return guarded(self, [&](Device&) {
    const Pass p(*q, *a->frame, a->state, a->mode, *a->layers[a->first_layer]);
    if (is_resident(p, *a)) return run_resident(p, *a);
    float *x = pointer<float>(a->x), *v_first = pointer<float>(a->v_first);
    p.place();
    for (uint32_t i = a->first_layer; i < a->first_layer + a->n_layer; ++i) layer(p, *a->layers[i], x, v_first);
  });
}

}  // namespace duet_cuda
