//! Runs closures inside callbacks of C, which no panic may leave.

use crate::error::{check, Result};
use crate::{sys, Progress};
use std::any::Any;
use std::cell::RefCell;
use std::ops::ControlFlow;
use std::os::raw::c_void;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};

/// The panic of a closure, on its way around the C interface. The closures of one call share it.
#[derive(Default)]
pub(crate) struct Panics {
    caught: RefCell<Option<Box<dyn Any + Send>>>,
}

impl Panics {
    /// Runs a closure, unless one has panicked before.
    pub(crate) fn run(&self, closure: impl FnOnce() -> ControlFlow<()>) -> sys::duet_status {
        if self.caught.borrow().is_some() {
            return sys::DUET_E_CANCELLED;
        }
        // Whatever the panic leaves half done is seen by nobody before `resume`, as without C in between.
        match catch_unwind(AssertUnwindSafe(closure)) {
            Ok(ControlFlow::Continue(())) => sys::DUET_OK,
            Ok(ControlFlow::Break(())) => sys::DUET_E_CANCELLED,
            Err(panic) => {
                self.caught.replace(Some(panic));
                sys::DUET_E_CANCELLED
            }
        }
    }

    /// After the call of C: lets a panic go on.
    pub(crate) fn resume(&self) {
        if let Some(panic) = self.caught.take() {
            resume_unwind(panic);
        }
    }
}

/// Makes a call of C that reports progress: `call(function, user)`.
pub(crate) fn with_progress(progress: Option<Progress<'_>>, call: impl FnOnce(sys::duet_progress_fn, *mut c_void) -> sys::duet_status) -> Result<()> {
    struct Shared<'a> {
        progress: Progress<'a>,
        panics: Panics,
    }
    unsafe extern "C" fn report(user: *mut c_void, done: u64, total: u64) -> sys::duet_status {
        // SAFETY: `user` is the Shared below, which nobody else uses during the call.
        let shared = unsafe { &mut *user.cast::<Shared<'_>>() };
        let progress = &mut shared.progress;
        shared.panics.run(|| progress(done, total))
    }

    match progress {
        None => check(call(None, std::ptr::null_mut())),
        Some(progress) => {
            let mut shared = Shared { progress, panics: Panics::default() };
            let status = call(Some(report), (&mut shared as *mut Shared<'_>).cast());
            shared.panics.resume();
            check(status)
        }
    }
}
