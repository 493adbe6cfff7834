//! The JSON of an inference request and answer, with the binary tensor extension: after the JSON
//! part come the tensors whose `binary_data_size` is given, in order.

use std::time::Instant;

use axum::http::{HeaderMap, HeaderName};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::json;
use crate::serve::classification::Classes;
use crate::serve::element;
use crate::serve::error::InferError;
use crate::serve::model::{Signature, VERSION, describe};
use crate::serve::queue::after_micros;
use crate::serve::server::{Request, Response};
use crate::tensor::{Datatype, Tensor, elements};

/// The length of the JSON part, when tensors follow it.
pub const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Inputs or outputs that a request may list: far more than any model has.
const LISTED: usize = 1024;

/// How the answer is to be written.
#[derive(Debug, Default)]
pub struct Form {
    id: Option<String>,
    /// The outputs that are wanted as binary, or not, by name.
    outputs: Vec<(String, Option<bool>)>,
    /// The outputs that are wanted as classes.
    pub classes: Classes,
    binary: bool,
}

#[derive(Deserialize, Default)]
struct Message<'a> {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow, default, deserialize_with = "listed")]
    inputs: Vec<Input<'a>>,
    #[serde(default, deserialize_with = "listed")]
    outputs: Vec<Output>,
}

/// The parameters that mean something here; others are passed over.
#[derive(Deserialize, Default)]
struct Parameters {
    #[serde(default)]
    binary_data_output: bool,
    #[serde(default)]
    timeout: Option<u64>,
    #[serde(default)]
    priority: u64,
    #[serde(default)]
    binary_data_size: Option<u64>,
    #[serde(default)]
    binary_data: Option<bool>,
    #[serde(default)]
    classification: Option<u64>,
    #[serde(default)]
    shared_memory_region: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Input<'a> {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: Option<Parameters>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Option<Parameters>,
}

/// A list of at most [`LISTED`] items, or null.
fn listed<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    struct List<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "a list of at most {LISTED} tensors")
        }

        fn visit_unit<E: Error>(self) -> Result<Vec<T>, E> {
            Ok(Vec::new())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = from.next_element()? {
                if items.len() == LISTED {
                    return Err(A::Error::custom(format!("more than {LISTED} tensors are listed")));
                }
                items.push(item);
            }
            Ok(items)
        }
    }
    from.deserialize_any(List(std::marker::PhantomData))
}

/// The request in `body`, and how to answer it.
///
/// # Errors
/// [`InferError::Invalid`] naming what is wrong, [`InferError::Unsupported`] for features of the
/// protocol that are not offered.
pub fn decode(
    model: String,
    version: String,
    headers: &HeaderMap,
    body: &Bytes,
    signature: &Signature,
) -> Result<(Request, Form), InferError> {
    let (header, mut binary) = split(headers, body)?;
    let request = |inputs, outputs, deadline, priority| Request {
        model,
        version,
        inputs,
        outputs,
        deadline,
        priority,
    };
    if header.is_empty() && !binary.is_empty() {
        let inputs = vec![whole(signature, binary)?];
        return Ok((
            request(inputs, Vec::new(), None, 0),
            Form { binary: true, ..Form::default() },
        ));
    }
    // JSON has no word for NaN, so the rare message that holds one is read a second time.
    let marked;
    let message: Message<'_> = match serde_json::from_slice(&header) {
        Ok(message) => message,
        Err(_) => {
            marked = element::words(&header);
            serde_json::from_slice(&marked).map_err(|error| {
                InferError::Invalid(format!("the request is not what it should be: {error}"))
            })?
        }
    };
    let mut inputs = Vec::with_capacity(message.inputs.len());
    for input in message.inputs {
        inputs.push(tensor(input, &mut binary)?);
    }
    if !binary.is_empty() {
        return Err(InferError::Invalid(format!(
            "{} bytes of binary data belong to no input",
            binary.len()
        )));
    }
    let parameters = message.parameters.unwrap_or_default();
    let mut form =
        Form { id: message.id, binary: parameters.binary_data_output, ..Form::default() };
    for output in message.outputs {
        let parameters = output.parameters.unwrap_or_default();
        offered(&output.name, &parameters)?;
        if let Some(count) = parameters.classification {
            form.classes.push((output.name.clone(), count));
        }
        form.outputs.push((output.name, parameters.binary_data));
    }
    let outputs = form.outputs.iter().map(|(name, _)| name.clone()).collect();
    let deadline = parameters.timeout.and_then(|micros| after_micros(Instant::now(), micros));
    Ok((request(inputs, outputs, deadline, parameters.priority), form))
}

/// The JSON part of `body` and the binary part after it.
fn split(headers: &HeaderMap, body: &Bytes) -> Result<(Bytes, Bytes), InferError> {
    let Some(length) = headers.get(HEADER_LENGTH) else { return Ok((body.clone(), Bytes::new())) };
    let parsed = length.to_str().ok().and_then(|text| text.trim().parse::<usize>().ok());
    let length = parsed.filter(|length| *length <= body.len()).ok_or_else(|| {
        InferError::Invalid(format!(
            "Inference-Header-Content-Length is {length:?}, the body has {} bytes",
            body.len()
        ))
    })?;
    Ok((body.slice(..length), body.slice(length..)))
}

/// A body without JSON is the model's only input, its open dimension found from the size.
fn whole(signature: &Signature, data: Bytes) -> Result<(String, Tensor), InferError> {
    let invalid = |text: &str| InferError::Invalid(format!("a body without JSON {text}"));
    let [input] = signature.inputs.as_slice() else {
        return Err(invalid("needs a model with one input"));
    };
    let datatype = Datatype::from_name(&input.datatype);
    let size = datatype.and_then(Datatype::size).ok_or_else(|| invalid("cannot be strings"))?;
    let known = input.shape.iter().filter_map(|dim| usize::try_from(*dim).ok());
    let known = elements(&known.collect::<Vec<_>>()).and_then(|count| count.checked_mul(size));
    let open = input.shape.iter().filter(|dim| **dim < 0).count();
    let rows = known.filter(|known| *known > 0).map_or(0, |known| data.len() / known);
    if open > 1 {
        return Err(invalid("needs an input with one open dimension at most"));
    }
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    let shape: Vec<_> = input.shape.iter().map(|dim| if *dim < 0 { rows } else { *dim }).collect();
    let tensor = crate::serve::model::tensor(&input.name, &input.datatype, &shape, data)?;
    Ok((input.name.clone(), tensor))
}

fn offered(name: &str, parameters: &Parameters) -> Result<(), InferError> {
    match parameters.shared_memory_region {
        None => Ok(()),
        Some(_) => {
            Err(InferError::Unsupported(format!("{name:?}: shared_memory_region is not offered")))
        }
    }
}

fn tensor(input: Input<'_>, binary: &mut Bytes) -> Result<(String, Tensor), InferError> {
    let parameters = input.parameters.unwrap_or_default();
    offered(&input.name, &parameters)?;
    let invalid = |text: String| InferError::Invalid(format!("input {:?}: {text}", input.name));
    let (datatype, shape) = describe(&input.name, &input.datatype, &input.shape)?;
    let data = match (parameters.binary_data_size, input.data) {
        (Some(_), Some(_)) => {
            return Err(invalid("both data and binary_data_size are given".into()));
        }
        (None, None) => return Err(invalid("neither data nor binary_data_size is given".into())),
        (Some(size), None) => {
            let here = binary.len();
            let fits = usize::try_from(size).ok().filter(|size| *size <= here);
            let size = fits.ok_or_else(|| {
                invalid(format!("binary_data_size is {size}, {here} bytes are left"))
            })?;
            binary.split_to(size)
        }
        (None, Some(data)) => {
            let count = elements(&shape)
                .ok_or_else(|| invalid(format!("shape {shape:?} has too many elements")))?;
            json::read(datatype, count, data.get()).map_err(invalid)?.into()
        }
    };
    let tensor = Tensor::new(datatype, shape, data).map_err(|error| invalid(error.to_string()))?;
    Ok((input.name, tensor))
}

/// The JSON part and the binary parts of `response`.
///
/// # Errors
/// [`InferError::Invalid`] when an output does not travel as JSON and binary was not asked for.
pub fn encode(
    model: &str,
    form: &Form,
    response: Response,
) -> Result<(Vec<u8>, Vec<Bytes>), InferError> {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let mut out =
        format!("{{\"model_name\":{},\"model_version\":\"{VERSION}\"", text(model)).into_bytes();
    if let Some(id) = &form.id {
        out.extend_from_slice(format!(",\"id\":{}", text(id)).as_bytes());
    }
    out.extend_from_slice(b",\"outputs\":[");
    let mut parts = Vec::new();
    for (index, (name, tensor)) in response.outputs.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let head = format!(
            "{{\"name\":{},\"datatype\":\"{}\",\"shape\":{},",
            text(&name),
            tensor.datatype(),
            serde_json::Value::from(tensor.shape()),
        );
        out.extend_from_slice(head.as_bytes());
        let asked = form.outputs.iter().find(|(known, _)| *known == name);
        if asked.and_then(|(_, binary)| *binary).unwrap_or(form.binary) {
            let size = tensor.data().len();
            out.extend_from_slice(
                format!("\"parameters\":{{\"binary_data_size\":{size}}}").as_bytes(),
            );
            parts.push(tensor.data().clone());
        } else {
            out.extend_from_slice(b"\"data\":");
            json::write(&mut out, &tensor)
                .map_err(|error| InferError::Invalid(format!("output {name:?}: {error}")))?;
        }
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    Ok((out, parts))
}
