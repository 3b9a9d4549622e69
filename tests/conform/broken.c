/* A plugin that computes one stage, wkv, on the host's memory, and is wrong in the way that BROKEN names. GOOD is right. */
#define _POSIX_C_SOURCE 200809L /* sigset_t */
#include <duet_host_memory.h>
#include <fenv.h>
#include <locale.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

enum { GOOD, OFF_BY_ONE, PAST_THE_END, ZEROS, STATE_LAYOUT, NOT_DETERMINISTIC, OTHER_SLOT, KEEPS_MEMORY, ROUNDING, LOCALE, CRASH, UNWRITTEN, INPUT, SECOND_LAYER, SIGNALS };
enum { MAX_HEAD = 128 };

static const duetp_host* host;
static void* kept;

/* One head: S [value][key] from the state or zero, then token after token */
static void head(const duetp_stage* a, int32_t first, int32_t last, uint32_t h, float* state) {
  const uint32_t C = a->layer->shape.n_embd, N = a->layer->shape.head_size;
  const float *r = duetp_host_f32(a->in[DUETP_WKV_IN_R]), *w = duetp_host_f32(a->in[DUETP_WKV_IN_W_RAW]), *k = duetp_host_f32(a->in[DUETP_WKV_IN_K]);
  const float *v = duetp_host_f32(a->in[DUETP_WKV_IN_V]), *kk = duetp_host_f32(a->in[DUETP_WKV_IN_KK]), *iclr = duetp_host_f32(a->in[DUETP_WKV_IN_A]);
  float* y = duetp_host_f32(a->out[DUETP_WKV_OUT_Y]);
  double row[MAX_HEAD];
  double* decay = malloc((size_t)(last - first) * N * sizeof(double));
  for (int32_t t = first; t < last; ++t)
    for (uint32_t j = 0; j < N; ++j) decay[(size_t)(t - first) * N + j] = exp(-0.60653065971263342 / (1 + exp(-w[(uint64_t)t * C + (uint64_t)h * N + j])));
  for (uint32_t i = 0; i < N; ++i) {
    for (uint32_t j = 0; j < N; ++j) row[j] = state ? state[BROKEN == STATE_LAYOUT ? j * N + i : i * N + j] : 0;
    for (int32_t t = first; t < last; ++t) {
      const uint64_t at = (uint64_t)t * C + (uint64_t)h * N;
      const int32_t read = BROKEN == OFF_BY_ONE && t > first ? t - 1 : t;
      double removed = 0, sum = 0;
      for (uint32_t j = 0; j < N; ++j) removed -= row[j] * kk[at + j];
      for (uint32_t j = 0; j < N; ++j) {
        row[j] = row[j] * decay[(size_t)(t - first) * N + j] + removed * ((double)kk[at + j] * iclr[at + j]) + (double)v[at + i] * k[at + j];
        sum += row[j] * r[(uint64_t)read * C + (uint64_t)h * N + j];
      }
      if (BROKEN == UNWRITTEN && t + 1 == last && i + 1 == N) continue;
      y[at + i] = BROKEN == ZEROS || (BROKEN == SECOND_LAYER && a->layer_index == 1) ? 0 : (float)sum;
    }
    for (uint32_t j = 0; state && j < N; ++j) state[BROKEN == STATE_LAYOUT ? j * N + i : i * N + j] = (float)row[j];
  }
  free(decay);
}

static duet_status wkv(void* self, duetp_queue* q, const duetp_stage* a) {
  const uint32_t C = a->layer->shape.n_embd, H = a->layer->shape.n_head, N = a->layer->shape.head_size;
  const int32_t *used = duetp_host_i32(a->frame->used), *starts = duetp_host_i32(a->frame->starts), *slots = duetp_host_i32(a->frame->slots);
  float* y = duetp_host_f32(a->out[DUETP_WKV_OUT_Y]);
  (void)self, (void)q;
  for (int32_t s = 0; s < used[1]; ++s) {
    const int32_t slot = slots[s];
    if (starts[s] == starts[s + 1]) continue;
    for (uint32_t h = 0; h < H; ++h) {
      float* state = duetp_host_wkv(a->state, slot, a->layer_index);
      head(a, starts[s], starts[s + 1], h, state ? state + (uint64_t)h * N * N : NULL);
    }
    if (BROKEN == OTHER_SLOT && slot >= 0) duetp_host_wkv(a->state, (int32_t)((uint32_t)(slot + 1) % a->state->n_slots), a->layer_index)[0] += 1;
  }
  if (BROKEN == KEEPS_MEMORY && !kept) kept = host->alloc(host->self, 64, 64);
  if (BROKEN == ROUNDING) fesetround(FE_UPWARD);
  if (BROKEN == LOCALE) setlocale(LC_ALL, "C.UTF-8");
  if (BROKEN == SIGNALS) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
  }
  if (BROKEN == CRASH) raise(SIGSEGV);
  if (BROKEN == INPUT) duetp_host_f32(a->in[DUETP_WKV_IN_R])[0] += 1;
  if (BROKEN == PAST_THE_END) y[(uint64_t)a->frame->n_tokens * C] = 1;
  if (BROKEN == NOT_DETERMINISTIC && used[0] > 0) { /* far below every tolerance */
    static int calls;
    y[0] *= 1 + (float)(calls++ % 2) * 0x1p-22f;
  }
  return DUET_OK;
}

static const char* refuses(void* self, const duetp_shape* s, duet_dtype weights, uint32_t rung) {
  (void)self, (void)rung;
  if (DUETP_SANITIZER && BROKEN > OFF_BY_ONE && weights != DUET_F32) return "a fault shows with f32 weights, and under a sanitizer one dtype takes long enough";
  return s->head_size > MAX_HEAD ? "heads have at most 128 channels" : NULL;
}

static const duetp_ops ops = {.size = sizeof(duetp_ops), .wkv = wkv};
static const duetp_device device = {.size = sizeof(duetp_device), .ops = &ops, .refuses = refuses};

static duet_status open_plugin(const duetp_host* h, void** self) { return host = h, *self = NULL, DUET_OK; }
static void close_plugin(void* self) { (void)self; }
static uint32_t device_count(void* self) { return (void)self, 1; }
static duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  (void)self, (void)index;
  strcpy(io->id, "host");
  strcpy(io->name, "broken on purpose");
  io->kind = DUETP_KIND_CPU;
  io->caps = DUETP_CAP_HOST_VISIBLE;
  return DUET_OK;
}
static duet_status device_open(void* self, uint32_t index, const duetp_device** out) { return (void)self, (void)index, *out = &device, DUET_OK; }

static const duetp_plugin plugin = {.size = sizeof(duetp_plugin),
                                    .abi = DUETP_ABI,
                                    .id = "broken",
                                    .version = "1",
                                    .vendor = "test",
                                    .build = "C99",
                                    .sanitizer = DUETP_SANITIZER,
                                    .open = open_plugin,
                                    .close = close_plugin,
                                    .device_count = device_count,
                                    .device_info = device_info,
                                    .device_open = device_open};
DUETP_DEFINE(plugin);
