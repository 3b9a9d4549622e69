//! The declarations of `duet.h`, as they are there. `duet.h` says what each function does, and under which conditions it
//! may be called; the crate `duet` is the safe way to it.
//!
//! Enumerations of C are plain integers here, because a newer library may return values that this crate does not know.
#![allow(non_camel_case_types)]

use std::marker::{PhantomData, PhantomPinned};
use std::mem;
use std::os::raw::{c_char, c_void};

pub type duet_status = i32;
pub const DUET_OK: duet_status = 0;
pub const DUET_E_INVALID: duet_status = -1;
pub const DUET_E_NOT_FOUND: duet_status = -2;
pub const DUET_E_UNSUPPORTED: duet_status = -3;
pub const DUET_E_MEMORY: duet_status = -4;
pub const DUET_E_FORMAT: duet_status = -5;
pub const DUET_E_ABI: duet_status = -6;
pub const DUET_E_DEVICE: duet_status = -7;
pub const DUET_E_SMALL: duet_status = -8;
pub const DUET_E_CANCELLED: duet_status = -9;
pub const DUET_E_IO: duet_status = -10;
pub const DUET_E_BUSY: duet_status = -11;
pub const DUET_E_HANDLE: duet_status = -12;
pub const DUET_E_LIMIT: duet_status = -13;
pub const DUET_E_NUMERIC: duet_status = -14;
pub const DUET_E_EXISTS: duet_status = -15;
pub const DUET_E_INTERNAL: duet_status = -100;

pub type duet_dtype = i32;
pub const DUET_F32: duet_dtype = 1;
pub const DUET_F16: duet_dtype = 2;
pub const DUET_BF16: duet_dtype = 3;
pub const DUET_I8: duet_dtype = 16;
pub const DUET_I4: duet_dtype = 17;
pub const DUET_FP8_E4M3: duet_dtype = 24;

pub type duet_mode = i32;
pub const DUET_MODE_AUTO: duet_mode = 0;
pub const DUET_MODE_RECURRENT: duet_mode = 1;
pub const DUET_MODE_PARALLEL: duet_mode = 2;

pub const DUET_LOG_DEBUG: i32 = 1;
pub const DUET_LOG_INFO: i32 = 2;
pub const DUET_LOG_WARNING: i32 = 3;
pub const DUET_LOG_ERROR: i32 = 4;
pub const DUET_LOG_OFF: i32 = 5;

/// The header that these declarations follow: major << 16 | minor.
pub const DUET_API_VERSION: u32 = 0x0001_0003;

pub const DUET_FILE_STRICT: u32 = 1;
pub const DUET_FILE_VERIFY: u32 = 2;

pub const DUET_OUT_LAST_LOGITS: u32 = 0;
pub const DUET_OUT_ALL_LOGITS: u32 = 1;
pub const DUET_OUT_NO_LOGITS: u32 = 2;
pub const DUET_OUT_V_FIRST: u32 = 4;
pub const DUET_OUT_HIDDEN: u32 = 8;

pub const DUET_OUTPUT_LOGITS: u32 = 0;
pub const DUET_OUTPUT_HIDDEN: u32 = 1;
pub const DUET_OUTPUT_V_FIRST: u32 = 2;

pub const DUET_FINISH_LENGTH: u32 = 0;
pub const DUET_FINISH_STOP_TOKEN: u32 = 1;
pub const DUET_FINISH_STOP_TEXT: u32 = 2;
pub const DUET_FINISH_CALLBACK: u32 = 3;

/// Types that only the library knows from inside: used behind pointers, and neither Send, Sync nor Unpin by themselves.
macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        pub struct $name {
            _private: [u8; 0],
            _marker: PhantomData<(*mut u8, PhantomPinned)>,
        }
    )*};
}
opaque!(duet_library duet_model duet_state duet_session duet_tokenizer duet_sampler);

pub type duet_log_fn = Option<unsafe extern "C" fn(user: *mut c_void, level: i32, message: *const c_char)>;
pub type duet_progress_fn = Option<unsafe extern "C" fn(user: *mut c_void, done: u64, total: u64) -> duet_status>;
pub type duet_token_fn = Option<unsafe extern "C" fn(user: *mut c_void, token: i32) -> duet_status>;
pub type duet_text_fn = Option<unsafe extern "C" fn(user: *mut c_void, text: *const c_char, n: usize) -> duet_status>;

/// A struct of C whose first field is its size. `Default` is what DUET_INIT is in C: the size, and zeros.
macro_rules! sized_struct {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Clone, Copy)]
        pub struct $name {
            pub size: u32,
            $(pub $field: $type,)*
        }
        impl Default for $name {
            fn default() -> Self {
                // SAFETY: all fields are numbers, pointers or Options of function pointers: zero is a value of each.
                let zero: Self = unsafe { mem::zeroed() };
                Self { size: mem::size_of::<Self>() as u32, ..zero }
            }
        }
    };
}

sized_struct!(duet_library_options {
    n_threads: u32,
    plugin_path: *const c_char,
    log: duet_log_fn,
    log_user: *mut c_void,
    log_level: i32,
    reserved: u32,
    layers: *const c_char,
});
sized_struct!(duet_device_info {
    kind: u32,
    spec: *const c_char,
    name: *const c_char,
    plugin: *const c_char,
    mem_total: u64,
    mem_free: u64,
    bytes_per_s: u64,
});
sized_struct!(duet_convert_options {
    weights: duet_dtype,
    overwrite: u32,
    flags: u32,
    progress: duet_progress_fn,
    progress_user: *mut c_void,
});
sized_struct!(duet_init_options {
    n_layer: u32,
    n_embd: u32,
    n_vocab: u32,
    head_size: u32,
    weights: duet_dtype,
    overwrite: u32,
    reserved: u32,
    seed: u64,
    progress: duet_progress_fn,
    progress_user: *mut c_void,
});
sized_struct!(duet_model_options {
    weights: duet_dtype,
    device: *const c_char,
    flags: u32,
    trainable: u32,
    progress: duet_progress_fn,
    progress_user: *mut c_void,
});
sized_struct!(duet_model_info {
    n_layer: u32,
    n_embd: u32,
    n_head: u32,
    head_size: u32,
    n_ffn: u32,
    n_vocab: u32,
    rank_w: u32,
    rank_a: u32,
    rank_v: u32,
    rank_g: u32,
    weights: duet_dtype,
    n_params: u64,
    weight_bytes: u64,
    bytes_per_token: u64,
    state_bytes: u64,
    device: *const c_char,
});
sized_struct!(duet_random_options {
    shape: *const c_char,
    relu2: f32,
    reserved: u32,
    seed: u64,
});
sized_struct!(duet_state_options { wkv: duet_dtype });
sized_struct!(duet_session_options { mode: duet_mode, max_tokens: u32, reserved: u32 });
sized_struct!(duet_batch {
    n_seqs: u32,
    tokens: *const i32,
    lengths: *const u32,
    slots: *const u32,
    outputs: u32,
    reserved: u32,
});
sized_struct!(duet_sampler_options {
    top_k: u32,
    temperature: f32,
    top_p: f32,
    min_p: f32,
    presence: f32,
    frequency: f32,
    decay: f32,
    seed: u64,
    sequence: u64,
    n_bias: u32,
    reserved: u32,
    bias_tokens: *const i32,
    bias: *const f32,
    tokenizer: *mut duet_tokenizer,
});
sized_struct!(duet_generate_options {
    max_tokens: u32,
    tokenizer: *mut duet_tokenizer,
    stops: *const i32,
    stop_texts: *const *const c_char,
    n_stops: u32,
    n_stop_texts: u32,
    on_token: duet_token_fn,
    on_text: duet_text_fn,
    user: *mut c_void,
    cancel: *const i32,
});
sized_struct!(duet_generate_result { finish: u32, n_prompt: u64, n_new: u64, prompt_s: f64, new_s: f64, status: duet_status, reserved: u32 });
sized_struct!(duet_prompts {
    n_seqs: u32,
    tokens: *const i32,
    lengths: *const u32,
    slots: *const u32,
    samplers: *const *mut duet_sampler,
    options: *const *const duet_generate_options,
});

extern "C" {
    pub fn duet_api_version() -> u32;
    pub fn duet_version_string() -> *const c_char;
    pub fn duet_status_name(s: duet_status) -> *const c_char;
    pub fn duet_last_error() -> *const c_char;

    pub fn duet_library_create(options: *const duet_library_options, out_library: *mut *mut duet_library) -> duet_status;
    pub fn duet_library_free(library: *mut duet_library);
    pub fn duet_library_report(library: *mut duet_library, dst: *mut c_char, cap: usize, out_size: *mut usize) -> duet_status;

    pub fn duet_device_count(library: *mut duet_library, out_count: *mut u32) -> duet_status;
    pub fn duet_device_get(library: *mut duet_library, index: u32, out_info: *mut duet_device_info) -> duet_status;

    pub fn duet_file_info(library: *mut duet_library, path: *const c_char, flags: u32, dst: *mut c_char, cap: usize, out_size: *mut usize) -> duet_status;
    pub fn duet_file_convert(library: *mut duet_library, in_: *const c_char, out: *const c_char, options: *const duet_convert_options) -> duet_status;
    pub fn duet_file_init(library: *mut duet_library, out: *const c_char, options: *const duet_init_options) -> duet_status;

    pub fn duet_model_load(library: *mut duet_library, path: *const c_char, options: *const duet_model_options, out_model: *mut *mut duet_model)
        -> duet_status;
    pub fn duet_model_random(
        library: *mut duet_library,
        random: *const duet_random_options,
        options: *const duet_model_options,
        out_model: *mut *mut duet_model,
    ) -> duet_status;
    pub fn duet_model_save(model: *mut duet_model, path: *const c_char) -> duet_status;
    pub fn duet_model_get(model: *mut duet_model, out_info: *mut duet_model_info) -> duet_status;
    pub fn duet_model_free(model: *mut duet_model);

    pub fn duet_state_create(model: *mut duet_model, n_slots: u32, options: *const duet_state_options, out_state: *mut *mut duet_state) -> duet_status;
    pub fn duet_state_reset(state: *mut duet_state, slot: u32) -> duet_status;
    pub fn duet_state_copy(dst: *mut duet_state, dst_slot: u32, src: *mut duet_state, src_slot: u32) -> duet_status;
    pub fn duet_state_get(state: *mut duet_state, slot: u32, att_x: *mut f32, wkv: *mut f32, ffn_x: *mut f32) -> duet_status;
    pub fn duet_state_set(state: *mut duet_state, slot: u32, att_x: *const f32, wkv: *const f32, ffn_x: *const f32) -> duet_status;
    pub fn duet_state_save(state: *mut duet_state, slot: u32, dst: *mut c_void, cap: usize, out_size: *mut usize) -> duet_status;
    pub fn duet_state_load(state: *mut duet_state, slot: u32, src: *const c_void, size: usize) -> duet_status;
    pub fn duet_state_save_file(state: *mut duet_state, slot: u32, path: *const c_char) -> duet_status;
    pub fn duet_state_load_file(state: *mut duet_state, slot: u32, path: *const c_char) -> duet_status;
    pub fn duet_state_free(state: *mut duet_state);

    pub fn duet_session_create(model: *mut duet_model, options: *const duet_session_options, out_session: *mut *mut duet_session) -> duet_status;
    pub fn duet_forward(session: *mut duet_session, state: *mut duet_state, batch: *const duet_batch) -> duet_status;
    pub fn duet_session_output(session: *mut duet_session, output: u32, row: u32, out_row: *mut *const f32) -> duet_status;
    pub fn duet_session_outputs(
        session: *mut duet_session,
        output: u32,
        out_rows_data: *mut *const f32,
        out_rows: *mut u32,
        out_width: *mut u32,
    ) -> duet_status;
    pub fn duet_score(session: *mut duet_session, state: *mut duet_state, slot: u32, tokens: *const i32, n: usize, out_nll: *mut f64) -> duet_status;
    pub fn duet_session_free(session: *mut duet_session);

    pub fn duet_tokenizer_load(library: *mut duet_library, path: *const c_char, out_tokenizer: *mut *mut duet_tokenizer) -> duet_status;
    pub fn duet_tokenizer_for_model(model: *mut duet_model, out_tokenizer: *mut *mut duet_tokenizer) -> duet_status;
    pub fn duet_tokenizer_size(tokenizer: *mut duet_tokenizer, out_n: *mut u32) -> duet_status;
    pub fn duet_tokenizer_encode(tokenizer: *mut duet_tokenizer, text: *const c_char, n: usize, dst: *mut i32, cap: usize, out_size: *mut usize)
        -> duet_status;
    pub fn duet_tokenizer_decode(
        tokenizer: *mut duet_tokenizer,
        tokens: *const i32,
        n: usize,
        dst: *mut c_char,
        cap: usize,
        out_size: *mut usize,
    ) -> duet_status;
    pub fn duet_tokenizer_free(tokenizer: *mut duet_tokenizer);

    pub fn duet_sampler_options_default(options: *mut duet_sampler_options) -> duet_status;
    pub fn duet_sampler_create(options: *const duet_sampler_options, out_sampler: *mut *mut duet_sampler) -> duet_status;
    pub fn duet_sampler_probs(sampler: *mut duet_sampler, logits: *const f32, n: u32, out_probs: *mut f32) -> duet_status;
    pub fn duet_sampler_pick(sampler: *mut duet_sampler, logits: *const f32, n: u32, out_token: *mut i32) -> duet_status;
    pub fn duet_sampler_accept(sampler: *mut duet_sampler, token: i32) -> duet_status;
    pub fn duet_sampler_reset(sampler: *mut duet_sampler) -> duet_status;
    pub fn duet_sampler_free(sampler: *mut duet_sampler);

    pub fn duet_generate(
        session: *mut duet_session,
        state: *mut duet_state,
        slot: u32,
        sampler: *mut duet_sampler,
        prompt: *const i32,
        n: usize,
        options: *const duet_generate_options,
        out_result: *mut duet_generate_result,
    ) -> duet_status;
    pub fn duet_generate_batch(
        session: *mut duet_session,
        state: *mut duet_state,
        prompts: *const duet_prompts,
        out_results: *const *mut duet_generate_result,
    ) -> duet_status;
}
