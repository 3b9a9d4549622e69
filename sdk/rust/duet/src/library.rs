//! The library: plugins, devices, threads, the log, and work on files.

use crate::argument::{c_path, c_string, pointer, sized, text};
use crate::callback::with_progress;
use crate::error::{check, Result};
use crate::handle::Owner;
use crate::{sys, Dtype, Progress};
use std::ffi::CStr;
use std::os::raw::{c_char, c_void};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;

/// Takes messages, from any thread. It must not call Duet. What it panics with has no call to come out of and ends there.
pub type LogFunction = Box<dyn Fn(LogLevel, &str) + Send + Sync>;

/// What the library's log pointer points to.
pub(crate) struct Log(LogFunction);

/// How grave a message is; in options, the least grave one that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For who works on Duet.
    Debug,
    /// What goes on.
    Info,
    /// Something that may surprise.
    Warning,
    /// Something that failed.
    Error,
    /// In options: no message at all.
    Off,
}

impl LogLevel {
    fn of(level: i32) -> LogLevel {
        match level {
            i32::MIN..=sys::DUET_LOG_DEBUG => LogLevel::Debug,
            sys::DUET_LOG_INFO => LogLevel::Info,
            sys::DUET_LOG_WARNING => LogLevel::Warning,
            _ => LogLevel::Error,
        }
    }

    fn code(self) -> i32 {
        match self {
            LogLevel::Debug => sys::DUET_LOG_DEBUG,
            LogLevel::Info => sys::DUET_LOG_INFO,
            LogLevel::Warning => sys::DUET_LOG_WARNING,
            LogLevel::Error => sys::DUET_LOG_ERROR,
            LogLevel::Off => sys::DUET_LOG_OFF,
        }
    }
}

/// How to make a [`Library`].
#[derive(Default)]
pub struct LibraryOptions<'a> {
    /// 0 = the physical cores that the process may use.
    pub n_threads: u32,
    /// ':'-separated plugin files, manifests or folders, absolute; replaces the default search.
    pub plugin_path: Option<&'a str>,
    /// None = standard error. It lives until the last object made from the library is gone.
    pub log: Option<LogFunction>,
    /// None = warnings and errors.
    pub log_level: Option<LogLevel>,
    /// ','-separated interposing layers around the devices of models, such as "validate,trace".
    pub layers: Option<&'a str>,
}

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DeviceKind {
    Cpu,
    IntegratedGpu,
    Gpu,
    Other,
}

/// A device that a model can be loaded to.
#[derive(Clone, Debug)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// "cpu:0": what [`crate::ModelOptions::device`] takes.
    pub spec: String,
    /// "AMD EPYC".
    pub name: String,
    /// The plugin's file, or "built in".
    pub plugin: String,
    /// Bytes; 0 = unknown.
    pub mem_total: u64,
    /// Bytes; 0 = unknown.
    pub mem_free: u64,
    /// Bytes per second of its memory; 0 = unknown.
    pub bytes_per_s: u64,
}

/// How strictly files are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileFlags {
    /// Warnings (unknown tensors, non-finite weights) are errors.
    pub strict: bool,
    /// Reads every byte: a disk that cannot, checksums, finite weights.
    pub verify: bool,
}

impl FileFlags {
    pub(crate) fn code(self) -> u32 {
        let flag = |wanted: bool, bit: u32| if wanted { bit } else { 0 };
        flag(self.strict, sys::DUET_FILE_STRICT) | flag(self.verify, sys::DUET_FILE_VERIFY)
    }
}

/// How to convert a model.
#[derive(Default)]
pub struct ConvertOptions<'a> {
    /// Of the matrices; None = as stored.
    pub weights: Option<Dtype>,
    /// Without it, an output that exists is [`crate::Status::Exists`].
    pub overwrite: bool,
    /// How strictly the input is read.
    pub flags: FileFlags,
    /// Told the bytes done.
    pub progress: Option<Progress<'a>>,
}

/// How to make a fresh model.
#[derive(Default)]
pub struct InitOptions<'a> {
    /// L, required.
    pub n_layer: u32,
    /// C, required.
    pub n_embd: u32,
    /// V, required.
    pub n_vocab: u32,
    /// N, a divisor of C; 0 = 64.
    pub head_size: u32,
    /// None = f32.
    pub weights: Option<Dtype>,
    /// Without it, an output that exists is [`crate::Status::Exists`].
    pub overwrite: bool,
    /// Of the random numbers.
    pub seed: u64,
    /// Told the bytes done.
    pub progress: Option<Progress<'a>>,
}

/// Finds plugins, owns the threads and the log. Make as many as you like. Any thread.
pub struct Library(pub(crate) Owner<sys::duet_library>);

// SAFETY: duet.h: a library may be used from any thread at once; its log function is Send and Sync.
unsafe impl Send for Library {}
unsafe impl Sync for Library {}

impl Library {
    /// Makes a library. Plugins are looked for now, and opened when they are needed.
    pub fn new(options: LibraryOptions<'_>) -> Result<Library> {
        let plugin_path = options.plugin_path.map(|path| c_string(path, "plugin_path")).transpose()?;
        let layers = options.layers.map(|names| c_string(names, "layers")).transpose()?;
        let log = options.log.map(|function| Arc::new(Log(function)));
        let mut o = sys::duet_library_options {
            n_threads: options.n_threads,
            plugin_path: pointer(&plugin_path),
            log_level: options.log_level.map_or(0, LogLevel::code),
            layers: pointer(&layers),
            ..Default::default()
        };
        if let Some(log) = &log {
            o.log = Some(on_message);
            o.log_user = Arc::as_ptr(log) as *mut c_void;
        }
        // SAFETY: the options live through the call, the log as long as the owner and its children.
        Owner::new(log, sys::duet_library_free, |out| unsafe { sys::duet_library_create(&o, out) }).map(Library)
    }

    /// Every plugin that was considered, and why it was or was not taken: JSON. Opens all plugins.
    pub fn report(&self) -> Result<String> {
        // SAFETY: `dst` has `cap` bytes.
        let json = sized(|dst, cap, size| unsafe { sys::duet_library_report(self.as_ptr(), dst.cast(), cap, size) })?;
        Ok(String::from_utf8_lossy(&json).into_owned())
    }

    /// The devices, the best first.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let mut n = 0;
        // SAFETY: the library is live.
        check(unsafe { sys::duet_device_count(self.as_ptr(), &mut n) })?;
        (0..n).map(|index| self.device(index)).collect()
    }

    fn device(&self, index: u32) -> Result<Device> {
        let mut d = sys::duet_device_info::default();
        // SAFETY: the library is live, and the strings that it gives live as long.
        unsafe {
            check(sys::duet_device_get(self.as_ptr(), index, &mut d))?;
            Ok(Device {
                kind: match d.kind {
                    0 => DeviceKind::Cpu,
                    1 => DeviceKind::IntegratedGpu,
                    2 => DeviceKind::Gpu,
                    _ => DeviceKind::Other,
                },
                spec: text(d.spec),
                name: text(d.name),
                plugin: text(d.plugin),
                mem_total: d.mem_total,
                mem_free: d.mem_free,
                bytes_per_s: d.bytes_per_s,
            })
        }
    }

    /// What a model or state file holds: JSON.
    pub fn file_info(&self, path: impl AsRef<Path>, flags: FileFlags) -> Result<String> {
        let path = c_path(path.as_ref(), "path")?;
        // SAFETY: `dst` has `cap` bytes.
        let json = sized(|dst, cap, size| unsafe { sys::duet_file_info(self.as_ptr(), path.as_ptr(), flags.code(), dst.cast(), cap, size) })?;
        Ok(String::from_utf8_lossy(&json).into_owned())
    }

    /// Rewrites a model as safetensors with official names; the file appears whole or not at all.
    pub fn convert(&self, input: impl AsRef<Path>, output: impl AsRef<Path>, options: ConvertOptions<'_>) -> Result<()> {
        let (input, output) = (c_path(input.as_ref(), "input")?, c_path(output.as_ref(), "output")?);
        with_progress(options.progress, |progress, progress_user| {
            let o = sys::duet_convert_options {
                weights: Dtype::code(options.weights),
                overwrite: options.overwrite.into(),
                flags: options.flags.code(),
                progress,
                progress_user,
                ..Default::default()
            };
            // SAFETY: all arguments live through the call.
            unsafe { sys::duet_file_convert(self.as_ptr(), input.as_ptr(), output.as_ptr(), &o) }
        })
    }

    /// Writes a fresh model with the official initialisation.
    pub fn init(&self, output: impl AsRef<Path>, options: InitOptions<'_>) -> Result<()> {
        let output = c_path(output.as_ref(), "output")?;
        with_progress(options.progress, |progress, progress_user| {
            let o = sys::duet_init_options {
                n_layer: options.n_layer,
                n_embd: options.n_embd,
                n_vocab: options.n_vocab,
                head_size: options.head_size,
                weights: Dtype::code(options.weights),
                overwrite: options.overwrite.into(),
                seed: options.seed,
                progress,
                progress_user,
                ..Default::default()
            };
            // SAFETY: all arguments live through the call.
            unsafe { sys::duet_file_init(self.as_ptr(), output.as_ptr(), &o) }
        })
    }

    /// For calls of [`sys`]; borrowed.
    pub fn as_ptr(&self) -> *mut sys::duet_library {
        self.0.as_ptr()
    }
}

unsafe extern "C" fn on_message(user: *mut c_void, level: i32, message: *const c_char) {
    // SAFETY: `user` is the Log that every owner made from the library shares; the message is NUL-terminated.
    let (log, message) = unsafe { (&*user.cast::<Log>(), CStr::from_ptr(message)) };
    let shown = catch_unwind(AssertUnwindSafe(|| (log.0)(LogLevel::of(level), &message.to_string_lossy())));
    if let Err(panic) = shown {
        std::mem::forget(panic); // its destructor may panic too, and this frame has only C below it
    }
}
