#include <algorithm>
#include <cstring>
#include <utility>

#include "phases.h"

namespace duet_cpu {
namespace {

// One of the two token shifts: y = LN(x), out[m] = y + (y_prev - y) * mix[m]
struct Shift {
  const float *x, *ln_w, *ln_b;
  const float* mix[6];
  char* out[6];  // (m) [T,C]; NULL = rounded only
  uint32_t n;    // mixes
  float* (duetp_state::*kept)(int32_t, uint32_t) const;
  RoundedRows rounded;  // of an output without memory
};

void shift_tokens(const Call& c, Worker& w, const Shift& s, uint32_t mine_from, uint32_t mine_to) {
  const size_t C = c.layer->shape.n_embd;
  const float eps = c.layer->shape.ln_eps;
  for (uint32_t q = 0; q < c.n_seqs(); ++q) {
    const uint32_t first = static_cast<uint32_t>(c.starts[q]);
    const uint32_t from = std::max(mine_from, first), to = std::min(mine_to, static_cast<uint32_t>(c.starts[q + 1]));
    if (from >= to) continue;
    float *now = w.token, *prev = w.token + C;
    float* kept = c.slots[q] < 0 ? nullptr : (c.state->*s.kept)(c.slots[q], c.layer_index);
    if (from > first)
      layer_norm(s.x + (from - 1) * C, s.ln_w, s.ln_b, C, eps, prev);
    else if (kept)
      std::memcpy(prev, kept, C * sizeof(float));
    else
      std::memset(prev, 0, C * sizeof(float));
    for (uint32_t t = from; t < to; ++t) {
      void* out[6];
      for (uint32_t m = 0; m < s.n; ++m) out[m] = s.out[m] ? static_cast<void*>(s.out[m] + t * C * m_bytes(c.layer->bf16)) : w.token + 2 * C;
      layer_norm(s.x + t * C, s.ln_w, s.ln_b, C, eps, now);
      mix(now, prev, s.mix, s.n, C, c.layer->bf16, out);
      if (s.rounded.q) round_rows(w.token + 2 * C, C, 1, rounded_from(s.rounded, t));
      std::swap(now, prev);
    }
    if (c.recurrent && kept) std::memcpy(kept, prev, C * sizeof(float));
  }
}

// In parallel mode a sequence may cross from thread to thread, so the state is replaced only after all have read it.
void keep_last(const Call& c, Worker& w, const Shift& s) {
  const size_t C = c.layer->shape.n_embd;
  for (uint32_t q = w.i; q < c.n_seqs(); q += w.n) {
    if (c.slots[q] < 0 || c.starts[q] == c.starts[q + 1]) continue;
    const size_t last = static_cast<size_t>(c.starts[q + 1] - 1);
    layer_norm(s.x + last * C, s.ln_w, s.ln_b, C, c.layer->shape.ln_eps, (c.state->*s.kept)(c.slots[q], c.layer_index));
  }
}

Shift att_shift(const Call& c) {
  Shift s{static_cast<const float*>(c.in[DUETP_SHIFT_MIX_IN_X]), c.layer->vector[DUETP_T_LN1_W], c.layer->vector[DUETP_T_LN1_B], {}, {}, 0, &duetp_state::att_x, {}};
  for (uint32_t m = 0; m < 6; ++m) {  // r w k v a g, as the tensors are ordered; an output that nobody wants is skipped
    if (!c.out[m]) continue;
    s.mix[s.n] = c.layer->vector[DUETP_T_X_R + m];
    s.out[s.n++] = static_cast<char*>(c.out[m]);
  }
  return s;
}

Shift ffn_shift(const Call& c, Worker& w) {
  const Matrix& key = c.layer->matrix[DUETP_T_FFN_KEY];
  return {static_cast<const float*>(c.in[DUETP_CHANNEL_MIX_X]), c.layer->vector[DUETP_T_LN2_W], c.layer->vector[DUETP_T_LN2_B],
          {c.layer->vector[DUETP_T_FFN_X_K]}, {key.quantised() ? nullptr : static_cast<char*>(w.region[kMixed])}, 1, &duetp_state::ffn_x,
          key.quantised() ? rounded_rows(key.in, c.max_tokens, w.region[kMixed]) : RoundedRows()};
}

}  // namespace

void embed_tokens(const Call& c, Worker&, uint32_t from, uint32_t to) {
  const size_t C = c.layer->shape.n_embd;
  const Matrix& emb = c.layer->matrix[DUETP_T_EMB];
  for (uint32_t t = from; t < to; ++t) {
    float* x = static_cast<float*>(c.out[DUETP_EMBED_OUT_X]) + t * C;
    widen_row(emb, static_cast<size_t>(c.tokens[t]), x);
    layer_norm(x, c.layer->vector[DUETP_T_LN0_W], c.layer->vector[DUETP_T_LN0_B], C, c.layer->shape.ln_eps, x);
  }
}

void shift_mix_tokens(const Call& c, Worker& w, uint32_t from, uint32_t to) { shift_tokens(c, w, att_shift(c), from, to); }
void shift_mix_keep(const Call& c, Worker& w) { keep_last(c, w, att_shift(c)); }
void channel_mix_tokens(const Call& c, Worker& w, uint32_t from, uint32_t to) { shift_tokens(c, w, ffn_shift(c, w), from, to); }
void channel_mix_keep(const Call& c, Worker& w) { keep_last(c, w, ffn_shift(c, w)); }

void head_rows(const Call& c, Worker& w) {
  const size_t C = c.layer->shape.n_embd;
  const Matrix& head = c.layer->matrix[DUETP_T_HEAD];
  const Range mine = share(c.n_rows(), w);
  for (uint32_t i = mine.from; i < mine.to; ++i) {
    const float* x = static_cast<const float*>(c.in[DUETP_HEAD_IN_X]) + static_cast<size_t>(c.rows[i]) * C;
    layer_norm(x, c.layer->vector[DUETP_T_LN_OUT_W], c.layer->vector[DUETP_T_LN_OUT_B], C, c.layer->shape.ln_eps, w.token);
    if (c.out[DUETP_HEAD_OUT_HIDDEN]) std::memcpy(static_cast<float*>(c.out[DUETP_HEAD_OUT_HIDDEN]) + i * C, w.token, C * sizeof(float));
    if (!c.out[DUETP_HEAD_OUT_LOGITS]) continue;
    if (head.quantised())
      round_rows(w.token, C, 1, rounded_from(rounded_rows(C, c.max_rows, w.region[kMixed]), i));
    else
      round_row(w.token, C, c.layer->bf16, static_cast<char*>(w.region[kMixed]) + i * C * m_bytes(c.layer->bf16));
  }
}

}  // namespace duet_cpu
