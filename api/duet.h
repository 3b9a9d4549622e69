/* duet.h - RWKV-7 in two modes: the user C API. C99 and C++20.
 *
 * Contents: 1 library  2 device  3 files  4 model  5 state  6 session (the two modes)  7 tokenizer  8 sampler  9 generation
 *
 * Rules that hold for every function, so that they are not repeated below
 *  - Returns duet_status; out parameters come last, are named out_*, and are untouched on failure.
 *  - After a failure duet_last_error gives a sentence for this thread that names the thing, the limit and the way out.
 *  - Any function may fail with DUET_E_INVALID (an argument is NULL or out of range), _HANDLE, _BUSY, _ABI (a struct),
 *    _MEMORY, _DEVICE (a fault, or a process that was forked) and _INTERNAL; "Errors:" names those to expect besides.
 *  - *_free accepts NULL and cannot fail. Objects are freed in any order: children keep their parents alive.
 *    Handles are checked: a freed, foreign or forged one gives DUET_E_HANDLE, never a crash.
 *  - Option structs begin with `size`; initialise them with DUET_INIT(type). NULL options mean defaults, and a zero field
 *    means its default, except in sampler options: duet_sampler_options_default fills them and every value is literal.
 *    A `size` of 0, below the first version's, or above ours with a non-zero tail gives DUET_E_ABI. `reserved` must be 0.
 *  - What a pointer argument or field points to is read during the call only, and never freed: the caller's stays the caller's.
 *  - Callbacks run on the calling thread, get the `user` pointer that was given with them, and let no exception out.
 *  - Text is UTF-8; file names are the system's bytes. Borrowed pointers live as long as the object they came from,
 *    unless the function says otherwise.
 *  - Sizes out: pass dst = NULL, cap = 0 to learn the size; a buffer that is too small gives DUET_E_SMALL, and the size is
 *    written all the same. Text is not NUL-terminated unless cap leaves room for a final NUL beyond *out_size.
 *  - Threads: library, model and tokenizer may be used from any thread at once [any-thread]. State, session and sampler:
 *    any thread, one at a time; a second caller, or a call from inside the object's own callback, gets DUET_E_BUSY.
 *  - Shapes are row-major, last index fastest: V vocabulary, C width, L layers, H heads of N channels, T tokens.
 *  - All is there since version 1.0 of this interface, unless a comment gives another.
 */
#ifndef DUET_H
#define DUET_H
#include "duet_types.h"
#ifdef __cplusplus
extern "C" {
#endif
/* Marks the functions that the library exports. */
#if defined(_WIN32)
#define DUET_API __declspec(dllimport)
#else
#define DUET_API __attribute__((visibility("default")))
#endif
/* A struct of type T with its size set and all else zero. */
#ifdef __cplusplus
#define DUET_INIT(T) ([] { T o{}; o.size = (uint32_t)sizeof(T); return o; }())
#else
#define DUET_INIT(T) ((T){.size = (uint32_t)sizeof(T)})
#endif

#define DUET_API_VERSION 0x00010003u /* the header you compiled against: major << 16 | minor */
DUET_API uint32_t duet_api_version(void);             /* the library you run against */
DUET_API const char* duet_version_string(void);       /* "0.1.0 (gcc 12.2.0, x86_64)", for bug reports; never NULL */
DUET_API const char* duet_status_name(duet_status s); /* "DUET_E_ABI"; "DUET_E_UNKNOWN" for others; never NULL */
/* The sentence of this thread's last failure; "" if none. At most 1 KiB. Valid until this thread's next duet call. */
DUET_API const char* duet_last_error(void);

/* ---- 1. library --------------------------------------------------------------------------------------------
 * Finds plugins, owns the thread team and the log. No globals: make as many as you like. */
typedef struct duet_library duet_library;
/* Gets a message and its level, DUET_LOG_*. The one callback for any thread; it must not call Duet. */
typedef void (*duet_log_fn)(void* user, int32_t level, const char* message);
/* Options of duet_library_create. */
typedef struct duet_library_options {
  uint32_t size;
  uint32_t n_threads;      /* 0 = the physical cores of the process's affinity mask; at most 256 */
  const char* plugin_path; /* ':'-separated plugin files, manifests or folders, absolute; replaces the default search */
  duet_log_fn log;         /* NULL: standard error through spdlog. Used as long as anything made from the library lives */
  void* log_user;          /* given to `log` */
  int32_t log_level;       /* DUET_LOG_*; 0 = warnings and errors */
  uint32_t reserved;
  const char* layers;      /* ','-separated interposing layers (docs/layers.md) around the devices of models, the first nearest
                              to the program; NULL = DUET_LAYERS, else none. An unknown one fails duet_model_load. Since 1.2 */
} duet_library_options;
/* Starts the threads; looks for no plugin yet. Errors: DUET_E_LIMIT, more threads than allowed or than the system gives. */
DUET_API duet_status duet_library_create(const duet_library_options* options, duet_library** out_library);
/* What was made from it works on; threads and devices go with the last of it. */
DUET_API void duet_library_free(duet_library* library);
/* Every plugin that was considered, in order, with the sentence for why it was or was not taken, as JSON:
 * {"plugins":[{"id","path","taken","layer","reason","version","abi","devices":[{"spec","name"}]}]}. Opens all plugins,
 * once for a library. A plugin that fails is no error here. Errors: DUET_E_SMALL. */
DUET_API duet_status duet_library_report(duet_library* library, char* dst, size_t cap, size_t* out_size);

/* ---- 2. device ---------------------------------------------------------------------------------------------
 * What a plugin says of one of its devices. */
typedef struct duet_device_info {
  uint32_t size;
  uint32_t kind;              /* 0 cpu, 1 integrated gpu, 2 gpu, 3 other */
  const char *spec, *name, *plugin; /* "cpu:0" as duet_model_options takes it, "AMD EPYC", path or "built in"; live as long as the library */
  uint64_t mem_total, mem_free, bytes_per_s; /* bytes, and bytes read a second, when the plugin was opened; 0 = unknown */
} duet_device_info;
DUET_API duet_status duet_device_count(duet_library* library, uint32_t* out_count); /* devices are ranked, best first; opens all plugins */
DUET_API duet_status duet_device_get(duet_library* library, uint32_t index, duet_device_info* out_info); /* out_info->size is set by the caller */

/* ---- 3. files ----------------------------------------------------------------------------------------------
 * A model is an official .pth, a .safetensors with official names, or a folder (or config.json) in the Hugging Face / fla
 * form. Recognised by content, never by name. Nothing in a file is ever executed.
 * Errors of reading: DUET_E_NOT_FOUND, _IO (the system refused), _FORMAT (with the byte or tensor), _UNSUPPORTED (another
 * format or architecture), _LIMIT (docs/security.md), _NUMERIC (weights not finite, with DUET_FILE_STRICT); of writing:
 * _NOT_FOUND (the folder), _IO, _EXISTS. */
typedef duet_status (*duet_progress_fn)(void* user, uint64_t done, uint64_t total); /* non-zero stops with that code */
/* How strictly a file is read; bits to be or-ed. */
enum {
  DUET_FILE_STRICT = 1, /* warnings (unknown tensors, non-finite weights) are errors */
  DUET_FILE_VERIFY = 2  /* read every byte: a disk that cannot, checksums of .pth entries, finite weights */
};
/* What the file holds, as JSON: format, shape, dtypes, parameters, state size, metadata, tensors. `flags` are DUET_FILE_*.
 * Errors: those of reading, DUET_E_SMALL. */
DUET_API duet_status duet_file_info(duet_library* library, const char* path, uint32_t flags, char* dst, size_t cap, size_t* out_size);
/* Options of duet_file_convert. */
typedef struct duet_convert_options {
  uint32_t size;
  duet_dtype weights; /* dtype of the matrices, DUET_I8 (q8) and DUET_I4 (q4) included; 0 = as stored. Vectors keep their dtype */
  uint32_t overwrite; /* 0: an existing output is DUET_E_EXISTS */
  uint32_t flags;     /* DUET_FILE_* */
  duet_progress_fn progress; /* bytes */
  void* progress_user;       /* given to `progress` */
} duet_convert_options;
/* Writes `out` as safetensors with official names; the file appears whole or not at all. Errors: those of reading and of
 * writing, DUET_E_UNSUPPORTED (the dtype), what `progress` returned. */
DUET_API duet_status duet_file_convert(duet_library* library, const char* in, const char* out, const duet_convert_options* options);
/* Options of duet_file_init. */
typedef struct duet_init_options {
  uint32_t size;
  uint32_t n_layer, n_embd, n_vocab; /* L, C, V; required */
  uint32_t head_size;                /* 0 = 64; must divide n_embd */
  duet_dtype weights;                /* f32, f16 or bf16; 0 = f32 */
  uint32_t overwrite, reserved;      /* 0: an existing output is DUET_E_EXISTS */
  uint64_t seed;                     /* the same seed gives the same file */
  duet_progress_fn progress; /* bytes; since 1.1 */
  void* progress_user;       /* given to `progress`; since 1.1 */
} duet_init_options;
/* Writes a fresh model with the official initialisation and the current trainer's ranks (docs/mathematics.md). Errors: those
 * of writing, DUET_E_UNSUPPORTED (the dtype), _LIMIT (a size), what `progress` returned. */
DUET_API duet_status duet_file_init(duet_library* library, const char* out, const duet_init_options* options);

/* ---- 4. model ------------------------------------------------------------------------------------------------
 * Immutable weights on one device. */
typedef struct duet_model duet_model;
/* Options of duet_model_load and duet_model_random. */
typedef struct duet_model_options {
  uint32_t size;
  duet_dtype weights;      /* dtype of the matrices on the device; 0 = as stored. f32 means f32, never less */
  const char* device;      /* "cpu", "cuda:1"; NULL = DUET_BACKEND, else the best device that can run the model */
  uint32_t flags;          /* DUET_FILE_* */
  uint32_t trainable;      /* reserved, 0 */
  duet_progress_fn progress; /* bytes */
  void* progress_user;       /* given to `progress` */
} duet_model_options;
/* What duet_model_get tells of a model. */
typedef struct duet_model_info {
  uint32_t size;
  uint32_t n_layer, n_embd, n_head, head_size, n_ffn, n_vocab; /* L, C, H, N, F (width of the channel mix), V */
  uint32_t rank_w, rank_a, rank_v, rank_g;                     /* of the low-rank pairs; rank_v is 0 where L is 1 */
  duet_dtype weights;       /* of the matrices on the device */
  uint64_t n_params;        /* numbers in all tensors */
  uint64_t weight_bytes;    /* in memory, of all that a model needs */
  uint64_t bytes_per_token; /* weights read to generate one token of one sequence */
  uint64_t state_bytes;     /* of one sequence in the canonical form, f32 */
  const char* device;       /* "cpu:0"; lives as long as the model */
} duet_model_info;
/* Errors: those of reading; DUET_E_NOT_FOUND (the device; the sentence lists those there are), _UNSUPPORTED (dtype or device),
 * _MEMORY (with the bytes needed and free), what `progress` returned. The file may be mapped while the model lives. */
DUET_API duet_status duet_model_load(duet_library* library, const char* path, const duet_model_options* options, duet_model** out_model);
/* Options of duet_model_random. */
typedef struct duet_random_options {
  uint32_t size;
  const char* shape; /* "0.1b" "0.4b" "1.5b" "2.9b" "7.2b": the released models' sizes and ranks */
  float relu2;       /* share of relu^2 activations that are not zero, in (0,1); 0 = as random weights give, about half */
  uint32_t reserved;
  uint64_t seed; /* the same seed gives the same weights */
} duet_random_options;
/* A model of random weights at trained-like scale, filled layer by layer, for measuring speed without a file. options->weights
 * 0 = bf16. Errors: as duet_model_load. */
DUET_API duet_status duet_model_random(duet_library* library, const duet_random_options* random, const duet_model_options* options, duet_model** out_model);
/* Writes the weights as safetensors with official names, atomically, over an existing file. Errors: those of writing. */
DUET_API duet_status duet_model_save(duet_model* model, const char* path);
DUET_API duet_status duet_model_get(duet_model* model, duet_model_info* out_info); /* out_info->size is set by the caller */
/* Its states and sessions work on. */
DUET_API void duet_model_free(duet_model* model);

/* ---- 5. state ------------------------------------------------------------------------------------------------
 * The whole memory of n sequences, one in each slot 0 .. n-1. Canonical form of one sequence, f32: att_x [L,C], wkv [L,H,N,N] (value row, key column), ffn_x [L,C].
 * Both modes read and leave the same state. Fresh and reset slots are zero, or the model's tuned `time_state` if it has one. */
typedef struct duet_state duet_state;
/* Options of duet_state_create. */
typedef struct duet_state_options {
  uint32_t size;
  duet_dtype wkv; /* storage of the matrices on the device: f32, bf16 or f16, computed with in f32 (docs/states.md); 0 = f32 */
} duet_state_options;
/* Errors: DUET_E_LIMIT (n_slots is not 1 .. 2^20), _UNSUPPORTED (options->wkv), _MEMORY (with the bytes needed and free). */
DUET_API duet_status duet_state_create(duet_model* model, uint32_t n_slots, const duet_state_options* options, duet_state** out_state);
/* Makes one slot as fresh. */
DUET_API duet_status duet_state_reset(duet_state* state, uint32_t slot);
/* Fork or move: also between models, devices and dtypes of one shape, rounded to dst's; other shapes are DUET_E_INVALID. */
DUET_API duet_status duet_state_copy(duet_state* dst, uint32_t dst_slot, duet_state* src, uint32_t src_slot);
/* The canonical form into the caller's arrays; NULL skips a part. */
DUET_API duet_status duet_state_get(duet_state* state, uint32_t slot, float* att_x, float* wkv, float* ffn_x);
/* The canonical form from the caller's arrays, rounded to the state's storage; NULL keeps a part. Errors: DUET_E_NUMERIC, a
 * value that is not finite; the slot is as it was. */
DUET_API duet_status duet_state_set(duet_state* state, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x);
/* A safetensors file in memory: F32 `state.att_x`, `state.wkv`, `state.ffn_x`, and in __metadata__ a fingerprint of the
 * model that is checked on load when present. Errors: DUET_E_SMALL. */
DUET_API duet_status duet_state_save(duet_state* state, uint32_t slot, void* dst, size_t cap, size_t* out_size);
/* From such a file in memory, or an official one of `blocks.i.att.time_state`. Errors: DUET_E_FORMAT, _UNSUPPORTED, _NUMERIC,
 * _INVALID (another model's); the slot is as it was. */
DUET_API duet_status duet_state_load(duet_state* state, uint32_t slot, const void* src, size_t size);
/* The same to a file, atomically, over an existing one. Errors: those of writing (section 3). */
DUET_API duet_status duet_state_save_file(duet_state* state, uint32_t slot, const char* path);
/* The same from a file. Errors: those of duet_state_load, and of reading (section 3). */
DUET_API duet_status duet_state_load_file(duet_state* state, uint32_t slot, const char* path);
/* While a call runs with it, it lives until that call ends. */
DUET_API void duet_state_free(duet_state* state);

/* ---- 6. session ----------------------------------------------------------------------------------------------
 * Scratch memory, a queue, recordings, and the mode. A state goes through sessions of both modes. */
typedef struct duet_session duet_session;
/* Options of duet_session_create. */
typedef struct duet_session_options {
  uint32_t size;
  duet_mode mode;      /* DUET_MODE_*; fixed */
  uint32_t max_tokens; /* tokens that one pass computes at once; longer batches are fed in pieces. 0 = 512 on a CPU, 2048 on a GPU */
  uint32_t reserved;
} duet_session_options;
/* What one duet_forward computes. */
typedef struct duet_batch {
  uint32_t size;
  uint32_t n_seqs;         /* sequences; 0 computes nothing */
  const int32_t* tokens;   /* packed: the tokens of sequence 0, then of sequence 1, ... */
  const uint32_t* lengths; /* [n_seqs]; 0 is allowed; NULL = 1 each */
  const uint32_t* slots;   /* [n_seqs], distinct slots of the state; NULL = 0, 1, 2 ... */
  uint32_t outputs;        /* DUET_OUT_* or-ed */
  uint32_t reserved;
} duet_batch;
/* Outputs that a batch asks for; bits to be or-ed. */
enum {
  DUET_OUT_LAST_LOGITS = 0, /* one row per sequence that has tokens */
  DUET_OUT_ALL_LOGITS = 1,  /* one row per token */
  DUET_OUT_NO_LOGITS = 2,   /* only advance the state */
  DUET_OUT_V_FIRST = 4,     /* one row [C] per token: layer 0's value vector */
  DUET_OUT_HIDDEN = 8       /* rows as for logits, [C]: the last hidden state, after ln_out */
};
/* Which output is read: rows of logits [V], of hidden states [C], of value vectors [C]; all f32. */
enum { DUET_OUTPUT_LOGITS = 0, DUET_OUTPUT_HIDDEN = 1, DUET_OUTPUT_V_FIRST = 2 };
/* Errors: DUET_E_INVALID (the mode), _LIMIT (max_tokens over 65536), _MEMORY. */
DUET_API duet_status duet_session_create(duet_model* model, const duet_session_options* options, duet_session** out_session);
/* Runs one batch and advances the slots of `state`. The modes agree as docs/modes.md states. On an error in the arguments
 * nothing has changed; after a device fault the slots are undefined. Errors: DUET_E_INVALID (a token, a slot, a state of another
 * model), _LIMIT (over 2^24 tokens). */
DUET_API duet_status duet_forward(duet_session* session, duet_state* state, const duet_batch* batch);
/* Row `row` of an output (DUET_OUTPUT_*) of the last forward: f32 [V] or [C], borrowed until the session computes again or is
 * freed. Rows are in batch order. Errors: DUET_E_INVALID, no such row; the output may not have been asked for. */
DUET_API duet_status duet_session_output(duet_session* session, uint32_t output, uint32_t row, const float** out_row);
/* Same, the whole output at once: [*out_rows, *out_width]; no rows where it was not asked for. */
DUET_API duet_status duet_session_outputs(duet_session* session, uint32_t output, const float** out_rows_data, uint32_t* out_rows, uint32_t* out_width);
/* Scores a text: out_nll[t] = -log p(tokens[t+1] | state, tokens[0..t]), t = 0 .. n-2, natural log. Advances the slot by all
 * n tokens. out_nll [n-1]; it may be NULL where n is 1. Uses memory for a few rows of logits only. Errors: as duet_forward. */
DUET_API duet_status duet_score(duet_session* session, duet_state* state, uint32_t slot, const int32_t* tokens, size_t n, double* out_nll);
/* While a call runs with it, it lives until that call ends. Its outputs go with it. */
DUET_API void duet_session_free(duet_session* session);

/* ---- 7. tokenizer --------------------------------------------------------------------------------------------
 * World format: byte strings with ids 1 .. 2^20, greedy longest match over bytes. Token 0 ends a text and has no bytes.
 * Text never becomes token 0, whatever it spells. */
typedef struct duet_tokenizer duet_tokenizer;
/* path NULL = the World vocabulary that ships with Duet. Errors: those of reading (section 3). */
DUET_API duet_status duet_tokenizer_load(duet_library* library, const char* path, duet_tokenizer** out_tokenizer);
/* vocab.txt beside the model, else the World vocabulary where V = 65536, else DUET_E_NOT_FOUND. Errors: also those of reading. */
DUET_API duet_status duet_tokenizer_for_model(duet_model* model, duet_tokenizer** out_tokenizer);
DUET_API duet_status duet_tokenizer_size(duet_tokenizer* tokenizer, uint32_t* out_n); /* largest id + 1 */
/* Any bytes to tokens; at most one a byte, so that a dst of n elements is enough. Sizes are tokens. Errors: DUET_E_SMALL. */
DUET_API duet_status duet_tokenizer_encode(duet_tokenizer* tokenizer, const char* text, size_t n, int32_t* dst, size_t cap, size_t* out_size);
/* Tokens to their bytes, which may end inside a character. Sizes are bytes. Errors: DUET_E_INVALID (no such token), _SMALL. */
DUET_API duet_status duet_tokenizer_decode(duet_tokenizer* tokenizer, const int32_t* tokens, size_t n, char* dst, size_t cap, size_t* out_size);
/* Samplers that were made with it work on. */
DUET_API void duet_tokenizer_free(duet_tokenizer* tokenizer);

/* ---- 8. sampler ----------------------------------------------------------------------------------------------
 * Penalties and bias, softmax, top-p, top-k, min-p, power 1/temperature, normalise, draw: the official order
 * (docs/mathematics.md, sampling). The draw depends on (seed, sequence, number of tokens drawn) alone. */
typedef struct duet_sampler duet_sampler;
/* Options of duet_sampler_create; every value is literal. */
typedef struct duet_sampler_options {
  uint32_t size;
  uint32_t top_k;    /* 0 = no cut */
  float temperature; /* 0 = greedy */
  float top_p;       /* >= 1 = no cut; 0 = only the most probable */
  float min_p;       /* drops tokens below min_p times the largest probability; 0 = no cut */
  float presence, frequency, decay; /* logit -= presence + count * frequency for tokens drawn before; counts *= decay each step */
  uint64_t seed, sequence;    /* of the draws: sequences of one seed draw independently */
  uint32_t n_bias, reserved;  /* length of the two below; at most 2^20 */
  const int32_t* bias_tokens; /* [n_bias], copied */
  const float* bias;          /* [n_bias], added to the logits; -INFINITY bans a token; copied */
  duet_tokenizer* tokenizer;  /* optional: digits and blanks then count 0, as in the official sampler; kept alive */
} duet_sampler_options;
DUET_API duet_status duet_sampler_options_default(duet_sampler_options* options); /* options->size is set by the caller. Temperature 1, no cuts, no penalties, decay 0.996 */
/* NULL options = those of duet_sampler_options_default. Errors: DUET_E_INVALID (the option by name), _LIMIT (n_bias). */
DUET_API duet_status duet_sampler_create(const duet_sampler_options* options, duet_sampler** out_sampler);
/* logits [n] -> out_probs [n]: what pick would draw from. Errors: as pick. */
DUET_API duet_status duet_sampler_probs(duet_sampler* sampler, const float* logits, uint32_t n, float* out_probs);
/* logits [n]; draws and accepts. Errors: DUET_E_NUMERIC, a logit is NaN or +inf, or all are -inf. */
DUET_API duet_status duet_sampler_pick(duet_sampler* sampler, const float* logits, uint32_t n, int32_t* out_token);
DUET_API duet_status duet_sampler_accept(duet_sampler* sampler, int32_t token); /* counts a token that was chosen elsewhere */
DUET_API duet_status duet_sampler_reset(duet_sampler* sampler); /* as freshly created */
/* While a call runs with it, it lives until that call ends. */
DUET_API void duet_sampler_free(duet_sampler* sampler);

/* ---- 9. generation -------------------------------------------------------------------------------------------
 * The loop that everybody writes, written once. Why it ended: */
enum { DUET_FINISH_LENGTH = 0, DUET_FINISH_STOP_TOKEN = 1, DUET_FINISH_STOP_TEXT = 2, DUET_FINISH_CALLBACK = 3 };
typedef duet_status (*duet_token_fn)(void* user, int32_t token); /* non-zero stops */
typedef duet_status (*duet_text_fn)(void* user, const char* text, size_t n); /* whole UTF-8 characters, never part of a stop text; non-zero stops */
/* Options of duet_generate. */
typedef struct duet_generate_options {
  uint32_t size;
  uint32_t max_tokens;         /* new tokens; 0 = 256 */
  duet_tokenizer* tokenizer;   /* needed for on_text and stop_texts */
  const int32_t* stops;        /* [n_stops]; NULL = token 0 alone */
  const char* const* stop_texts; /* [n_stop_texts], UTF-8, not empty */
  uint32_t n_stops, n_stop_texts; /* at most 1024 each */
  duet_token_fn on_token;      /* NULL, or called for each token but a stop */
  duet_text_fn on_text;        /* NULL, or called after on_token, when text is certain */
  void* user;                  /* given to both */
  const volatile int32_t* cancel; /* set non-zero from any thread or signal handler: DUET_E_CANCELLED */
} duet_generate_options;
/* What duet_generate did, and duet_generate_batch for one sequence. */
typedef struct duet_generate_result {
  uint32_t size;
  uint32_t finish;          /* DUET_FINISH_* */
  uint64_t n_prompt, n_new; /* tokens read, tokens drawn (a stop token included) */
  double prompt_s, new_s;   /* seconds; of prompts that are read together, until this one was */
  duet_status status;       /* DUET_OK, or how it ended without a finish: DUET_E_CANCELLED, _NUMERIC. Since 1.3 */
  uint32_t reserved;
} duet_generate_result;
/* Reads the prompt in the session's mode, then draws tokens recurrently. The slot ends after the last token but one drawn:
 * feed the last to go on. An empty prompt is DUET_E_INVALID: begin a text with token 0. out_result may be NULL; it is
 * filled on DUET_E_CANCELLED too. Errors: DUET_E_CANCELLED, and those of duet_forward and duet_sampler_pick. */
DUET_API duet_status duet_generate(duet_session* session, duet_state* state, uint32_t slot, duet_sampler* sampler, const int32_t* prompt, size_t n, const duet_generate_options* options, duet_generate_result* out_result);
/* The sequences of duet_generate_batch. Since 1.3. */
typedef struct duet_prompts {
  uint32_t size;
  uint32_t n_seqs;               /* sequences; 0 generates nothing */
  const int32_t* tokens;         /* packed: the prompt of sequence 0, then of sequence 1, ... */
  const uint32_t* lengths;       /* [n_seqs], each 1 or more */
  const uint32_t* slots;         /* [n_seqs], distinct slots of the state; NULL = 0, 1, 2 ... */
  duet_sampler* const* samplers; /* [n_seqs], distinct */
  const duet_generate_options* const* options; /* [n_seqs], each may be NULL; NULL = defaults for all */
} duet_prompts;
/* duet_generate for many sequences at once: prompts are read together, then a token of every sequence is drawn in each step. One
 * that ends drops out, and the others go on. Callbacks of one sequence come in order; those of several are mixed. out_results
 * [n_seqs], or NULL; each may be NULL; also filled when sequences were cancelled or had no logits to draw from. The status is then
 * that of the first such. The slot of one with DUET_E_NUMERIC is undefined. Errors: as duet_generate. Since 1.3. */
DUET_API duet_status duet_generate_batch(duet_session* session, duet_state* state, const duet_prompts* prompts, duet_generate_result* const* out_results);
#ifdef __cplusplus
}
#endif
#endif
