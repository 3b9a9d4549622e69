//! A plugin for Duet in Rust: it computes one stage, `shift_mix`, on the host's memory, and leaves all else to the host.

mod abi;
mod shift;
mod view;

use abi::{Device, DeviceInfo, Host, Ops, Plugin, Queue, Stage, Status};
use std::ffi::CString;
use std::mem::size_of;
use std::os::raw::{c_char, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;

struct Shift {
    host: *const Host,
    device: Device,
}

static OPS: Ops = Ops { size: size_of::<Ops>() as u32, reserved: 0, embed: None, shift_mix: Some(shift_mix) };

fn fail(host: &Host, code: Status, text: &str) -> Status {
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    unsafe { (host.fail)(host.this, code, text.as_ptr()) }
}

type Outcome = Result<(), (Status, String)>;

/// Nothing unwinds into the host: a panic too becomes a status and a sentence.
fn caught(body: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err((abi::E_INTERNAL, format!("rust_shift panicked: {}", text.unwrap_or("for no reason given"))))
    })
}

fn guarded(host: &Host, body: impl FnOnce() -> Outcome) -> Status {
    match caught(body) {
        Ok(()) => abi::OK,
        Err((code, text)) => fail(host, code, &text),
    }
}

unsafe extern "C" fn shift_mix(this: *mut c_void, _: *mut Queue, a: *const Stage) -> Status {
    let plugin = &*this.cast::<Shift>();
    guarded(&*plugin.host, || {
        let arguments = view::ShiftMix::new(&*a);
        let bytes = 2 * arguments.width * size_of::<f32>();
        shift::shift_mix(arguments).map_err(|_| (abi::E_MEMORY, format!("no memory: {bytes} bytes of scratch for shift_mix")))
    })
}

unsafe extern "C" fn open(host: *const Host, this: *mut *mut c_void) -> Status {
    guarded(&*host, || {
        let device = Device { size: size_of::<Device>() as u32, reserved: 0, this: ptr::null_mut(), ops: &OPS, close: None };
        let plugin = Box::into_raw(Box::new(Shift { host, device }));
        (*plugin).device.this = plugin.cast();
        *this = plugin.cast();
        Ok(())
    })
}

unsafe extern "C" fn close(this: *mut c_void) {
    drop(Box::from_raw(this.cast::<Shift>()));
}

unsafe extern "C" fn device_count(_: *mut c_void) -> u32 {
    1
}

unsafe extern "C" fn device_info(_: *mut c_void, _: u32, io: *mut DeviceInfo) -> Status {
    let put = |to: &mut [c_char; 64], text: &[u8]| to.iter_mut().zip(text).for_each(|(to, &byte)| *to = byte as c_char);
    let io = &mut *io;
    put(&mut io.id, b"host\0");
    put(&mut io.name, b"the host's memory, in Rust\0");
    io.kind = abi::KIND_CPU;
    io.caps = abi::CAP_HOST_VISIBLE;
    abi::OK
}

unsafe extern "C" fn device_open(this: *mut c_void, _: u32, out: *mut *const Device) -> Status {
    *out = &(*this.cast::<Shift>()).device;
    abi::OK
}

static PLUGIN: Plugin = Plugin {
    size: size_of::<Plugin>() as u32,
    abi: abi::ABI,
    id: b"rust_shift\0".as_ptr().cast(),
    version: b"0.1\0".as_ptr().cast(),
    vendor: b"you\0".as_ptr().cast(),
    build: b"Rust\0".as_ptr().cast(),
    sanitizer: 0,
    reserved: 0,
    open,
    close,
    device_count,
    device_info,
    device_open,
    extension: None,
    no_device_reason: None,
};

#[no_mangle]
pub extern "C" fn duetp_query(host_abi: u32, _reserved: u32) -> *const Plugin {
    if host_abi >> 16 == abi::ABI >> 16 {
        &PLUGIN
    } else {
        ptr::null()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_status_and_a_sentence() {
        let row = vec![0.0f32; 3];
        let (code, text) = caught(|| if row[row.len()] > 0.0 { Ok(()) } else { Ok(()) }).unwrap_err();
        assert_eq!(code, abi::E_INTERNAL);
        assert!(text.starts_with("rust_shift panicked: index out of bounds"), "{text}");
    }
}
