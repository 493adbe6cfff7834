//! The graph: an ONNX model in memory, read safely and walked.
//!
//! [`load`] is the only way in: whatever it returns has been verified and holds every byte itself.
//! Nothing here runs the model, and nothing reads the network.

pub mod budget;
pub mod external;
pub mod facts;
pub mod functions;
pub mod graph;
pub mod infer;
pub mod load;
pub mod operators;
pub mod order;
pub mod refusal;
pub mod scan;
pub mod sniff;
pub mod walk;
pub mod weights;
pub mod wire;

pub use budget::Budget;
pub use load::{Loaded, load, parse};
pub use refusal::Refusal;

/// The messages of the ONNX file format.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/onnx.rs"));
}

pub use proto::attribute_proto::AttributeType;
pub use proto::tensor_proto::DataType;
pub use proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, TensorProto, TypeProto, ValueInfoProto,
};
