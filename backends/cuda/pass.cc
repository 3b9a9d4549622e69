#include "pass.h"

#include <algorithm>

#include "gpu/shape.h"
#include "wkv_chunked.h"

namespace duet_cuda {
namespace {

// Above this many rows cuBLAS is the better one: of wide matrices, and of narrow ones, whose products go side by side here.
constexpr uint32_t kFewRows = 16, kFewRowsOfNarrow = 64;
constexpr uint32_t kNarrow = 2048;
// Shorter sequences gain nothing from chunks.
constexpr uint32_t kChunkedFrom = 32;

}  // namespace

Pass::Pass(duetp_queue& queue, const duetp_frame& f, duetp_state* s, duet_mode m, const duetp_layer& l)
    : q(queue), frame(f), state(s), mode(m), weights(l.weights), scratch(queue.reserve(l.shape, l.weights, f.n_tokens, f.n_seqs, f.n_rows)) {
  packed = {pointer<int32_t>(f.used), pointer<int32_t>(f.starts), pointer<int32_t>(f.slots), f.n_tokens, f.n_seqs};
}

void Pass::place() const { check(duet_gpu::place_tokens(packed, scratch.places, q.stream), "place_tokens"); }

duet_gpu::ShiftMix Pass::shift(const duetp_layer& l, const float* x, float* state) const {
  duet_gpu::ShiftMix a{};
  a.x = x;
  a.bf16 = bf16();
  a.state = state;
  a.slot_stride = this->state->vector_stride();
  a.places = scratch.places;
  a.packed = packed;
  a.width = l.shape.n_embd;
  a.single = single();
  return a;
}

void Pass::shift_mix(const duetp_layer& l, const float* x, void* const (&out)[6]) const {
  duet_gpu::ShiftMix a = shift(l, x, state->att_x(l.index));
  a.norm = norm(l, DUETP_T_LN1_W, DUETP_T_LN1_B);
  a.n_mixes = 6;
  for (uint32_t i = 0; i < 6; ++i) a.mix[i] = l.vector(DUETP_T_X_R + i), a.out[i] = out[i];
  check(duet_gpu::shift_mix(a, q.stream), "shift_mix");
}

void Pass::channel_shift(const duetp_layer& l, const float* x, void* out) const {
  duet_gpu::ShiftMix a = shift(l, x, state->ffn_x(l.index));
  a.norm = norm(l, DUETP_T_LN2_W, DUETP_T_LN2_B);
  a.n_mixes = 1;
  a.mix[0] = l.vector(DUETP_T_FFN_X_K);
  a.out[0] = out;
  check(duet_gpu::shift_mix(a, q.stream), "channel_mix");
}

bool Pass::many(uint32_t rows, uint32_t width) const {
  return rows > (width <= kNarrow ? kFewRowsOfNarrow : kFewRows) && weights != DUET_F16 && !duetp_is_quantised(weights) && q.device.cublas.available(*q.device.host);  // f16 weights meet f32 inputs, which cuBLAS does not do
}

void Pass::multiply(const duetp_layer& l, const std::vector<Linear>& list, uint32_t n_rows, uint32_t count_index) const {
  Products p{};
  for (const Linear& i : list) p.item[p.n++] = {l.matrix(i.id), i.x, i.y, l.rows[i.id], l.columns[i.id], i.finish, l.scale(i.id), l.minimum(i.id)};
  p.used = packed.used;
  p.count_index = count_index;
  p.n_rows = n_rows;
  p.weights = weights;
  p.rounded = q.reserve_rounded(products_scratch(p));
  check(products(p, q.stream), "products");
}

void Pass::linear(const duetp_layer& l, const std::vector<Linear>& list) const {
  uint32_t width = 0;  // a low-rank matrix is narrow one way or the other
  for (const Linear& i : list) width = std::max(width, std::min(l.rows[i.id], l.columns[i.id]));
  if (!many(frame.n_tokens, width)) return multiply(l, list, frame.n_tokens, 0);
  for (const Linear& i : list) {
    const bool has_function = i.finish == Finish::tanh_input || i.finish == Finish::sigmoid_input || i.finish == Finish::relu_squared_input;
    Gemm g{};
    g.x = i.x;
    g.w = l.matrix(i.id);
    g.y = has_function ? i.before : i.y;
    g.rows = frame.n_tokens;
    g.n_in = l.columns[i.id];
    g.n_out = l.rows[i.id];
    g.input = bf16() ? DUET_BF16 : DUET_F32;
    g.output = i.finish == Finish::input ? g.input : duet_dtype{DUET_F32};
    g.add = i.finish == Finish::add;
    q.gemm(g);
    if (!has_function) continue;
    const duet_gpu::Activation f = i.finish == Finish::tanh_input      ? duet_gpu::Activation::tanh
                                   : i.finish == Finish::sigmoid_input ? duet_gpu::Activation::sigmoid
                                                                       : duet_gpu::Activation::relu_squared;
    check(duet_gpu::activate(i.before, i.y, bf16(), f, packed.used, frame.n_tokens, g.n_out, q.stream), "activate");
  }
}

void Pass::add_channel_value(const duetp_layer& l, const void* u, float* x) const {
  if (l.quantised()) return multiply(l, {{DUETP_T_FFN_VALUE, u, x, Finish::add}}, frame.n_tokens, 0);  // stored in tiles: no rows to skip
  const uint32_t F = l.rows[DUETP_T_FFN_VALUE], C = l.columns[DUETP_T_FFN_VALUE];
  const void* w = l.matrix(DUETP_T_FFN_VALUE);
  if (many(frame.n_tokens, C)) {
    Gemm g{};
    g.x = u, g.w = w, g.y = x;
    g.rows = frame.n_tokens, g.n_in = F, g.n_out = C;
    g.input = bf16() ? DUET_BF16 : DUET_F32;
    g.output = DUET_F32;
    g.in_major = g.add = true;
    return q.gemm(g);
  }
  SkippingProduct p{};
  p.w = w, p.u = u, p.x = x;
  p.n_in = F, p.n_out = C;
  p.used = packed.used;
  p.n_rows = frame.n_tokens;
  p.weights = weights;
  const SkippingScratch need = skipping_scratch(p);
  check(skipping_product(p, q.reserve_tickets(need.tickets), q.reserve_parts(need.parts), q.stream), "channel_mix");
}

duet_gpu::Wkv Pass::wkv_arguments(const duetp_layer& l) const {
  duet_gpu::Wkv a{};
  a.state = state->wkv(l.index), a.stored = state->stored;
  a.slot_stride = state->wkv_stride();
  a.used = packed.used, a.starts = packed.starts, a.slots = packed.slots;
  a.n_tokens = frame.n_tokens, a.n_seqs = frame.n_seqs, a.max_len = frame.max_len;
  a.n_head = l.shape.n_head, a.head_size = l.shape.head_size;
  return a;
}

// The chunked form rounds what it multiplies, more finely than bf16 and quantised weights have their inputs rounded: in f32 and f16 the tokens are walked one by one.
void Pass::wkv(const duet_gpu::Wkv& a) const {
  const bool chunked = !single() && weights != DUET_F32 && weights != DUET_F16 && frame.max_len >= kChunkedFrom && wkv_chunked_takes(a.head_size);
  check(chunked ? wkv_chunked(a, scratch.wkv, q.stream) : duet_gpu::wkv_sequential(a, q.stream), "wkv");
}

duet_gpu::PrepareWeights prepare_weights(const duetp_layer& l) {
  return {l.vector(DUETP_T_W0), l.vector(DUETP_T_A0), l.vector(DUETP_T_V0), l.vector(DUETP_T_K_K), l.vector(DUETP_T_K_A)};
}

duet_gpu::NormGateWeights norm_gate_weights(const duetp_layer& l) { return {l.vector(DUETP_T_LN_X_W), l.vector(DUETP_T_LN_X_B), l.vector(DUETP_T_R_K), l.shape.gn_eps}; }

duet_gpu::Norm norm(const duetp_layer& l, uint32_t weight_id, uint32_t bias_id) { return {l.vector(weight_id), l.vector(bias_id), l.shape.ln_eps}; }

}  // namespace duet_cuda
