/* program MODEL MINIMAL COUNTER: a user's program, compiled against the headers of a release, on the library of today. It hands
 * over each struct of that release once, and runs the model (golden tiny, no tokenizer) on the two plugins as well. */
#include <duet.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { N_TOKENS = 9 };
static const int32_t tokens[N_TOKENS] = {0, 9, 8, 7, 6, 5, 4, 200, 255};

static void fail(const char* what, int line) {
  fprintf(stderr, "line %d: not so: %s (the last error was: %s)\n", line, what, duet_last_error());
  exit(1);
}
#define EXPECT(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))
#define TRY(call) EXPECT((call) == DUET_OK)

static int32_t n_log, n_progress;
static void on_log(void* user, int32_t level, const char* message) { (void)level, (void)message, ++*(int32_t*)user; }
static duet_status on_progress(void* user, uint64_t done, uint64_t total) { return ++*(int32_t*)user, done <= total ? DUET_OK : DUET_E_INTERNAL; }
static duet_status on_token(void* user, int32_t token) { return *(int32_t*)user = token, DUET_OK; }

/* All logits of the tokens: the caller frees them. */
static float* logits_of(duet_library* library, const char* path, const char* device, duet_mode mode, uint32_t* out_width) {
  duet_model_options model_options = DUET_INIT(duet_model_options);
  duet_state_options state_options = DUET_INIT(duet_state_options);
  duet_session_options session_options = DUET_INIT(duet_session_options);
  duet_batch batch = DUET_INIT(duet_batch);
  const uint32_t length = N_TOKENS, slot = 1;
  const float* data = NULL;
  uint32_t rows = 0;
  duet_model* model = NULL;
  duet_state* state = NULL;
  duet_session* session = NULL;
  model_options.device = device;
  model_options.weights = DUET_F32;
  model_options.progress = on_progress;
  model_options.progress_user = &n_progress;
  state_options.wkv = DUET_F32;
  session_options.mode = mode;
  batch.n_seqs = 1;
  batch.tokens = tokens;
  batch.lengths = &length;
  batch.slots = &slot;
  batch.outputs = DUET_OUT_ALL_LOGITS;
  TRY(duet_model_load(library, path, &model_options, &model));
  TRY(duet_state_create(model, 2, &state_options, &state));
  TRY(duet_session_create(model, &session_options, &session));
  TRY(duet_forward(session, state, &batch));
  TRY(duet_session_outputs(session, DUET_OUTPUT_LOGITS, &data, &rows, out_width));
  EXPECT(rows == N_TOKENS);
  float* copy = malloc((size_t)rows * *out_width * sizeof *copy);
  memcpy(copy, data, (size_t)rows * *out_width * sizeof *copy);
  duet_session_free(session);
  duet_state_free(state);
  duet_model_free(model);
  return copy;
}

static void check_device(duet_library* library, const char* path, const char* device) {
  for (duet_mode mode = DUET_MODE_RECURRENT; mode <= DUET_MODE_PARALLEL; ++mode) {
    uint32_t n = 0, m = 0;
    float *ours = logits_of(library, path, device, mode, &n), *theirs = logits_of(library, path, "reference", mode, &m);
    EXPECT(n == m);
    for (uint32_t i = 0; i < N_TOKENS * n; ++i) {
      if (strcmp(device, "counter") == 0) EXPECT(ours[i] == 262144.0f * (float)(i / n + 1) + 1024 * (float)tokens[i / n] + (float)(i % n));
      else EXPECT(fabsf(ours[i] - theirs[i]) < 1e-4f);
    }
    free(ours);
    free(theirs);
  }
}

static void check_files(duet_library* library) {
  duet_init_options init = DUET_INIT(duet_init_options);
  duet_convert_options convert = DUET_INIT(duet_convert_options);
  char text[1 << 14];
  size_t n = 0;
  init.n_layer = 1, init.n_embd = 64, init.n_vocab = 256, init.overwrite = 1;
  convert.weights = DUET_BF16, convert.overwrite = 1, convert.progress = on_progress, convert.progress_user = &n_progress;
  TRY(duet_file_init(library, "abi-init.safetensors", &init));
  TRY(duet_file_convert(library, "abi-init.safetensors", "abi-convert.safetensors", &convert));
  TRY(duet_file_info(library, "abi-convert.safetensors", DUET_FILE_VERIFY, text, sizeof text, &n));
  remove("abi-init.safetensors");
  remove("abi-convert.safetensors");
}

static void check_generation(duet_library* library, const char* path) {
  static const int32_t bias_tokens[1] = {3}, stops[1] = {-1};
  static const float bias[1] = {-1};
  volatile int32_t cancel = 0;
  int32_t last = -1;
  duet_sampler_options sampler_options = DUET_INIT(duet_sampler_options);
  duet_generate_options options = DUET_INIT(duet_generate_options);
  duet_generate_result result = DUET_INIT(duet_generate_result);
  duet_model_info info = DUET_INIT(duet_model_info);
  duet_model* model = NULL;
  duet_state* state = NULL;
  duet_session* session = NULL;
  duet_sampler* sampler = NULL;
  TRY(duet_sampler_options_default(&sampler_options));
  EXPECT(sampler_options.size == sizeof sampler_options && sampler_options.temperature == 1 && sampler_options.bias == NULL);
  sampler_options.seed = 5, sampler_options.n_bias = 1, sampler_options.bias_tokens = bias_tokens, sampler_options.bias = bias;
  TRY(duet_sampler_create(&sampler_options, &sampler));
  TRY(duet_model_load(library, path, NULL, &model));
  TRY(duet_model_get(model, &info));
  EXPECT(info.size == sizeof info && info.n_vocab == 256 && info.state_bytes == 4 * (uint64_t)info.n_layer * info.n_embd * (2 + info.head_size));
  TRY(duet_state_create(model, 1, NULL, &state));
  TRY(duet_session_create(model, NULL, &session));
  options.max_tokens = 4, options.stops = stops, options.n_stops = 1, options.on_token = on_token, options.user = &last, options.cancel = &cancel;
  TRY(duet_generate(session, state, 0, sampler, tokens, N_TOKENS, &options, &result));
  EXPECT(result.finish == DUET_FINISH_LENGTH && result.n_prompt == N_TOKENS && result.n_new == 4 && last >= 0);
  duet_library_free(library); /* first: the rest lives on */
  duet_sampler_free(sampler);
  duet_session_free(session);
  duet_state_free(state);
  duet_model_free(model);
}

int main(int argc, char** argv) {
  char plugins[8192], report[1 << 14];
  size_t n = 0;
  uint32_t n_devices = 0;
  duet_library* library = NULL;
  duet_library_options options = DUET_INIT(duet_library_options);
  duet_device_info device = DUET_INIT(duet_device_info);
  if (argc != 4) return 2;
  EXPECT(duet_api_version() >> 16 == DUET_API_VERSION >> 16 && duet_api_version() >= DUET_API_VERSION);
  snprintf(plugins, sizeof plugins, "%s:%s", argv[2], argv[3]);
  options.n_threads = 2, options.plugin_path = plugins, options.log = on_log, options.log_user = &n_log, options.log_level = DUET_LOG_DEBUG;
  TRY(duet_library_create(&options, &library));
  TRY(duet_library_report(library, report, sizeof report, &n));
  puts(report);
  TRY(duet_device_count(library, &n_devices));
  EXPECT(n_devices == 3);
  TRY(duet_device_get(library, 0, &device));
  EXPECT(device.size == sizeof device && strchr(device.spec, ':') != NULL);
  check_device(library, argv[1], "minimal");
  check_device(library, argv[1], "counter");
  check_files(library);
  EXPECT(n_log > 0 && n_progress > 0);
  check_generation(library, argv[1]);
  puts("all as the release promised");
  return 0;
}
