/* duet_stage.h - the arguments of each stage by name and type, for stages that work on the host's memory
 * (duet_host_memory.h): `duetp_wkv_of(a)` turns a duetp_stage into a struct of pointers and sizes. With it, the sequences of a
 * frame with their states, and the float types. The equations stand in duet_plugin.h and docs/mathematics.md.
 * All of it is inline: it is compiled into the plugin and is no part of the binary interface. C99 and C++20. */
#ifndef DUET_STAGE_H
#define DUET_STAGE_H
#include <string.h>

#include "duet_host_memory.h"
#include "duet_quantised.h"
#ifdef __cplusplus
extern "C" {
#endif

/* ---- numbers ------------------------------------------------------------------------------------------- */

/* the float of these bits */
static inline float duetp_f32_of_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}
/* the bits of this float */
static inline uint32_t duetp_bits_of_f32(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}
/* exact */
static inline float duetp_f32_of_bf16(uint16_t h) { return duetp_f32_of_bits((uint32_t)h << 16); }
/* to nearest, ties to even; NaN stays NaN */
static inline uint16_t duetp_bf16_of_f32(float f) {
  const uint32_t u = duetp_bits_of_f32(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40);
  return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}
/* exact */
static inline float duetp_f32_of_f16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return duetp_f32_of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent) return duetp_f32_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  return duetp_f32_of_bits(sign | duetp_bits_of_f32((float)fraction * 0x1p-24f));
}
/* to nearest, ties to even, and saturated: what would be infinite is +-65504; NaN stays NaN */
static inline uint16_t duetp_f16_of_f32(float f) {
  const uint32_t bits = duetp_bits_of_f32(f), sign = bits >> 16 & 0x8000, u = bits & 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00);
  if (u >= 0x477fe000u) return (uint16_t)(sign | 0x7bff);
  if (u < 0x38800000u) return (uint16_t)(sign | (duetp_bits_of_f32(duetp_f32_of_bits(u) + 0.5f) - 0x3f000000u)); /* below 2^-14: multiples of 2^-24, to which the sum is rounded */
  return (uint16_t)(sign | (u + 0xfffu + (u >> 13 & 1) - 0x38000000u) >> 13);
}
/* a number of S as a state that stores f32, bf16 or f16 keeps it (docs/states.md) */
static inline float duetp_stored(float f, duet_dtype t) {
  if (t == DUET_BF16) return duetp_f32_of_bf16(duetp_bf16_of_f32(f));
  return t == DUET_F16 ? duetp_f32_of_f16(duetp_f16_of_f32(f)) : f;
}
/* element i of an array of f32, bf16 or f16 */
static inline float duetp_get(const void* p, duet_dtype t, uint64_t i) {
  if (t == DUET_F32) return ((const float*)p)[i];
  return t == DUET_BF16 ? duetp_f32_of_bf16(((const uint16_t*)p)[i]) : duetp_f32_of_f16(((const uint16_t*)p)[i]);
}
/* the same, written: f32 or bf16, which are all that a stage writes */
static inline void duetp_put(void* p, duet_dtype t, uint64_t i, float v) {
  if (t == DUET_BF16) ((uint16_t*)p)[i] = duetp_bf16_of_f32(v);
  else ((float*)p)[i] = v;
}

/* ---- what every stage has ------------------------------------------------------------------------------ */

/* Sizes, and the frame's arrays. */
typedef struct duetp_run {
  uint32_t n_tokens, n_seqs, n_rows;             /* of this run, not the frame's capacities */
  uint32_t C, H, N, F, V;                        /* width, heads, channels of a head, inner width of the channel mix, vocabulary */
  float ln_eps, gn_eps;                          /* of ln0, ln1, ln2, ln_out; of ln_x */
  duet_dtype weights;                            /* of the layer's matrices */
  duet_dtype m;                                  /* of the matrix inputs, marked (m) below: bf16 beside bf16 weights, else f32 */
  uint32_t layer_index;                          /* 0 .. n_layer */
  const int32_t *tokens, *starts, *slots, *rows; /* [n_tokens], [n_seqs+1], [n_seqs], [n_rows] */
  duetp_state* state;                            /* of all slots: see duetp_seq */
} duetp_run;

/* Of a call. */
static inline duetp_run duetp_run_of(const duetp_stage* a) {
  const int32_t* used = duetp_host_i32(a->frame->used);
  const duetp_shape* s = &a->layer->shape;
  duetp_run r;
  r.n_tokens = (uint32_t)used[0], r.n_seqs = (uint32_t)used[1], r.n_rows = (uint32_t)used[2];
  r.C = s->n_embd, r.H = s->n_head, r.N = s->head_size, r.F = s->n_ffn, r.V = s->n_vocab;
  r.ln_eps = s->ln_eps, r.gn_eps = s->gn_eps;
  r.weights = a->layer->weights;
  r.m = a->layer->weights == DUET_BF16 ? DUET_BF16 : DUET_F32;
  r.layer_index = a->layer_index;
  r.tokens = duetp_host_i32(a->frame->tokens), r.starts = duetp_host_i32(a->frame->starts);
  r.slots = duetp_host_i32(a->frame->slots), r.rows = duetp_host_i32(a->frame->rows);
  r.state = a->state;
  return r;
}

/* One sequence of the frame, and its state in this layer. Not for embed and head, which have none. */
typedef struct duetp_seq {
  uint32_t first, end;        /* its tokens: first .. end-1. None (first == end): the state stays as it is */
  float *att_x, *wkv, *ffn_x; /* [C], [H,N,N] (value row, key column), [C]. NULL: begin with zeros and keep nothing */
} duetp_seq;

/* Sequence i, from 0 to n_seqs - 1. */
static inline duetp_seq duetp_seq_of(const duetp_run* r, uint32_t i) {
  duetp_seq s;
  s.first = (uint32_t)r->starts[i], s.end = (uint32_t)r->starts[i + 1];
  s.att_x = duetp_host_att_x(r->state, r->slots[i], r->layer_index);
  s.wkv = duetp_host_wkv(r->state, r->slots[i], r->layer_index);
  s.ffn_x = duetp_host_ffn_x(r->state, r->slots[i], r->layer_index);
  return s;
}

/* A weight of any dtype: read it with duetp_weight. */
typedef struct duetp_matrix {
  const duetp_tensor* tensor; /* the layer's */
  uint32_t out, in;          /* y [out] = W x [in], whichever way round it lies */
  duetp_quantised_form form; /* of DUET_I8 and DUET_I4 */
} duetp_matrix;

/* The matrix `id` (DUETP_T_*) of the call's layer. */
static inline duetp_matrix duetp_matrix_of(const duetp_stage* a, uint32_t id) {
  const int in_major = duetp_is_in_major(id);
  duetp_matrix m;
  m.tensor = &a->layer->tensor[id];
  m.out = m.tensor->dim[in_major ? 1 : 0], m.in = m.tensor->dim[in_major ? 0 : 1];
  m.form = duetp_form_of(id, m.tensor->dtype, m.out, m.in);
  return m;
}
/* The weight of input i for output o. */
static inline float duetp_weight(const duetp_matrix* m, uint64_t o, uint64_t i) {
  if (duetp_is_quantised(m->tensor->dtype)) return duetp_quantised_weight(m->tensor, &m->form, o, i);
  return duetp_get(m->tensor->data, m->tensor->dtype, duetp_is_in_major(m->tensor->id) ? i * m->out + o : o * m->in + i);
}
/* The inputs x [n] of a product, rounded as its weights want it: to bf16 beside bf16, in groups to integers beside quantised
 * weights, else not at all. What is rounded already stays. */
static inline void duetp_round_inputs(float* x, uint32_t n, duet_dtype weights) {
  uint32_t i, j;
  if (weights == DUET_BF16)
    for (i = 0; i < n; ++i) x[i] = duetp_f32_of_bf16(duetp_bf16_of_f32(x[i]));
  if (!duetp_is_quantised(weights)) return;
  for (i = 0; i < n; i += DUETP_QUANTISED_GROUP) {
    const uint32_t group = DUETP_QUANTISED_GROUP, count = n - i < group ? n - i : group;
    int8_t q[DUETP_QUANTISED_GROUP];
    float scale;
    duetp_round_input(x + i, count, q, &scale);
    for (j = 0; j < count; ++j) x[i + j] = scale * (float)q[j];
  }
}
/* The vector `id` (DUETP_T_*) of the call's layer; NULL where it has none. */
static inline const float* duetp_vector_of(const duetp_stage* a, uint32_t id) { return (const float*)a->layer->tensor[id].data; }

/* ---- the stages ---------------------------------------------------------------------------------------- */
/* Activations are [n_tokens,C], f32 as `float*`, (m) as `void*`. Vectors are [C], but for r_k [H,N], which is as long. */

/* The arguments of embed. */
typedef struct duetp_embed {
  duetp_run run;
  duetp_matrix emb; /* [V,C] */
  const float *ln_w, *ln_b; /* of ln0 */
  float* x;                 /* the output */
} duetp_embed;
/* Of a call. */
static inline duetp_embed duetp_embed_of(const duetp_stage* a) {
  duetp_embed s;
  s.run = duetp_run_of(a);
  s.emb = duetp_matrix_of(a, DUETP_T_EMB);
  s.ln_w = duetp_vector_of(a, DUETP_T_LN0_W), s.ln_b = duetp_vector_of(a, DUETP_T_LN0_B);
  s.x = duetp_host_f32(a->out[DUETP_EMBED_OUT_X]);
  return s;
}

/* The arguments of shift_mix. */
typedef struct duetp_shift_mix {
  duetp_run run;
  const float *x, *ln_w, *ln_b; /* the input, and ln1 */
  const float* mix[6]; /* r w k v a g */
  void* out[6];        /* (m) in the same order */
} duetp_shift_mix;
/* Of a call. */
static inline duetp_shift_mix duetp_shift_mix_of(const duetp_stage* a) {
  duetp_shift_mix s;
  s.run = duetp_run_of(a);
  s.x = duetp_host_f32(a->in[DUETP_SHIFT_MIX_IN_X]);
  s.ln_w = duetp_vector_of(a, DUETP_T_LN1_W), s.ln_b = duetp_vector_of(a, DUETP_T_LN1_B);
  for (uint32_t i = 0; i < 6; ++i) {
    s.mix[i] = duetp_vector_of(a, DUETP_T_X_R + i);
    s.out[i] = duetp_host_ptr(a->out[DUETP_SHIFT_MIX_OUT_R + i]);
  }
  return s;
}

/* The arguments of linear. */
typedef struct duetp_linear {
  duetp_run run;
  duetp_matrix weight; /* [C,C] */
  const void* in;      /* (m) */
  float* out;          /* [n_tokens,C] */
  int adds;            /* out += weight in, else out = weight in */
} duetp_linear;
/* Of a call. */
static inline duetp_linear duetp_linear_of(const duetp_stage* a) {
  duetp_linear s;
  s.run = duetp_run_of(a);
  s.weight = duetp_matrix_of(a, DUETP_T_RECEPTANCE + a->which);
  s.in = duetp_host_ptr(a->in[DUETP_LINEAR_IN]);
  s.out = duetp_host_f32(a->out[DUETP_LINEAR_OUT]);
  s.adds = a->which == DUETP_LINEAR_OUTPUT;
  return s;
}

/* The arguments of lowrank. */
typedef struct duetp_lowrank {
  duetp_run run;
  uint32_t which;      /* DUETP_LOWRANK_*, which names the activation */
  uint32_t D;          /* the rank */
  duetp_matrix m1, m2; /* C to D, D to C */
  const void* in;      /* (m) */
  float* out;          /* [n_tokens,C] */
} duetp_lowrank;
/* Of a call. */
static inline duetp_lowrank duetp_lowrank_of(const duetp_stage* a) {
  duetp_lowrank s;
  s.run = duetp_run_of(a);
  s.which = a->which;
  s.m1 = duetp_matrix_of(a, DUETP_T_W1 + a->which), s.m2 = duetp_matrix_of(a, DUETP_T_W2 + a->which);
  s.D = s.m1.out;
  s.in = duetp_host_ptr(a->in[DUETP_LOWRANK_IN]);
  s.out = duetp_host_f32(a->out[DUETP_LOWRANK_OUT]);
  return s;
}

/* k, v, lw, la may be the same memory as out_k, out_v, out_w_raw, out_a. In layer 0 lv, v_first and v0 are NULL and
 * out_v_first is written; in the others it is NULL. */
typedef struct duetp_wkv_prepare {
  duetp_run run;
  const float *k, *v, *lw, *la, *lv, *v_first;                     /* inputs */
  const float *w0, *a0, *v0, *k_k, *k_a;                           /* vectors */
  float *out_k, *out_v, *out_w_raw, *out_a, *out_kk, *out_v_first; /* outputs */
} duetp_wkv_prepare;
/* Of a call. */
static inline duetp_wkv_prepare duetp_wkv_prepare_of(const duetp_stage* a) {
  duetp_wkv_prepare s;
  s.run = duetp_run_of(a);
  s.k = duetp_host_f32(a->in[DUETP_PREPARE_IN_K]), s.v = duetp_host_f32(a->in[DUETP_PREPARE_IN_V]);
  s.lw = duetp_host_f32(a->in[DUETP_PREPARE_IN_LW]), s.la = duetp_host_f32(a->in[DUETP_PREPARE_IN_LA]);
  s.lv = duetp_host_f32(a->in[DUETP_PREPARE_IN_LV]), s.v_first = duetp_host_f32(a->in[DUETP_PREPARE_IN_V_FIRST]);
  s.w0 = duetp_vector_of(a, DUETP_T_W0), s.a0 = duetp_vector_of(a, DUETP_T_A0), s.v0 = duetp_vector_of(a, DUETP_T_V0);
  s.k_k = duetp_vector_of(a, DUETP_T_K_K), s.k_a = duetp_vector_of(a, DUETP_T_K_A);
  s.out_k = duetp_host_f32(a->out[DUETP_PREPARE_OUT_K]), s.out_v = duetp_host_f32(a->out[DUETP_PREPARE_OUT_V]);
  s.out_w_raw = duetp_host_f32(a->out[DUETP_PREPARE_OUT_W_RAW]), s.out_a = duetp_host_f32(a->out[DUETP_PREPARE_OUT_A]);
  s.out_kk = duetp_host_f32(a->out[DUETP_PREPARE_OUT_KK]), s.out_v_first = duetp_host_f32(a->out[DUETP_PREPARE_OUT_V_FIRST]);
  return s;
}

/* The arguments of wkv. */
typedef struct duetp_wkv {
  duetp_run run;
  const float *r, *w_raw, *k, *v, *kk, *a; /* inputs */
  float* y;                                /* the output */
} duetp_wkv;
/* Of a call. */
static inline duetp_wkv duetp_wkv_of(const duetp_stage* a) {
  duetp_wkv s;
  s.run = duetp_run_of(a);
  s.r = duetp_host_f32(a->in[DUETP_WKV_IN_R]), s.w_raw = duetp_host_f32(a->in[DUETP_WKV_IN_W_RAW]);
  s.k = duetp_host_f32(a->in[DUETP_WKV_IN_K]), s.v = duetp_host_f32(a->in[DUETP_WKV_IN_V]);
  s.kk = duetp_host_f32(a->in[DUETP_WKV_IN_KK]), s.a = duetp_host_f32(a->in[DUETP_WKV_IN_A]);
  s.y = duetp_host_f32(a->out[DUETP_WKV_OUT_Y]);
  return s;
}

/* The arguments of norm_gate. */
typedef struct duetp_norm_gate {
  duetp_run run;
  const float *y, *r, *k, *v, *g;  /* inputs */
  const float *r_k, *ln_w, *ln_b;  /* r_k; ln_x */
  void* out;                       /* (m) */
} duetp_norm_gate;
/* Of a call. */
static inline duetp_norm_gate duetp_norm_gate_of(const duetp_stage* a) {
  duetp_norm_gate s;
  s.run = duetp_run_of(a);
  s.y = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_Y]), s.r = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_R]);
  s.k = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_K]), s.v = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_V]);
  s.g = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_G]);
  s.r_k = duetp_vector_of(a, DUETP_T_R_K), s.ln_w = duetp_vector_of(a, DUETP_T_LN_X_W), s.ln_b = duetp_vector_of(a, DUETP_T_LN_X_B);
  s.out = duetp_host_ptr(a->out[DUETP_NORM_GATE_OUT]);
  return s;
}

/* The arguments of channel_mix. */
typedef struct duetp_channel_mix {
  duetp_run run;
  const float *ln_w, *ln_b, *x_k; /* of ln2; the share of the token shift */
  duetp_matrix key, value; /* [F,C], [C,F] */
  float* x;                /* read, and added to */
} duetp_channel_mix;
/* Of a call. */
static inline duetp_channel_mix duetp_channel_mix_of(const duetp_stage* a) {
  duetp_channel_mix s;
  s.run = duetp_run_of(a);
  s.ln_w = duetp_vector_of(a, DUETP_T_LN2_W), s.ln_b = duetp_vector_of(a, DUETP_T_LN2_B), s.x_k = duetp_vector_of(a, DUETP_T_FFN_X_K);
  s.key = duetp_matrix_of(a, DUETP_T_FFN_KEY), s.value = duetp_matrix_of(a, DUETP_T_FFN_VALUE);
  s.x = duetp_host_f32(a->out[DUETP_CHANNEL_MIX_X]);
  return s;
}

/* The arguments of head. */
typedef struct duetp_head {
  duetp_run run;
  const float *x, *ln_w, *ln_b; /* the input, and ln_out */
  duetp_matrix head;      /* [V,C] */
  float *hidden, *logits; /* [n_rows,C], [n_rows,V]; either may be NULL */
} duetp_head;
/* Of a call. */
static inline duetp_head duetp_head_of(const duetp_stage* a) {
  duetp_head s;
  s.run = duetp_run_of(a);
  s.x = duetp_host_f32(a->in[DUETP_HEAD_IN_X]);
  s.ln_w = duetp_vector_of(a, DUETP_T_LN_OUT_W), s.ln_b = duetp_vector_of(a, DUETP_T_LN_OUT_B);
  s.head = duetp_matrix_of(a, DUETP_T_HEAD);
  s.hidden = duetp_host_f32(a->out[DUETP_HEAD_OUT_HIDDEN]), s.logits = duetp_host_f32(a->out[DUETP_HEAD_OUT_LOGITS]);
  return s;
}

/* The arguments of sample. */
typedef struct duetp_sample {
  duetp_run run;
  const float* logits;         /* [n_rows,V] */
  duetp_sample_row* rows;      /* [n_rows] */
  duetp_sample_entry* entries; /* those of row i from rows[i].first_entry */
  int32_t* history;            /* by rows[i].next */
  int32_t* tokens;             /* the frame's, to be written at run.rows[i] */
} duetp_sample;
/* Of a call. */
static inline duetp_sample duetp_sample_of(const duetp_stage* a) {
  duetp_sample s;
  s.run = duetp_run_of(a);
  s.logits = duetp_host_f32(a->in[DUETP_SAMPLE_IN_LOGITS]);
  s.rows = (duetp_sample_row*)duetp_host_ptr(a->out[DUETP_SAMPLE_OUT_ROWS]);
  s.entries = (duetp_sample_entry*)duetp_host_ptr(a->out[DUETP_SAMPLE_OUT_ENTRIES]);
  s.history = (int32_t*)duetp_host_ptr(a->out[DUETP_SAMPLE_OUT_HISTORY]);
  s.tokens = (int32_t*)duetp_host_ptr(a->frame->tokens);
  return s;
}
/* Uniform in [0,1), a multiple of 2^-53: the upper 53 of the first 64 bits of Philox4x32-10 with key seed and counter (position, sequence). */
static inline double duetp_uniform(uint64_t seed, uint64_t sequence, uint64_t position) {
  uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), (uint32_t)sequence, (uint32_t)(sequence >> 32)};
  uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)0xD2511F53u * c[0], p1 = (uint64_t)0xCD9E8D57u * c[2];
    c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ key[0], c[1] = (uint32_t)p1;
    c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ key[1], c[3] = (uint32_t)p0;
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return (double)(((uint64_t)c[1] << 32 | c[0]) >> 11) * 0x1p-53;
}
/* The drawn token enters the row's counts, and the position rises. */
static inline void duetp_count_token(duetp_sample_row* row, duetp_sample_entry* entries, int32_t token) {
  duetp_sample_entry* e = entries + row->first_entry;
  ++row->position;
  if (row->presence == 0 && row->frequency == 0) return;
  uint32_t own = row->n_entries;
  for (uint32_t i = 0; i < row->n_entries; ++i) {
    if (e[i].count >= 0) e[i].count *= row->decay;
    if (e[i].token == token) own = i;
  }
  if (own == row->n_entries) {
    ++row->n_entries;
    e[own].bias = 0, e[own].count = -1, e[own].token = token, e[own].is_free = 0;
  }
  if (e[own].count < 0) e[own].count = 0;
  e[own].count += e[own].is_free ? 0 : 1;
}

#ifdef __cplusplus
}
#endif
#endif
