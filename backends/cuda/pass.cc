#include "pass.h"

#include <algorithm>

#include "gpu/shape.h"
#include "wkv_chunked.h"

namespace duet_cuda {
namespace {

// Who computes products. Up to kFewRows it is product.h; in models narrower than kWide up to kFewRowsOfLessWide, and up to
// kFewRowsAlone where tall_product.h does not serve (steps of 4, 5, 8, 16 rows with tall_product.h against those without, ms: 7.2b 5.58
// : 5.65, 5.58 : 5.63, 5.68 : 5.97, 6.14 : 6.67; 1.5b 1.63 : 1.58, 1.65 : 1.78, 1.72 : 1.90, 1.88 : 2.57; 0.4b 0.94 : 0.78, 0.95 : 0.90,
// 0.99 : 0.94, 1.06 : 1.29).
constexpr uint32_t kFewRows = 4, kFewRowsOfLessWide = 8, kFewRowsAlone = 16, kWide = 2048;
// Where tall_product.h does not serve, above this many rows cuBLAS: of wide matrices, and of narrow ones, whose products go side by
// side in product.h.
constexpr uint32_t kFewRowsOfNarrow = 64, kNarrow = 2048;
// Where it does, as measured on an H100 (lab/notes.md), us a launch:
//                              32 rows              64 rows              128 rows
//                              tall  cuBLAS  few    tall  cuBLAS  few    tall  cuBLAS
//   7.2b r,k,v and low-rank    37.5   65.3  83.4    41.4   65.8   160    50.5   68.1
//   7.2b second low-rank        4.4   12.3   6.8     5.9   12.6  12.2    10.5   13.7
//   1.5b r,k,v and low-rank    13.1   32.6  18.3    15.2   32.3  34.0    21.0   33.4
//   0.1b r,k,v and low-rank     5.3   18.1   4.7     7.3   18.0   9.5    11.2   18.9
//   7.2b head                 183.1  198.4   368   200.4  205.9   752   224.2  210.3
//   7.2b key (relu^2 still to do after cuBLAS)
//                              47.5   49.8          51.0   51.0          64.6   53.7
//   7.2b value                 49.4   49.2          51.9   55.1          59.0   58.9
//   7.2b output                16.3   14.1          18.3   14.3          24.4   14.9
//   1.5b key                   15.0   13.8          17.6   14.3          24.8   15.4
// Launches of several products are tall's up to kTallRows, and up to kTallRowsOfLowRank where outputs are few, of which four
// launches of cuBLAS leave most of the GPU idle (added to r,k,v they take tall 8 us at 256 and 512 rows, cuBLAS 30 and 35).
constexpr uint32_t kTallRows = 128, kTallRowsOfLowRank = 512;
// Single ones are up to kTallRowsOfOne from kLarge bytes of weights on, and up to half as many rows from half as many bytes: alone
// output and value are no faster, but cuBLAS's kernels let nothing of the next one begin before they end (a step of 32 rows: 7.2b 6.86
// ms against 6.98, 1.5b 2.29 against 2.39).
constexpr uint64_t kLarge = 48 << 20;
constexpr uint32_t kTallRowsOfOne = 64;
// Up to this many rows launches with less than kSmall bytes of weights remain product.h's.
constexpr uint64_t kSmall = 6 << 20;
constexpr uint32_t kFewRowsOfSmall = 32;
// Shorter sequences gain nothing from chunks.
constexpr uint32_t kChunkedFrom = 32;

}  // namespace

Pass::Pass(duetp_queue& queue, const duetp_frame& f, duetp_state* s, duet_mode m, const duetp_layer& l)
    : q(queue), frame(f), state(s), mode(m), weights(l.weights), n_embd(l.shape.n_embd), scratch(queue.reserve(l.shape, l.weights, f.n_tokens, f.n_seqs, f.n_rows)) {
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

Pass::By Pass::best(const TallProducts& t, bool may_be_cublas) const {
  const Products& p = t.products;
  const uint32_t rows = p.n_rows;
  if (rows <= kFewRows) return By::few;
  const auto has_cublas = [&] { return may_be_cublas && weights != DUET_F16 && !duetp_is_quantised(weights) && q.device.cublas.available(*q.device.host); };  // f16 weights meet f32 inputs, which cuBLAS does not do
  uint32_t width = 0;  // a low-rank matrix is narrow one way or the other
  uint64_t bytes = 0;
  bool fewer_outputs = true;
  for (uint32_t i = 0; i < p.n; ++i) {
    const uint32_t n_in = p.item[i].n_in, n_out = p.item[i].n_out;
    width = std::max(width, std::min(n_in, n_out));
    bytes += 2ull * n_in * n_out;
    fewer_outputs &= n_out < n_in;
  }
  if (!tall_takes(t)) return rows > (width <= kNarrow ? kFewRowsOfNarrow : kFewRowsAlone) && has_cublas() ? By::cublas : By::few;
  if ((rows <= kFewRowsOfLessWide && n_embd < kWide) || (rows <= kFewRowsOfSmall && bytes < kSmall)) return By::few;
  const bool several = p.n > 1 && rows <= (fewer_outputs ? kTallRowsOfLowRank : kTallRows);
  const bool large = p.n == 1 && (rows <= kTallRowsOfOne / 2 ? bytes >= kLarge / 2 : rows <= kTallRowsOfOne && bytes >= kLarge);
  return several || large || !has_cublas() ? By::tall : By::cublas;
}

TallProducts Pass::launch_of(const duetp_layer& l, const std::vector<Linear>& list, uint32_t n_rows, uint32_t count_index) const {
  TallProducts t{};
  Products& p = t.products;
  for (const Linear& i : list) p.item[p.n++] = {l.matrix(i.id), i.x, i.y, l.rows[i.id], l.columns[i.id], i.finish, l.scale(i.id), l.minimum(i.id), l.by_groups(i.id)};
  p.used = packed.used;
  p.count_index = count_index;
  p.n_rows = n_rows;
  p.weights = weights;
  return t;
}

void Pass::tall(const TallProducts& t) const {
  const SkippingScratch need = tall_scratch(t);
  check(tall_products(t, q.reserve_tickets(need.tickets), q.reserve_parts(need.parts), q.stream), "products");
}

void Pass::multiply(const duetp_layer& l, const std::vector<Linear>& list, uint32_t n_rows, uint32_t count_index) const {
  TallProducts t = launch_of(l, list, n_rows, count_index);
  if (best(t, false) == By::tall) return tall(t);
  t.products.rounded = q.reserve_rounded(products_scratch(t.products));
  check(products(t.products, q.stream), "products");
}

bool Pass::by_cublas(const duetp_layer& l, const std::vector<Linear>& list) const { return best(launch_of(l, list, frame.n_tokens, 0), true) == By::cublas; }

void Pass::linear(const duetp_layer& l, const std::vector<Linear>& list) const {
  if (!by_cublas(l, list)) return multiply(l, list, frame.n_tokens, 0);
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
  TallProducts t{};
  t.in_major = true;
  t.products.item[t.products.n++] = {w, u, x, C, F, Finish::add};
  t.products.used = packed.used;
  t.products.n_rows = frame.n_tokens;
  t.products.weights = weights;
  const By by = best(t, true);
  if (by == By::tall) return tall(t);
  if (by == By::cublas) {
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
