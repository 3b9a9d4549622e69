/* A plugin with memory of its own that computes whole steps, compiled against the headers of a release and against today's.
 * It uses nothing but what 0.1.0 has. Instead of a model it computes something that can be checked to the last bit: the
 * logit of v after a text is 2^18 * (tokens of the text so far) + 2^10 * (last token) + v. */
#include <duet_plugin.h>
#include <string.h>

struct self {
  duetp_host host;
  duetp_device device;
  duetp_ops ops;
};
struct duetp_buffer {
  char* data;
};
struct duetp_layer {
  uint32_t index;
};
struct duetp_state {
  duetp_shape shape;
  float* data; /* [n_slots] of att_x, wkv, ffn_x; att_x[0] counts tokens */
  uint64_t slot;
};
struct duetp_queue {
  duetp_record* recording; /* NULL: work runs at once */
};
struct duetp_record {
  duetp_step step;
  duetp_frame frame;
};

static void* zeroed(struct self* p, uint64_t bytes) {
  void* m = p->host.alloc(p->host.self, (size_t)bytes, 64);
  if (m) memset(m, 0, (size_t)bytes);
  return m;
}
static duet_status out_of_memory(struct self* p) { return p->host.fail(p->host.self, DUET_E_MEMORY, "out of memory"); }
static void drop(struct self* p, void* m) { p->host.free(p->host.self, m); }
static char* at(duetp_ref r) { return r.buf ? r.buf->data + r.off : NULL; }

static duet_status buffer_new(void* self, uint64_t bytes, duetp_buffer** out) {
  duetp_buffer* b = zeroed(self, sizeof *b);
  if (!b || !(b->data = zeroed(self, bytes ? bytes : 64))) return drop(self, b), out_of_memory(self);
  return *out = b, DUET_OK;
}
static void buffer_free(void* self, duetp_buffer* b) { drop(self, b->data), drop(self, b); }
static void* buffer_ptr(void* self, duetp_buffer* b) { return (void)self, (void)b, NULL; }
static duet_status upload(void* self, duetp_queue* q, duetp_ref to, const void* from, uint64_t n) { return (void)self, (void)q, memcpy(at(to), from, (size_t)n), DUET_OK; }
static duet_status download(void* self, duetp_queue* q, void* to, duetp_ref from, uint64_t n) { return (void)self, (void)q, memcpy(to, at(from), (size_t)n), DUET_OK; }
static duet_status copy(void* self, duetp_queue* q, duetp_ref to, duetp_ref from, uint64_t n) { return (void)self, (void)q, memmove(at(to), at(from), (size_t)n), DUET_OK; }

static duet_status layer_new(void* self, const duetp_layer_desc* d, duetp_layer** out) {
  struct self* p = self;
  const duetp_tensor* emb = d->index == d->shape->n_layer ? d->tensors[DUETP_T_EMB] : NULL;
  const uint64_t bytes = (uint64_t)d->shape->n_vocab * d->shape->n_embd * sizeof(float);
  duetp_layer* l;
  if (d->n_tensors < DUETP_T_HEAD || d->weights != DUET_F32) return p->host.fail(p->host.self, DUET_E_UNSUPPORTED, "counter: another layer than expected");
  if (emb && (strcmp(emb->name, "emb.weight") != 0 || emb->dtype != DUET_F32 || emb->n_dim != 2 || emb->dim[1] != d->shape->n_embd || emb->bytes != bytes))
    return p->host.fail(p->host.self, DUET_E_INVALID, "counter: the embedding's tensor is not what its fields say");
  if (!(l = zeroed(self, sizeof *l))) return out_of_memory(self);
  l->index = d->index;
  return *out = l, DUET_OK;
}
static duet_status layer_export(void* self, const duetp_layer* l, uint32_t id, void* to, uint64_t n) { return (void)self, (void)l, (void)id, (void)to, (void)n, DUET_E_UNSUPPORTED; }
static void layer_free(void* self, duetp_layer* l) { drop(self, l); }

static duet_status queue_new(void* self, duetp_queue** out) { return (*out = zeroed(self, sizeof **out)) ? DUET_OK : out_of_memory(self); }
static duet_status queue_wait(void* self, duetp_queue* q) { return (void)self, (void)q, DUET_OK; }
static void queue_free(void* self, duetp_queue* q) { drop(self, q); }

static uint64_t part(const duetp_shape* s, int i) { return (uint64_t)s->n_layer * s->n_embd * (i == 1 ? s->head_size : 1); }
static duet_status state_new(void* self, const duetp_shape* s, uint32_t n_slots, duet_dtype wkv, duetp_state** out) {
  duetp_state* st = wkv == DUET_F32 ? zeroed(self, sizeof *st) : NULL;
  if (!st) return out_of_memory(self);
  st->shape = *s;
  st->slot = part(s, 0) + part(s, 1) + part(s, 2);
  if (!(st->data = zeroed(self, st->slot * n_slots * sizeof(float)))) return drop(self, st), out_of_memory(self);
  return *out = st, DUET_OK;
}
static duet_status state_copy(void* self, duetp_queue* q, duetp_state* to, uint32_t to_slot, const duetp_state* from, uint32_t from_slot) {
  float* place = to->data + to_slot * to->slot;
  (void)self, (void)q;
  if (from) memmove(place, from->data + from_slot * from->slot, (size_t)to->slot * sizeof(float));
  else memset(place, 0, (size_t)to->slot * sizeof(float));
  return DUET_OK;
}
static duet_status move(const duetp_state* s, uint32_t slot, float* const out[3], const float* const in[3]) {
  float* p = s->data + slot * s->slot;
  for (int i = 0; i < 3; p += part(&s->shape, i++)) {
    if (out && out[i]) memcpy(out[i], p, (size_t)part(&s->shape, i) * sizeof(float));
    if (in && in[i]) memcpy(p, in[i], (size_t)part(&s->shape, i) * sizeof(float));
  }
  return DUET_OK;
}
static duet_status state_export(void* self, duetp_queue* q, const duetp_state* s, uint32_t slot, float* att_x, float* wkv, float* ffn_x) {
  return (void)self, (void)q, move(s, slot, (float* const[]){att_x, wkv, ffn_x}, NULL);
}
static duet_status state_import(void* self, duetp_queue* q, duetp_state* s, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x) {
  return (void)self, (void)q, move(s, slot, NULL, (const float* const[]){att_x, wkv, ffn_x});
}
static void state_free(void* self, duetp_state* s) { drop(self, s->data), drop(self, s); }

/* The rows of logits, shared among the threads of the team. */
struct rows {
  const duetp_step* step;
  struct self* self;
  const float* counts; /* of each token of the frame */
  uint32_t V;
};
static void fill(void* ctx, uint32_t i, uint32_t n) {
  const struct rows* r = ctx;
  const duetp_frame* f = r->step->frame;
  const int32_t *tokens = (const int32_t*)at(f->tokens), *rows = (const int32_t*)at(f->rows), n_rows = ((const int32_t*)at(f->used))[2];
  float* logits = (float*)at(r->step->logits);
  r->self->host.barrier(r->self->host.self);
  for (int32_t row = (int32_t)i; logits && row < n_rows; row += (int32_t)n)
    for (uint32_t v = 0; v < r->V; ++v) logits[(uint64_t)row * r->V + v] = 262144 * r->counts[rows[row]] + 1024 * (float)tokens[rows[row]] + (float)v;
}
static duet_status run(struct self* p, const duetp_step* a) {
  const int32_t *used = (const int32_t*)at(a->frame->used), *starts = (const int32_t*)at(a->frame->starts), *slots = (const int32_t*)at(a->frame->slots);
  float* counts = zeroed(p, (a->frame->n_tokens + 1) * sizeof(float));
  if (!counts) return out_of_memory(p);
  for (int32_t s = 0; s < used[1]; ++s) {
    float none = 0, *count = slots[s] < 0 ? &none : a->state->data + (uint64_t)slots[s] * a->state->slot;
    for (int32_t t = starts[s]; t < starts[s + 1]; ++t) counts[t] = ++*count;
  }
  struct rows rows = {a, p, counts, a->state->shape.n_vocab};
  p->host.team(p->host.self, fill, &rows);
  drop(p, counts);
  return DUET_OK;
}
static duet_status step(void* self, duetp_queue* q, const duetp_step* a) {
  if (a->first_layer != 0 || a->n_layer != a->state->shape.n_layer || a->layers[a->n_layer]->index != a->n_layer) return DUET_E_INVALID;
  if (!q->recording) return run(self, a);
  q->recording->step = *a;
  q->recording->frame = *a->frame;
  q->recording->step.frame = &q->recording->frame;
  return DUET_OK;
}
static duet_status record_begin(void* self, duetp_queue* q) { return (q->recording = zeroed(self, sizeof *q->recording)) ? DUET_OK : out_of_memory(self); }
static duet_status record_end(void* self, duetp_queue* q, duetp_record** out) { return (void)self, *out = q->recording, q->recording = NULL, DUET_OK; }
static duet_status record_run(void* self, duetp_queue* q, duetp_record* r) { return (void)q, run(self, &r->step); }
static void record_free(void* self, duetp_record* r) { drop(self, r); }
static const char* refuses(void* self, const duetp_shape* s, duet_dtype weights, uint32_t rung) {
  return (void)self, (void)s, weights != DUET_F32 || rung != 3 ? "counter counts in f32, whole steps only" : NULL;
}

static duet_status open_plugin(const duetp_host* host, void** self) {
  static const duetp_device table = {.size = sizeof(duetp_device), .buffer_new = buffer_new, .buffer_free = buffer_free, .buffer_ptr = buffer_ptr, .upload = upload,
    .download = download, .copy = copy, .layer_new = layer_new, .layer_export = layer_export, .layer_free = layer_free, .queue_new = queue_new,
    .queue_wait = queue_wait, .queue_free = queue_free, .state_new = state_new, .state_copy = state_copy, .state_export = state_export,
    .state_import = state_import, .state_free = state_free, .record_begin = record_begin, .record_end = record_end, .record_run = record_run,
    .record_free = record_free, .refuses = refuses};
  struct self* p = host->alloc(host->self, sizeof *p, 64);
  if (!p) return host->fail(host->self, DUET_E_MEMORY, "out of memory");
  memset(p, 0, sizeof *p);
  memcpy(&p->host, host, host->size < sizeof p->host ? host->size : sizeof p->host);
  p->device = table;
  p->ops.size = sizeof p->ops;
  p->ops.step = step;
  p->device.self = p;
  p->device.ops = &p->ops;
  if (host->team_size(host->self) == 0 || host->option(host->self, "refuse") || host->extension(host->self, "duet.ext.none/1"))
    return drop(p, p), host->fail(host->self, DUET_E_INVALID, "the host's services are not those expected");
  host->log(host->self, DUET_LOG_DEBUG, "opened");
  return *self = p, DUET_OK;
}
static void close_plugin(void* self) { drop(self, self); }
static uint32_t device_count(void* self) { return (void)self, 1; }
static duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  (void)self, (void)index;
  strcpy(io->id, "counter");
  strcpy(io->name, "counts tokens");
  io->kind = DUETP_KIND_OTHER;
  io->caps = DUETP_CAP_RECORD;
  return DUET_OK;
}
static duet_status device_open(void* self, uint32_t index, const duetp_device** out) { return (void)index, *out = &((struct self*)self)->device, DUET_OK; }

static const duetp_plugin plugin = {.size = sizeof(duetp_plugin), .abi = DUETP_ABI, .id = "counter", .version = "1", .vendor = "test", .build = "C99", .sanitizer = DUETP_SANITIZER,
                                    .open = open_plugin, .close = close_plugin, .device_count = device_count, .device_info = device_info, .device_open = device_open};
DUETP_DEFINE(plugin);
