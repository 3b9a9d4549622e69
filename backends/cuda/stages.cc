// Rung 1: each stage by itself.
#include "gpu/sample.h"
#include "pass.h"

namespace duet_cuda {
namespace {

using Body = void (*)(const Pass&, const duetp_stage&);

template <Body body>
duet_status stage(void* self, duetp_queue* q, const duetp_stage* a) {
  return guarded(self, [&](Device&) { body(Pass(*q, *a->frame, a->state, a->mode, *a->layer), *a); });
}

template <class T = float>
T* in(const duetp_stage& a, uint32_t i) {
  return pointer<T>(a.in[i]);
}
template <class T = float>
T* out(const duetp_stage& a, uint32_t i) {
  return pointer<T>(a.out[i]);
}

void embed(const Pass& p, const duetp_stage& a) {
  const duetp_layer& l = *a.layer;
  duet_gpu::Embed e{l.matrix(DUETP_T_EMB), l.scale(DUETP_T_EMB), l.minimum(DUETP_T_EMB), l.weights, norm(l, DUETP_T_LN0_W, DUETP_T_LN0_B), pointer<int32_t>(p.frame.tokens), p.packed.used, out(a, DUETP_EMBED_OUT_X),
                    p.frame.n_tokens, l.shape.n_embd};
  p.check(duet_gpu::embed(e, p.q.stream), "embed");
}

void shift_mix(const Pass& p, const duetp_stage& a) {
  void* outputs[6];
  for (uint32_t i = 0; i < 6; ++i) outputs[i] = out<void>(a, i);
  p.place();
  p.shift_mix(*a.layer, in(a, DUETP_SHIFT_MIX_IN_X), outputs);
}

void linear(const Pass& p, const duetp_stage& a) {
  const bool output = a.which == DUETP_LINEAR_OUTPUT;
  p.linear(*a.layer, {{DUETP_T_RECEPTANCE + a.which, in<void>(a, DUETP_LINEAR_IN), out<void>(a, DUETP_LINEAR_OUT), output ? Finish::add : Finish::store}});
}

void lowrank(const Pass& p, const duetp_stage& a) {
  const Finish finish = a.which == DUETP_LOWRANK_W ? Finish::tanh_input : a.which == DUETP_LOWRANK_G ? Finish::sigmoid_input : Finish::input;
  p.linear(*a.layer, {{DUETP_T_W1 + a.which, in<void>(a, DUETP_LOWRANK_IN), p.scratch.low, finish, p.scratch.low_f32}});
  p.linear(*a.layer, {{DUETP_T_W2 + a.which, p.scratch.low, out<void>(a, DUETP_LOWRANK_OUT), Finish::store}});
}

void wkv_prepare(const Pass& p, const duetp_stage& a) {
  duet_gpu::Prepare s{};
  s.weights = prepare_weights(*a.layer);
  s.k = in(a, DUETP_PREPARE_IN_K), s.v = in(a, DUETP_PREPARE_IN_V), s.lw = in(a, DUETP_PREPARE_IN_LW), s.la = in(a, DUETP_PREPARE_IN_LA), s.lv = in(a, DUETP_PREPARE_IN_LV);
  s.v_first_in = in(a, DUETP_PREPARE_IN_V_FIRST);
  s.k_out = out(a, DUETP_PREPARE_OUT_K), s.v_out = out(a, DUETP_PREPARE_OUT_V), s.w_raw = out(a, DUETP_PREPARE_OUT_W_RAW), s.a = out(a, DUETP_PREPARE_OUT_A);
  s.kk = out(a, DUETP_PREPARE_OUT_KK), s.v_first_out = out(a, DUETP_PREPARE_OUT_V_FIRST);
  s.used = p.packed.used;
  s.n_tokens = p.frame.n_tokens, s.n_head = a.layer->shape.n_head, s.head_size = a.layer->shape.head_size;
  p.check(duet_gpu::prepare(s, p.q.stream), "wkv_prepare");
}

void wkv(const Pass& p, const duetp_stage& a) {
  duet_gpu::Wkv s = p.wkv_arguments(*a.layer);
  s.r = in(a, DUETP_WKV_IN_R), s.w_raw = in(a, DUETP_WKV_IN_W_RAW), s.k = in(a, DUETP_WKV_IN_K), s.v = in(a, DUETP_WKV_IN_V), s.kk = in(a, DUETP_WKV_IN_KK), s.a = in(a, DUETP_WKV_IN_A);
  s.y = out(a, DUETP_WKV_OUT_Y);
  p.wkv(s);
}

void norm_gate(const Pass& p, const duetp_stage& a) {
  duet_gpu::NormGate s{};
  s.weights = norm_gate_weights(*a.layer);
  s.y = in(a, DUETP_NORM_GATE_IN_Y), s.r = in(a, DUETP_NORM_GATE_IN_R), s.k = in(a, DUETP_NORM_GATE_IN_K), s.v = in(a, DUETP_NORM_GATE_IN_V), s.g = in(a, DUETP_NORM_GATE_IN_G);
  s.out = out<void>(a, DUETP_NORM_GATE_OUT);
  s.bf16 = p.bf16();
  s.used = p.packed.used;
  s.n_tokens = p.frame.n_tokens, s.n_head = a.layer->shape.n_head, s.head_size = a.layer->shape.head_size;
  p.check(duet_gpu::norm_gate(s, p.q.stream), "norm_gate");
}

void channel_mix(const Pass& p, const duetp_stage& a) {
  float* x = out(a, DUETP_CHANNEL_MIX_X);
  p.place();
  p.channel_shift(*a.layer, x, p.scratch.channel);
  p.linear(*a.layer, {{DUETP_T_FFN_KEY, p.scratch.channel, p.scratch.inner, Finish::relu_squared_input, p.scratch.inner_f32}});
  p.add_channel_value(*a.layer, p.scratch.inner, x);
}

void head(const Pass& p, const duetp_stage& a) {
  const duetp_layer& l = *a.layer;
  float* logits = out(a, DUETP_HEAD_OUT_LOGITS);
  duet_gpu::HeadRows h{in(a, DUETP_HEAD_IN_X), norm(l, DUETP_T_LN_OUT_W, DUETP_T_LN_OUT_B), pointer<int32_t>(p.frame.rows), p.packed.used, out(a, DUETP_HEAD_OUT_HIDDEN),
                       logits ? p.scratch.hidden : nullptr, p.bf16(), p.frame.n_rows, l.shape.n_embd};
  p.check(duet_gpu::head_rows(h, p.q.stream), "head");
  if (!logits) return;
  p.multiply(l, {{DUETP_T_HEAD, p.scratch.hidden, logits, Finish::store}}, p.frame.n_rows, 2);
}

// Needs nothing of a pass but its rows.
duet_status sample(void* self, duetp_queue* q, const duetp_stage* a) {
  return guarded(self, [&](Device& d) {
    const duetp_frame& f = *a->frame;
    const uint32_t V = a->layer->shape.n_vocab;
    const duet_gpu::Sample s{in(*a, DUETP_SAMPLE_IN_LOGITS),
                             out<duetp_sample_row>(*a, DUETP_SAMPLE_OUT_ROWS),
                             out<duetp_sample_entry>(*a, DUETP_SAMPLE_OUT_ENTRIES),
                             out<int32_t>(*a, DUETP_SAMPLE_OUT_HISTORY),
                             pointer<int32_t>(f.tokens),
                             pointer<int32_t>(f.rows),
                             pointer<int32_t>(f.used),
                             f.n_rows,
                             V,
                             q->reserve_sampling(duet_gpu::sample_scratch_bytes(f.n_rows, V))};
    d.check(duet_gpu::sample(s, q->stream), "sample");
  });
}

duetp_ops make_ops() {
  duetp_ops o{};
  o.size = sizeof o;
  o.embed = stage<embed>;
  o.shift_mix = stage<shift_mix>;
  o.linear = stage<linear>;
  o.lowrank = stage<lowrank>;
  o.wkv_prepare = stage<wkv_prepare>;
  o.wkv = stage<wkv>;
  o.norm_gate = stage<norm_gate>;
  o.channel_mix = stage<channel_mix>;
  o.head = stage<head>;
  o.layers = run_layers;
  o.sample = sample;
  return o;
}

}  // namespace

const duetp_ops kOps = make_ops();

}  // namespace duet_cuda
