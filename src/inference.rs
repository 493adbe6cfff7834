//! The Open Inference Protocol v2 over gRPC: messages, client and server, compiled from
//! `protos/open_inference.proto`.

pub mod codec;

#[allow(missing_docs, clippy::all, rust_2018_idioms)] // generated; the .proto carries the texts
mod wire {
    tonic::include_proto!("inference");
}

pub use wire::*;

/// The compiled descriptors, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
