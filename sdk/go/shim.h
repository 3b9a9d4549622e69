/* duet.h for cgo.
 *
 *  - A handle is a number, and a number it stays in Go: as a pointer, Go's collector could take it for one of its own.
 *  - Structs are filled here. Go's rules forbid it to pass a pointer to memory that holds a pointer to its own.
 *  - Goroutines change threads between calls, and duet_last_error is the thread's. So a failed call brings its sentence along.
 */
#ifndef DUET_GO_SHIM_H
#define DUET_GO_SHIM_H
#include <duet.h>
#include <stdlib.h>

typedef uint64_t duetgo; /* a handle; or one of runtime/cgo, for callbacks: 0 for none */
typedef struct duetgo_outcome {
  duet_status status;
  char* sentence; /* by malloc, NULL on success */
} duetgo_outcome;

duetgo_outcome duetgo_library_create(uint32_t n_threads, const char* plugin_path, duetgo log, int32_t log_level, const char* layers, duetgo* out);
duetgo_outcome duetgo_library_report(duetgo library, char* dst, size_t cap, size_t* out_size);
duetgo_outcome duetgo_device_count(duetgo library, uint32_t* out);
duetgo_outcome duetgo_device_get(duetgo library, uint32_t index, duet_device_info* out);
duetgo_outcome duetgo_file_info(duetgo library, const char* path, uint32_t flags, char* dst, size_t cap, size_t* out_size);
duetgo_outcome duetgo_file_convert(duetgo library, const char* in, const char* out, duet_dtype weights, uint32_t overwrite, uint32_t flags, duetgo progress);
duetgo_outcome duetgo_file_init(duetgo library, const char* out, duet_init_options options, duetgo progress);
void duetgo_library_free(duetgo library);

duetgo_outcome duetgo_model_load(duetgo library, const char* path, duet_dtype weights, const char* device, uint32_t flags, duetgo progress, duetgo* out);
duetgo_outcome duetgo_model_random(duetgo library, const char* shape, float relu2, uint64_t seed, duet_dtype weights, const char* device, uint32_t flags,
                                   duetgo progress, duetgo* out);
duetgo_outcome duetgo_model_save(duetgo model, const char* path);
duetgo_outcome duetgo_model_get(duetgo model, duet_model_info* out);
void duetgo_model_free(duetgo model);

duetgo_outcome duetgo_state_create(duetgo model, uint32_t n_slots, duet_dtype wkv, duetgo* out);
duetgo_outcome duetgo_state_reset(duetgo state, uint32_t slot);
duetgo_outcome duetgo_state_copy(duetgo dst, uint32_t dst_slot, duetgo src, uint32_t src_slot);
duetgo_outcome duetgo_state_get(duetgo state, uint32_t slot, float* att_x, float* wkv, float* ffn_x);
duetgo_outcome duetgo_state_set(duetgo state, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x);
duetgo_outcome duetgo_state_save(duetgo state, uint32_t slot, char* dst, size_t cap, size_t* out_size);
duetgo_outcome duetgo_state_load(duetgo state, uint32_t slot, const char* src, size_t size);
duetgo_outcome duetgo_state_save_file(duetgo state, uint32_t slot, const char* path);
duetgo_outcome duetgo_state_load_file(duetgo state, uint32_t slot, const char* path);
void duetgo_state_free(duetgo state);

duetgo_outcome duetgo_session_create(duetgo model, duet_mode mode, uint32_t max_tokens, duetgo* out);
duetgo_outcome duetgo_session_outputs(duetgo session, uint32_t output, const float** out_data, uint32_t* out_rows, uint32_t* out_width);
duetgo_outcome duetgo_forward(duetgo session, duetgo state, uint32_t n_seqs, const int32_t* tokens, const uint32_t* lengths, const uint32_t* slots,
                              uint32_t outputs);
duetgo_outcome duetgo_score(duetgo session, duetgo state, uint32_t slot, const int32_t* tokens, size_t n, double* out_nll);
void duetgo_session_free(duetgo session);

duetgo_outcome duetgo_tokenizer_load(duetgo library, const char* path, duetgo* out);
duetgo_outcome duetgo_tokenizer_for_model(duetgo model, duetgo* out);
duetgo_outcome duetgo_tokenizer_size(duetgo tokenizer, uint32_t* out);
duetgo_outcome duetgo_tokenizer_encode(duetgo tokenizer, const char* text, size_t n, int32_t* dst, size_t cap, size_t* out_size);
duetgo_outcome duetgo_tokenizer_decode(duetgo tokenizer, const int32_t* tokens, size_t n, char* dst, size_t cap, size_t* out_size);
void duetgo_tokenizer_free(duetgo tokenizer);

/* `values` holds neither bias nor tokenizer. */
duetgo_outcome duetgo_sampler_create(duet_sampler_options values, uint32_t n_bias, const int32_t* bias_tokens, const float* bias, duetgo tokenizer,
                                     duetgo* out);
duetgo_outcome duetgo_sampler_probs(duetgo sampler, const float* logits, uint32_t n, float* out);
duetgo_outcome duetgo_sampler_pick(duetgo sampler, const float* logits, uint32_t n, int32_t* out);
duetgo_outcome duetgo_sampler_accept(duetgo sampler, int32_t token);
duetgo_outcome duetgo_sampler_reset(duetgo sampler);
void duetgo_sampler_free(duetgo sampler);

/* What a sequence to generate has; what its numbers count stands packed, sequence after sequence. */
typedef struct duetgo_sequence {
  duetgo sampler, tokenizer, stream; /* tokenizer: 0 for none. stream: told tokens, and texts if there is a tokenizer */
  uint32_t max_tokens, n_stops, n_stop_texts;
} duetgo_sequence;
/* stop_texts: each with its NUL. */
duetgo_outcome duetgo_generate(duetgo session, duetgo state, uint32_t slot, const duetgo_sequence* sequence, const int32_t* prompt, size_t n,
                               const int32_t* stops, const char* stop_texts, const int32_t* cancel, duet_generate_result* out);
/* The same for n_seqs of them: lengths of the prompts in tokens; slots: NULL = 0, 1, 2 ...; out: [n_seqs]. */
duetgo_outcome duetgo_generate_batch(duetgo session, duetgo state, uint32_t n_seqs, const duetgo_sequence* sequences, const int32_t* tokens,
                                     const uint32_t* lengths, const uint32_t* slots, const int32_t* stops, const char* stop_texts, const int32_t* cancel,
                                     duet_generate_result* out);
#endif
