//! Owners of the library's objects.

use crate::error::{check, Result};
use crate::library::Log;
use crate::sys;
use std::ptr;
use std::sync::Arc;

/// Owns one object of C. A library lives until the last object made from it is gone and may log until then, so each of them
/// shares its log function, which goes after the object.
pub(crate) struct Owner<T> {
    handle: *mut T,
    free: unsafe extern "C" fn(*mut T),
    log: Option<Arc<Log>>,
}

impl<T> Owner<T> {
    /// `create(&mut handle)` makes the object, and `free` takes it.
    pub(crate) fn new(log: Option<Arc<Log>>, free: unsafe extern "C" fn(*mut T), create: impl FnOnce(*mut *mut T) -> sys::duet_status) -> Result<Owner<T>> {
        let mut handle = ptr::null_mut();
        check(create(&mut handle))?;
        Ok(Owner::of(handle, log, free))
    }

    /// Takes an object that was made.
    pub(crate) fn of(handle: *mut T, log: Option<Arc<Log>>, free: unsafe extern "C" fn(*mut T)) -> Owner<T> {
        Owner { handle, free, log }
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.handle
    }

    pub(crate) fn log(&self) -> Option<Arc<Log>> {
        self.log.clone()
    }
}

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        // SAFETY: `free` belongs to this kind of object, and the handle is freed nowhere else.
        unsafe { (self.free)(self.handle) }
    }
}
