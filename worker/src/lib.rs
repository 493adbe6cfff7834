//! `lithe-worker`: compresses a model in a Job and serves the result in a Pod.

pub mod compress;
pub mod onnx;
pub mod runtime;
pub mod tensor;
