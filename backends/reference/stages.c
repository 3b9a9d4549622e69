/* The nine stages of RWKV-7 in the plainest C: the oracle that every other kernel is checked against. Storage is f32, sums
 * are in double. Equations: docs/mathematics.md. Both modes are the same code here: tokens are walked in order, and S is rounded
 * where the pass leaves it in the state. */
#include <math.h>
#include <string.h>

#include "duet_stage.h"
#include "reference.h"

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* y = (x - mean) / sqrt(variance + eps) * w + b over n elements, biased variance; x and y may be the same */
static void layer_norm(const float* x, const float* w, const float* b, uint32_t n, double eps, float* y) {
  double mean = 0, var = 0;
  for (uint32_t i = 0; i < n; ++i) mean += x[i];
  mean /= n;
  for (uint32_t i = 0; i < n; ++i) var += (x[i] - mean) * (x[i] - mean);
  const double scale = 1 / sqrt(var / n + eps);
  for (uint32_t i = 0; i < n; ++i) y[i] = (float)((x[i] - mean) * scale * w[i] + b[i]);
}

/* element o of W x: the sum of duetp_weight(w, o, i) x[i], with what all weights of a row share outside the loop */
static double row_dot(const duetp_matrix* w, uint32_t o, const float* x) {
  const duetp_tensor* m = w->tensor;
  const duet_dtype dtype = m->dtype;
  const uint32_t n = w->in;
  double sum = 0;
  if (duetp_is_quantised(dtype)) {
    for (uint32_t i = 0; i < n; ++i) sum += (double)duetp_quantised_weight(m, &w->form, o, i) * x[i];
    return sum;
  }
  const int in_major = duetp_is_in_major(m->id);
  const uint64_t first = in_major ? o : (uint64_t)o * n, step = in_major ? w->out : 1;
  for (uint32_t i = 0; i < n; ++i) sum += (double)duetp_get(m->data, dtype, first + i * step) * x[i];
  return sum;
}

/* row t of a stage's matrix input (m), rounded */
static void load_input(const duetp_run* run, const void* in, uint64_t t, float* x) {
  for (uint32_t i = 0; i < run->C; ++i) x[i] = duetp_get(in, run->m, t * run->C + i);
  duetp_round_inputs(x, run->C, run->weights);
}

static duet_status embed(void* self, duetp_queue* q, const duetp_stage* a) {
  const duetp_embed s = duetp_embed_of(a);
  const uint32_t C = s.run.C;
  (void)self, (void)q;
  for (uint32_t t = 0; t < s.run.n_tokens; ++t) {
    float* x = s.x + (uint64_t)t * C;
    for (uint32_t i = 0; i < C; ++i) x[i] = duetp_weight(&s.emb, (uint64_t)s.run.tokens[t], i);
    layer_norm(x, s.ln_w, s.ln_b, C, s.run.ln_eps, x);
  }
  return DUET_OK;
}

/* y = LN(x_t) and y_prev - y for each token of a sequence in order; `last` is the state's vector, NULL for a dropped state */
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
  const duetp_shift_mix s = duetp_shift_mix_of(a);
  const uint32_t C = s.run.C;
  float* scratch = r->host.alloc(r->host.self, 3 * (size_t)C * sizeof(float), 64);
  (void)q;
  if (!scratch) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: shift_mix");
  float *prev = scratch, *y = scratch + C, *d = y + C;
  for (uint32_t i = 0; i < s.run.n_seqs; ++i) {
    const duetp_seq seq = duetp_seq_of(&s.run, i);
    for (uint32_t t = seq.first; t < seq.end; ++t) {
      token_shift(s.x + (uint64_t)t * C, s.ln_w, s.ln_b, C, s.run.ln_eps, seq.att_x, t == seq.first, prev, y, d);
      for (uint32_t m = 0; m < 6; ++m)
        for (uint32_t j = 0; j < C; ++j) duetp_put(s.out[m], s.run.m, (uint64_t)t * C + j, (float)(y[j] + (double)d[j] * s.mix[m][j]));
    }
    if (seq.att_x && seq.first < seq.end) memcpy(seq.att_x, prev, C * sizeof(float));
  }
  r->host.free(r->host.self, scratch);
  return DUET_OK;
}

static duet_status linear(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const duetp_linear s = duetp_linear_of(a);
  const uint32_t C = s.run.C;
  float* x = r->host.alloc(r->host.self, C * sizeof(float), 64);
  (void)q;
  if (!x) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: linear");
  for (uint32_t t = 0; t < s.run.n_tokens; ++t) {
    load_input(&s.run, s.in, t, x);
    for (uint32_t o = 0; o < C; ++o) {
      const double y = row_dot(&s.weight, o, x);
      float* p = s.out + (uint64_t)t * C + o;
      *p = (float)(s.adds ? *p + y : y);
    }
  }
  r->host.free(r->host.self, x);
  return DUET_OK;
}

static duet_status lowrank(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const duetp_lowrank s = duetp_lowrank_of(a);
  const uint32_t C = s.run.C, D = s.D;
  float* x = r->host.alloc(r->host.self, ((size_t)C + D) * sizeof(float), 64);
  (void)q;
  if (!x) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: lowrank");
  float* hidden = x + C;
  for (uint32_t t = 0; t < s.run.n_tokens; ++t) {
    load_input(&s.run, s.in, t, x);
    for (uint32_t j = 0; j < D; ++j) {
      const double sum = row_dot(&s.m1, j, x);
      hidden[j] = (float)(s.which == DUETP_LOWRANK_W ? tanh(sum) : s.which == DUETP_LOWRANK_G ? sigmoid(sum) : sum);
    }
    duetp_round_inputs(hidden, D, s.run.weights);
    for (uint32_t i = 0; i < C; ++i) s.out[(uint64_t)t * C + i] = (float)row_dot(&s.m2, i, hidden);
  }
  r->host.free(r->host.self, x);
  return DUET_OK;
}

static duet_status wkv_prepare(void* self, duetp_queue* q, const duetp_stage* a) {
  const duetp_wkv_prepare s = duetp_wkv_prepare_of(a);
  const uint32_t H = s.run.H, N = s.run.N;
  (void)self, (void)q;
  for (uint64_t th = 0; th < (uint64_t)s.run.n_tokens * H; ++th) {
    const uint64_t at = th * N;                 /* first channel of this token's head */
    const uint32_t ch = (uint32_t)(th % H) * N; /* the same within [C] */
    double norm = 0;
    for (uint32_t i = 0; i < N; ++i) {
      const double u = (double)s.k[at + i] * s.k_k[ch + i];
      s.out_kk[at + i] = (float)u;
      norm += u * u;
    }
    norm = fmax(sqrt(norm), 1e-12);
    for (uint32_t i = 0; i < N; ++i) {
      const double alpha = sigmoid((double)s.a0[ch + i] + s.la[at + i]);
      s.out_kk[at + i] = (float)(s.out_kk[at + i] / norm);
      s.out_k[at + i] = (float)(s.k[at + i] * (1 + (alpha - 1) * s.k_a[ch + i]));
      s.out_a[at + i] = (float)alpha;
      s.out_w_raw[at + i] = s.w0[ch + i] + s.lw[at + i];
      if (s.run.layer_index == 0) {
        s.out_v_first[at + i] = s.v[at + i];
        s.out_v[at + i] = s.v[at + i];
      } else {
        s.out_v[at + i] = (float)(s.v[at + i] + ((double)s.v_first[at + i] - s.v[at + i]) * sigmoid((double)s.v0[ch + i] + s.lv[at + i]));
      }
    }
  }
  return DUET_OK;
}

static duet_status wkv(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* ref = self;
  const duetp_wkv s = duetp_wkv_of(a);
  const uint32_t N = s.run.N;
  double* S = ref->host.alloc(ref->host.self, ((size_t)N * N + N) * sizeof(double), 64); /* [value][key], then the decay [N] */
  (void)q;
  if (!S) return ref->host.fail(ref->host.self, DUET_E_MEMORY, "out of memory: wkv");
  double* w = S + (size_t)N * N;
  for (uint32_t n = 0; n < s.run.n_seqs; ++n) {
    const duetp_seq seq = duetp_seq_of(&s.run, n);
    for (uint32_t h = 0; h < s.run.H; ++h) {
      float* state = seq.wkv ? seq.wkv + (uint64_t)h * N * N : NULL;
      for (uint32_t i = 0; i < N * N; ++i) S[i] = state ? state[i] : 0;
      for (uint32_t t = seq.first; t < seq.end; ++t) {
        const uint64_t at = (uint64_t)t * s.run.C + (uint64_t)h * N;
        for (uint32_t j = 0; j < N; ++j) w[j] = exp(-0.60653065971263342 * sigmoid(s.w_raw[at + j]));
        for (uint32_t i = 0; i < N; ++i) {
          double *row = S + (size_t)i * N, sa = 0, sum = 0;
          for (uint32_t j = 0; j < N; ++j) sa -= row[j] * s.kk[at + j];
          for (uint32_t j = 0; j < N; ++j) {
            row[j] = row[j] * w[j] + sa * ((double)s.kk[at + j] * s.a[at + j]) + (double)s.v[at + i] * s.k[at + j];
            sum += row[j] * s.r[at + j];
          }
          s.y[at + i] = (float)sum;
        }
      }
      if (state && seq.first < seq.end) {
        const duet_dtype stored = ((const struct reference_state*)s.run.state)->stored;
        for (uint32_t i = 0; i < N * N; ++i) state[i] = duetp_stored((float)S[i], stored);
      }
    }
  }
  ref->host.free(ref->host.self, S);
  return DUET_OK;
}

static duet_status norm_gate(void* self, duetp_queue* q, const duetp_stage* a) {
  const duetp_norm_gate s = duetp_norm_gate_of(a);
  const uint32_t H = s.run.H, N = s.run.N;
  (void)self, (void)q;
  for (uint64_t th = 0; th < (uint64_t)s.run.n_tokens * H; ++th) {
    const uint64_t at = th * N;
    const uint32_t ch = (uint32_t)(th % H) * N;
    double mean = 0, var = 0, bonus = 0;
    for (uint32_t i = 0; i < N; ++i) {
      mean += s.y[at + i];
      bonus += (double)s.r[at + i] * s.k[at + i] * s.r_k[ch + i];
    }
    mean /= N;
    for (uint32_t i = 0; i < N; ++i) var += (s.y[at + i] - mean) * (s.y[at + i] - mean);
    const double scale = 1 / sqrt(var / N + s.run.gn_eps);
    for (uint32_t i = 0; i < N; ++i) {
      const double normed = (s.y[at + i] - mean) * scale * s.ln_w[ch + i] + s.ln_b[ch + i];
      duetp_put(s.out, s.run.m, at + i, (float)((normed + bonus * s.v[at + i]) * s.g[at + i]));
    }
  }
  return DUET_OK;
}

static duet_status channel_mix(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const duetp_channel_mix s = duetp_channel_mix_of(a);
  const uint32_t C = s.run.C, F = s.run.F;
  float* scratch = r->host.alloc(r->host.self, (4 * (size_t)C + F) * sizeof(float), 64);
  (void)q;
  if (!scratch) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: channel_mix");
  float *prev = scratch, *z = prev + C, *d = z + C, *mixed = d + C, *u = mixed + C;
  for (uint32_t n = 0; n < s.run.n_seqs; ++n) {
    const duetp_seq seq = duetp_seq_of(&s.run, n);
    for (uint32_t t = seq.first; t < seq.end; ++t) {
      float* x = s.x + (uint64_t)t * C;
      token_shift(x, s.ln_w, s.ln_b, C, s.run.ln_eps, seq.ffn_x, t == seq.first, prev, z, d);
      for (uint32_t i = 0; i < C; ++i) mixed[i] = (float)(z[i] + (double)d[i] * s.x_k[i]);
      duetp_round_inputs(mixed, C, s.run.weights);
      for (uint32_t f = 0; f < F; ++f) {
        const double key = fmax(row_dot(&s.key, f, mixed), 0);
        u[f] = (float)(key * key);
      }
      duetp_round_inputs(u, F, s.run.weights);
      for (uint32_t i = 0; i < C; ++i) x[i] = (float)(x[i] + row_dot(&s.value, i, u));
    }
    if (seq.ffn_x && seq.first < seq.end) memcpy(seq.ffn_x, prev, C * sizeof(float));
  }
  r->host.free(r->host.self, scratch);
  return DUET_OK;
}

static duet_status head(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const duetp_head s = duetp_head_of(a);
  const uint32_t C = s.run.C, V = s.run.V;
  float* h = r->host.alloc(r->host.self, C * sizeof(float), 64);
  (void)q;
  if (!h) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: head");
  for (uint32_t i = 0; i < s.run.n_rows; ++i) {
    layer_norm(s.x + (uint64_t)s.run.rows[i] * C, s.ln_w, s.ln_b, C, s.run.ln_eps, h);
    if (s.hidden) memcpy(s.hidden + (uint64_t)i * C, h, C * sizeof(float));
    if (!s.logits) continue;
    duetp_round_inputs(h, C, s.run.weights);
    for (uint32_t o = 0; o < V; ++o) s.logits[(uint64_t)i * V + o] = (float)row_dot(&s.head, o, h);
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
    .sample = duet_reference_sample,
};
