/* out = W in, or out += W in: weights of three dtypes, matrix inputs of two, on the host's threads. */
#include "plugin.h"

/* Thread i of n computes every n-th output channel of all tokens. */
static void share(void* context, uint32_t i, uint32_t n) {
  const duetp_linear* s = context;
  const uint32_t C = s->run.C;
  for (uint32_t o = i; o < C; o += n)
    for (uint32_t t = 0; t < s->run.n_tokens; ++t) {
      const uint64_t in = (uint64_t)t * C;
      float* out = &s->out[in + o];
      double sum = s->adds ? *out : 0;
      for (uint32_t j = 0; j < C; ++j) sum += (double)duetp_weight(&s->weight, o, j) * duetp_get(s->in, s->run.m, in + j);
      *out = (float)sum;
    }
}

duet_status linear(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct plugin* p = self;
  duetp_linear s = duetp_linear_of(a);
  (void)q; /* on the host's memory a stage is finished when it returns */
  p->host->team(p->host->self, share, &s);
  return DUET_OK;
}
