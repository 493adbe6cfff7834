//! `lithe-worker`: compresses a model in a Job and serves the result in a Pod.

pub mod job;
pub mod process;
pub mod runtime;
pub mod serve;
pub mod store;
pub mod tensor;
