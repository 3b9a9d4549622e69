/* The smallest plugin that does something: it computes one stage, norm_gate, on the host's memory, and leaves memory and
 * the other stages to the host. For one of your own, start from the kit's template: docs/plugins.md. */
#include <duet_stage.h>
#include <math.h>
#include <string.h>

/* out = (group_norm(y) + (sum over the head of r k r_k) v) * g, head by head */
static duet_status norm_gate(void* self, duetp_queue* q, const duetp_stage* a) {
  const duetp_norm_gate s = duetp_norm_gate_of(a);
  const uint32_t H = s.run.H, N = s.run.N;
  (void)self, (void)q;
  for (uint64_t h = 0; h < (uint64_t)s.run.n_tokens * H; ++h) {
    const uint64_t at = h * N;                /* the head's first channel among those of all tokens, */
    const uint32_t c = (uint32_t)(h % H) * N; /* and of its own */
    double mean = 0, square = 0, bonus = 0;
    for (uint32_t i = 0; i < N; ++i) mean += s.y[at + i] / N, bonus += (double)s.r[at + i] * s.k[at + i] * s.r_k[c + i];
    for (uint32_t i = 0; i < N; ++i) square += (s.y[at + i] - mean) * (s.y[at + i] - mean) / N;
    const double scale = 1 / sqrt(square + s.run.gn_eps);
    for (uint32_t i = 0; i < N; ++i)
      ((float*)s.out)[at + i] = (float)(((s.y[at + i] - mean) * scale * s.ln_w[c + i] + s.ln_b[c + i] + bonus * s.v[at + i]) * s.g[at + i]);
  }
  return DUET_OK;
}

static const char* refuses(void* self, const duetp_shape* s, duet_dtype weights, uint32_t rung) {
  (void)self, (void)s, (void)rung;
  return weights == DUET_BF16 ? "minimal writes f32 only; load the model with f32 or f16 weights" : NULL;
}

static const duetp_ops ops = {.size = sizeof(duetp_ops), .norm_gate = norm_gate};
static const duetp_device device = {.size = sizeof(duetp_device), .ops = &ops, .refuses = refuses};

static duet_status open_plugin(const duetp_host* host, void** self) { return (void)host, *self = NULL, DUET_OK; }
static void close_plugin(void* self) { (void)self; }
static uint32_t device_count(void* self) { return (void)self, 1; }
static duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  (void)self, (void)index;
  strcpy(io->id, "host");
  strcpy(io->name, "minimal");
  io->kind = DUETP_KIND_CPU;
  io->caps = DUETP_CAP_HOST_VISIBLE;
  return DUET_OK;
}
static duet_status device_open(void* self, uint32_t index, const duetp_device** out) { return (void)self, (void)index, *out = &device, DUET_OK; }

static const duetp_plugin plugin = {.size = sizeof(duetp_plugin), .abi = DUETP_ABI, .id = "minimal", .version = "1", .vendor = "you", .build = "C99", .sanitizer = DUETP_SANITIZER,
                                    .open = open_plugin, .close = close_plugin, .device_count = device_count, .device_info = device_info, .device_open = device_open};
DUETP_DEFINE(plugin);
