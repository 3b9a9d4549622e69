/* host PLUGIN...: opens plugins as a host of the release does against whose headers this is compiled: it reads and writes what
 * that release's structs hold. What it hands over ends where readable memory ends, so that a plugin which looks for a newer
 * field without DUETP_HAS dies of it. A plugin that computes norm_gate or whole steps must also compute them right. */
#include <dlfcn.h>
#include <duet_host_memory.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char* file;
static void fail(const char* format, ...) {
  va_list a;
  va_start(a, format);
  fprintf(stderr, "%s: ", file);
  vfprintf(stderr, format, a);
  fputc('\n', stderr);
  exit(1);
}
#define EXPECT(condition) ((condition) ? (void)0 : fail("line %d: not so: %s", __LINE__, #condition))

/* A copy of a struct right before memory that cannot be read. */
static void* at_the_end(const void* from, size_t n) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE), room = (n + page - 1) / page * page;
  char* p = mmap(NULL, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED || mprotect(p + room, page, PROT_NONE) != 0) fail("no memory");
  return memcpy(p + room - n, from, n);
}
#define AT_THE_END(x) at_the_end(&(x), sizeof(x))

/* ---- the host's services ---- */
static void* host_alloc(void* self, size_t bytes, size_t align) {
  void* p = NULL;
  return (void)self, posix_memalign(&p, align < sizeof p ? sizeof p : align, bytes) ? NULL : p;
}
static void host_free(void* self, void* p) { (void)self, free(p); }
static void host_log(void* self, int32_t level, const char* text) { (void)self, (void)level, (void)text; }
static duet_status host_fail(void* self, duet_status code, const char* text) { return (void)self, fprintf(stderr, "%s: %s\n", file, text), code; }
static const char* host_option(void* self, const char* key) { return (void)self, (void)key, NULL; }
static uint32_t host_team_size(void* self) { return (void)self, 1; }
static void host_team(void* self, void (*fn)(void*, uint32_t, uint32_t), void* ctx) { (void)self, fn(ctx, 0, 1); }
static void host_barrier(void* self) { (void)self; }
static const void* host_extension(void* self, const char* id) { return (void)self, (void)id, NULL; }

/* ---- what is computed ---- */
enum { L = 2, H = 2, N = 4, C = H * N, F = 16, V = 8, T = 3, SLOTS = 2, ATT = L * C, WKV = L * C * N };
static duetp_shape* shape;

/* A device on the host's memory: out = (group_norm(y; w, b) + (sum over the head of r k r_k) v) * g */
static void check_norm_gate(void* self, const duetp_ops* ops) {
  float values[6][T * C], weight[3][C];
  struct duetp_buffer buffers[6], words;
  int32_t used[3] = {T, 1, 1}, starts[2] = {0, T}, slot = 0, row = T - 1;
  struct duetp_layer layer;
  struct duetp_state state;
  duetp_frame frame;
  duetp_stage stage;
  int32_t frame_words[64] = {0};
  for (int i = 0; i < 6; ++i) {
    for (int j = 0; j < T * C; ++j) values[i][j] = (float)sin(1 + 7 * i + 3 * j);
    buffers[i].data = values[i], buffers[i].bytes = sizeof values[i];
  }
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < C; ++j) weight[i][j] = (float)cos(2 + 5 * i + j);
  memset(&layer, 0, sizeof layer), memset(&state, 0, sizeof state), memset(&frame, 0, sizeof frame), memset(&stage, 0, sizeof stage);
  layer.shape = *shape;
  layer.weights = DUET_F32;
  static const uint32_t ids[3] = {DUETP_T_R_K, DUETP_T_LN_X_W, DUETP_T_LN_X_B};
  for (int i = 0; i < 3; ++i) {
    duetp_tensor* t = &layer.tensor[ids[i]];
    t->size = sizeof *t, t->id = ids[i], t->name = "", t->data = weight[i], t->bytes = sizeof weight[i], t->dtype = DUET_F32, t->n_dim = 1, t->dim[0] = C;
  }
  memcpy(frame_words, used, sizeof used), memcpy(frame_words + 16, starts, sizeof starts), frame_words[32] = slot, frame_words[48] = row;
  words.data = frame_words, words.bytes = sizeof frame_words;
  frame.size = sizeof frame, frame.n_tokens = T, frame.n_seqs = 1, frame.n_rows = 1, frame.max_len = T;
  frame.used.buf = frame.starts.buf = frame.slots.buf = frame.rows.buf = &words;
  frame.starts.off = 64, frame.slots.off = 128, frame.rows.off = 192;
  stage.size = sizeof stage, stage.mode = DUET_MODE_PARALLEL;
  stage.layer = AT_THE_END(layer), stage.frame = AT_THE_END(frame), stage.state = AT_THE_END(state);
  for (int i = 0; i < 5; ++i) stage.in[i].buf = &buffers[i], stage.in[i].dtype = DUET_F32;
  stage.out[DUETP_NORM_GATE_OUT].buf = &buffers[5], stage.out[DUETP_NORM_GATE_OUT].dtype = DUET_F32;
  EXPECT(ops->norm_gate(self, NULL, AT_THE_END(stage)) == DUET_OK);
  for (int t = 0; t < T; ++t)
    for (int h = 0; h < H; ++h) {
      const float *y = values[DUETP_NORM_GATE_IN_Y] + t * C + h * N, *r = values[DUETP_NORM_GATE_IN_R] + t * C + h * N, *k = values[DUETP_NORM_GATE_IN_K] + t * C + h * N;
      double mean = 0, variance = 0, bonus = 0;
      for (int j = 0; j < N; ++j) mean += y[j] / N, bonus += (double)r[j] * k[j] * weight[0][h * N + j];
      for (int j = 0; j < N; ++j) variance += (y[j] - mean) * (y[j] - mean) / N;
      for (int j = 0; j < N; ++j) {
        const int at = t * C + h * N + j;
        const double normed = (y[j] - mean) / sqrt(variance + shape->gn_eps) * weight[1][h * N + j] + weight[2][h * N + j];
        EXPECT(fabs(values[5][at] - (normed + bonus * values[DUETP_NORM_GATE_IN_V][at]) * values[DUETP_NORM_GATE_IN_G][at]) < 1e-4);
      }
    }
}

/* A device with memory of its own: bytes and states come back as they went. */
static void check_memory(const duetp_device* d, duetp_queue* q) {
  char there[100], back[100] = {0};
  duetp_ref ref = {NULL, 64, 0, 0}, other = {NULL, 0, 0, 0};
  duetp_state* state = NULL;
  float in[3][WKV], out[3][WKV];
  for (int i = 0; i < 100; ++i) there[i] = (char)i;
  EXPECT(d->buffer_new(d->self, 256, &ref.buf) == DUET_OK && d->buffer_new(d->self, 100, &other.buf) == DUET_OK);
  EXPECT(d->upload(d->self, q, ref, there, 100) == DUET_OK && d->copy(d->self, q, other, ref, 100) == DUET_OK);
  EXPECT(d->download(d->self, q, back, other, 100) == DUET_OK && d->queue_wait(d->self, q) == DUET_OK && memcmp(there, back, 100) == 0);
  d->buffer_free(d->self, ref.buf), d->buffer_free(d->self, other.buf);
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < WKV; ++j) in[i][j] = (float)(i * WKV + j);
  EXPECT(d->state_new(d->self, shape, SLOTS, DUET_F32, &state) == DUET_OK);
  EXPECT(d->state_import(d->self, q, state, 1, in[0], in[1], in[2]) == DUET_OK && d->queue_wait(d->self, q) == DUET_OK);
  EXPECT(d->state_copy(d->self, q, state, 0, state, 1) == DUET_OK && d->state_copy(d->self, q, state, 1, NULL, 0) == DUET_OK);
  EXPECT(d->state_export(d->self, q, state, 0, out[0], out[1], out[2]) == DUET_OK && d->queue_wait(d->self, q) == DUET_OK);
  EXPECT(memcmp(in[0], out[0], ATT * sizeof(float)) == 0 && memcmp(in[1], out[1], WKV * sizeof(float)) == 0 && memcmp(in[2], out[2], ATT * sizeof(float)) == 0);
  EXPECT(d->state_export(d->self, q, state, 1, out[0], out[1], out[2]) == DUET_OK && d->queue_wait(d->self, q) == DUET_OK && out[0][0] == 0 && out[1][WKV - 1] == 0);
  d->state_free(d->self, state);
}

/* counter.c: one step, then the same recorded. */
static void check_step(const duetp_device* d, const duetp_ops* ops, duetp_queue* q) {
  int32_t words[80] = {2, 1, 1, [16] = 5, 6, [32] = 0, 2, [48] = 0, [64] = 1}; /* used, tokens, starts, slots, rows */
  float emb[V * C] = {0}, logits[V];
  duetp_tensor tensor;
  duetp_layer_desc desc;
  const duetp_tensor* tensors[DUETP_T_COUNT] = {NULL};
  duetp_layer* layers[L + 1];
  duetp_state* state = NULL;
  duetp_record* record = NULL;
  duetp_frame frame;
  duetp_step step;
  memset(&tensor, 0, sizeof tensor), memset(&desc, 0, sizeof desc), memset(&frame, 0, sizeof frame), memset(&step, 0, sizeof step);
  tensor.size = sizeof tensor, tensor.id = DUETP_T_EMB, tensor.name = "emb.weight", tensor.data = emb, tensor.bytes = sizeof emb, tensor.dtype = DUET_F32;
  tensor.n_dim = 2, tensor.dim[0] = V, tensor.dim[1] = C;
  tensors[DUETP_T_EMB] = AT_THE_END(tensor);
  desc.size = sizeof desc, desc.shape = shape, desc.tensors = AT_THE_END(tensors), desc.n_tensors = DUETP_T_COUNT, desc.weights = DUET_F32;
  for (desc.index = 0; desc.index <= L; ++desc.index) EXPECT(d->layer_new(d->self, AT_THE_END(desc), &layers[desc.index]) == DUET_OK);
  EXPECT(d->state_new(d->self, shape, SLOTS, DUET_F32, &state) == DUET_OK);
  frame.size = sizeof frame, frame.n_tokens = 2, frame.n_seqs = 1, frame.n_rows = 1, frame.max_len = 2;
  EXPECT(d->buffer_new(d->self, sizeof words, &frame.used.buf) == DUET_OK);
  EXPECT(d->upload(d->self, q, frame.used, words, sizeof words) == DUET_OK);
  frame.tokens = frame.starts = frame.slots = frame.rows = frame.used;
  frame.tokens.off = 64, frame.starts.off = 128, frame.slots.off = 192, frame.rows.off = 256;
  step.size = sizeof step, step.n_layer = L, step.mode = DUET_MODE_PARALLEL;
  step.layers = (const duetp_layer* const*)AT_THE_END(layers), step.frame = AT_THE_END(frame), step.state = state;
  EXPECT(d->buffer_new(d->self, sizeof logits, &step.logits.buf) == DUET_OK);
  step.logits.dtype = DUET_F32;
  for (int run = 1; run <= 2; ++run) {
    if (run == 2) {
      EXPECT(d->record_begin(d->self, q) == DUET_OK && ops->step(d->self, q, AT_THE_END(step)) == DUET_OK);
      EXPECT(d->record_end(d->self, q, &record) == DUET_OK && d->record_run(d->self, q, record) == DUET_OK);
    } else {
      EXPECT(ops->step(d->self, q, AT_THE_END(step)) == DUET_OK);
    }
    EXPECT(d->download(d->self, q, logits, step.logits, sizeof logits) == DUET_OK && d->queue_wait(d->self, q) == DUET_OK);
    for (int v = 0; v < V; ++v) EXPECT(logits[v] == 262144.0f * 2 * (float)run + 1024 * 6 + (float)v);
  }
  d->record_free(d->self, record);
  d->buffer_free(d->self, step.logits.buf), d->buffer_free(d->self, frame.used.buf);
  d->state_free(d->self, state);
  for (int i = 0; i <= L; ++i) d->layer_free(d->self, layers[i]);
}

/* The writer's table, as far as this release knows it. */
static void read_table(void* to, size_t size, const void* from) {
  uint32_t theirs;
  memcpy(&theirs, from, sizeof theirs);
  memset(to, 0, size);
  memcpy(to, from, theirs < size ? theirs : size);
}

static void check_plugin(void) {
  const duetp_host services = {.size = sizeof services, .abi = DUETP_ABI, .alloc = host_alloc, .free = host_free, .log = host_log, .fail = host_fail, .option = host_option,
                               .team_size = host_team_size, .team = host_team, .barrier = host_barrier, .extension = host_extension};
  const duetp_host* host = AT_THE_END(services);
  const char* checked = "opens";
  void *library = dlopen(file, RTLD_NOW | RTLD_LOCAL), *self = NULL;
  if (!library) fail("%s", dlerror());
  duetp_query_fn query;
  *(void**)&query = dlsym(library, DUETP_QUERY_NAME);
  EXPECT(query != NULL && query((DUETP_MAJOR + 1) << 16, 0) == NULL);
  EXPECT(query(DUETP_ABI, 0) != NULL);
  duetp_plugin plugin;
  read_table(&plugin, sizeof plugin, query(DUETP_ABI, 0));
  EXPECT(plugin.abi >> 16 == DUETP_MAJOR && plugin.sanitizer == DUETP_SANITIZER);
  EXPECT(plugin.open(host, &self) == DUET_OK && plugin.device_count(self) > 0);
  duetp_device_info facts = {.size = sizeof facts}, *info = AT_THE_END(facts);
  EXPECT(plugin.device_info(self, 0, info) == DUET_OK && memchr(info->name, 0, sizeof info->name) != NULL);
  const duetp_device* theirs = NULL;
  EXPECT(plugin.device_open(self, 0, &theirs) == DUET_OK && theirs != NULL);
  duetp_device d;
  duetp_ops ops;
  read_table(&d, sizeof d, theirs);
  read_table(&ops, sizeof ops, theirs->ops);
  EXPECT(!d.refuses || !d.refuses(d.self, shape, DUET_F32, ops.step ? 3 : ops.layers ? 2 : 1));
  if (d.queue_new) {
    duetp_queue* q = NULL;
    EXPECT(d.queue_new(d.self, &q) == DUET_OK);
    check_memory(&d, q), checked = "memory";
    if (strcmp(plugin.id, "counter") == 0) check_step(&d, &ops, q), checked = "memory, step, recording";
    d.queue_free(d.self, q);
  } else if (ops.norm_gate) {
    check_norm_gate(d.self, &ops), checked = "norm_gate";
  }
  if (d.close) d.close(d.self);
  plugin.close(self);
  printf("%s: %s\n", plugin.id, checked);
}

int main(int argc, char** argv) {
  duetp_shape sizes = {.size = sizeof sizes, .n_layer = L, .n_embd = C, .n_head = H, .head_size = N, .n_ffn = F, .n_vocab = V, .rank_w = 8, .rank_a = 8, .rank_v = 8, .rank_g = 8,
                       .ln_eps = 1e-5f, .gn_eps = 64e-5f};
  shape = AT_THE_END(sizes);
  for (int i = 1; i < argc; ++i) file = argv[i], check_plugin();
  return argc < 2;
}
