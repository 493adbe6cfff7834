//! ONNX Runtime: loads a model from bytes and runs tensors through it.
//!
//! The bytes must have passed `onnx::load` before: the runtime itself opens external data relative
//! to the working directory. One inference runs at a time in a [`Session`]; its kernels use the
//! session's threads. Nothing else in this crate names the runtime.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use lithe::artifact::TensorSignature;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynTensor, DynValue, Shape, TensorElementType, ValueType};

use crate::tensor::{Datatype, Tensor, TensorError};

/// The environment variable with the path of the runtime's library.
pub const ENV_LIBRARY: &str = "ORT_DYLIB_PATH";
/// Where the worker's image keeps the library.
pub const IMAGE_LIBRARY: &str = "/usr/lib/lithe/libonnxruntime.so";

/// What went wrong in the runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The library is not there, or is not the one this program was built for.
    #[error(
        "load ONNX Runtime from {path} (set {ENV_LIBRARY} to libonnxruntime.so 1.31): {message}"
    )]
    Library {
        /// The library's path.
        path: PathBuf,
        /// The loader's words.
        message: String,
    },
    /// The runtime does not take the model.
    #[error("load the model: {0}")]
    Load(String),
    /// The model has an input or output that is no tensor of a type that can be served.
    #[error("{what} {name:?} is {kind}, which is no tensor that can be served")]
    Signature {
        /// `input` or `output`.
        what: &'static str,
        /// Its name.
        name: String,
        /// Its type in the runtime's words.
        kind: String,
    },
    /// An inference failed.
    #[error("run the model: {0}")]
    Run(String),
    /// A tensor that came out cannot be described.
    #[error("read output {name:?}: {source}")]
    Output {
        /// The output's name.
        name: String,
        /// Why.
        source: TensorError,
    },
}

/// How a session executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Threads of one inference, at least 1.
    pub threads: usize,
    /// Whether the runtime may rewrite the graph while loading.
    pub optimise: bool,
    /// Whether idle threads spin while they wait for work: faster, but it burns the processor.
    pub spin: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { threads: 1, optimise: true, spin: false }
    }
}

static ENVIRONMENT: OnceLock<Result<ort::environment::Environment, (PathBuf, String)>> =
    OnceLock::new();

/// The library that will be loaded: [`ENV_LIBRARY`], else the image's.
pub fn library() -> PathBuf {
    std::env::var_os(ENV_LIBRARY).map_or_else(|| PathBuf::from(IMAGE_LIBRARY), PathBuf::from)
}

fn environment() -> Result<&'static ort::environment::Environment, RuntimeError> {
    ENVIRONMENT
        .get_or_init(|| {
            let path = library();
            let built =
                ort::init_from(&path).map_err(|error| error.to_string()).and_then(|builder| {
                    builder
                        .with_name("lithe")
                        .with_telemetry(false)
                        .build()
                        .map_err(|error| error.to_string())
                });
            built.map_err(|message| (path, message))
        })
        .as_ref()
        .map_err(|(path, message)| RuntimeError::Library {
            path: path.clone(),
            message: message.clone(),
        })
}

/// Loads the library, so that a later session does not pay for it.
pub fn preload() -> Result<(), RuntimeError> {
    environment().map(|_| ())
}

/// The version of the loaded library, such as `1.31.1`.
pub fn version() -> Result<String, RuntimeError> {
    environment()?;
    library_version(&library())
        .map_err(|message| RuntimeError::Library { path: library(), message })
}

// The binding asks the library for its version but does not tell it.
#[allow(unsafe_code)]
fn library_version(path: &Path) -> Result<String, String> {
    // SAFETY: the library is the one that `environment` loaded; `OrtGetApiBase` is its documented
    // entry point and returns a table that lives as long as the library.
    unsafe {
        let library = libloading::Library::new(path).map_err(|error| error.to_string())?;
        let base = library
            .get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase")
            .map_err(|error| error.to_string())?;
        let base = base().as_ref().ok_or("the library has no API")?;
        Ok(CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned())
    }
}

/// A loaded model.
pub struct Session {
    session: Mutex<ort::session::Session>,
    inputs: Vec<TensorSignature>,
    outputs: Vec<TensorSignature>,
}

impl Session {
    /// Loads `model`, a serialized ONNX `ModelProto` without external data.
    // The large error is the builder's own, given back for recovery.
    #[allow(clippy::result_large_err)]
    pub fn load(model: &[u8], options: Options) -> Result<Self, RuntimeError> {
        let environment = environment()?;
        let load = |error: ort::Error<_>| RuntimeError::Load(first_line(error.message()));
        let level = if options.optimise {
            GraphOptimizationLevel::All
        } else {
            GraphOptimizationLevel::Disable
        };
        let mut builder = ort::session::Session::builder(environment)
            .map_err(|error| RuntimeError::Load(first_line(error.message())))?
            .with_intra_threads(options.threads.max(1))
            .and_then(|builder| builder.with_inter_threads(1))
            .and_then(|builder| builder.with_optimization_level(level))
            .and_then(|builder| builder.with_intra_op_spinning(options.spin))
            .map_err(load)?;
        let session = builder
            .commit_from_memory(model)
            .map_err(|error| RuntimeError::Load(first_line(error.message())))?;
        let inputs = signatures("input", session.inputs())?;
        let outputs = signatures("output", session.outputs())?;
        Ok(Self { session: Mutex::new(session), inputs, outputs })
    }

    /// The inputs, in graph order.
    pub fn inputs(&self) -> &[TensorSignature] {
        &self.inputs
    }

    /// The outputs, in graph order.
    pub fn outputs(&self) -> &[TensorSignature] {
        &self.outputs
    }

    /// Runs one inference. `inputs` are (name, tensor) pairs; `wanted` names the outputs to return,
    /// in order; empty means all of them.
    ///
    /// # Errors
    /// [`RuntimeError::Run`] with the runtime's words, for example when a shape does not fit.
    pub fn run(
        &self,
        inputs: &[(&str, &Tensor)],
        wanted: &[&str],
    ) -> Result<Vec<Tensor>, RuntimeError> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let mut values: Vec<(&str, DynValue)> = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            let value = to_value(tensor, session.allocator())
                .map_err(|error| RuntimeError::Run(first_line(error.message())))?;
            values.push((*name, value));
        }
        let run = |error: ort::Error| RuntimeError::Run(first_line(error.message()));
        let all: Vec<&str>;
        let (names, run_options);
        let outputs = if wanted.is_empty() {
            all = self.outputs.iter().map(|output| output.name.as_str()).collect();
            names = &*all;
            session.run(values).map_err(run)?
        } else {
            names = wanted;
            let mut selector = ort::session::OutputSelector::no_default();
            for name in names {
                selector = selector.with(*name);
            }
            run_options = ort::session::RunOptions::new().map_err(run)?.with_outputs(selector);
            session.run_with_options(values, &run_options).map_err(run)?
        };
        names
            .iter()
            .map(|name| {
                let value = outputs
                    .get(name)
                    .ok_or_else(|| RuntimeError::Run(format!("output {name:?} did not come")))?;
                from_value(name, value)
            })
            .collect()
    }
}

/// The runtime's messages name its own source files on further lines; users need the first.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

fn signatures(
    what: &'static str,
    outlets: &[ort::value::Outlet],
) -> Result<Vec<TensorSignature>, RuntimeError> {
    let describe = |outlet: &ort::value::Outlet| match outlet.dtype() {
        ValueType::Tensor { ty, shape, .. } => datatype(*ty).map(|datatype| TensorSignature {
            name: outlet.name().to_owned(),
            datatype: datatype.name().to_owned(),
            shape: shape.iter().copied().collect(),
        }),
        _ => None,
    };
    outlets
        .iter()
        .map(|outlet| {
            describe(outlet).ok_or_else(|| RuntimeError::Signature {
                what,
                name: outlet.name().to_owned(),
                kind: outlet.dtype().to_string(),
            })
        })
        .collect()
}

fn datatype(element: TensorElementType) -> Option<Datatype> {
    Some(match element {
        TensorElementType::Bool => Datatype::Bool,
        TensorElementType::Uint8 => Datatype::Uint8,
        TensorElementType::Uint16 => Datatype::Uint16,
        TensorElementType::Uint32 => Datatype::Uint32,
        TensorElementType::Uint64 => Datatype::Uint64,
        TensorElementType::Int8 => Datatype::Int8,
        TensorElementType::Int16 => Datatype::Int16,
        TensorElementType::Int32 => Datatype::Int32,
        TensorElementType::Int64 => Datatype::Int64,
        TensorElementType::Float16 => Datatype::Fp16,
        TensorElementType::Bfloat16 => Datatype::Bf16,
        TensorElementType::Float32 => Datatype::Fp32,
        TensorElementType::Float64 => Datatype::Fp64,
        TensorElementType::String => Datatype::Bytes,
        _ => return None,
    })
}

fn element(datatype: Datatype) -> TensorElementType {
    match datatype {
        Datatype::Bool => TensorElementType::Bool,
        Datatype::Uint8 => TensorElementType::Uint8,
        Datatype::Uint16 => TensorElementType::Uint16,
        Datatype::Uint32 => TensorElementType::Uint32,
        Datatype::Uint64 => TensorElementType::Uint64,
        Datatype::Int8 => TensorElementType::Int8,
        Datatype::Int16 => TensorElementType::Int16,
        Datatype::Int32 => TensorElementType::Int32,
        Datatype::Int64 => TensorElementType::Int64,
        Datatype::Fp16 => TensorElementType::Float16,
        Datatype::Bf16 => TensorElementType::Bfloat16,
        Datatype::Fp32 => TensorElementType::Float32,
        Datatype::Fp64 => TensorElementType::Float64,
        Datatype::Bytes => TensorElementType::String,
    }
}

// Wire buffers have no alignment, the runtime's own allocations have: one copy is the price.
#[allow(unsafe_code)]
fn to_value(tensor: &Tensor, allocator: &ort::memory::Allocator) -> ort::Result<DynValue> {
    let shape = Shape::new(tensor.shape().iter().map(|dim| *dim as i64));
    if tensor.datatype() == Datatype::Bytes {
        let strings: Vec<String> = tensor
            .strings()
            .iter()
            .map(|bytes| String::from_utf8_lossy(bytes).into_owned())
            .collect();
        let value = ort::value::Tensor::from_string_array((shape, strings.as_slice()))?;
        return Ok(value.into_dyn());
    }
    let mut value = DynTensor::new(allocator, element(tensor.datatype()), shape)?;
    // SAFETY: the runtime just allocated the tensor for exactly this type and shape, and
    // `Tensor::new` checked that the data has that many bytes.
    unsafe {
        let target = value.data_ptr_mut().cast::<u8>();
        std::ptr::copy_nonoverlapping(tensor.data().as_ptr(), target, tensor.data().len());
    }
    Ok(value.into_dyn())
}

#[allow(unsafe_code)]
fn from_value(name: &str, value: &DynValue) -> Result<Tensor, RuntimeError> {
    let wrong = || RuntimeError::Signature {
        what: "output",
        name: name.to_owned(),
        kind: value.dtype().to_string(),
    };
    let output = |source| RuntimeError::Output { name: name.to_owned(), source };
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else { return Err(wrong()) };
    let datatype = datatype(*ty).ok_or_else(wrong)?;
    let shape: Vec<usize> = shape.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    let Some(size) = datatype.size() else {
        let (_, strings) = value
            .try_extract_strings()
            .map_err(|error| RuntimeError::Run(first_line(error.message())))?;
        return Tensor::from_strings(shape, &strings).map_err(output);
    };
    let length = crate::tensor::elements(&shape).unwrap_or(0) * size;
    let tensor = value
        .view()
        .downcast::<ort::value::DynTensorValueType>()
        .map_err(|error| RuntimeError::Run(first_line(error.message())))?;
    let data = if length == 0 {
        bytes::Bytes::new()
    } else {
        // SAFETY: the runtime owns `length` initialised bytes there, by the tensor's own type and
        // shape, and `value` keeps them alive while they are copied.
        let bytes = unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), length) };
        bytes::Bytes::copy_from_slice(bytes)
    };
    Tensor::new(datatype, shape, data).map_err(output)
}
