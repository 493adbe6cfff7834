//! Between the messages of OIP v2 and tensors. Lengths are compared before anything is built.

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;
use lithe::inference::infer_parameter::ParameterChoice;
use lithe::inference::model_infer_request::InferInputTensor;
use lithe::inference::model_infer_response::InferOutputTensor;
use lithe::inference::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse,
};

use crate::serve::classification::Classes;
use crate::serve::error::InferError;
use crate::serve::model::{VERSION, describe, tensor};
use crate::serve::queue::after_micros;
use crate::serve::server::{Request, Response};
use crate::tensor::{Datatype, Tensor, elements};

/// The request in `message`, and the outputs that are wanted as classes; its deadline is the sooner of `deadline` and the parameter `timeout`.
///
/// # Errors
/// [`InferError::Invalid`] naming the input that is wrong, [`InferError::Unsupported`] for
/// features of the protocol that are not offered.
pub fn decode(
    message: ModelInferRequest,
    deadline: Option<Instant>,
) -> Result<(Request, Classes), InferError> {
    let raw = message.raw_input_contents;
    if !raw.is_empty() && raw.len() != message.inputs.len() {
        return Err(InferError::Invalid(format!(
            "{} inputs but {} raw_input_contents",
            message.inputs.len(),
            raw.len()
        )));
    }
    let inputs = if raw.is_empty() {
        message.inputs.into_iter().map(typed).collect::<Result<_, _>>()?
    } else {
        let pairs = message.inputs.into_iter().zip(raw);
        pairs.map(|(input, data)| untyped(input, data)).collect::<Result<_, _>>()?
    };
    let (mut outputs, mut classes) = (Vec::with_capacity(message.outputs.len()), Vec::new());
    for output in message.outputs {
        offered(&output.name, &output.parameters)?;
        if let Some(parameter) = output.parameters.get("classification") {
            let count = whole(parameter).ok_or_else(|| {
                let name = &output.name;
                InferError::Invalid(format!("output {name:?}: classification is no whole number"))
            })?;
            classes.push((output.name.clone(), count));
        }
        outputs.push(output.name);
    }
    let priority = message.parameters.get("priority").and_then(whole).unwrap_or_default();
    let timeout = message.parameters.get("timeout").and_then(whole);
    let timeout = timeout.and_then(|micros| after_micros(Instant::now(), micros));
    let request = Request {
        model: message.model_name,
        version: message.model_version,
        inputs,
        outputs,
        deadline: [deadline, timeout].into_iter().flatten().min(),
        priority,
    };
    Ok((request, classes))
}

/// The message of `response`, with every output raw.
pub fn encode(model: &str, id: String, response: Response) -> ModelInferResponse {
    let (mut outputs, mut raw) = (Vec::new(), Vec::new());
    for (name, tensor) in response.outputs {
        outputs.push(InferOutputTensor {
            name,
            datatype: tensor.datatype().name().into(),
            shape: tensor.shape().iter().map(|dim| *dim as i64).collect(),
            ..Default::default()
        });
        raw.push(tensor.data().clone());
    }
    ModelInferResponse {
        model_name: model.into(),
        model_version: VERSION.into(),
        id,
        parameters: HashMap::new(),
        outputs,
        raw_output_contents: raw,
    }
}

/// A whole number, in any of the forms in which clients send it.
fn whole(parameter: &InferParameter) -> Option<u64> {
    match parameter.parameter_choice.as_ref()? {
        ParameterChoice::Int64Param(number) => u64::try_from(*number).ok(),
        ParameterChoice::Uint64Param(number) => Some(*number),
        ParameterChoice::StringParam(text) => text.parse().ok(),
        ParameterChoice::BoolParam(_) | ParameterChoice::DoubleParam(_) => None,
    }
}

/// Parameters that change what the bytes mean cannot be passed over.
fn offered(name: &str, parameters: &HashMap<String, InferParameter>) -> Result<(), InferError> {
    if parameters.contains_key("shared_memory_region") {
        return Err(InferError::Unsupported(format!(
            "{name:?}: shared_memory_region is not offered"
        )));
    }
    Ok(())
}

fn untyped(input: InferInputTensor, data: Bytes) -> Result<(String, Tensor), InferError> {
    offered(&input.name, &input.parameters)?;
    if input.contents.as_ref().is_some_and(|contents| *contents != InferTensorContents::default()) {
        return Err(InferError::Invalid(format!(
            "input {:?} has contents while raw_input_contents are used",
            input.name
        )));
    }
    let tensor = tensor(&input.name, &input.datatype, &input.shape, data)?;
    Ok((input.name, tensor))
}

fn typed(input: InferInputTensor) -> Result<(String, Tensor), InferError> {
    offered(&input.name, &input.parameters)?;
    let name = &input.name;
    let (datatype, shape) = describe(name, &input.datatype, &input.shape)?;
    let contents = input.contents.unwrap_or_default();
    let count = elements(&shape);
    let invalid = |error: String| InferError::Invalid(format!("input {name:?}: {error}"));
    let seen = field_length(datatype, &contents).ok_or_else(|| {
        InferError::Invalid(format!(
            "input {name:?}: {datatype} travels in raw_input_contents only"
        ))
    })?;
    if count != Some(seen) {
        return Err(invalid(format!(
            "shape {shape:?} of {datatype} does not have {seen} elements"
        )));
    }
    if datatype == Datatype::Bytes {
        let tensor = Tensor::from_strings(shape, &contents.bytes_contents)
            .map_err(|error| invalid(error.to_string()))?;
        return Ok((input.name, tensor));
    }
    let data = little_endian(datatype, &contents).map_err(invalid)?;
    let tensor =
        Tensor::new(datatype, shape, data.into()).map_err(|error| invalid(error.to_string()))?;
    Ok((input.name, tensor))
}

fn field_length(datatype: Datatype, contents: &InferTensorContents) -> Option<usize> {
    Some(match datatype {
        Datatype::Bool => contents.bool_contents.len(),
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => contents.int_contents.len(),
        Datatype::Int64 => contents.int64_contents.len(),
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => contents.uint_contents.len(),
        Datatype::Uint64 => contents.uint64_contents.len(),
        Datatype::Fp32 => contents.fp32_contents.len(),
        Datatype::Fp64 => contents.fp64_contents.len(),
        Datatype::Bytes => contents.bytes_contents.len(),
        Datatype::Fp16 | Datatype::Bf16 => return None,
    })
}

fn little_endian(datatype: Datatype, contents: &InferTensorContents) -> Result<Vec<u8>, String> {
    macro_rules! narrow {
        ($items:expr, $kind:ty) => {{
            let mut data = Vec::with_capacity($items.len() * size_of::<$kind>());
            for item in &$items {
                let item = <$kind>::try_from(*item)
                    .map_err(|_| format!("{item} does not fit into {datatype}"))?;
                data.extend_from_slice(&item.to_le_bytes());
            }
            data
        }};
    }
    macro_rules! same {
        ($items:expr) => {
            $items.iter().flat_map(|item| item.to_le_bytes()).collect()
        };
    }
    Ok(match datatype {
        Datatype::Bool => contents.bool_contents.iter().map(|item| u8::from(*item)).collect(),
        Datatype::Int8 => narrow!(contents.int_contents, i8),
        Datatype::Int16 => narrow!(contents.int_contents, i16),
        Datatype::Int32 => same!(contents.int_contents),
        Datatype::Int64 => same!(contents.int64_contents),
        Datatype::Uint8 => narrow!(contents.uint_contents, u8),
        Datatype::Uint16 => narrow!(contents.uint_contents, u16),
        Datatype::Uint32 => same!(contents.uint_contents),
        Datatype::Uint64 => same!(contents.uint64_contents),
        Datatype::Fp32 => same!(contents.fp32_contents),
        Datatype::Fp64 => same!(contents.fp64_contents),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => Vec::new(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn input(datatype: &str, shape: &[i64], contents: InferTensorContents) -> InferInputTensor {
        InferInputTensor {
            name: "x".into(),
            datatype: datatype.into(),
            shape: shape.into(),
            contents: Some(contents),
            ..Default::default()
        }
    }

    fn message(inputs: Vec<InferInputTensor>, raw: Vec<Bytes>) -> ModelInferRequest {
        ModelInferRequest { inputs, raw_input_contents: raw, ..Default::default() }
    }

    #[test]
    fn typed_and_raw_contents_give_the_same_tensor() {
        let contents = InferTensorContents { int_contents: vec![-1, 2], ..Default::default() };
        let typed = decode(message(vec![input("INT16", &[2], contents)], vec![]), None).unwrap();
        let empty = input("INT16", &[2], InferTensorContents::default());
        let raw = Bytes::from_static(&[255, 255, 2, 0]);
        let raw = decode(message(vec![empty], vec![raw]), None).unwrap();
        assert_eq!(typed.0.inputs, raw.0.inputs);
    }

    #[test]
    fn lies_are_refused_with_the_inputs_name() {
        let floats =
            |count| InferTensorContents { fp32_contents: vec![1.0; count], ..Default::default() };
        let wide = InferTensorContents { int_contents: vec![300], ..Default::default() };
        let cases = [
            (
                message(vec![input("FP32", &[1 << 40], floats(1))], vec![]),
                "does not have 1 elements",
            ),
            (message(vec![input("FP32", &[i64::MAX, 4], floats(1))], vec![]), "does not have 1"),
            (message(vec![input("FP32", &[-1], floats(1))], vec![]), "negative"),
            (message(vec![input("FP16", &[1], floats(1))], vec![]), "raw_input_contents only"),
            (message(vec![input("FP23", &[1], floats(1))], vec![]), "unknown"),
            (message(vec![input("INT8", &[1], wide)], vec![]), "does not fit"),
            (
                message(vec![input("FP32", &[1], floats(1))], vec![vec![0; 4].into()]),
                "has contents",
            ),
            (
                message(vec![input("FP32", &[1], floats(0))], vec![vec![0; 3].into()]),
                "takes 4 bytes, got 3",
            ),
            (message(vec![], vec![Bytes::new()]), "0 inputs but 1 raw"),
        ];
        for (message, words) in cases {
            let error = decode(message, None).unwrap_err().to_string();
            assert!(error.contains(words), "{error} does not say {words}");
        }
    }
}
