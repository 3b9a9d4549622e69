/* The smallest plugin that does something: it computes one stage, norm_gate, on the host's memory, and leaves memory and
 * the other stages to the host. Copy this folder, rename "minimal", and replace stage after stage. */
#include <duet_host_memory.h>
#include <math.h>
#include <string.h>

/* out = (group_norm(y) + (sum over the head of r k r_k) v) * g, head by head */
static duet_status norm_gate(void* self, duetp_queue* q, const duetp_stage* a) {
  const uint32_t H = a->layer->shape.n_head, N = a->layer->shape.head_size;
  const float *y = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_Y]), *r = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_R]), *k = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_K]);
  const float *v = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_V]), *g = duetp_host_f32(a->in[DUETP_NORM_GATE_IN_G]);
  const float *r_k = a->layer->tensor[DUETP_T_R_K].data, *w = a->layer->tensor[DUETP_T_LN_X_W].data, *b = a->layer->tensor[DUETP_T_LN_X_B].data;
  float* out = duetp_host_f32(a->out[DUETP_NORM_GATE_OUT]);
  const uint64_t heads = (uint64_t)duetp_host_i32(a->frame->used)[0] * H; /* of all tokens of this run */
  (void)self, (void)q;
  for (uint64_t h = 0; h < heads; ++h, y += N, r += N, k += N, v += N, g += N, out += N) {
    const uint32_t c = (uint32_t)(h % H) * N; /* first channel of the head */
    double mean = 0, square = 0, bonus = 0;
    for (uint32_t i = 0; i < N; ++i) mean += y[i] / N, bonus += (double)r[i] * k[i] * r_k[c + i];
    for (uint32_t i = 0; i < N; ++i) square += (y[i] - mean) * (y[i] - mean) / N;
    const double scale = 1 / sqrt(square + a->layer->shape.gn_eps);
    for (uint32_t i = 0; i < N; ++i) out[i] = (float)(((y[i] - mean) * scale * w[c + i] + b[c + i] + bonus * v[i]) * g[i]);
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
