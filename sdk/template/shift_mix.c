/* y = LN(x; ln1); out q = y + (y_prev - y) * x_q: sequence after sequence, with the state before the first token and after
 * the last, and memory for a while. */
#include <math.h>
#include <string.h>

#include "plugin.h"

static void layer_norm(const duetp_shift_mix* s, const float* x, float* y) {
  const uint32_t C = s->run.C;
  double mean = 0, square = 0;
  for (uint32_t i = 0; i < C; ++i) mean += x[i];
  mean /= C;
  for (uint32_t i = 0; i < C; ++i) square += (x[i] - mean) * (x[i] - mean);
  const double scale = 1 / sqrt(square / C + s->run.ln_eps);
  for (uint32_t i = 0; i < C; ++i) y[i] = (float)((x[i] - mean) * scale * s->ln_w[i] + s->ln_b[i]);
}

duet_status shift_mix(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct plugin* p = self;
  const duetp_host* host = p->host;
  const duetp_shift_mix s = duetp_shift_mix_of(a);
  const uint32_t C = s.run.C;
  (void)q;
  float* y = host->alloc(host->self, 2 * (size_t)C * sizeof *y, 64);
  if (!y) return host->fail(host->self, DUET_E_MEMORY, "no memory for two rows of shift_mix");
  float* before = y + C; /* y of the token before */
  for (uint32_t i = 0; i < s.run.n_seqs; ++i) {
    const duetp_seq seq = duetp_seq_of(&s.run, i);
    if (seq.att_x) memcpy(before, seq.att_x, C * sizeof *y);
    else memset(before, 0, C * sizeof *y);
    for (uint32_t t = seq.first; t < seq.end; ++t) {
      layer_norm(&s, s.x + (uint64_t)t * C, y);
      for (uint32_t m = 0; m < 6; ++m)
        for (uint32_t j = 0; j < C; ++j) duetp_put(s.out[m], s.run.m, (uint64_t)t * C + j, y[j] + (before[j] - y[j]) * s.mix[m][j]);
      memcpy(before, y, C * sizeof *y);
    }
    if (seq.att_x) memcpy(seq.att_x, before, C * sizeof *y); /* without tokens this is what was there */
  }
  host->free(host->self, y);
  return DUET_OK;
}
