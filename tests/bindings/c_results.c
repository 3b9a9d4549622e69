/* What the C interface gives, for the tests of the bindings to compare with: MODEL DEVICE FOLDER. Writes into the folder
 * logits (f32, all rows of a prompt in parallel mode), hidden, v_first, nll (f64), state (safetensors), probs, and text. */
#include <duet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char* folder;

static void fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, duet_last_error());
  exit(1);
}
#define TRY(call) ((call) == DUET_OK ? (void)0 : fail(#call))

static FILE* open_output(const char* name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", folder, name);
  FILE* f = fopen(path, "wb");
  if (f == NULL) fail(path);
  return f;
}
static void put(const char* name, const void* data, size_t size) {
  FILE* f = open_output(name);
  if (fwrite(data, 1, size, f) != size || fclose(f) != 0) fail(name);
}
static void put_output(duet_session* session, uint32_t output, const char* name) {
  const float* data = NULL;
  uint32_t rows = 0, width = 0;
  TRY(duet_session_outputs(session, output, &data, &rows, &width));
  put(name, data, (size_t)rows * width * sizeof(float));
}
static duet_status write_text(void* file, const char* text, size_t n) { return fwrite(text, 1, n, file) == n ? DUET_OK : DUET_E_IO; }

int main(int argc, char** argv) {
  static const char text[] = "Once upon a time there was a little fox who lived in the wood.";
  static const char* const stops[] = {"nothing says this"};
  int32_t tokens[sizeof text] = {0};
  uint32_t length = 0;
  size_t n = 0;
  double nll[sizeof text];
  duet_library* library = NULL;
  duet_model* model = NULL;
  duet_tokenizer* tokenizer = NULL;
  duet_state* state = NULL;
  duet_session *parallel = NULL, *recurrent = NULL;
  duet_sampler* sampler = NULL;
  if (argc != 4) return 2;
  folder = argv[3];

  duet_library_options library_options = DUET_INIT(duet_library_options);
  library_options.n_threads = 1;
  duet_model_options model_options = DUET_INIT(duet_model_options);
  model_options.device = argv[2];
  duet_session_options session_options = DUET_INIT(duet_session_options);
  session_options.mode = DUET_MODE_PARALLEL;
  TRY(duet_library_create(&library_options, &library));
  TRY(duet_model_load(library, argv[1], &model_options, &model));
  TRY(duet_tokenizer_for_model(model, &tokenizer));
  TRY(duet_state_create(model, 3, NULL, &state));
  TRY(duet_session_create(model, &session_options, &parallel));
  session_options.mode = DUET_MODE_RECURRENT;
  TRY(duet_session_create(model, &session_options, &recurrent));
  TRY(duet_tokenizer_encode(tokenizer, text, sizeof text - 1, tokens + 1, sizeof text - 1, &n));
  length = (uint32_t)n + 1;

  duet_batch batch = DUET_INIT(duet_batch);
  batch.n_seqs = 1;
  batch.tokens = tokens;
  batch.lengths = &length;
  batch.outputs = DUET_OUT_ALL_LOGITS | DUET_OUT_HIDDEN | DUET_OUT_V_FIRST;
  TRY(duet_forward(parallel, state, &batch));
  put_output(parallel, DUET_OUTPUT_LOGITS, "logits");
  put_output(parallel, DUET_OUTPUT_HIDDEN, "hidden");
  put_output(parallel, DUET_OUTPUT_V_FIRST, "v_first");
  TRY(duet_score(recurrent, state, 1, tokens, length, nll));
  put("nll", nll, (length - 1) * sizeof *nll);
  TRY(duet_state_save(state, 1, NULL, 0, &n));
  void* saved = malloc(n);
  TRY(duet_state_save(state, 1, saved, n, &n));
  put("state", saved, n);
  free(saved);

  duet_sampler_options sampler_options = DUET_INIT(duet_sampler_options);
  TRY(duet_sampler_options_default(&sampler_options));
  sampler_options.temperature = 0.8f;
  sampler_options.top_p = 0.7f;
  sampler_options.presence = 0.25f;
  sampler_options.seed = 7;
  sampler_options.tokenizer = tokenizer;
  TRY(duet_sampler_create(&sampler_options, &sampler));
  const float* row = NULL;
  duet_model_info info = DUET_INIT(duet_model_info);
  TRY(duet_model_get(model, &info));
  float* probs = malloc(info.n_vocab * sizeof *probs);
  TRY(duet_session_output(parallel, DUET_OUTPUT_LOGITS, length - 1, &row));
  TRY(duet_sampler_probs(sampler, row, info.n_vocab, probs));
  put("probs", probs, info.n_vocab * sizeof *probs);
  free(probs);

  FILE* story = open_output("text");
  duet_generate_options options = DUET_INIT(duet_generate_options);
  options.max_tokens = 50;
  options.tokenizer = tokenizer;
  options.stop_texts = stops;
  options.n_stop_texts = 1;
  options.on_text = write_text;
  options.user = story;
  TRY(duet_generate(parallel, state, 2, sampler, tokens, length, &options, NULL));
  if (fclose(story) != 0) fail("text");

  duet_sampler_free(sampler);
  duet_session_free(recurrent);
  duet_session_free(parallel);
  duet_state_free(state);
  duet_tokenizer_free(tokenizer);
  duet_model_free(model);
  duet_library_free(library);
  return 0;
}
