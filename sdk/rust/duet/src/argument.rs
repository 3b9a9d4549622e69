//! Strings, numbers and slices on their way to C and back.

use crate::error::{check, Error, Result, Status};
use crate::sys;
use std::convert::TryFrom;
use std::ffi::{CStr, CString};
use std::os::raw::c_char;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

/// A copy of a string of C. Only names of files can be other than UTF-8.
///
/// # Safety
/// `text` is NUL-terminated.
pub(crate) unsafe fn text(text: *const c_char) -> String {
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// For C, where a string ends at its first NUL: no other may be in it.
pub(crate) fn c_string(text: impl Into<Vec<u8>>, name: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid(format!("{} holds a NUL character; take it out", name)))
}

pub(crate) fn c_path(path: &Path, name: &str) -> Result<CString> {
    c_string(path.as_os_str().as_bytes(), name)
}

/// NULL for none.
pub(crate) fn pointer(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(ptr::null(), |text| text.as_ptr())
}

pub(crate) fn count(n: usize, name: &str) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::new(Status::Limit, format!("{}: {} are more than 32 bits can count", name, n)))
}

pub(crate) fn same_length(got: usize, want: usize, name: &str) -> Result<()> {
    if got == want {
        return Ok(());
    }
    Err(Error::invalid(format!("{} has {} elements; {} are needed", name, got, want)))
}

/// What `get(dst, cap, &mut size)` gives, by the two calls of `duet.h`.
pub(crate) fn sized(mut get: impl FnMut(*mut u8, usize, &mut usize) -> sys::duet_status) -> Result<Vec<u8>> {
    let mut size = 0;
    check(get(ptr::null_mut(), 0, &mut size))?;
    loop {
        let mut out = vec![0; size];
        match get(out.as_mut_ptr(), out.len(), &mut size) {
            sys::DUET_E_SMALL if size > out.len() => {} // it has grown in between
            status => {
                check(status)?;
                out.truncate(size);
                return Ok(out);
            }
        }
    }
}
