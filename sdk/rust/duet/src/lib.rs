//! RWKV-7 in two modes: `libduet` for Rust. No dependencies but the declarations of `duet-sys`.
//!
//! ```no_run
//! use duet::{GenerateOptions, Library, Model, Sampler, SamplerOptions, Session, State, Tokenizer};
//! use std::ops::ControlFlow;
//!
//! fn main() -> duet::Result<()> {
//!     let library = Library::new(Default::default())?;
//!     let model = Model::load(&library, "stories-7m.pth", Default::default())?;
//!     let tokenizer = Tokenizer::for_model(&model)?;
//!     let mut state = State::new(&model, 1)?; // what the model remembers of a text
//!     let mut session = Session::new(&model, Default::default())?; // reads a prompt in parallel, goes on token by token
//!     let mut sampler = Sampler::new(SamplerOptions { seed: 1, ..Default::default() })?;
//!     let mut show = |text: &str| {
//!         print!("{}", text);
//!         ControlFlow::Continue(())
//!     };
//!     let prompt = [0]; // token 0 begins a text
//!     let options = GenerateOptions { tokenizer: Some(&tokenizer), on_text: Some(&mut show), ..Default::default() };
//!     session.generate(&mut state, 0, &mut sampler, &prompt, options)?;
//!     Ok(())
//! }
//! ```
//!
//! Rules that hold for every function, so that they are not repeated:
//!
//! - **Errors** carry the library's status and its sentence. Nothing has changed then, unless `duet.h` says so.
//! - **Owners** are dropped in any order: the library keeps what is still needed, so a session works on after its model's
//!   owner is gone.
//! - **Threads**: [`Library`], [`Model`] and [`Tokenizer`] are used from any threads at once. [`State`], [`Session`] and
//!   [`Sampler`] may move to another thread, but are used by one at a time; what C answers with `DUET_E_BUSY`, the borrow
//!   checker refuses.
//! - **Callbacks** run on the calling thread (but for the log). A panic in one stops the call and goes on when the C
//!   interface has been left; it and the other callback of that call are not called again.
//! - **Shapes** are row-major: V vocabulary, C width, L layers, H heads of N channels, T tokens.
//!
//! `duet.h` says what each option means; the names are the same. Files of models are mapped into memory: do not overwrite
//! one in place while it is loaded.
#![deny(missing_docs, unsafe_op_in_unsafe_fn)]

mod argument;
mod callback;
mod error;
mod generate;
mod handle;
mod library;
mod model;
mod sampler;
mod session;
mod state;
mod tokenizer;

pub use duet_sys as sys;
pub use error::{Error, Result, Status};
pub use generate::{Cancel, Finish, GenerateOptions, GenerateResult, OnText, OnToken, Prompt};
pub use library::{ConvertOptions, Device, DeviceKind, FileFlags, InitOptions, Library, LibraryOptions, LogFunction, LogLevel};
pub use model::{Dtype, Model, ModelInfo, ModelOptions, RandomOptions};
pub use sampler::{Sampler, SamplerOptions};
pub use session::{Batch, Mode, Outputs, Rows, Session, SessionOptions};
pub use state::{State, StateArrays};
pub use tokenizer::Tokenizer;

/// Told how far a long call has come: bytes done, bytes in all. `Break` stops it with [`Status::Cancelled`].
pub type Progress<'a> = &'a mut (dyn FnMut(u64, u64) -> std::ops::ControlFlow<()> + 'a);

/// Of the library that the program runs against, which may be newer than this crate: "0.1.0 (GNU 12.2.0, x86_64)".
pub fn version() -> String {
    // SAFETY: a NUL-terminated string that lives as long as the library.
    unsafe { argument::text(sys::duet_version_string()) }
}
