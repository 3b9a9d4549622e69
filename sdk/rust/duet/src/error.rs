//! What can go wrong, and how it is told.

use crate::{argument, sys};
use std::fmt;

/// The result of a call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// The kind of a failure: `DUET_E_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The caller broke the contract; the same call will fail again.
    Invalid,
    /// A file, device, plugin or tensor that was named is not there.
    NotFound,
    /// Valid, but this plugin, device or build cannot do it.
    Unsupported,
    /// Host or device memory exhausted.
    Memory,
    /// Bytes are not what they claim to be.
    Format,
    /// The library is of a version that does not know what this crate asks for.
    Abi,
    /// Driver or device fault.
    Device,
    /// A buffer was too small.
    Small,
    /// A callback or flag asked to stop.
    Cancelled,
    /// The operating system refused.
    Io,
    /// Used from two threads at once. Safe code cannot get there.
    Busy,
    /// Not a live object. Safe code cannot get there.
    Handle,
    /// Over a stated limit.
    Limit,
    /// Not finite where it must be.
    Numeric,
    /// The output exists and overwriting was not asked for.
    Exists,
    /// A bug in Duet.
    Internal,
    /// A status that this crate does not know.
    Other(i32),
}

const CODES: [(Status, sys::duet_status); 16] = [
    (Status::Invalid, sys::DUET_E_INVALID),
    (Status::NotFound, sys::DUET_E_NOT_FOUND),
    (Status::Unsupported, sys::DUET_E_UNSUPPORTED),
    (Status::Memory, sys::DUET_E_MEMORY),
    (Status::Format, sys::DUET_E_FORMAT),
    (Status::Abi, sys::DUET_E_ABI),
    (Status::Device, sys::DUET_E_DEVICE),
    (Status::Small, sys::DUET_E_SMALL),
    (Status::Cancelled, sys::DUET_E_CANCELLED),
    (Status::Io, sys::DUET_E_IO),
    (Status::Busy, sys::DUET_E_BUSY),
    (Status::Handle, sys::DUET_E_HANDLE),
    (Status::Limit, sys::DUET_E_LIMIT),
    (Status::Numeric, sys::DUET_E_NUMERIC),
    (Status::Exists, sys::DUET_E_EXISTS),
    (Status::Internal, sys::DUET_E_INTERNAL),
];

impl Status {
    /// The number in C: `DUET_E_*`.
    pub fn code(self) -> i32 {
        match self {
            Status::Other(code) => code,
            known => CODES.iter().find(|(status, _)| *status == known).map_or(sys::DUET_E_INTERNAL, |(_, code)| *code),
        }
    }

    /// The name in C: "DUET_E_INVALID".
    pub fn name(self) -> String {
        // SAFETY: takes any number and returns a NUL-terminated string that lives as long as the library.
        unsafe { argument::text(sys::duet_status_name(self.code())) }
    }

    fn of(code: sys::duet_status) -> Status {
        CODES.iter().find(|(_, known)| *known == code).map_or(Status::Other(code), |(status, _)| *status)
    }
}

/// A failed call: the status, and a sentence that names the thing and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    sentence: String,
}

impl Error {
    /// The kind of the failure.
    pub fn status(&self) -> Status {
        self.status
    }

    pub(crate) fn new(status: Status, sentence: impl Into<String>) -> Error {
        Error { status, sentence: sentence.into() }
    }

    pub(crate) fn invalid(sentence: impl Into<String>) -> Error {
        Error::new(Status::Invalid, sentence)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Error {}

/// Turns the status of a call that this thread has just made into a result.
pub(crate) fn check(code: sys::duet_status) -> Result<()> {
    if code == sys::DUET_OK {
        return Ok(());
    }
    // SAFETY: a NUL-terminated string that lives until this thread's next call.
    let sentence = unsafe { argument::text(sys::duet_last_error()) };
    let status = Status::of(code);
    Err(Error::new(status, if sentence.is_empty() { status.name() } else { sentence }))
}
