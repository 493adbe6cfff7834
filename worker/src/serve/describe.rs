//! What the model is and has done, in Triton's terms, for both transports.

use lithe::artifact::TensorSignature;
use lithe::inference::{
    DataType, InferStatistics, ModelConfig, ModelInput, ModelOutput, ModelStatistics,
    StatisticDuration,
};

use super::PLATFORM;
use super::metrics::Total;
use super::model::{Signature, VERSION};
use super::server::Server;
use crate::tensor::Datatype;

/// The model's configuration. Batching is not declared: shapes are the model's own.
pub fn config(name: &str, signature: &Signature) -> ModelConfig {
    let input = |known: &TensorSignature| ModelInput {
        name: known.name.clone(),
        data_type: data_type(known).into(),
        dims: known.shape.clone(),
    };
    let output = |known: &TensorSignature| ModelOutput {
        name: known.name.clone(),
        data_type: data_type(known).into(),
        dims: known.shape.clone(),
    };
    ModelConfig {
        name: name.into(),
        platform: PLATFORM.into(),
        max_batch_size: 0,
        input: signature.inputs.iter().map(input).collect(),
        output: signature.outputs.iter().map(output).collect(),
        default_model_filename: lithe::artifact::MODEL_FILE.into(),
        backend: "onnxruntime".into(),
    }
}

fn data_type(known: &TensorSignature) -> DataType {
    match Datatype::from_name(&known.datatype) {
        Some(Datatype::Bool) => DataType::TypeBool,
        Some(Datatype::Uint8) => DataType::TypeUint8,
        Some(Datatype::Uint16) => DataType::TypeUint16,
        Some(Datatype::Uint32) => DataType::TypeUint32,
        Some(Datatype::Uint64) => DataType::TypeUint64,
        Some(Datatype::Int8) => DataType::TypeInt8,
        Some(Datatype::Int16) => DataType::TypeInt16,
        Some(Datatype::Int32) => DataType::TypeInt32,
        Some(Datatype::Int64) => DataType::TypeInt64,
        Some(Datatype::Fp16) => DataType::TypeFp16,
        Some(Datatype::Bf16) => DataType::TypeBf16,
        Some(Datatype::Fp32) => DataType::TypeFp32,
        Some(Datatype::Fp64) => DataType::TypeFp64,
        Some(Datatype::Bytes) => DataType::TypeString,
        None => DataType::TypeInvalid,
    }
}

/// What the model has done since the process started.
pub fn statistics(server: &Server) -> ModelStatistics {
    let duration = |total: &Total| {
        let (count, ns) = total.read();
        Some(StatisticDuration { count, ns })
    };
    let none = Some(StatisticDuration::default());
    let metrics = &server.metrics;
    let (executions, _) = metrics.computed.read();
    ModelStatistics {
        name: server.name().into(),
        version: VERSION.into(),
        last_inference: metrics.last_inference(),
        inference_count: metrics.success.read().0,
        execution_count: executions,
        inference_stats: Some(InferStatistics {
            success: duration(&metrics.success),
            fail: duration(&metrics.failure),
            queue: duration(&metrics.queued),
            compute_infer: duration(&metrics.computed),
            compute_input: none,
            compute_output: none,
            cache_hit: none,
            cache_miss: none,
        }),
        batch_stats: Vec::new(),
    }
}
