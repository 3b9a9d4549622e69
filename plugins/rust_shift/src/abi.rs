//! Of `duet_plugin.h` and `duet_host_memory.h` what this plugin needs, as it is there. The headers say what each field means.
//!
//! Tables carry their size, and the host takes a slot beyond it for one that is not provided: `Device` and `Ops` end with the
//! last slot that this plugin fills.
#![allow(dead_code)] // of fields that others read, or that stand before those that are read

use std::mem::size_of;
use std::os::raw::{c_char, c_void};

pub type Status = i32;
pub const OK: Status = 0;
pub const E_MEMORY: Status = -4;
pub const E_INTERNAL: Status = -100;

pub type Dtype = i32;
pub const BF16: Dtype = 3;

pub const ABI: u32 = 1 << 16 | 1;
pub const KIND_CPU: u32 = 0;
pub const CAP_HOST_VISIBLE: u64 = 1;

#[repr(C)]
pub struct Host {
    pub size: u32,
    pub abi: u32,
    pub this: *mut c_void,
    pub alloc: unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    pub free: unsafe extern "C" fn(*mut c_void, *mut c_void),
    pub log: unsafe extern "C" fn(*mut c_void, i32, *const c_char),
    pub fail: unsafe extern "C" fn(*mut c_void, Status, *const c_char) -> Status,
    pub option: unsafe extern "C" fn(*mut c_void, *const c_char) -> *const c_char,
    pub team_size: unsafe extern "C" fn(*mut c_void) -> u32,
    pub team: unsafe extern "C" fn(*mut c_void, unsafe extern "C" fn(*mut c_void, u32, u32), *mut c_void),
    pub barrier: unsafe extern "C" fn(*mut c_void),
    pub extension: unsafe extern "C" fn(*mut c_void, *const c_char) -> *const c_void,
}

#[repr(C)]
pub struct Buffer {
    pub data: *mut c_void,
    pub bytes: u64,
}

#[repr(C)]
pub struct Ref {
    pub buf: *mut Buffer,
    pub off: u64,
    pub dtype: Dtype,
    pub reserved: u32,
}

#[repr(C)]
pub struct Shape {
    pub size: u32,
    pub n_layer: u32,
    pub n_embd: u32,
    pub n_head: u32,
    pub head_size: u32,
    pub n_ffn: u32,
    pub n_vocab: u32,
    pub ranks: [u32; 4],
    pub ln_eps: f32,
    pub gn_eps: f32,
}

#[repr(C)]
pub struct Frame {
    pub size: u32,
    pub n_tokens: u32,
    pub n_seqs: u32,
    pub n_rows: u32,
    pub max_len: u32,
    pub used: Ref,
    pub tokens: Ref,
    pub starts: Ref,
    pub slots: Ref,
    pub rows: Ref,
}

pub const T_LN1_W: usize = 0;
pub const T_LN1_B: usize = 1;
pub const T_X_R: usize = 4; // then w k v a g
pub const T_COUNT: usize = 39;

#[repr(C)]
pub struct Tensor {
    pub size: u32,
    pub id: u32,
    pub name: *const c_char,
    pub data: *const c_void,
    pub bytes: u64,
    pub dtype: Dtype,
    pub n_dim: u32,
    pub dim: [u32; 4],
    pub scale: *const c_void,
    pub minimum: *const c_void,
    pub scale_bytes: u64,
    pub minimum_bytes: u64,
    pub group: u32,
    pub scale_dtype: Dtype,
}

#[repr(C)]
pub struct Layer {
    pub shape: Shape,
    pub index: u32,
    pub weights: Dtype,
    pub tensor: [Tensor; T_COUNT],
}

#[repr(C)]
pub struct State {
    pub shape: Shape,
    pub n_slots: u32,
    pub slot_floats: u64,
    pub layer_floats: u64,
    pub data: *mut f32,
}

#[repr(C)]
pub struct Stage {
    pub size: u32,
    pub which: u32,
    pub layer_index: u32,
    pub mode: i32,
    pub layer: *const Layer,
    pub frame: *const Frame,
    pub state: *mut State,
    pub input: [Ref; 16],
    pub output: [Ref; 16],
    pub saved: Ref,
    pub grad: *mut Layer,
    pub d_final: Ref,
    pub d_initial: Ref,
    pub scalars: Ref,
}

pub type Queue = c_void;
pub type StageFn = unsafe extern "C" fn(*mut c_void, *mut Queue, *const Stage) -> Status;

#[repr(C)]
pub struct Ops {
    pub size: u32,
    pub reserved: u32,
    pub embed: Option<StageFn>,
    pub shift_mix: Option<StageFn>,
}

#[repr(C)]
pub struct Device {
    pub size: u32,
    pub reserved: u32,
    pub this: *mut c_void,
    pub ops: *const Ops,
    pub close: Option<unsafe extern "C" fn(*mut c_void)>,
}

#[repr(C)]
pub struct DeviceInfo {
    pub size: u32,
    pub kind: u32,
    pub id: [c_char; 64],
    pub name: [c_char; 64],
    pub mem_total: u64,
    pub mem_free: u64,
    pub bytes_per_s: u64,
    pub caps: u64,
}

#[repr(C)]
pub struct Plugin {
    pub size: u32,
    pub abi: u32,
    pub id: *const c_char,
    pub version: *const c_char,
    pub vendor: *const c_char,
    pub build: *const c_char,
    pub sanitizer: u32,
    pub reserved: u32,
    pub open: unsafe extern "C" fn(*const Host, *mut *mut c_void) -> Status,
    pub close: unsafe extern "C" fn(*mut c_void),
    pub device_count: unsafe extern "C" fn(*mut c_void) -> u32,
    pub device_info: unsafe extern "C" fn(*mut c_void, u32, *mut DeviceInfo) -> Status,
    pub device_open: unsafe extern "C" fn(*mut c_void, u32, *mut *const Device) -> Status,
    pub extension: Option<unsafe extern "C" fn(*mut c_void, *const c_char) -> *const c_void>,
    pub no_device_reason: Option<unsafe extern "C" fn(*mut c_void) -> *const c_char>,
}
unsafe impl Sync for Plugin {} // its pointers are to constants

// The sizes that a C compiler gives the structs that the host writes, and the whole tables.
const _: () = assert!(size_of::<Host>() == 88);
const _: () = assert!(size_of::<Buffer>() == 16);
const _: () = assert!(size_of::<Ref>() == 24);
const _: () = assert!(size_of::<Shape>() == 52);
const _: () = assert!(size_of::<Frame>() == 144);
const _: () = assert!(size_of::<Tensor>() == 96);
const _: () = assert!(size_of::<Layer>() == 3808);
const _: () = assert!(size_of::<State>() == 80);
const _: () = assert!(size_of::<Stage>() == 912);
const _: () = assert!(size_of::<DeviceInfo>() == 168);
const _: () = assert!(size_of::<Plugin>() == 104);

/// What `DUETP_DEFINE` writes: the host reads it before it runs any code of the library.
#[repr(C)]
pub struct Note {
    pub name_size: u32,
    pub desc_size: u32,
    pub kind: u32,
    pub name: [u8; 8],
    pub desc: [u32; 4],
}

#[used]
#[link_section = ".note.duet.plugin"]
static NOTE: Note = Note {
    name_size: 5,
    desc_size: 16,
    kind: 1,
    name: *b"Duet\0\0\0\0",
    desc: [ABI, size_of::<Plugin>() as u32, size_of::<Device>() as u32, 0], // 0: no sanitizer
};
