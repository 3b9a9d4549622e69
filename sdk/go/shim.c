#include "shim.h"

#include <string.h>

#include "_cgo_export.h"

#define LIBRARY(h) ((duet_library*)(uintptr_t)(h))
#define MODEL(h) ((duet_model*)(uintptr_t)(h))
#define STATE(h) ((duet_state*)(uintptr_t)(h))
#define SESSION(h) ((duet_session*)(uintptr_t)(h))
#define TOKENIZER(h) ((duet_tokenizer*)(uintptr_t)(h))
#define SAMPLER(h) ((duet_sampler*)(uintptr_t)(h))

static duetgo_outcome outcome(duet_status status) {
  duetgo_outcome o = {status, NULL};
  if (status != DUET_OK) o.sentence = strdup(duet_last_error());
  return o;
}

static void on_log(void* user, int32_t level, const char* message) { duetgoLog((uintptr_t)user, level, (char*)message); }
static duet_status on_progress(void* user, uint64_t done, uint64_t total) { return duetgoProgress((uintptr_t)user, done, total); }
static duet_status on_token(void* user, int32_t token) { return duetgoToken((uintptr_t)user, token); }
static duet_status on_text(void* user, const char* text, size_t n) { return duetgoText((uintptr_t)user, (char*)text, n); }

duetgo_outcome duetgo_library_create(uint32_t n_threads, const char* plugin_path, duetgo log, int32_t log_level, const char* layers, duetgo* out) {
  duet_library_options options = DUET_INIT(duet_library_options);
  options.n_threads = n_threads;
  options.plugin_path = plugin_path;
  options.log = log ? on_log : NULL;
  options.log_user = (void*)(uintptr_t)log;
  options.log_level = log_level;
  options.layers = layers;
  duet_library* library = NULL;
  const duetgo_outcome o = outcome(duet_library_create(&options, &library));
  *out = (uintptr_t)library;
  return o;
}
duetgo_outcome duetgo_library_report(duetgo library, char* dst, size_t cap, size_t* out_size) {
  return outcome(duet_library_report(LIBRARY(library), dst, cap, out_size));
}
duetgo_outcome duetgo_device_count(duetgo library, uint32_t* out) { return outcome(duet_device_count(LIBRARY(library), out)); }
duetgo_outcome duetgo_device_get(duetgo library, uint32_t index, duet_device_info* out) {
  *out = DUET_INIT(duet_device_info);
  return outcome(duet_device_get(LIBRARY(library), index, out));
}
duetgo_outcome duetgo_file_info(duetgo library, const char* path, uint32_t flags, char* dst, size_t cap, size_t* out_size) {
  return outcome(duet_file_info(LIBRARY(library), path, flags, dst, cap, out_size));
}
duetgo_outcome duetgo_file_convert(duetgo library, const char* in, const char* out, duet_dtype weights, uint32_t overwrite, uint32_t flags, duetgo progress) {
  duet_convert_options options = DUET_INIT(duet_convert_options);
  options.weights = weights;
  options.overwrite = overwrite;
  options.flags = flags;
  options.progress = progress ? on_progress : NULL;
  options.progress_user = (void*)(uintptr_t)progress;
  return outcome(duet_file_convert(LIBRARY(library), in, out, &options));
}
duetgo_outcome duetgo_file_init(duetgo library, const char* out, duet_init_options options, duetgo progress) {
  options.size = sizeof options;
  options.progress = progress ? on_progress : NULL;
  options.progress_user = (void*)(uintptr_t)progress;
  return outcome(duet_file_init(LIBRARY(library), out, &options));
}
void duetgo_library_free(duetgo library) { duet_library_free(LIBRARY(library)); }

static duet_model_options model_options(duet_dtype weights, const char* device, uint32_t flags, duetgo progress) {
  duet_model_options options = DUET_INIT(duet_model_options);
  options.weights = weights;
  options.device = device;
  options.flags = flags;
  options.progress = progress ? on_progress : NULL;
  options.progress_user = (void*)(uintptr_t)progress;
  return options;
}
duetgo_outcome duetgo_model_load(duetgo library, const char* path, duet_dtype weights, const char* device, uint32_t flags, duetgo progress, duetgo* out) {
  const duet_model_options options = model_options(weights, device, flags, progress);
  duet_model* model = NULL;
  const duetgo_outcome o = outcome(duet_model_load(LIBRARY(library), path, &options, &model));
  *out = (uintptr_t)model;
  return o;
}
duetgo_outcome duetgo_model_random(duetgo library, const char* shape, float relu2, uint64_t seed, duet_dtype weights, const char* device, uint32_t flags,
                                   duetgo progress, duetgo* out) {
  const duet_model_options options = model_options(weights, device, flags, progress);
  duet_random_options random = DUET_INIT(duet_random_options);
  random.shape = shape;
  random.relu2 = relu2;
  random.seed = seed;
  duet_model* model = NULL;
  const duetgo_outcome o = outcome(duet_model_random(LIBRARY(library), &random, &options, &model));
  *out = (uintptr_t)model;
  return o;
}
duetgo_outcome duetgo_model_save(duetgo model, const char* path) { return outcome(duet_model_save(MODEL(model), path)); }
duetgo_outcome duetgo_model_get(duetgo model, duet_model_info* out) {
  *out = DUET_INIT(duet_model_info);
  return outcome(duet_model_get(MODEL(model), out));
}
void duetgo_model_free(duetgo model) { duet_model_free(MODEL(model)); }

duetgo_outcome duetgo_state_create(duetgo model, uint32_t n_slots, duet_dtype wkv, duetgo* out) {
  duet_state_options options = DUET_INIT(duet_state_options);
  options.wkv = wkv;
  duet_state* state = NULL;
  const duetgo_outcome o = outcome(duet_state_create(MODEL(model), n_slots, &options, &state));
  *out = (uintptr_t)state;
  return o;
}
duetgo_outcome duetgo_state_reset(duetgo state, uint32_t slot) { return outcome(duet_state_reset(STATE(state), slot)); }
duetgo_outcome duetgo_state_copy(duetgo dst, uint32_t dst_slot, duetgo src, uint32_t src_slot) {
  return outcome(duet_state_copy(STATE(dst), dst_slot, STATE(src), src_slot));
}
duetgo_outcome duetgo_state_get(duetgo state, uint32_t slot, float* att_x, float* wkv, float* ffn_x) {
  return outcome(duet_state_get(STATE(state), slot, att_x, wkv, ffn_x));
}
duetgo_outcome duetgo_state_set(duetgo state, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x) {
  return outcome(duet_state_set(STATE(state), slot, att_x, wkv, ffn_x));
}
duetgo_outcome duetgo_state_save(duetgo state, uint32_t slot, char* dst, size_t cap, size_t* out_size) {
  return outcome(duet_state_save(STATE(state), slot, dst, cap, out_size));
}
duetgo_outcome duetgo_state_load(duetgo state, uint32_t slot, const char* src, size_t size) { return outcome(duet_state_load(STATE(state), slot, src, size)); }
duetgo_outcome duetgo_state_save_file(duetgo state, uint32_t slot, const char* path) { return outcome(duet_state_save_file(STATE(state), slot, path)); }
duetgo_outcome duetgo_state_load_file(duetgo state, uint32_t slot, const char* path) { return outcome(duet_state_load_file(STATE(state), slot, path)); }
void duetgo_state_free(duetgo state) { duet_state_free(STATE(state)); }

duetgo_outcome duetgo_session_create(duetgo model, duet_mode mode, uint32_t max_tokens, duetgo* out) {
  duet_session_options options = DUET_INIT(duet_session_options);
  options.mode = mode;
  options.max_tokens = max_tokens;
  duet_session* session = NULL;
  const duetgo_outcome o = outcome(duet_session_create(MODEL(model), &options, &session));
  *out = (uintptr_t)session;
  return o;
}
duetgo_outcome duetgo_session_outputs(duetgo session, uint32_t output, const float** out_data, uint32_t* out_rows, uint32_t* out_width) {
  return outcome(duet_session_outputs(SESSION(session), output, out_data, out_rows, out_width));
}
duetgo_outcome duetgo_forward(duetgo session, duetgo state, uint32_t n_seqs, const int32_t* tokens, const uint32_t* lengths, const uint32_t* slots,
                              uint32_t outputs) {
  duet_batch batch = DUET_INIT(duet_batch);
  batch.n_seqs = n_seqs;
  batch.tokens = tokens;
  batch.lengths = lengths;
  batch.slots = slots;
  batch.outputs = outputs;
  return outcome(duet_forward(SESSION(session), STATE(state), &batch));
}
duetgo_outcome duetgo_score(duetgo session, duetgo state, uint32_t slot, const int32_t* tokens, size_t n, double* out_nll) {
  return outcome(duet_score(SESSION(session), STATE(state), slot, tokens, n, out_nll));
}
void duetgo_session_free(duetgo session) { duet_session_free(SESSION(session)); }

duetgo_outcome duetgo_tokenizer_load(duetgo library, const char* path, duetgo* out) {
  duet_tokenizer* tokenizer = NULL;
  const duetgo_outcome o = outcome(duet_tokenizer_load(LIBRARY(library), path, &tokenizer));
  *out = (uintptr_t)tokenizer;
  return o;
}
duetgo_outcome duetgo_tokenizer_for_model(duetgo model, duetgo* out) {
  duet_tokenizer* tokenizer = NULL;
  const duetgo_outcome o = outcome(duet_tokenizer_for_model(MODEL(model), &tokenizer));
  *out = (uintptr_t)tokenizer;
  return o;
}
duetgo_outcome duetgo_tokenizer_size(duetgo tokenizer, uint32_t* out) { return outcome(duet_tokenizer_size(TOKENIZER(tokenizer), out)); }
duetgo_outcome duetgo_tokenizer_encode(duetgo tokenizer, const char* text, size_t n, int32_t* dst, size_t cap, size_t* out_size) {
  return outcome(duet_tokenizer_encode(TOKENIZER(tokenizer), text, n, dst, cap, out_size));
}
duetgo_outcome duetgo_tokenizer_decode(duetgo tokenizer, const int32_t* tokens, size_t n, char* dst, size_t cap, size_t* out_size) {
  return outcome(duet_tokenizer_decode(TOKENIZER(tokenizer), tokens, n, dst, cap, out_size));
}
void duetgo_tokenizer_free(duetgo tokenizer) { duet_tokenizer_free(TOKENIZER(tokenizer)); }

duetgo_outcome duetgo_sampler_create(duet_sampler_options values, uint32_t n_bias, const int32_t* bias_tokens, const float* bias, duetgo tokenizer,
                                     duetgo* out) {
  values.size = sizeof values;
  values.n_bias = n_bias;
  values.bias_tokens = bias_tokens;
  values.bias = bias;
  values.tokenizer = TOKENIZER(tokenizer);
  duet_sampler* sampler = NULL;
  const duetgo_outcome o = outcome(duet_sampler_create(&values, &sampler));
  *out = (uintptr_t)sampler;
  return o;
}
duetgo_outcome duetgo_sampler_probs(duetgo sampler, const float* logits, uint32_t n, float* out) {
  return outcome(duet_sampler_probs(SAMPLER(sampler), logits, n, out));
}
duetgo_outcome duetgo_sampler_pick(duetgo sampler, const float* logits, uint32_t n, int32_t* out) {
  return outcome(duet_sampler_pick(SAMPLER(sampler), logits, n, out));
}
duetgo_outcome duetgo_sampler_accept(duetgo sampler, int32_t token) { return outcome(duet_sampler_accept(SAMPLER(sampler), token)); }
duetgo_outcome duetgo_sampler_reset(duetgo sampler) { return outcome(duet_sampler_reset(SAMPLER(sampler))); }
void duetgo_sampler_free(duetgo sampler) { duet_sampler_free(SAMPLER(sampler)); }

static duet_generate_options generate_options(const duetgo_sequence* sequence, const int32_t* stops, const char* const* stop_texts, const int32_t* cancel) {
  duet_generate_options options = DUET_INIT(duet_generate_options);
  options.max_tokens = sequence->max_tokens;
  options.tokenizer = TOKENIZER(sequence->tokenizer);
  options.stops = stops;
  options.n_stops = sequence->n_stops;
  options.stop_texts = stop_texts;
  options.n_stop_texts = sequence->n_stop_texts;
  options.on_token = on_token;
  options.on_text = sequence->tokenizer ? on_text : NULL;
  options.user = (void*)(uintptr_t)sequence->stream;
  options.cancel = cancel;
  return options;
}
/* By malloc; NULL if there is no memory. */
static const char** unpacked(const char* texts, size_t n) {
  const char** out = malloc((n + 1) * sizeof *out);
  for (size_t i = 0; out != NULL && i < n; i++) {
    out[i] = texts;
    texts += strlen(texts) + 1;
  }
  return out;
}
duetgo_outcome duetgo_generate(duetgo session, duetgo state, uint32_t slot, const duetgo_sequence* sequence, const int32_t* prompt, size_t n,
                               const int32_t* stops, const char* stop_texts, const int32_t* cancel, duet_generate_result* out) {
  const char** texts = unpacked(stop_texts, sequence->n_stop_texts);
  if (texts == NULL) return (duetgo_outcome){DUET_E_MEMORY, strdup("no memory for the stop texts")};
  const duet_generate_options options = generate_options(sequence, stops, texts, cancel);
  *out = DUET_INIT(duet_generate_result);
  const duetgo_outcome o = outcome(duet_generate(SESSION(session), STATE(state), slot, SAMPLER(sequence->sampler), prompt, n, &options, out));
  free(texts);
  return o;
}
duetgo_outcome duetgo_generate_batch(duetgo session, duetgo state, uint32_t n_seqs, const duetgo_sequence* sequences, const int32_t* tokens,
                                     const uint32_t* lengths, const uint32_t* slots, const int32_t* stops, const char* stop_texts, const int32_t* cancel,
                                     duet_generate_result* out) {
  size_t n_stop_texts = 0;
  for (uint32_t i = 0; i < n_seqs; i++) n_stop_texts += sequences[i].n_stop_texts;
  const char** texts = unpacked(stop_texts, n_stop_texts);
  duet_generate_options* options = malloc((n_seqs + (size_t)1) * sizeof *options);
  const duet_generate_options** options_of = malloc((n_seqs + (size_t)1) * sizeof *options_of);
  duet_sampler** samplers = malloc((n_seqs + (size_t)1) * sizeof *samplers);
  duet_generate_result** results = malloc((n_seqs + (size_t)1) * sizeof *results);
  duetgo_outcome o = {DUET_E_MEMORY, NULL};
  if (texts != NULL && options != NULL && options_of != NULL && samplers != NULL && results != NULL) {
    const char* const* next_text = texts;
    for (uint32_t i = 0; i < n_seqs; i++) {
      options[i] = generate_options(&sequences[i], stops, next_text, cancel);
      stops += sequences[i].n_stops;
      next_text += sequences[i].n_stop_texts;
      options_of[i] = &options[i];
      samplers[i] = SAMPLER(sequences[i].sampler);
      out[i] = DUET_INIT(duet_generate_result);
      results[i] = &out[i];
    }
    duet_prompts prompts = DUET_INIT(duet_prompts);
    prompts.n_seqs = n_seqs;
    prompts.tokens = tokens;
    prompts.lengths = lengths;
    prompts.slots = slots;
    prompts.samplers = samplers;
    prompts.options = options_of;
    o = outcome(duet_generate_batch(SESSION(session), STATE(state), &prompts, results));
  } else {
    o.sentence = strdup("no memory for the options of the sequences");
  }
  free(results);
  free(samplers);
  free(options_of);
  free(options);
  free(texts);
  return o;
}
