/* The nine stages of RWKV-7 in the plainest C: the oracle that every other kernel is checked against. Storage is f32, sums
 * are in double. Equations: docs/mathematics.md. Both modes are the same code here: tokens are walked in order. */
#include <math.h>
#include <string.h>

#include "duet_quantised.h"
#include "reference.h"

/* ---- numbers ---- */

static float f32_of_bits(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

static uint32_t bits_of_f32(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

static uint16_t bf16_of_f32(float f) { /* round to nearest even; NaN stays NaN */
  const uint32_t u = bits_of_f32(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(u >> 16 | 0x40);
  return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

static float f32_of_bf16(uint16_t h) { return f32_of_bits((uint32_t)h << 16); }

static float f32_of_f16(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return f32_of_bits(sign | 0x7f800000u | fraction << 13);
  if (exponent) return f32_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  return f32_of_bits(sign | bits_of_f32((float)fraction * 0x1p-24f));
}

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* element i of an array of f32, bf16 or f16 */
static float get(const void* p, duet_dtype t, uint64_t i) {
  if (t == DUET_F32) return ((const float*)p)[i];
  const uint16_t h = ((const uint16_t*)p)[i];
  return t == DUET_BF16 ? f32_of_bf16(h) : f32_of_f16(h);
}

static void put(void* p, duet_dtype t, uint64_t i, double v) {
  if (t == DUET_BF16)
    ((uint16_t*)p)[i] = bf16_of_f32((float)v);
  else
    ((float*)p)[i] = (float)v;
}

/* ---- shapes of a call ---- */

struct call { /* what every stage needs, with pointers resolved */
  uint32_t C, H, N, n_seqs, n_tokens;
  const int32_t *tokens, *starts, *slots, *rows;
  uint32_t n_rows;
};

static struct call unpack(const duetp_stage* a) {
  const duetp_frame* f = a->frame;
  const duetp_shape* s = &a->layer->shape;
  const int32_t* used = duetp_host_i32(f->used);
  return (struct call){s->n_embd, s->n_head, s->head_size, (uint32_t)used[1], (uint32_t)used[0], duetp_host_i32(f->tokens),
                       duetp_host_i32(f->starts), duetp_host_i32(f->slots), duetp_host_i32(f->rows), (uint32_t)used[2]};
}

static const float* vec(const duetp_stage* a, uint32_t id) { return a->layer->tensor[id].data; }

/* The inputs x [n] of a matrix product as the weights' dtype wants them: bf16 beside bf16, groups of integers beside quantised
 * weights. What is rounded already stays. */
static void round_inputs(float* x, uint32_t n, duet_dtype weights) {
  if (weights == DUET_BF16)
    for (uint32_t i = 0; i < n; ++i) x[i] = f32_of_bf16(bf16_of_f32(x[i]));
  if (!duetp_is_quantised(weights)) return;
  for (uint32_t i = 0; i < n; i += DUETP_QUANTISED_GROUP) {
    const uint32_t count = n - i < DUETP_QUANTISED_GROUP ? n - i : DUETP_QUANTISED_GROUP;
    int8_t q[DUETP_QUANTISED_GROUP];
    float scale;
    duetp_round_input(x + i, count, q, &scale);
    for (uint32_t j = 0; j < count; ++j) x[i + j] = scale * (float)q[j];
  }
}

/* y = (x - mean) / sqrt(variance + eps) * w + b over n elements, biased variance; x and y may be the same */
static void layer_norm(const float* x, const float* w, const float* b, uint32_t n, double eps, float* y) {
  double mean = 0, var = 0;
  for (uint32_t i = 0; i < n; ++i) mean += x[i];
  mean /= n;
  for (uint32_t i = 0; i < n; ++i) var += (x[i] - mean) * (x[i] - mean);
  const double scale = 1 / sqrt(var / n + eps);
  for (uint32_t i = 0; i < n; ++i) y[i] = (float)((x[i] - mean) * scale * w[i] + b[i]);
}

/* element o of W x */
static double row_dot(const duetp_tensor* w, uint64_t o, const float* x) {
  const int in_major = duetp_is_in_major(w->id); /* [in,out], else [out,in] */
  const uint64_t n = w->dim[in_major ? 0 : 1], first = in_major ? o : o * n, step = in_major ? w->dim[1] : 1;
  double sum = 0;
  if (duetp_is_quantised(w->dtype)) {
    const duetp_quantised_form f = duetp_form(w);
    for (uint64_t i = 0; i < n; ++i) sum += (double)duetp_quantised_weight(w, &f, o, i) * x[i];
  } else {
    for (uint64_t i = 0; i < n; ++i) sum += (double)get(w->data, w->dtype, first + i * step) * x[i];
  }
  return sum;
}

/* row t of a stage's matrix input (m), rounded */
static void load_input(const duetp_stage* a, duetp_ref in, uint64_t t, uint32_t n, float* x) {
  for (uint32_t i = 0; i < n; ++i) x[i] = get(duetp_host_ptr(in), in.dtype, t * n + i);
  round_inputs(x, n, a->layer->weights);
}

/* ---- the stages ---- */

static duet_status embed(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct call c = unpack(a);
  const duetp_tensor* emb = &a->layer->tensor[DUETP_T_EMB];
  float* x = duetp_host_f32(a->out[DUETP_EMBED_OUT_X]);
  (void)self, (void)q;
  for (uint32_t t = 0; t < c.n_tokens; ++t) {
    float* xt = x + (uint64_t)t * c.C;
    if (duetp_is_quantised(emb->dtype)) {
      const duetp_quantised_form f = duetp_form(emb);
      for (uint32_t i = 0; i < c.C; ++i) xt[i] = duetp_quantised_weight(emb, &f, (uint64_t)c.tokens[t], i);
    } else {
      for (uint32_t i = 0; i < c.C; ++i) xt[i] = get(emb->data, emb->dtype, (uint64_t)c.tokens[t] * c.C + i);
    }
    layer_norm(xt, vec(a, DUETP_T_LN0_W), vec(a, DUETP_T_LN0_B), c.C, a->layer->shape.ln_eps, xt);
  }
  return DUET_OK;
}

/* y = LN(x_t) and y_prev - y for each token of sequence s in order; `last` is the state's vector, NULL for a dropped state */
static void token_shift(const float* x, const float* w, const float* b, uint32_t C, double eps, float* last, int first, float* prev, float* y, float* d) {
  layer_norm(x, w, b, C, eps, y);
  for (uint32_t i = 0; i < C; ++i) {
    const float before = first ? (last ? last[i] : 0) : prev[i];
    d[i] = before - y[i];
    prev[i] = y[i];
  }
}

static duet_status shift_mix(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const struct call c = unpack(a);
  const float* x = duetp_host_f32(a->in[DUETP_SHIFT_MIX_IN_X]);
  float* scratch = r->host.alloc(r->host.self, 3 * (size_t)c.C * sizeof(float), 64);
  (void)q;
  if (!scratch) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: shift_mix");
  float *prev = scratch, *y = scratch + c.C, *d = y + c.C;
  for (uint32_t s = 0; s < c.n_seqs; ++s) {
    float* last = duetp_host_att_x(a->state, c.slots[s], a->layer_index);
    for (int32_t t = c.starts[s]; t < c.starts[s + 1]; ++t) {
      token_shift(x + (uint64_t)t * c.C, vec(a, DUETP_T_LN1_W), vec(a, DUETP_T_LN1_B), c.C, a->layer->shape.ln_eps, last, t == c.starts[s], prev, y, d);
      for (uint32_t m = 0; m < 6; ++m) { /* r w k v a g: same order as the tensors */
        const float* mix = vec(a, DUETP_T_X_R + m);
        const duetp_ref out = a->out[DUETP_SHIFT_MIX_OUT_R + m];
        for (uint32_t i = 0; i < c.C; ++i) put(duetp_host_ptr(out), out.dtype, (uint64_t)t * c.C + i, y[i] + (double)d[i] * mix[i]);
      }
    }
    if (last && c.starts[s] < c.starts[s + 1]) memcpy(last, prev, c.C * sizeof(float));
  }
  r->host.free(r->host.self, scratch);
  return DUET_OK;
}

static duet_status linear(void* self, duetp_queue* q, const duetp_stage* a) {
  static const uint32_t id[] = {DUETP_T_RECEPTANCE, DUETP_T_KEY, DUETP_T_VALUE, DUETP_T_OUTPUT};
  const struct reference* r = self;
  const struct call c = unpack(a);
  float* out = duetp_host_f32(a->out[DUETP_LINEAR_OUT]);
  float* x = r->host.alloc(r->host.self, c.C * sizeof(float), 64);
  (void)q;
  if (!x) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: linear");
  for (uint32_t t = 0; t < c.n_tokens; ++t) {
    load_input(a, a->in[DUETP_LINEAR_IN], t, c.C, x);
    for (uint32_t o = 0; o < c.C; ++o) {
      const double y = row_dot(&a->layer->tensor[id[a->which]], o, x);
      float* p = out + (uint64_t)t * c.C + o;
      *p = (float)(a->which == DUETP_LINEAR_OUTPUT ? *p + y : y);
    }
  }
  r->host.free(r->host.self, x);
  return DUET_OK;
}

static duet_status lowrank(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const struct call c = unpack(a);
  const duetp_tensor *m1 = &a->layer->tensor[DUETP_T_W1 + a->which], *m2 = &a->layer->tensor[DUETP_T_W2 + a->which];
  const uint32_t D = m1->dim[1];
  float* out = duetp_host_f32(a->out[DUETP_LOWRANK_OUT]);
  float* x = r->host.alloc(r->host.self, ((size_t)c.C + D) * sizeof(float), 64);
  (void)q;
  if (!x) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: lowrank");
  float* hidden = x + c.C;
  for (uint32_t t = 0; t < c.n_tokens; ++t) {
    load_input(a, a->in[DUETP_LOWRANK_IN], t, c.C, x);
    for (uint32_t j = 0; j < D; ++j) {
      const double sum = row_dot(m1, j, x);
      hidden[j] = (float)(a->which == DUETP_LOWRANK_W ? tanh(sum) : a->which == DUETP_LOWRANK_G ? sigmoid(sum) : sum);
    }
    round_inputs(hidden, D, a->layer->weights);
    for (uint32_t i = 0; i < c.C; ++i) out[(uint64_t)t * c.C + i] = (float)row_dot(m2, i, hidden);
  }
  r->host.free(r->host.self, x);
  return DUET_OK;
}

static duet_status wkv_prepare(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct call c = unpack(a);
  const float *in_k = duetp_host_f32(a->in[DUETP_PREPARE_IN_K]), *in_v = duetp_host_f32(a->in[DUETP_PREPARE_IN_V]);
  const float *lw = duetp_host_f32(a->in[DUETP_PREPARE_IN_LW]), *la = duetp_host_f32(a->in[DUETP_PREPARE_IN_LA]);
  const float *lv = duetp_host_f32(a->in[DUETP_PREPARE_IN_LV]), *in_vf = duetp_host_f32(a->in[DUETP_PREPARE_IN_V_FIRST]);
  float *k = duetp_host_f32(a->out[DUETP_PREPARE_OUT_K]), *v = duetp_host_f32(a->out[DUETP_PREPARE_OUT_V]);
  float *w_raw = duetp_host_f32(a->out[DUETP_PREPARE_OUT_W_RAW]), *iclr = duetp_host_f32(a->out[DUETP_PREPARE_OUT_A]);
  float *kk = duetp_host_f32(a->out[DUETP_PREPARE_OUT_KK]), *out_vf = duetp_host_f32(a->out[DUETP_PREPARE_OUT_V_FIRST]);
  (void)self, (void)q;
  for (uint64_t th = 0; th < (uint64_t)c.n_tokens * c.H; ++th) {
    const uint64_t at = th * c.N;                  /* first channel of this token's head */
    const uint32_t ch = (uint32_t)(th % c.H) * c.N; /* the same within [C] */
    double norm = 0;
    for (uint32_t i = 0; i < c.N; ++i) {
      const double u = (double)in_k[at + i] * vec(a, DUETP_T_K_K)[ch + i];
      kk[at + i] = (float)u;
      norm += u * u;
    }
    norm = fmax(sqrt(norm), 1e-12);
    for (uint32_t i = 0; i < c.N; ++i) {
      const double alpha = sigmoid((double)vec(a, DUETP_T_A0)[ch + i] + la[at + i]);
      kk[at + i] = (float)(kk[at + i] / norm);
      k[at + i] = (float)(in_k[at + i] * (1 + (alpha - 1) * vec(a, DUETP_T_K_A)[ch + i]));
      iclr[at + i] = (float)alpha;
      w_raw[at + i] = vec(a, DUETP_T_W0)[ch + i] + lw[at + i];
      if (a->layer_index == 0) {
        out_vf[at + i] = in_v[at + i];
        v[at + i] = in_v[at + i];
      } else {
        v[at + i] = (float)(in_v[at + i] + ((double)in_vf[at + i] - in_v[at + i]) * sigmoid((double)vec(a, DUETP_T_V0)[ch + i] + lv[at + i]));
      }
    }
  }
  return DUET_OK;
}

static duet_status wkv(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* ref = self;
  const struct call c = unpack(a);
  const float *r = duetp_host_f32(a->in[DUETP_WKV_IN_R]), *w_raw = duetp_host_f32(a->in[DUETP_WKV_IN_W_RAW]);
  const float *k = duetp_host_f32(a->in[DUETP_WKV_IN_K]), *v = duetp_host_f32(a->in[DUETP_WKV_IN_V]);
  const float *kk = duetp_host_f32(a->in[DUETP_WKV_IN_KK]), *iclr = duetp_host_f32(a->in[DUETP_WKV_IN_A]);
  float* y = duetp_host_f32(a->out[DUETP_WKV_OUT_Y]);
  const uint32_t N = c.N;
  double* S = ref->host.alloc(ref->host.self, ((size_t)N * N + N) * sizeof(double), 64); /* [value][key], then the decay [N] */
  (void)q;
  if (!S) return ref->host.fail(ref->host.self, DUET_E_MEMORY, "out of memory: wkv");
  double* w = S + (size_t)N * N;
  for (uint32_t s = 0; s < c.n_seqs; ++s)
    for (uint32_t h = 0; h < c.H; ++h) {
      float* state = duetp_host_wkv(a->state, c.slots[s], a->layer_index);
      if (state) state += (uint64_t)h * N * N;
      for (uint32_t i = 0; i < N * N; ++i) S[i] = state ? state[i] : 0;
      for (int32_t t = c.starts[s]; t < c.starts[s + 1]; ++t) {
        const uint64_t at = (uint64_t)t * c.C + (uint64_t)h * N;
        for (uint32_t j = 0; j < N; ++j) w[j] = exp(-0.60653065971263342 * sigmoid(w_raw[at + j]));
        for (uint32_t i = 0; i < N; ++i) {
          double *row = S + (size_t)i * N, sa = 0, sum = 0;
          for (uint32_t j = 0; j < N; ++j) sa -= row[j] * kk[at + j];
          for (uint32_t j = 0; j < N; ++j) {
            row[j] = row[j] * w[j] + sa * ((double)kk[at + j] * iclr[at + j]) + (double)v[at + i] * k[at + j];
            sum += row[j] * r[at + j];
          }
          y[at + i] = (float)sum;
        }
      }
      if (state && c.starts[s] < c.starts[s + 1])
        for (uint32_t i = 0; i < N * N; ++i) state[i] = (float)S[i];
    }
  ref->host.free(ref->host.self, S);
  return DUET_OK;
}

static duet_status norm_gate(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct call c = unpack(a);
  const float *y = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_Y]), *r = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_R]);
  const float *k = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_K]), *v = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_V]);
  const float* g = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_G]);
  const duetp_ref out = a->out[DUETP_NORM_GATE_OUT];
  (void)self, (void)q;
  for (uint64_t th = 0; th < (uint64_t)c.n_tokens * c.H; ++th) {
    const uint64_t at = th * c.N;
    const uint32_t ch = (uint32_t)(th % c.H) * c.N;
    double mean = 0, var = 0, bonus = 0;
    for (uint32_t i = 0; i < c.N; ++i) {
      mean += y[at + i];
      bonus += (double)r[at + i] * k[at + i] * vec(a, DUETP_T_R_K)[ch + i];
    }
    mean /= c.N;
    for (uint32_t i = 0; i < c.N; ++i) var += (y[at + i] - mean) * (y[at + i] - mean);
    const double scale = 1 / sqrt(var / c.N + a->layer->shape.gn_eps);
    for (uint32_t i = 0; i < c.N; ++i) {
      const double normed = (y[at + i] - mean) * scale * vec(a, DUETP_T_LN_X_W)[ch + i] + vec(a, DUETP_T_LN_X_B)[ch + i];
      put(duetp_host_ptr(out), out.dtype, at + i, (normed + bonus * v[at + i]) * g[at + i]);
    }
  }
  return DUET_OK;
}

static duet_status channel_mix(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const struct call c = unpack(a);
  const uint32_t F = a->layer->shape.n_ffn;
  const duet_dtype weights = a->layer->weights;
  float* x = duetp_host_f32(a->out[DUETP_CHANNEL_MIX_X]);
  float* scratch = r->host.alloc(r->host.self, (4 * (size_t)c.C + F) * sizeof(float), 64);
  (void)q;
  if (!scratch) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: channel_mix");
  float *prev = scratch, *z = prev + c.C, *d = z + c.C, *mixed = d + c.C, *u = mixed + c.C;
  for (uint32_t s = 0; s < c.n_seqs; ++s) {
    float* last = duetp_host_ffn_x(a->state, c.slots[s], a->layer_index);
    for (int32_t t = c.starts[s]; t < c.starts[s + 1]; ++t) {
      float* xt = x + (uint64_t)t * c.C;
      token_shift(xt, vec(a, DUETP_T_LN2_W), vec(a, DUETP_T_LN2_B), c.C, a->layer->shape.ln_eps, last, t == c.starts[s], prev, z, d);
      for (uint32_t i = 0; i < c.C; ++i) mixed[i] = (float)(z[i] + (double)d[i] * vec(a, DUETP_T_FFN_X_K)[i]);
      round_inputs(mixed, c.C, weights);
      for (uint32_t f = 0; f < F; ++f) {
        const double key = fmax(row_dot(&a->layer->tensor[DUETP_T_FFN_KEY], f, mixed), 0);
        u[f] = (float)(key * key);
      }
      round_inputs(u, F, weights);
      for (uint32_t i = 0; i < c.C; ++i) xt[i] = (float)(xt[i] + row_dot(&a->layer->tensor[DUETP_T_FFN_VALUE], i, u));
    }
    if (last && c.starts[s] < c.starts[s + 1]) memcpy(last, prev, c.C * sizeof(float));
  }
  r->host.free(r->host.self, scratch);
  return DUET_OK;
}

static duet_status head(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const struct call c = unpack(a);
  const uint32_t V = a->layer->shape.n_vocab;
  const float* x = duetp_host_f32(a->in[DUETP_HEAD_IN_X]);
  float *hidden = duetp_host_f32(a->out[DUETP_HEAD_OUT_HIDDEN]), *logits = duetp_host_f32(a->out[DUETP_HEAD_OUT_LOGITS]);
  float* h = r->host.alloc(r->host.self, c.C * sizeof(float), 64);
  (void)q;
  if (!h) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: head");
  for (uint32_t i = 0; i < c.n_rows; ++i) {
    layer_norm(x + (uint64_t)c.rows[i] * c.C, vec(a, DUETP_T_LN_OUT_W), vec(a, DUETP_T_LN_OUT_B), c.C, a->layer->shape.ln_eps, h);
    if (hidden) memcpy(hidden + (uint64_t)i * c.C, h, c.C * sizeof(float));
    if (!logits) continue;
    round_inputs(h, c.C, a->layer->weights);
    for (uint32_t o = 0; o < V; ++o) logits[(uint64_t)i * V + o] = (float)row_dot(&a->layer->tensor[DUETP_T_HEAD], o, h);
  }
  r->host.free(r->host.self, h);
  return DUET_OK;
}

const duetp_ops duet_reference_ops = {
    .size = sizeof(duetp_ops),
    .embed = embed,
    .shift_mix = shift_mix,
    .linear = linear,
    .lowrank = lowrank,
    .wkv_prepare = wkv_prepare,
    .wkv = wkv,
    .norm_gate = norm_gate,
    .channel_mix = channel_mix,
    .head = head,
};
