//! What a model is and how its version does, in TensorFlow Serving's terms.

use lithe::artifact::TensorSignature;
use lithe::tensorflow::error::Code;
use lithe::tensorflow::serving::model_version_status::State;
use lithe::tensorflow::serving::{ModelVersionStatus, StatusProto};
use lithe::tensorflow::{SignatureDef, TensorInfo, TensorShapeProto};
use serde_json::{Map, Value, json};

use super::SIGNATURE;
use super::tensor::{data_type, shape_proto};
use crate::serve::model::{Signature, VERSION};
use crate::serve::server::Server;

/// The method of the one signature.
const METHOD: &str = "tensorflow/serving/predict";

/// The state of the only version.
pub fn status(server: &Server) -> ModelVersionStatus {
    let state = match (server.ready(), server.draining()) {
        (true, _) => State::Available,
        (false, true) => State::Unloading,
        (false, false) => State::Loading,
    };
    let status = StatusProto { error_code: Code::Ok.into(), error_message: String::new() };
    ModelVersionStatus {
        version: VERSION.parse().unwrap_or_default(),
        state: state.into(),
        status: Some(status),
    }
}

/// [`status`] as JSON: numbers of 64 bits are strings there.
pub fn status_json(server: &Server) -> Value {
    let status = status(server);
    json!([{
        "version": status.version.to_string(), "state": status.state().as_str_name(),
        "status": {"error_code": "OK", "error_message": ""},
    }])
}

/// The model's signature. What a model does not declare has no rank.
pub fn signature_def(signature: &Signature) -> SignatureDef {
    let info = |known: &TensorSignature| {
        let shape = if known.shape.is_empty() {
            TensorShapeProto { dim: Vec::new(), unknown_rank: true }
        } else {
            // Whatever is negative is open.
            shape_proto(known.shape.iter().map(|dim| (*dim).max(-1)))
        };
        let info = TensorInfo {
            name: known.name.clone(),
            dtype: data_type(&known.datatype).into(),
            tensor_shape: Some(shape),
        };
        (known.name.clone(), info)
    };
    SignatureDef {
        inputs: signature.inputs.iter().map(info).collect(),
        outputs: signature.outputs.iter().map(info).collect(),
        method_name: METHOD.into(),
    }
}

/// The answer of REST to a question for metadata.
pub fn metadata_json(model: &str, signature: &Signature) -> Value {
    let tensors = |tensors: &[TensorSignature]| {
        let info = |known: &TensorSignature| {
            let dim = |dim: &i64| json!({"size": dim.max(&-1).to_string(), "name": ""});
            let dims: Vec<_> = known.shape.iter().map(dim).collect();
            let body = json!({
                "name": known.name, "dtype": data_type(&known.datatype).as_str_name(),
                "tensor_shape": {"dim": dims, "unknown_rank": known.shape.is_empty()},
            });
            (known.name.clone(), body)
        };
        tensors.iter().map(info).collect::<Map<_, _>>()
    };
    let signature = json!({
        "inputs": tensors(&signature.inputs), "outputs": tensors(&signature.outputs),
        "method_name": METHOD,
    });
    json!({
        "model_spec": {"name": model, "signature_name": "", "version": VERSION},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    })
}
