/* The numbers of duet.h that a binding has to repeat, one a line: "type size", "type.field offset size", "constant value". */
#include <duet.h>
#include <stdio.h>

#define T(type) printf(#type " %zu\n", sizeof(type));
#define F(type, field) printf(#type "." #field " %zu %zu\n", offsetof(type, field), sizeof(((type*)0)->field));
#define C(name) printf(#name " %lld\n", (long long)(name));

int main(void) {
  T(duet_library_options) F(duet_library_options, size) F(duet_library_options, n_threads) F(duet_library_options, plugin_path)
  F(duet_library_options, log) F(duet_library_options, log_user) F(duet_library_options, log_level) F(duet_library_options, reserved) F(duet_library_options, layers)
  T(duet_device_info) F(duet_device_info, size) F(duet_device_info, kind) F(duet_device_info, spec) F(duet_device_info, name)
  F(duet_device_info, plugin) F(duet_device_info, mem_total) F(duet_device_info, mem_free) F(duet_device_info, bytes_per_s)
  T(duet_convert_options) F(duet_convert_options, size) F(duet_convert_options, weights) F(duet_convert_options, overwrite)
  F(duet_convert_options, flags) F(duet_convert_options, progress) F(duet_convert_options, progress_user)
  T(duet_init_options) F(duet_init_options, size) F(duet_init_options, n_layer) F(duet_init_options, n_embd) F(duet_init_options, n_vocab)
  F(duet_init_options, head_size) F(duet_init_options, weights) F(duet_init_options, overwrite) F(duet_init_options, reserved)
  F(duet_init_options, seed) F(duet_init_options, progress) F(duet_init_options, progress_user)
  T(duet_model_options) F(duet_model_options, size) F(duet_model_options, weights) F(duet_model_options, device) F(duet_model_options, flags)
  F(duet_model_options, trainable) F(duet_model_options, progress) F(duet_model_options, progress_user)
  T(duet_model_info) F(duet_model_info, size) F(duet_model_info, n_layer) F(duet_model_info, n_embd) F(duet_model_info, n_head)
  F(duet_model_info, head_size) F(duet_model_info, n_ffn) F(duet_model_info, n_vocab) F(duet_model_info, rank_w) F(duet_model_info, rank_a)
  F(duet_model_info, rank_v) F(duet_model_info, rank_g) F(duet_model_info, weights) F(duet_model_info, n_params) F(duet_model_info, weight_bytes)
  F(duet_model_info, bytes_per_token) F(duet_model_info, state_bytes) F(duet_model_info, device)
  T(duet_random_options) F(duet_random_options, size) F(duet_random_options, shape) F(duet_random_options, relu2) F(duet_random_options, reserved)
  F(duet_random_options, seed)
  T(duet_state_options) F(duet_state_options, size) F(duet_state_options, wkv)
  T(duet_session_options) F(duet_session_options, size) F(duet_session_options, mode) F(duet_session_options, max_tokens)
  F(duet_session_options, reserved)
  T(duet_batch) F(duet_batch, size) F(duet_batch, n_seqs) F(duet_batch, tokens) F(duet_batch, lengths) F(duet_batch, slots) F(duet_batch, outputs)
  F(duet_batch, reserved)
  T(duet_sampler_options) F(duet_sampler_options, size) F(duet_sampler_options, top_k) F(duet_sampler_options, temperature)
  F(duet_sampler_options, top_p) F(duet_sampler_options, min_p) F(duet_sampler_options, presence) F(duet_sampler_options, frequency)
  F(duet_sampler_options, decay) F(duet_sampler_options, seed) F(duet_sampler_options, sequence) F(duet_sampler_options, n_bias)
  F(duet_sampler_options, reserved) F(duet_sampler_options, bias_tokens) F(duet_sampler_options, bias) F(duet_sampler_options, tokenizer)
  T(duet_generate_options) F(duet_generate_options, size) F(duet_generate_options, max_tokens) F(duet_generate_options, tokenizer)
  F(duet_generate_options, stops) F(duet_generate_options, stop_texts) F(duet_generate_options, n_stops) F(duet_generate_options, n_stop_texts)
  F(duet_generate_options, on_token) F(duet_generate_options, on_text) F(duet_generate_options, user) F(duet_generate_options, cancel)
  T(duet_generate_result) F(duet_generate_result, size) F(duet_generate_result, finish) F(duet_generate_result, n_prompt)
  F(duet_generate_result, n_new) F(duet_generate_result, prompt_s) F(duet_generate_result, new_s) F(duet_generate_result, status)
  F(duet_generate_result, reserved)
  T(duet_prompts) F(duet_prompts, size) F(duet_prompts, n_seqs) F(duet_prompts, tokens) F(duet_prompts, lengths) F(duet_prompts, slots)
  F(duet_prompts, samplers) F(duet_prompts, options)
  C(DUET_FILE_STRICT) C(DUET_FILE_VERIFY) C(DUET_OUT_LAST_LOGITS) C(DUET_OUT_ALL_LOGITS) C(DUET_OUT_NO_LOGITS) C(DUET_OUT_V_FIRST) C(DUET_OUT_HIDDEN)
  C(DUET_OUTPUT_LOGITS) C(DUET_OUTPUT_HIDDEN) C(DUET_OUTPUT_V_FIRST) C(DUET_FINISH_LENGTH) C(DUET_FINISH_STOP_TOKEN) C(DUET_FINISH_STOP_TEXT)
  C(DUET_FINISH_CALLBACK) C(DUET_OK) C(DUET_E_INVALID) C(DUET_E_NOT_FOUND) C(DUET_E_UNSUPPORTED) C(DUET_E_MEMORY) C(DUET_E_FORMAT) C(DUET_E_ABI)
  C(DUET_E_DEVICE) C(DUET_E_SMALL) C(DUET_E_CANCELLED) C(DUET_E_IO) C(DUET_E_BUSY) C(DUET_E_HANDLE) C(DUET_E_LIMIT) C(DUET_E_NUMERIC)
  C(DUET_E_EXISTS) C(DUET_E_INTERNAL) C(DUET_F32) C(DUET_F16) C(DUET_BF16) C(DUET_I8) C(DUET_I4) C(DUET_FP8_E4M3) C(DUET_MODE_AUTO)
  C(DUET_MODE_RECURRENT) C(DUET_MODE_PARALLEL) C(DUET_LOG_DEBUG) C(DUET_LOG_INFO) C(DUET_LOG_WARNING) C(DUET_LOG_ERROR) C(DUET_LOG_OFF)
  C(DUET_API_VERSION)
  T(duet_status)
  T(duet_dtype)
  T(duet_mode)
  return 0;
}
