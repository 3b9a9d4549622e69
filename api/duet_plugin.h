/* duet_plugin.h - everything that a backend plugin needs. Standalone: C99 or C++20, no link-time dependency on the host.
 *
 * The contract in seven lines
 *  1. A plugin exports ONE symbol, duetp_query (written by DUETP_DEFINE). It is pure, cheap, and may be called many times.
 *  2. Every table and struct starts with `uint32_t size` = sizeof at the writer's compile time. Readers copy
 *     min(theirs, mine) into a zeroed local, so a missing slot reads as NULL = "not provided". Append only.
 *  3. The major version must match; the minor may differ either way. The HOST negotiates; plugins never compare versions.
 *  4. No exception, no longjmp, no transfer of ownership across the boundary: who allocates frees. Arguments live for
 *     the call only.
 *  5. Stages only enqueue on the given queue and never touch host memory that the call does not name. What they enqueue in
 *     a recording (record_begin .. record_end) must not allocate device memory, synchronise or read back when it is run.
 *  6. Implement ONE rung of the ladder: rung 1 (all nine stages), rung 2 (layers + embed + head), or rung 3 (step).
 *  7. A device with DUETP_CAP_HOST_VISIBLE may leave ALL memory slots (buffer_*, layer_*, queue_*, state_*) NULL. It then
 *     works on the host's own structs (sdk: duet_host_memory.h), runs each stage before returning, and may leave any
 *     stage NULL: the host runs its reference stage there.
 *
 * A name such as [T,C] gives a row-major shape, last index fastest. T packed tokens of a frame, C = n_embd, H heads of
 * N = head_size (C = H*N), F = n_ffn, V = n_vocab, L = n_layer. The equations are in docs/mathematics.md.
 *
 * Functions that return duet_status: DUET_OK, or what host->fail returned after its sentence; out parameters count on DUET_OK
 * only. `self` is what open or the device's table gave. `reserved` is 0. All is there since version 1.0, unless a comment
 * gives another.
 */
#ifndef DUET_PLUGIN_H
#define DUET_PLUGIN_H
#include "duet_types.h"
#ifdef __cplusplus
extern "C" {
#endif
#define DUETP_MAJOR 1u /* of the version that this header describes: what breaks plugins raises it */
#define DUETP_MINOR 1u /* what is appended raises it */
/* Both in one number: major << 16 | minor. */
#define DUETP_ABI ((DUETP_MAJOR << 16) | DUETP_MINOR)

/* ---- host services ------------------------------------------------------------------------------------ */
/* What the host does for one plugin, from open to close. Every function takes `self` first and may be called from any thread
 * unless it says otherwise. */
typedef struct duetp_host {
  uint32_t size, abi; /* of the host: DUETP_ABI of its header */
  void* self;         /* the host's; first argument of all below */
  void* (*alloc)(void* self, size_t bytes, size_t align); /* NULL when out of memory; align is a power of two */
  void (*free)(void* self, void* p);                      /* NULL is allowed */
  void (*log)(void* self, int32_t level, const char* msg); /* level: DUET_LOG_*; msg: UTF-8, at most 1 KiB of it is kept */
  duet_status (*fail)(void* self, duet_status code, const char* msg); /* keeps a copy of msg for this thread; returns code */
  const char* (*option)(void* self, const char* key);                /* DUET_<ID>_<KEY> of the environment; NULL if unset; lives as long as the library */
  /* The library's one thread team. `team` runs fn(ctx, i, n) once on each of its n threads and returns when all are
   * done; a second caller waits its turn. `barrier` may be called inside fn only, by all n threads. fn must not call team. */
  uint32_t (*team_size)(void* self);
  void (*team)(void* self, void (*fn)(void* ctx, uint32_t i, uint32_t n), void* ctx); /* what fn writes is visible afterwards */
  void (*barrier)(void* self); /* nobody passes before all have come */
  const void* (*extension)(void* self, const char* id); /* "duet.ext.<name>/<n>", NULL if absent */
} duetp_host;

/* Fields added after 1.0 to structs that the HOST writes are read through this, so that old hosts stay safe. */
#define DUETP_HAS(ptr, field) ((ptr)->size >= offsetof(__typeof__(*(ptr)), field) + sizeof((ptr)->field))

/* ---- plain data ---------------------------------------------------------------------------------------- */
typedef struct duetp_buffer duetp_buffer; /* device memory; opaque, the plugin's */
typedef struct duetp_queue duetp_queue;   /* in-order stream of work */
typedef struct duetp_record duetp_record; /* a recorded, replayable sequence of work */
typedef struct duetp_layer duetp_layer;   /* weights of one layer in the plugin's own layout */
typedef struct duetp_state duetp_state;   /* memory of n slots in the plugin's own layout and dtype */

/* A piece of device memory. buf == NULL means "none". off in bytes, a multiple of 64. */
typedef struct duetp_ref {
  duetp_buffer* buf; /* of this device */
  uint64_t off;      /* bytes from its beginning */
  duet_dtype dtype;  /* of the elements; 0 = plain bytes or int32 */
  uint32_t reserved;
} duetp_ref;

/* The sizes of a model, the same for all its layers. */
typedef struct duetp_shape {
  uint32_t size;
  uint32_t n_layer, n_embd, n_head, head_size, n_ffn, n_vocab; /* L, C, H, N, F, V */
  uint32_t rank_w, rank_a, rank_v, rank_g; /* low-rank sizes, the same in every layer; rank_v 0 when n_layer is 1 */
  float ln_eps;                            /* 1e-5: ln0, ln1, ln2, ln_out */
  float gn_eps;                            /* 64e-5: ln_x */
} duetp_shape;

/* The frame: everything that changes from step to step lives in device memory, so that a recording stays valid. */
typedef struct duetp_frame {
  uint32_t size;
  uint32_t n_tokens, n_seqs, n_rows, max_len; /* capacities, fixed while recorded; grids come from these */
  duetp_ref used;   /* i32[3]: tokens, sequences, rows of this run, each <= its capacity. Nothing that is used depends on what
                       lies beyond, no state does; what rows of an out ref beyond hold afterwards is not specified */
  duetp_ref tokens; /* i32[n_tokens], each in [0,V) */
  duetp_ref starts; /* i32[n_seqs+1], ascending, starts[0] = 0; sequences are packed, of any length, empty ones allowed */
  duetp_ref slots;  /* i32[n_seqs], distinct; -1 = start from zero and drop the final state */
  duetp_ref rows;   /* i32[n_rows]: the tokens for which head computes an output */
} duetp_frame;

/* Canonical tensors of a layer; layer index n_layer is the block of embedding and head. Matrices have the layer
 * description's weight dtype, all else is f32. [out,in] acts as y = W x; the low-rank pairs are [in,out]: y = x M. */
enum {
  DUETP_T_LN1_W, DUETP_T_LN1_B, DUETP_T_LN2_W, DUETP_T_LN2_B,                                    /* [C] */
  DUETP_T_X_R, DUETP_T_X_W, DUETP_T_X_K, DUETP_T_X_V, DUETP_T_X_A, DUETP_T_X_G,                  /* [C] */
  DUETP_T_W0, DUETP_T_A0, DUETP_T_V0,                                                            /* [C]; no v0 in layer 0 */
  DUETP_T_W1, DUETP_T_A1, DUETP_T_V1, DUETP_T_G1,                                                /* matrix [C,D]; no v1 in layer 0 */
  DUETP_T_W2, DUETP_T_A2, DUETP_T_V2, DUETP_T_G2,                                                /* matrix [D,C]; no v2 in layer 0 */
  DUETP_T_K_K, DUETP_T_K_A, DUETP_T_R_K,                                                         /* [C], [C], [H,N] */
  DUETP_T_RECEPTANCE, DUETP_T_KEY, DUETP_T_VALUE, DUETP_T_OUTPUT,                                /* matrix [C,C] */
  DUETP_T_LN_X_W, DUETP_T_LN_X_B,                                                                /* [C] */
  DUETP_T_FFN_X_K,                                                                               /* [C] */
  DUETP_T_FFN_KEY, DUETP_T_FFN_VALUE,                                                            /* matrix [F,C], [C,F] */
  DUETP_T_EMB,                                                                                   /* matrix [V,C]; index n_layer from here on */
  DUETP_T_LN0_W, DUETP_T_LN0_B, DUETP_T_LN_OUT_W, DUETP_T_LN_OUT_B,                              /* [C] */
  DUETP_T_HEAD,                                                                                  /* matrix [V,C] */
  DUETP_T_COUNT
};

/* A canonical host tensor, handed over once, at load. */
typedef struct duetp_tensor {
  uint32_t size, id; /* DUETP_T_* */
  const char* name;  /* the official name, for messages */
  const void* data;  /* dense, row-major, aligned to its element */
  uint64_t bytes;    /* of data */
  duet_dtype dtype;  /* of data's elements */
  uint32_t n_dim;    /* of dim, the rest of which is 0 */
  uint32_t dim[4];   /* the shape, last index fastest */
  const void *scale, *minimum; /* DUET_I8 and DUET_I4 only, with the four below, else 0; their form: sdk, duet_quantised.h */
  uint64_t scale_bytes, minimum_bytes; /* of scale and of minimum */
  uint32_t group;         /* inputs that share a scale */
  duet_dtype scale_dtype; /* of scale and minimum */
} duetp_tensor;

/* What layer_new makes a layer of. */
typedef struct duetp_layer_desc {
  uint32_t size;
  uint32_t index; /* 0 .. n_layer-1; n_layer = the block of embedding and head */
  const duetp_shape* shape; /* of the whole model */
  const duetp_tensor* const* tensors; /* [DUETP_T_COUNT], by id; NULL where this layer has none */
  uint32_t n_tensors;                 /* length of `tensors` as the host knows it */
  duet_dtype weights;                 /* dtype of the matrices */
  uint32_t flags;                     /* DUETP_LAYER_* */
} duetp_layer_desc;
/* What a layer is for; bits to be or-ed. */
enum {
  DUETP_LAYER_TRAINABLE = 1, /* layer_export will be asked for */
  DUETP_LAYER_GRAD = 2       /* gradient accumulators: zeros, f32, same names; tensors' data are NULL */
};

/* What a device is: facts, not votes; the host ranks. */
typedef struct duetp_device_info {
  uint32_t size;
  uint32_t kind;          /* DUETP_KIND_* */
  char id[64], name[64];  /* "0000:c1:00.0", "NVIDIA H100"; NUL-terminated UTF-8 */
  uint64_t mem_total, mem_free; /* bytes */
  uint64_t bytes_per_s;         /* attainable read bandwidth, 0 = unknown */
  uint64_t caps;                /* DUETP_CAP_* */
} duetp_device_info;
/* What a device is. */
enum { DUETP_KIND_CPU = 0, DUETP_KIND_INTEGRATED_GPU = 1, DUETP_KIND_GPU = 2, DUETP_KIND_OTHER = 3 };
/* What a device can do; bits to be or-ed. */
enum {
  DUETP_CAP_HOST_VISIBLE = 1,    /* buffer_ptr gives pointers that the CPU can use */
  DUETP_CAP_RECORD = 2,          /* record_* are provided */
  DUETP_CAP_TRAIN = 4,           /* backward stages are provided */
  DUETP_CAP_BORROWS_WEIGHTS = 8  /* layers keep using desc.tensors[i]->data: the host keeps it alive and unchanged until
                                    layer_free. Without it the pointers die when layer_new returns. */
};

/* ---- stages -------------------------------------------------------------------------------------------- */
/* One argument struct serves all stages of rung 1. Which entry of in[] and out[] means what is fixed by the enums below.
 * Activations are f32 [T,C], except those marked (m): matrix inputs, which have the layer's weight dtype when that is
 * bf16 and f32 otherwise; with quantised weights the stage that multiplies rounds them. An out ref may equal an in ref of the
 * same element type where marked (=name); else they are disjoint. */
typedef struct duetp_stage {
  uint32_t size;
  uint32_t which;       /* linear, lowrank: DUETP_LINEAR_*, DUETP_LOWRANK_* */
  uint32_t layer_index; /* 0 .. n_layer */
  duet_mode mode;       /* DUETP: RECURRENT promises at most one token per sequence */
  const duetp_layer* layer;     /* the weights */
  const duetp_frame* frame;     /* tokens, sequences, slots */
  duetp_state* state;           /* of all slots */
  duetp_ref in[16], out[16];    /* by the enums below; the rest is none */
  duetp_ref saved;              /* training: forward writes, backward reads; size from saved_bytes */
  duetp_layer* grad;            /* backward: weight gradients add up here */
  duetp_ref d_final, d_initial; /* backward: f32 dL/d(state) [n_seqs][C + H*N*N + C], read and written */
  duetp_ref scalars;            /* f32 in device memory: what changes from step to step (lr, step, sampling) */
} duetp_stage;

/* Which matrix `linear` multiplies with, which pair `lowrank`. */
enum { DUETP_LINEAR_R = 0, DUETP_LINEAR_K = 1, DUETP_LINEAR_V = 2, DUETP_LINEAR_OUTPUT = 3 };
enum { DUETP_LOWRANK_W = 0, DUETP_LOWRANK_A = 1, DUETP_LOWRANK_V = 2, DUETP_LOWRANK_G = 3 };

/* embed: out[0] x = LN(emb[token]; ln0). Uses the block n_layer. */
enum { DUETP_EMBED_OUT_X = 0 };
/* shift_mix: y = LN(x; ln1); out q = y + (y_prev - y) * x_q. y_prev of a sequence's first token is the state's att_x;
 * afterwards att_x = y of its last token. */
enum { DUETP_SHIFT_MIX_IN_X = 0 };
enum { DUETP_SHIFT_MIX_OUT_R = 0, DUETP_SHIFT_MIX_OUT_W, DUETP_SHIFT_MIX_OUT_K, DUETP_SHIFT_MIX_OUT_V, DUETP_SHIFT_MIX_OUT_A, DUETP_SHIFT_MIX_OUT_G }; /* (m) */
/* linear: in[0] (m); R, K, V: out[0] = W in. OUTPUT: out[0] = x, x += W in. */
enum { DUETP_LINEAR_IN = 0 };
enum { DUETP_LINEAR_OUT = 0 };
/* lowrank: in[0] (m); out[0] = act(in M1) M2 with act tanh, none, none, sigmoid for w, a, v, g; no bias. The hidden
 * vector is a matrix input too: with bf16 weights it is rounded to bf16, with quantised ones as `in` is. */
enum { DUETP_LOWRANK_IN = 0 };
enum { DUETP_LOWRANK_OUT = 0 };
/* wkv_prepare, per token: w_raw = w0 + lw;  a = sigmoid(a0 + la);  layer 0: v_first = v, else v' = v + (v_first - v) *
 * sigmoid(v0 + lv);  kk = k * k_k, divided per head by max(|kk|, 1e-12);  k' = k * (1 + (a - 1) * k_a).
 * In layer 0 lv is none and v_first is written; later it is read. v_first is [T,C] f32. */
enum { DUETP_PREPARE_IN_K = 0, DUETP_PREPARE_IN_V, DUETP_PREPARE_IN_LW, DUETP_PREPARE_IN_LA, DUETP_PREPARE_IN_LV, DUETP_PREPARE_IN_V_FIRST };
enum { DUETP_PREPARE_OUT_K = 0 /* =K */, DUETP_PREPARE_OUT_V /* =V */, DUETP_PREPARE_OUT_W_RAW /* =LW */, DUETP_PREPARE_OUT_A /* =LA */, DUETP_PREPARE_OUT_KK, DUETP_PREPARE_OUT_V_FIRST };
/* wkv, per head: w = exp(-exp(-1/2) sigmoid(w_raw));  S = S diag(w) + (S (-kk)) (kk*a)^T + v' k'^T;  y = S r.
 * S of the state is read before the first and replaced after the last token. */
enum { DUETP_WKV_IN_R = 0, DUETP_WKV_IN_W_RAW, DUETP_WKV_IN_K, DUETP_WKV_IN_V, DUETP_WKV_IN_KK, DUETP_WKV_IN_A };
enum { DUETP_WKV_OUT_Y = 0 };
/* norm_gate: out[0] (m) = (group_norm(y; ln_x, gn_eps) + (sum over the head of r k' r_k) v') * g */
enum { DUETP_NORM_GATE_IN_Y = 0, DUETP_NORM_GATE_IN_R, DUETP_NORM_GATE_IN_K, DUETP_NORM_GATE_IN_V, DUETP_NORM_GATE_IN_G };
enum { DUETP_NORM_GATE_OUT = 0 };
/* channel_mix: z = LN(x; ln2); u = relu(Wk (z + (z_prev - z) * ffn.x_k))^2; x += Wv u. Reads and replaces ffn_x as
 * shift_mix does att_x. Both products' inputs are matrix inputs. in[0] and out[0] are the same ref, x. */
enum { DUETP_CHANNEL_MIX_X = 0 };
/* head, for each entry of frame.rows: hidden = LN(x; ln_out) f32 [n_rows,C]; logits = head hidden f32 [n_rows,V]; the
 * product's input is a matrix input. Either output may be none. Uses the block n_layer. */
enum { DUETP_HEAD_IN_X = 0 };
enum { DUETP_HEAD_OUT_HIDDEN = 0, DUETP_HEAD_OUT_LOGITS };

/* sample, for each entry of frame.rows: logits [n_rows,V] f32 -> the next token, by the order of docs/mathematics.md, sampling,
 * in f64. The token goes to frame.tokens[frame.rows[i]], where the next embed reads it, and into the history. Sums may be
 * taken in another order than the host's; the same run gives the same bits. Uses the block n_layer, for V, which is at most 2^24.
 * Parameters, counters and counts are in device memory, so that a recording stays valid. Since 1.1. */
enum { DUETP_SAMPLE_IN_LOGITS = 0 };
enum {
  DUETP_SAMPLE_OUT_ROWS = 0, /* duetp_sample_row [n_rows], read and written */
  DUETP_SAMPLE_OUT_ENTRIES,  /* duetp_sample_entry, read and written */
  DUETP_SAMPLE_OUT_HISTORY   /* i32, written at duetp_sample_row.next */
};
/* How the next token of a row is drawn. Keeps its size: it stands in arrays. Since 1.1. */
typedef struct duetp_sample_row {
  float temperature, top_p, min_p, presence, frequency, decay; /* as in duet_sampler_options */
  uint32_t top_k;       /* the same */
  uint32_t n_entries;   /* of the row; a token that is drawn first is appended, where presence or frequency is not 0 */
  uint32_t first_entry; /* in the array of entries, which has room behind them for one for each token that will be drawn */
  uint32_t next;        /* where in the history the token goes; one more afterwards */
  uint64_t seed, sequence, position; /* u = counter_uniform(seed, sequence, position); position is one more afterwards */
} duetp_sample_row;
/* What is added to the logit of one token of a row; each token stands there once at most. Keeps its size. Since 1.1. */
typedef struct duetp_sample_entry {
  double bias;  /* logit += bias; -INFINITY bans the token */
  double count; /* below 0: never drawn. Else logit -= presence + count * frequency. When a token was drawn: all counts of 0 or more
                   are multiplied by decay, then its own, 0 if it was below, rises by 1, or by 0 if it is free */
  int32_t token;    /* in [0,V) */
  uint32_t is_free; /* its count does not rise */
} duetp_sample_entry;
/* What stands in the history for a row that has no token to draw: all logits are -inf, or (LOGIT - i) that of token i, the first
 * such, is NaN or +inf before the bias. frame.tokens then gets token 0, and the row is not specified any more. Since 1.1. */
enum { DUETP_SAMPLE_NONE = -1, DUETP_SAMPLE_LOGIT = -2 };

/* rung 2: layers first_layer .. +n_layer; rung 3: embed, all layers, head. Same meaning as the stages in order. */
typedef struct duetp_step {
  uint32_t size, first_layer, n_layer; /* rung 3: 0 and L */
  duet_mode mode;                   /* as in duetp_stage */
  const duetp_layer* const* layers; /* [L+1] */
  const duetp_frame* frame;         /* as in duetp_stage */
  duetp_state* state;               /* as in duetp_stage */
  duetp_ref x, v_first;             /* f32 [T,C]; afterwards the last layer's output, and layer 0's value vectors */
  duetp_ref hidden, logits;         /* rung 3; none = not wanted */
} duetp_step;

/* A stage. `a` lives for the call; the memory that it names until the queue was waited for. */
typedef duet_status (*duetp_stage_fn)(void* self, duetp_queue* q, const duetp_stage* a);
/* A step of rung 2 or 3; `a` as for a stage. */
typedef duet_status (*duetp_step_fn)(void* self, duetp_queue* q, const duetp_step* a);

/* The work that a device can do. NULL = does not. */
typedef struct duetp_ops {
  uint32_t size, reserved;
  /* rung 1 */
  duetp_stage_fn embed, shift_mix, linear, lowrank, wkv_prepare, wkv, norm_gate, channel_mix, head;
  /* rung 2, rung 3 */
  duetp_step_fn layers, step;
  /* logits rows -> next tokens on the device. Optional; of use where logits would have to travel to the host. */
  duetp_stage_fn sample;
  /* training: the mirror of rung 1, all optional together */
  duetp_stage_fn embed_bwd, shift_mix_bwd, linear_bwd, lowrank_bwd, wkv_prepare_bwd, wkv_bwd, norm_gate_bwd, channel_mix_bwd, head_bwd, adam;
} duetp_ops;

/* ---- device -------------------------------------------------------------------------------------------- */
/* One device, from device_open to close. All slots are [any-thread] except that one queue or one state is never used by two calls
 * at once; a layer may be, by the queues of several sessions. What a *_new made, the host frees with the matching *_free,
 * before close. */
typedef struct duetp_device {
  uint32_t size, reserved;
  void* self; /* first argument of everything below and of the stages */
  const duetp_ops* ops; /* the plugin's; the host copies it */
  void (*close)(void* self); /* optional */
  /* memory: all of it, or none (line 7 of the contract). Fresh buffers and states are zero. */
  duet_status (*buffer_new)(void* self, uint64_t bytes, duetp_buffer** out); /* aligned to 64 bytes; no memory: DUET_E_MEMORY */
  void (*buffer_free)(void* self, duetp_buffer* b); /* nothing uses it any more; the same holds for every *_free */
  void* (*buffer_ptr)(void* self, duetp_buffer* b); /* non-NULL exactly when DUETP_CAP_HOST_VISIBLE */
  duet_status (*upload)(void* self, duetp_queue* q, duetp_ref dst, const void* src, uint64_t n);   /* src may be reused on return */
  duet_status (*download)(void* self, duetp_queue* q, void* dst, duetp_ref src, uint64_t n);       /* dst is filled after queue_wait */
  duet_status (*copy)(void* self, duetp_queue* q, duetp_ref dst, duetp_ref src, uint64_t n);       /* n bytes, within the device */
  duet_status (*layer_new)(void* self, const duetp_layer_desc* d, duetp_layer** out); /* brings the weights into the plugin's layout */
  duet_status (*layer_export)(void* self, const duetp_layer* l, uint32_t id, void* dst, uint64_t n); /* dense, row-major, the layer's dtype */
  void (*layer_free)(void* self, duetp_layer* l); /* as buffer_free */
  duet_status (*queue_new)(void* self, duetp_queue** out); /* one for each session, and one for each model's states */
  duet_status (*queue_wait)(void* self, duetp_queue* q); /* [blocking]; reports failures of all that was enqueued */
  void (*queue_free)(void* self, duetp_queue* q); /* as buffer_free */
  /* wkv: storage of the matrices, computed with in f32 and rounded where a stage or run leaves them; another than the device has is DUET_E_UNSUPPORTED */
  duet_status (*state_new)(void* self, const duetp_shape* s, uint32_t n_slots, duet_dtype wkv, duetp_state** out);
  duet_status (*state_copy)(void* self, duetp_queue* q, duetp_state* dst, uint32_t dst_slot, const duetp_state* src, uint32_t src_slot); /* src NULL: zero; else both store one dtype */
  /* canonical form, host memory, f32: att_x [L,C], wkv [L,H,N,N] (value row, key column), ffn_x [L,C]; filled after queue_wait */
  duet_status (*state_export)(void* self, duetp_queue* q, const duetp_state* s, uint32_t slot, float* att_x, float* wkv, float* ffn_x);
  /* the same back, rounded to the storage; the arrays live until queue_wait */
  duet_status (*state_import)(void* self, duetp_queue* q, duetp_state* s, uint32_t slot, const float* att_x, const float* wkv, const float* ffn_x);
  void (*state_free)(void* self, duetp_state* s); /* as buffer_free */
  /* recording, optional, all or none. From here to record_end work is kept, not run */
  duet_status (*record_begin)(void* self, duetp_queue* q);
  duet_status (*record_end)(void* self, duetp_queue* q, duetp_record** out); /* fuse, order, instantiate here */
  duet_status (*record_run)(void* self, duetp_queue* q, duetp_record* r); /* enqueues all of it again */
  void (*record_free)(void* self, duetp_record* r); /* as buffer_free */
  /* Bytes of `saved` that stage `stage` (index into duetp_ops, embed = 0) wants. Training only. */
  uint64_t (*saved_bytes)(void* self, const duetp_shape* s, uint32_t stage, uint32_t n_tokens, uint32_t n_seqs);
  /* Why-not query: NULL = it can; else a static sentence that names the first unmet condition. Optional: NULL slot = all. */
  const char* (*refuses)(void* self, const duetp_shape* s, duet_dtype weights, uint32_t rung);
  /* Brings a layer into the layout that passes in `mode` want; called before the first of them, perhaps long after layer_new and
   * while passes in the other mode run, but never twice at once for a layer. *copied: bit i is set where the layer has a copy of
   * tensor i of its own, then or from earlier. A borrowed one's memory may be let go: it is no longer borrowed, unless it lies in
   * a file, where it stays as it was for passes that have begun. Optional: NULL slot = nothing to do. With interposing
   * layers, which may borrow too, *copied goes unheeded. Since 1.1. */
  duet_status (*layer_prepare)(void* self, duetp_layer* l, duet_mode mode, uint64_t* copied);
} duetp_device;

/* ---- plugin ---------------------------------------------------------------------------------------------
 * What duetp_query gives: static const data. */
typedef struct duetp_plugin {
  uint32_t size, abi; /* DUETP_ABI */
  const char *id, *version, *vendor, *build; /* "cuda", "1.4.0", "...", "sm_90a sm_120 nvcc 13.0"; id: [a-z0-9_]{1,31} */
  uint32_t sanitizer;                        /* DUETP_SANITIZER; must equal the host's */
  uint32_t reserved;
  duet_status (*open)(const duetp_host* host, void** self); /* host lives until close returns */
  void (*close)(void* self);            /* after the last device's */
  uint32_t (*device_count)(void* self); /* at most 64 */
  duet_status (*device_info)(void* self, uint32_t index, duetp_device_info* io); /* io->size says how much may be written. Never two at once; asked again for mem_free before a model is loaded or a state made */
  duet_status (*device_open)(void* self, uint32_t index, const duetp_device** out); /* the table is the plugin's; the host copies it */
  const void* (*extension)(void* self, const char* id); /* optional */
  const char* (*no_device_reason)(void* self);          /* optional: one sentence when device_count is 0 */
} duetp_plugin;

/* The one symbol that a plugin exports: its table, or NULL for a host of another major version. */
typedef const duetp_plugin* (*duetp_query_fn)(uint32_t host_abi, uint32_t reserved);
#define DUETP_QUERY_NAME "duetp_query" /* that symbol's name */

/* Marks that symbol. */
#if defined(_WIN32)
#define DUETP_EXPORT __declspec(dllexport)
#else
#define DUETP_EXPORT __attribute__((visibility("default")))
#endif
/* Whether the compiler has a feature; for the next only. */
#if defined(__has_feature)
#define DUETP_FEATURE(x) __has_feature(x)
#else
#define DUETP_FEATURE(x) 0
#endif
/* What this file is compiled with: 0 no sanitizer, 1 address, 2 thread. */
#if defined(__SANITIZE_ADDRESS__) || DUETP_FEATURE(address_sanitizer)
#define DUETP_SANITIZER 1u
#elif defined(__SANITIZE_THREAD__) || DUETP_FEATURE(thread_sanitizer)
#define DUETP_SANITIZER 2u
#else
#define DUETP_SANITIZER 0u
#endif
/* Linkage of duetp_query. */
#ifdef __cplusplus
}
#define DUETP_EXTERN extern "C"
#else
#define DUETP_EXTERN extern
#endif

/* The whole entry point of a plugin. `p` is a static const duetp_plugin. The ELF note (name "Duet", type 1: ABI, size of
 * duetp_plugin, size of duetp_device, sanitizer) lets a host judge the file without running any of its code. */
#define DUETP_DEFINE(p)                                                                                   \
  __attribute__((used, section(".note.duet.plugin"), aligned(4))) static const struct {                   \
    uint32_t namesz, descsz, type;                                                                        \
    char name[8];                                                                                         \
    uint32_t desc[4];                                                                                     \
  } duetp_note = {5, 16, 1, "Duet", {DUETP_ABI, sizeof(duetp_plugin), sizeof(duetp_device), DUETP_SANITIZER}}; \
  DUETP_EXTERN DUETP_EXPORT const duetp_plugin* duetp_query(uint32_t host_abi, uint32_t reserved);        \
  const duetp_plugin* duetp_query(uint32_t host_abi, uint32_t reserved) {                                 \
    (void)reserved;                                                                                       \
    return (host_abi >> 16) == DUETP_MAJOR ? &(p) : 0;                                                    \
  }                                                                                                       \
  typedef int duetp_define_needs_semicolon
#endif
