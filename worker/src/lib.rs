//! `lithe-worker`: compresses a model in a Job and serves the result in a Pod.

pub mod compress;
pub mod job;
pub mod onnx;
pub mod process;
pub mod runtime;
pub mod serve;
pub mod store;
pub mod tensor;
