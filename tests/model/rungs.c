/* A plugin that has no stages but rung 2 (RUNG=2: layers, with embed and head) or rung 3 (RUNG=3: step alone), made of the
 * reference's stages: whole models on it must give the reference's bits. */
#include <string.h>

#include "reference.h"

static struct reference* reference; /* its struct is the `self` of everything here */

static duet_status run(duetp_stage_fn fn, duetp_queue* q, const duetp_step* s, uint32_t layer, uint32_t which, const duetp_ref* in, size_t n_in, const duetp_ref* out,
                       size_t n_out) {
  duetp_stage a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a;
  a.which = which;
  a.layer_index = layer;
  a.mode = s->mode;
  a.layer = s->layers[layer];
  a.frame = s->frame;
  a.state = s->state;
  if (n_in) memcpy(a.in, in, n_in * sizeof *in);
  memcpy(a.out, out, n_out * sizeof *out);
  return fn(reference, q, &a);
}
#define REFS(...) (const duetp_ref[]){__VA_ARGS__}, sizeof((duetp_ref[]){__VA_ARGS__}) / sizeof(duetp_ref)
#define TRY(call)                    \
  do {                               \
    const duet_status t = (call);    \
    if (t != DUET_OK) return t;      \
  } while (0)

static duet_status all_layers(duetp_queue* q, const duetp_step* s, const duetp_ref b[16]) {
  const duetp_ops* o = &duet_reference_ops;
  const duetp_ref none = {NULL, 0, 0, 0};
  for (uint32_t i = s->first_layer; i < s->first_layer + s->n_layer; ++i) {
    const duetp_ref *m = b, *f = b + 6; /* r w k v a g, mixed; then r k v lw la lv lg kk y */
    TRY(run(o->shift_mix, q, s, i, 0, REFS(s->x), REFS(m[0], m[1], m[2], m[3], m[4], m[5])));
    TRY(run(o->linear, q, s, i, DUETP_LINEAR_R, REFS(m[0]), REFS(f[0])));
    TRY(run(o->linear, q, s, i, DUETP_LINEAR_K, REFS(m[2]), REFS(f[1])));
    TRY(run(o->linear, q, s, i, DUETP_LINEAR_V, REFS(m[3]), REFS(f[2])));
    TRY(run(o->lowrank, q, s, i, DUETP_LOWRANK_W, REFS(m[1]), REFS(f[3])));
    TRY(run(o->lowrank, q, s, i, DUETP_LOWRANK_A, REFS(m[4]), REFS(f[4])));
    if (i > 0) TRY(run(o->lowrank, q, s, i, DUETP_LOWRANK_V, REFS(m[3]), REFS(f[5])));
    TRY(run(o->lowrank, q, s, i, DUETP_LOWRANK_G, REFS(m[5]), REFS(f[6])));
    TRY(run(o->wkv_prepare, q, s, i, 0, REFS(f[1], f[2], f[3], f[4], i ? f[5] : none, i ? s->v_first : none),
            REFS(f[1], f[2], f[3], f[4], f[7], i ? none : s->v_first)));
    TRY(run(o->wkv, q, s, i, 0, REFS(f[0], f[3], f[1], f[2], f[7], f[4]), REFS(f[8])));
    TRY(run(o->norm_gate, q, s, i, 0, REFS(f[8], f[0], f[1], f[2], f[6]), REFS(m[0])));
    TRY(run(o->linear, q, s, i, DUETP_LINEAR_OUTPUT, REFS(m[0]), REFS(s->x)));
    TRY(run(o->channel_mix, q, s, i, 0, REFS(s->x), REFS(s->x)));
  }
  return DUET_OK;
}

static duet_status layers(void* self, duetp_queue* q, const duetp_step* s) {
  const uint64_t bytes = (uint64_t)s->frame->n_tokens * s->layers[0]->shape.n_embd * sizeof(float);
  const duet_dtype m = s->layers[0]->weights == DUET_BF16 ? DUET_BF16 : DUET_F32;
  duetp_buffer* buffer = NULL;
  duetp_ref b[16];
  TRY(duet_reference_memory.buffer_new(self, 16 * bytes, &buffer));
  for (uint32_t i = 0; i < 16; ++i) b[i] = (duetp_ref){buffer, i * bytes, i < 6 ? m : DUET_F32, 0};
  const duet_status status = all_layers(q, s, b);
  duet_reference_memory.buffer_free(self, buffer);
  return status;
}

#if RUNG == 3
static duet_status step(void* self, duetp_queue* q, const duetp_step* s) {
  const uint32_t last = s->n_layer;
  TRY(run(duet_reference_ops.embed, q, s, last, 0, NULL, 0, REFS(s->x)));
  TRY(layers(self, q, s));
  return run(duet_reference_ops.head, q, s, last, 0, REFS(s->x), REFS(s->hidden, s->logits));
}
#endif

static duetp_ops ops;

static duet_status open_plugin(const duetp_host* host, void** self) {
  TRY(duet_reference_open(host, self));
  reference = *self;
  memset(&ops, 0, sizeof ops);
  ops.size = sizeof ops;
#if RUNG == 3
  ops.step = step;
#else
  ops.layers = layers;
  ops.embed = duet_reference_ops.embed;
  ops.head = duet_reference_ops.head;
#endif
  reference->device.ops = &ops;
  return DUET_OK;
}

static const duetp_plugin plugin = {
    .size = sizeof(duetp_plugin),
    .abi = DUETP_ABI,
#if RUNG == 3
    .id = "rung3",
#else
    .id = "rung2",
#endif
    .version = "1",
    .vendor = "test",
    .build = "C99",
    .sanitizer = DUETP_SANITIZER,
    .open = open_plugin,
    .close = duet_reference_close,
    .device_count = duet_reference_device_count,
    .device_info = duet_reference_device_info,
    .device_open = duet_reference_device_open,
};
DUETP_DEFINE(plugin);
