//! Models: immutable weights on one device.

use crate::argument::{c_path, c_string, pointer, text};
use crate::callback::with_progress;
use crate::error::{check, Error, Result, Status};
use crate::handle::Owner;
use crate::{sys, FileFlags, Library, Progress};
use std::path::Path;
use std::ptr;

/// The type of numbers in storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of binary32.
    Bf16,
    /// Weights only: 8 bits, and a scale for each 64.
    Q8,
    /// Weights only: 4 bits, and a scale and a minimum for each 64.
    Q4,
}

impl Dtype {
    /// None is the library's default.
    pub(crate) fn code(dtype: Option<Dtype>) -> sys::duet_dtype {
        match dtype {
            None => 0,
            Some(Dtype::F32) => sys::DUET_F32,
            Some(Dtype::F16) => sys::DUET_F16,
            Some(Dtype::Bf16) => sys::DUET_BF16,
            Some(Dtype::Q8) => sys::DUET_I8,
            Some(Dtype::Q4) => sys::DUET_I4,
        }
    }

    fn of(code: sys::duet_dtype) -> Result<Dtype> {
        match code {
            sys::DUET_F32 => Ok(Dtype::F32),
            sys::DUET_F16 => Ok(Dtype::F16),
            sys::DUET_BF16 => Ok(Dtype::Bf16),
            sys::DUET_I8 => Ok(Dtype::Q8),
            sys::DUET_I4 => Ok(Dtype::Q4),
            _ => Err(Error::new(Status::Abi, format!("the library tells of a dtype {}, which this crate does not know; use a newer crate", code))),
        }
    }
}

/// How to load a [`Model`].
#[derive(Default)]
pub struct ModelOptions<'a> {
    /// Of the matrices on the device; None = as stored.
    pub weights: Option<Dtype>,
    /// "cpu", "cuda:1"; None = what the variable DUET_BACKEND names, else the best device that can run the model.
    pub device: Option<&'a str>,
    /// How strictly the file is read.
    pub flags: FileFlags,
    /// Told the bytes done.
    pub progress: Option<Progress<'a>>,
}

/// Which random weights to make.
#[derive(Clone, Copy, Debug)]
pub struct RandomOptions<'a> {
    /// "0.1b" "0.4b" "1.5b" "2.9b" "7.2b": the released models' sizes and ranks.
    pub shape: &'a str,
    /// Share of relu^2 activations that are not zero, in (0,1); 0 = as random weights give.
    pub relu2: f32,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for RandomOptions<'_> {
    fn default() -> Self {
        RandomOptions { shape: "0.1b", relu2: 0.0, seed: 0 }
    }
}

/// Shape and size of a model.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ModelInfo {
    pub n_layer: u32,
    pub n_embd: u32,
    pub n_head: u32,
    pub head_size: u32,
    pub n_ffn: u32,
    pub n_vocab: u32,
    pub rank_w: u32,
    pub rank_a: u32,
    pub rank_v: u32,
    pub rank_g: u32,
    /// Of the matrices.
    pub weights: Dtype,
    pub n_params: u64,
    /// In memory, of all that the model needs.
    pub weight_bytes: u64,
    /// Weights read to generate one token of one sequence.
    pub bytes_per_token: u64,
    /// Of one sequence in the canonical form, f32.
    pub state_bytes: u64,
    /// "cpu:0".
    pub device: String,
}

/// Immutable weights on one device. Any thread.
pub struct Model(pub(crate) Owner<sys::duet_model>);

// SAFETY: duet.h: a model may be used from any thread at once.
unsafe impl Send for Model {}
unsafe impl Sync for Model {}

impl Model {
    /// Loads an official `.pth`, a safetensors file, or a folder in the Hugging Face form.
    pub fn load(library: &Library, path: impl AsRef<Path>, options: ModelOptions<'_>) -> Result<Model> {
        let path = c_path(path.as_ref(), "path")?;
        // SAFETY: all arguments live through the call.
        Model::make(library, options, |o, out| unsafe { sys::duet_model_load(library.as_ptr(), path.as_ptr(), o, out) })
    }

    /// Random weights at trained-like scale, for measuring speed without a file.
    pub fn random(library: &Library, random: RandomOptions<'_>, options: ModelOptions<'_>) -> Result<Model> {
        let shape = c_string(random.shape, "shape")?;
        let r = sys::duet_random_options { shape: shape.as_ptr(), relu2: random.relu2, seed: random.seed, ..Default::default() };
        // SAFETY: all arguments live through the call.
        Model::make(library, options, |o, out| unsafe { sys::duet_model_random(library.as_ptr(), &r, o, out) })
    }

    fn make(
        library: &Library,
        options: ModelOptions<'_>,
        create: impl FnOnce(*const sys::duet_model_options, *mut *mut sys::duet_model) -> sys::duet_status,
    ) -> Result<Model> {
        let device = options.device.map(|device| c_string(device, "device")).transpose()?;
        let mut handle = ptr::null_mut();
        with_progress(options.progress, |progress, progress_user| {
            let o = sys::duet_model_options {
                weights: Dtype::code(options.weights),
                device: pointer(&device),
                flags: options.flags.code(),
                progress,
                progress_user,
                ..Default::default()
            };
            create(&o, &mut handle)
        })?;
        Ok(Model(Owner::of(handle, library.0.log(), sys::duet_model_free)))
    }

    /// Shape and size.
    pub fn info(&self) -> Result<ModelInfo> {
        let mut i = sys::duet_model_info::default();
        // SAFETY: the model is live, and the string that it gives lives as long.
        let device = unsafe {
            check(sys::duet_model_get(self.as_ptr(), &mut i))?;
            text(i.device)
        };
        Ok(ModelInfo {
            n_layer: i.n_layer,
            n_embd: i.n_embd,
            n_head: i.n_head,
            head_size: i.head_size,
            n_ffn: i.n_ffn,
            n_vocab: i.n_vocab,
            rank_w: i.rank_w,
            rank_a: i.rank_a,
            rank_v: i.rank_v,
            rank_g: i.rank_g,
            weights: Dtype::of(i.weights)?,
            n_params: i.n_params,
            weight_bytes: i.weight_bytes,
            bytes_per_token: i.bytes_per_token,
            state_bytes: i.state_bytes,
            device,
        })
    }

    /// Writes the weights as safetensors, atomically, over an existing file.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = c_path(path.as_ref(), "path")?;
        // SAFETY: all arguments live through the call.
        check(unsafe { sys::duet_model_save(self.as_ptr(), path.as_ptr()) })
    }

    /// For calls of [`sys`]; borrowed.
    pub fn as_ptr(&self) -> *mut sys::duet_model {
        self.0.as_ptr()
    }
}
