//! TensorFlow Serving over gRPC: messages, clients and servers, compiled from
//! `protos/tensorflow_serving.proto` and what it imports.

#[allow(missing_docs, clippy::all, rust_2018_idioms)] // generated; the .proto carries the texts
mod wire {
    tonic::include_proto!("tensorflow");

    pub mod error {
        tonic::include_proto!("tensorflow.error");
    }

    pub mod serving {
        tonic::include_proto!("tensorflow.serving");
    }
}

pub use wire::*;

/// The compiled descriptors, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/tensorflow.bin"));
