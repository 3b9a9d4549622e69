/* sample, in the order of docs/mathematics.md: bias and penalties, softmax, cuts on one ranking, power, draw. Sums are in
 * double, and ranks come from sorting everything. */
#include <math.h>
#include <stdlib.h>

#include "duet_stage.h"
#include "reference.h"

struct rank {
  double logit;
  int32_t token;
};

/* falling logits, then rising tokens */
static int by_rank(const void* left, const void* right) {
  const struct rank *a = left, *b = right;
  if (a->logit != b->logit) return a->logit > b->logit ? -1 : 1;
  return a->token < b->token ? -1 : a->token > b->token;
}

/* the stricter of two ranks that may be kept as the last */
static struct rank cut(struct rank a, double logit, int32_t token) {
  const struct rank b = {logit, token};
  return by_rank(&a, &b) < 0 ? a : b;
}

static struct rank last_kept(const duetp_sample_row* row, const struct rank* by_token, struct rank* ranks, uint32_t V, double max) {
  struct rank last = {-INFINITY, INT32_MAX};
  if (row->min_p > 0) last = cut(last, max + log(row->min_p), INT32_MAX);
  if (!(row->top_p < 1) && (row->top_k == 0 || row->top_k >= V)) return last;
  memcpy(ranks, by_token, V * sizeof *ranks);
  qsort(ranks, V, sizeof *ranks, by_rank);
  if (row->top_k > 0 && row->top_k < V) last = cut(last, ranks[row->top_k - 1].logit, ranks[row->top_k - 1].token);
  if (row->top_p < 1) {
    double sum = 0, reached = 0;
    uint32_t r = 0;
    for (uint32_t i = 0; i < V; ++i) sum += exp(by_token[i].logit - max);
    while ((reached += exp(ranks[r].logit - max)) < row->top_p * sum && r + 1 < V) ++r;
    last = cut(last, ranks[r].logit, INT32_MAX); /* ties stay */
  }
  return last;
}

/* of one row; below 0: DUETP_SAMPLE_*. by_token, ranks, weight: [V] */
static int32_t pick(const duetp_sample_row* row, const duetp_sample_entry* e, const float* logits, uint32_t V, struct rank* by_token, struct rank* ranks, double* weight) {
  double max = -INFINITY, total = 0, sum = 0;
  int32_t first = 0, drawn = 0;
  for (uint32_t i = 0; i < V; ++i) {
    if (!(logits[i] < INFINITY)) return DUETP_SAMPLE_LOGIT - (int32_t)i;
    by_token[i].logit = logits[i], by_token[i].token = (int32_t)i;
  }
  for (uint32_t i = 0; i < row->n_entries; ++i) {
    double* logit = &by_token[e[i].token].logit;
    *logit += e[i].bias;
    if (e[i].count >= 0) *logit -= row->presence + e[i].count * row->frequency;
  }
  for (uint32_t i = 0; i < V; ++i)
    if (by_token[i].logit > max) max = by_token[i].logit, first = (int32_t)i;
  if (max == -INFINITY) return DUETP_SAMPLE_NONE;
  if (row->temperature == 0) return first;
  const struct rank last = last_kept(row, by_token, ranks, V, max);
  for (uint32_t i = 0; i < V; ++i) {
    weight[i] = by_rank(&by_token[i], &last) > 0 ? 0 : exp((by_token[i].logit - max) / row->temperature);
    total += weight[i];
  }
  const double target = duetp_uniform(row->seed, row->sequence, row->position) * total;
  for (uint32_t i = 0; i < V; ++i)
    if (weight[i] > 0) {
      drawn = (int32_t)i;
      if ((sum += weight[i]) > target) break;
    }
  return drawn;
}

duet_status duet_reference_sample(void* self, duetp_queue* q, const duetp_stage* a) {
  const struct reference* r = self;
  const duetp_sample s = duetp_sample_of(a);
  const uint32_t V = s.run.V;
  struct rank* scratch = r->host.alloc(r->host.self, V * (2 * sizeof *scratch + sizeof(double)), 64);
  (void)q;
  if (!scratch) return r->host.fail(r->host.self, DUET_E_MEMORY, "out of memory: sample");
  for (uint32_t i = 0; i < s.run.n_rows; ++i) {
    duetp_sample_row* row = &s.rows[i];
    const int32_t token = pick(row, s.entries + row->first_entry, s.logits + (uint64_t)i * V, V, scratch, scratch + V, (double*)(scratch + 2 * (size_t)V));
    s.history[row->next++] = token;
    s.tokens[s.run.rows[i]] = token < 0 ? 0 : token;
    if (token >= 0) duetp_count_token(row, s.entries, token);
  }
  r->host.free(r->host.self, scratch);
  return DUET_OK;
}
