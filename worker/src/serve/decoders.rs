//! Every decoder of requests as one function from bytes, for fuzzing: what a client may send, with
//! no socket, server or model around it.

use axum::http::HeaderMap;
use bytes::Bytes;
use lithe::inference::ModelInferRequest;
use lithe::inference::codec::decode;
use lithe::tensorflow::serving::PredictRequest;

use super::error::InferError;
use super::model::Signature;
use super::{grpc, rest, tfs};
use crate::tensor::Tensor;

/// The bytes that all tensors of a request may take.
const LIMIT: usize = 1 << 20;

/// Inputs by name.
pub type Inputs = Vec<(String, Tensor)>;

/// The body of OIP v2 over HTTP, whose JSON part has `length` bytes when tensors follow it.
///
/// # Errors
/// What a client would be told.
pub fn open_inference_rest(
    length: Option<usize>,
    body: &Bytes,
    signature: &Signature,
) -> Result<Inputs, InferError> {
    let mut headers = HeaderMap::new();
    if let Some(length) = length {
        headers.insert(rest::HEADER_LENGTH, length.into());
    }
    let (request, _) = rest::decode(String::new(), String::new(), &headers, body, signature)?;
    Ok(request.inputs)
}

/// The message of OIP v2 over gRPC.
///
/// # Errors
/// What a client would be told.
pub fn open_inference_grpc(message: Bytes) -> Result<Inputs, InferError> {
    let message: ModelInferRequest = decode(message).map_err(told)?;
    Ok(grpc::decode(message, None)?.0.inputs)
}

/// The body of TensorFlow Serving and KServe v1 over HTTP.
///
/// # Errors
/// What a client would be told.
pub fn tensorflow_rest(body: &[u8], signature: &Signature) -> Result<Inputs, InferError> {
    tfs::rest::decode(body, signature, LIMIT)
}

/// The message of TensorFlow Serving over gRPC.
///
/// # Errors
/// What a client would be told.
pub fn tensorflow_grpc(message: Bytes, signature: &Signature) -> Result<Inputs, InferError> {
    let message: PredictRequest = decode(message).map_err(told)?;
    tfs::grpc::inputs(signature, message.inputs, LIMIT)
}

fn told(status: tonic::Status) -> InferError {
    InferError::Invalid(status.message().to_owned())
}
