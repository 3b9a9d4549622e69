/* A device with the reference's memory and stages that can record: a recording keeps the calls of its stages, and runs them
 * later. It is wrong in the way that BROKEN names; GOOD_DRAWS is right, and has memory that the CPU does not see, as a GPU has:
 * tests/model generates on it. */
#include "duet_stage.h"
#include "reference.h"

enum { GOOD_RECORD, RECORD_DIFFERS, RECORD_RUNS, GOOD_DRAWS, SAMPLE_DECAY, SAMPLE_TOKEN, SAMPLE_TIES };
enum { MAX_CALLS = 1024 };

struct call {
  duetp_stage_fn fn;
  duetp_stage stage;
  duetp_frame frame;
};
struct duetp_record {
  struct call calls[MAX_CALLS];
  uint32_t n;
};

static duetp_record* recording; /* the one that has begun; NULL: none */

static duet_status enqueue(duetp_stage_fn fn, void* self, duetp_queue* q, const duetp_stage* a) {
  const duetp_host* host = &((struct reference*)self)->host;
  if (!recording) return fn(self, q, a);
  if (recording->n == MAX_CALLS) return host->fail(host->self, DUET_E_LIMIT, "too many stages in one recording");
  struct call* c = &recording->calls[recording->n++];
  c->fn = fn;
  c->stage = *a;
  c->frame = *a->frame; /* the caller's struct ends with the call */
  c->stage.frame = &c->frame;
  return BROKEN == RECORD_RUNS ? fn(self, q, a) : DUET_OK;
}

#define STAGE(name) \
  static duet_status name(void* self, duetp_queue* q, const duetp_stage* a) { return enqueue(duet_reference_ops.name, self, q, a); }
STAGE(embed)
STAGE(shift_mix)
STAGE(linear)
STAGE(lowrank)
STAGE(wkv_prepare)
STAGE(wkv)
STAGE(norm_gate)
STAGE(channel_mix)
STAGE(head)

/* The reference's, but: counts do not decay, the next embed reads the old token, or top-k keeps one rank too many. */
static duet_status sample_now(void* self, duetp_queue* q, const duetp_stage* a) {
  const duetp_sample s = duetp_sample_of(a);
  const int32_t token = s.run.n_rows ? s.tokens[s.run.rows[0]] : 0;
  float decay[64];
  for (uint32_t i = 0; i < s.run.n_rows && i < 64; ++i) {
    decay[i] = s.rows[i].decay;
    if (BROKEN == SAMPLE_DECAY) s.rows[i].decay = 1;
    if (BROKEN == SAMPLE_TIES && s.rows[i].top_k) ++s.rows[i].top_k;
  }
  const duet_status status = duet_reference_ops.sample(self, q, a);
  for (uint32_t i = 0; i < s.run.n_rows && i < 64; ++i) {
    s.rows[i].decay = decay[i];
    if (BROKEN == SAMPLE_TIES && s.rows[i].top_k) --s.rows[i].top_k;
  }
  if (BROKEN == SAMPLE_TOKEN && s.run.n_rows) s.tokens[s.run.rows[0]] = token;
  return status;
}
static duet_status sample(void* self, duetp_queue* q, const duetp_stage* a) { return enqueue(sample_now, self, q, a); }

static duet_status record_begin(void* self, duetp_queue* q) {
  const duetp_host* host = &((struct reference*)self)->host;
  (void)q;
  recording = host->alloc(host->self, sizeof *recording, 64);
  if (!recording) return host->fail(host->self, DUET_E_MEMORY, "no memory for a recording");
  recording->n = 0;
  return DUET_OK;
}

static duet_status record_end(void* self, duetp_queue* q, duetp_record** out) {
  (void)self, (void)q;
  *out = recording;
  recording = NULL;
  return DUET_OK;
}

static duet_status record_run(void* self, duetp_queue* q, duetp_record* r) {
  for (uint32_t i = 0; i < r->n; ++i) {
    const struct call* c = &r->calls[i];
    const duet_status status = c->fn(self, q, &c->stage);
    if (status != DUET_OK) return status;
    if (BROKEN == RECORD_DIFFERS && c->fn == duet_reference_ops.wkv && duetp_host_i32(c->frame.used)[0] > 0)
      duetp_host_f32(c->stage.out[DUETP_WKV_OUT_Y])[0] *= 1 + 0x1p-22f; /* far below every tolerance */
  }
  return DUET_OK;
}

static void record_free(void* self, duetp_record* r) {
  const duetp_host* host = &((struct reference*)self)->host;
  host->free(host->self, r);
}

static const duetp_ops ops = {.size = sizeof(duetp_ops),
                              .embed = embed,
                              .shift_mix = shift_mix,
                              .linear = linear,
                              .lowrank = lowrank,
                              .wkv_prepare = wkv_prepare,
                              .wkv = wkv,
                              .norm_gate = norm_gate,
                              .channel_mix = channel_mix,
                              .head = head,
                              .sample = sample};

static void* no_ptr(void* self, duetp_buffer* b) { return (void)self, (void)b, NULL; }

static duet_status open_plugin(const duetp_host* host, void** self) {
  const duet_status status = duet_reference_open(host, self);
  if (status != DUET_OK) return status;
  duetp_device* device = &((struct reference*)*self)->device;
  device->ops = &ops;
  device->record_begin = record_begin;
  device->record_end = record_end;
  device->record_run = record_run;
  device->record_free = record_free;
  if (BROKEN == GOOD_DRAWS) device->buffer_ptr = no_ptr;
  return DUET_OK;
}

static duet_status device_info(void* self, uint32_t index, duetp_device_info* io) {
  const duet_status status = duet_reference_device_info(self, index, io);
  io->caps |= DUETP_CAP_RECORD;
  if (BROKEN == GOOD_DRAWS) io->caps &= ~(uint64_t)DUETP_CAP_HOST_VISIBLE;
  return status;
}

static const duetp_plugin plugin = {
    .size = sizeof(duetp_plugin),
    .abi = DUETP_ABI,
    .id = BROKEN == GOOD_DRAWS ? "draws" : "broken",
    .version = "1",
    .vendor = "test",
    .build = "C99",
    .sanitizer = DUETP_SANITIZER,
    .open = open_plugin,
    .close = duet_reference_close,
    .device_count = duet_reference_device_count,
    .device_info = device_info,
    .device_open = duet_reference_device_open,
};
DUETP_DEFINE(plugin);
