//! Sizes, offsets and constants are those of C, as tests/bindings/c_layout.c prints them.

use duet_sys::*;
use std::env;
use std::fmt::Write;
use std::mem::{size_of, MaybeUninit};
use std::process::Command;
use std::ptr::addr_of;

fn size_behind<T>(_: *const T) -> usize {
    size_of::<T>()
}

macro_rules! layout {
    ($out:ident, $type:ident { $($field:ident)* }) => {
        writeln!($out, "{} {}", stringify!($type), size_of::<$type>()).unwrap();
        $({
            let place = MaybeUninit::<$type>::uninit();
            // SAFETY: only addresses are taken; nothing is read.
            let field = unsafe { addr_of!((*place.as_ptr()).$field) };
            let offset = field as usize - place.as_ptr() as usize;
            writeln!($out, "{}.{} {} {}", stringify!($type), stringify!($field), offset, size_behind(field)).unwrap();
        })*
    };
}
macro_rules! constants {
    ($out:ident, $($name:ident)*) => {$(
        writeln!($out, "{} {}", stringify!($name), i64::from($name)).unwrap();
    )*};
}

#[test]
fn layouts_and_constants_are_those_of_c() {
    let program = env::var_os("DUET_TEST_C_LAYOUT").expect("DUET_TEST_C_LAYOUT names the program of tests/bindings/c_layout.c; ctest sets it");
    let printed = Command::new(program).output().unwrap();
    assert!(printed.status.success());
    let mut ours = String::new();
    layout!(ours, duet_library_options { size n_threads plugin_path log log_user log_level reserved layers });
    layout!(ours, duet_device_info { size kind spec name plugin mem_total mem_free bytes_per_s });
    layout!(ours, duet_convert_options { size weights overwrite flags progress progress_user });
    layout!(ours, duet_init_options { size n_layer n_embd n_vocab head_size weights overwrite reserved seed progress progress_user });
    layout!(ours, duet_model_options { size weights device flags trainable progress progress_user });
    layout!(ours, duet_model_info {
        size n_layer n_embd n_head head_size n_ffn n_vocab rank_w rank_a rank_v rank_g weights n_params weight_bytes bytes_per_token state_bytes
        device
    });
    layout!(ours, duet_random_options { size shape relu2 reserved seed });
    layout!(ours, duet_state_options { size wkv });
    layout!(ours, duet_session_options { size mode max_tokens reserved });
    layout!(ours, duet_batch { size n_seqs tokens lengths slots outputs reserved });
    layout!(ours, duet_sampler_options {
        size top_k temperature top_p min_p presence frequency decay seed sequence n_bias reserved bias_tokens bias tokenizer
    });
    layout!(ours, duet_generate_options { size max_tokens tokenizer stops stop_texts n_stops n_stop_texts on_token on_text user cancel });
    layout!(ours, duet_generate_result { size finish n_prompt n_new prompt_s new_s status reserved });
    layout!(ours, duet_prompts { size n_seqs tokens lengths slots samplers options });
    constants!(
        ours, DUET_FILE_STRICT DUET_FILE_VERIFY DUET_OUT_LAST_LOGITS DUET_OUT_ALL_LOGITS DUET_OUT_NO_LOGITS DUET_OUT_V_FIRST DUET_OUT_HIDDEN
        DUET_OUTPUT_LOGITS DUET_OUTPUT_HIDDEN DUET_OUTPUT_V_FIRST DUET_FINISH_LENGTH DUET_FINISH_STOP_TOKEN DUET_FINISH_STOP_TEXT DUET_FINISH_CALLBACK
        DUET_OK DUET_E_INVALID DUET_E_NOT_FOUND DUET_E_UNSUPPORTED DUET_E_MEMORY DUET_E_FORMAT DUET_E_ABI DUET_E_DEVICE DUET_E_SMALL DUET_E_CANCELLED
        DUET_E_IO DUET_E_BUSY DUET_E_HANDLE DUET_E_LIMIT DUET_E_NUMERIC DUET_E_EXISTS DUET_E_INTERNAL DUET_F32 DUET_F16 DUET_BF16 DUET_I8 DUET_I4
        DUET_FP8_E4M3 DUET_MODE_AUTO DUET_MODE_RECURRENT DUET_MODE_PARALLEL DUET_LOG_DEBUG DUET_LOG_INFO DUET_LOG_WARNING DUET_LOG_ERROR DUET_LOG_OFF
        DUET_API_VERSION
    );
    layout!(ours, duet_status {});
    layout!(ours, duet_dtype {});
    layout!(ours, duet_mode {});
    assert_eq!(ours.lines().collect::<Vec<_>>(), String::from_utf8(printed.stdout).unwrap().lines().collect::<Vec<_>>());
}
