//! `/v1`: TensorFlow Serving's REST API and KServe v1's, which share their URLs. Where they differ,
//! the answer is the merge of both, which either client reads.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::example::Examples;
use super::path::{self, Act};
use super::result::{self, Classifier};
use super::{Asked, column, infer, json_example, metadata};
use crate::serve::element::{self, Writer};
use crate::serve::error::InferError;
use crate::serve::metrics::Protocol;
use crate::serve::model::Signature;
use crate::serve::protocols::Served;
use crate::serve::rest::{body, reply, wrong_method};
use crate::serve::server::{self, Server};
use crate::tensor::Tensor;

/// TensorFlow Serving's limit of a REST request, whose form has none of its own.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the routes work on.
#[derive(Clone)]
struct Api {
    server: Arc<Server>,
    /// What requests are counted as.
    protocol: Protocol,
    /// Whether KServe's clients ask, for which a model that loads is no success.
    kserve: bool,
}

/// The routes of the protocols in `served` below `/v1`; none when there are none.
pub fn router(server: Arc<Server>, served: &[Served]) -> Router {
    let kserve = served.contains(&Served::KServeV1);
    let tensorflow = served.contains(&Served::TensorFlowServing);
    if !kserve && !tensorflow {
        return Router::new();
    }
    let protocol = if tensorflow { Protocol::TensorflowHttp } else { Protocol::KserveV1 };
    let mut router = Router::new().route("/v1/models", get(models)).route("/v1/{*rest}", any(v1));
    if kserve {
        router = router.route("/", get(alive));
    }
    router.with_state(Api { server, protocol, kserve })
}

async fn alive() -> Response {
    reply(StatusCode::OK, &json!({"status": "alive"}))
}

async fn models(State(api): State<Api>) -> Response {
    reply(StatusCode::OK, &json!({"models": [api.server.name()]}))
}

async fn v1(
    State(api): State<Api>,
    Path(rest): Path<String>,
    method: Method,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let Some((asked, act)) = path::parse(&rest) else {
        return InferError::NotFound(format!("Malformed request: {method} /v1/{rest}"))
            .into_response();
    };
    let wanted =
        if matches!(act, Act::Status | Act::Metadata) { Method::GET } else { Method::POST };
    if method != wanted {
        return wrong_method(&method, &format!("/v1/{rest}"));
    }
    let answer = match act {
        Act::Status => api.status(&asked),
        Act::Metadata => api.metadata(&asked),
        Act::Explain => Err(InferError::Unsupported(
            "explanations are not offered: this server predicts only".into(),
        )),
        Act::Predict | Act::Classify | Act::Regress => api.run(asked, act, &headers, body).await,
    };
    answer.unwrap_or_else(InferError::into_response)
}

impl Api {
    fn status(&self, asked: &Asked) -> Result<Response, InferError> {
        asked.is_here(&self.server)?;
        let ready = self.server.ready();
        let body = json!({
            "name": self.server.name(), "ready": ready,
            "model_version_status": metadata::status_json(&self.server),
        });
        let code =
            if ready || !self.kserve { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        Ok(reply(code, &body))
    }

    fn metadata(&self, asked: &Asked) -> Result<Response, InferError> {
        let signature = asked.signature(&self.server)?;
        Ok(reply(StatusCode::OK, &metadata::metadata_json(self.server.name(), signature)))
    }

    async fn run(
        &self,
        asked: Asked,
        act: Act,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, InferError> {
        let deadline = Instant::now().checked_add(TIMEOUT);
        let body = body::read(headers, body, self.server.max_request_bytes).await;
        let call = self.server.metrics.begin(self.protocol);
        let result = match body {
            Ok(body) => self.answer(asked, act, body, deadline).await,
            Err(error) => Err(error),
        };
        call.end(&result);
        Ok(body::write(headers, result?, Vec::new()).await)
    }

    async fn answer(
        &self,
        mut asked: Asked,
        act: Act,
        body: Bytes,
        deadline: Option<Instant>,
    ) -> Result<Vec<u8>, InferError> {
        asked.is_here(&self.server)?;
        let mut marked = Vec::new();
        let message = Message::read(&body, &mut marked)?;
        asked.signature = message.signature_name.clone().unwrap_or_default();
        let signature = asked.signature(&self.server)?;
        match act {
            Act::Classify => {
                let classifier = Classifier::of(signature)?;
                let examples = message.examples()?;
                let inputs = examples.inputs(signature, self.server.max_request_bytes)?;
                let response = infer(&self.server, inputs, classifier.outputs(), deadline).await?;
                classes(&classifier.read(&response, examples.rows.len())?)
            }
            Act::Regress => {
                let output = result::regression(signature)?;
                let examples = message.examples()?;
                let inputs = examples.inputs(signature, self.server.max_request_bytes)?;
                let response = infer(&self.server, inputs, vec![output.clone()], deadline).await?;
                numbers(&result::regressions(&response, &output, examples.rows.len())?)
            }
            _ => {
                let (inputs, form) = message.inputs(signature)?;
                let response = infer(&self.server, inputs, Vec::new(), deadline).await?;
                form.write(&response)
            }
        }
    }
}

/// The body of any request; keys that mean nothing here are passed over.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(default)]
    signature_name: Option<String>,
    #[serde(borrow, default)]
    instances: Option<&'a RawValue>,
    #[serde(borrow, default)]
    inputs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    examples: Option<&'a RawValue>,
    #[serde(borrow, default)]
    context: Option<&'a RawValue>,
}

/// The inputs in `body`, whichever request it is, of at most `limit` bytes where it repeats any.
///
/// # Errors
/// [`InferError::Invalid`].
pub fn decode(
    body: &[u8],
    signature: &Signature,
    limit: usize,
) -> Result<Vec<(String, Tensor)>, InferError> {
    let mut marked = Vec::new();
    let message = Message::read(body, &mut marked)?;
    match message.examples {
        Some(_) => message.examples()?.inputs(signature, limit),
        None => message.inputs(signature).map(|(inputs, _)| inputs),
    }
}

impl<'a> Message<'a> {
    /// JSON has no word for NaN, so the rare body that holds one is read a second time, from
    /// `marked`.
    fn read(body: &'a [u8], marked: &'a mut Vec<u8>) -> Result<Self, InferError> {
        if let Ok(message) = serde_json::from_slice(body) {
            return Ok(message);
        }
        *marked = element::words(body).into_owned();
        serde_json::from_slice(marked).map_err(|error| {
            InferError::Invalid(format!("the request is not what it should be: {error}"))
        })
    }

    fn inputs(&self, signature: &Signature) -> Result<(Vec<(String, Tensor)>, Form), InferError> {
        let (inputs, form) = match (self.instances, self.inputs) {
            (Some(rows), None) => (column::rows(signature, rows.get()), Form::Rows),
            (None, Some(whole)) => (column::whole(signature, whole.get()), Form::Columns),
            (Some(_), Some(_)) => {
                return Err(InferError::Invalid(
                    "Not formatted correctly: both \"instances\" and \"inputs\" are given".into(),
                ));
            }
            (None, None) => {
                return Err(InferError::Invalid(
                    "Missing 'inputs' or 'instances' key in the request".into(),
                ));
            }
        };
        Ok((inputs.map_err(InferError::Invalid)?, form))
    }

    fn examples(&self) -> Result<Examples, InferError> {
        let missing = || InferError::Invalid("Missing 'examples' key in the request".into());
        let rows = self.examples.ok_or_else(missing)?;
        json_example::read(rows.get(), self.context.map(RawValue::get)).map_err(InferError::Invalid)
    }
}

/// How the request was written, and so the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `predictions`, one item for each row.
    Rows,
    /// `outputs`, each whole.
    Columns,
}

impl Form {
    fn write(self, response: &server::Response) -> Result<Vec<u8>, InferError> {
        let outputs: Vec<_> =
            response.outputs.iter().map(|(name, tensor)| Output::new(name, tensor)).collect();
        let mut out = Vec::new();
        match self {
            Self::Columns => {
                out.extend_from_slice(b"{\"outputs\":");
                items(&mut out, &outputs, None)?;
            }
            Self::Rows => {
                let rows = batch(&response.outputs)?;
                out.extend_from_slice(b"{\"predictions\":[");
                for row in 0..rows {
                    if row > 0 {
                        out.push(b',');
                    }
                    items(&mut out, &outputs, Some(row))?;
                }
                out.push(b']');
            }
        }
        out.push(b'}');
        Ok(out)
    }
}

/// The rows that all outputs have.
fn batch(outputs: &[(String, Tensor)]) -> Result<usize, InferError> {
    let mut rows = None;
    for (name, tensor) in outputs {
        let Some(first) = tensor.shape().first() else {
            return Err(InferError::Invalid(format!(
                "Tensor name: {name} has no shape information: it is one number, so ask with \"inputs\""
            )));
        };
        if rows.get_or_insert(*first) != first {
            return Err(InferError::Invalid(format!(
                "Tensor name: {name} has inconsistent batch size: {first} expecting: {}; ask with \"inputs\"",
                rows.unwrap_or_default()
            )));
        }
    }
    Ok(rows.unwrap_or_default())
}

/// All outputs, or their row `row`: an object, or the value where there is only one.
fn items(out: &mut Vec<u8>, outputs: &[Output<'_>], row: Option<usize>) -> Result<(), InferError> {
    if let [output] = outputs {
        return output.write(out, row);
    }
    out.push(b'{');
    for (index, output) in outputs.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(Value::from(output.name).to_string().as_bytes());
        out.push(b':');
        output.write(out, row)?;
    }
    out.push(b'}');
    Ok(())
}

/// One output that is being written.
struct Output<'a> {
    name: &'a str,
    shape: &'a [usize],
    writer: Writer<'a>,
    strings: bool,
}

impl<'a> Output<'a> {
    fn new(name: &'a str, tensor: &'a Tensor) -> Self {
        let strings = tensor.datatype() == crate::tensor::Datatype::Bytes;
        Self { name, shape: tensor.shape(), writer: Writer::new(tensor), strings }
    }

    fn write(&self, out: &mut Vec<u8>, row: Option<usize>) -> Result<(), InferError> {
        let written = match (row, self.shape.split_first()) {
            (Some(row), Some((_, rest))) => self.nested(out, rest, row),
            _ => self.nested(out, self.shape, 0),
        };
        written.map_err(|error| InferError::Invalid(format!("output {:?}: {error}", self.name)))
    }

    /// The block `index` of blocks of shape `shape`.
    fn nested(&self, out: &mut Vec<u8>, shape: &[usize], index: usize) -> Result<(), String> {
        let Some((first, rest)) = shape.split_first() else {
            return self.element(out, index);
        };
        out.push(b'[');
        for item in 0..*first {
            if item > 0 {
                out.push(b',');
            }
            self.nested(out, rest, index * first + item)?;
        }
        out.push(b']');
        Ok(())
    }

    /// Bytes are base64 where the output's name says so, as in TensorFlow Serving, and where they
    /// are no text.
    fn element(&self, out: &mut Vec<u8>, index: usize) -> Result<(), String> {
        use base64::Engine as _;
        if self.strings {
            let item = self.writer.string(index).map_or(&[][..], |item| &item[..]);
            if self.name.ends_with("_bytes") || std::str::from_utf8(item).is_err() {
                let text = base64::engine::general_purpose::STANDARD.encode(item);
                out.extend_from_slice(format!("{{\"b64\":\"{text}\"}}").as_bytes());
                return Ok(());
            }
        }
        self.writer.write(out, index)
    }
}

/// `results` of a classification: a list of label and score for each example.
fn classes(
    result: &lithe::tensorflow::serving::ClassificationResult,
) -> Result<Vec<u8>, InferError> {
    let scores = result.classifications.iter().flat_map(|row| &row.classes);
    let scores: Vec<_> = scores.map(|class| class.score).collect();
    let scores = float_tensor(&scores)?;
    let (writer, mut index) = (Writer::new(&scores), 0);
    list(result.classifications.iter(), |out, row| {
        out.push(b'[');
        for (place, class) in row.classes.iter().enumerate() {
            out.extend_from_slice(if place > 0 { b",[" } else { b"[" });
            out.extend_from_slice(Value::from(class.label.as_str()).to_string().as_bytes());
            out.push(b',');
            writer.write(out, index)?;
            index += 1;
            out.push(b']');
        }
        out.push(b']');
        Ok(())
    })
}

/// `results` of a regression: a number for each example.
fn numbers(result: &lithe::tensorflow::serving::RegressionResult) -> Result<Vec<u8>, InferError> {
    let values: Vec<_> = result.regressions.iter().map(|one| one.value).collect();
    let tensor = float_tensor(&values)?;
    let writer = Writer::new(&tensor);
    list(0..values.len(), |out, index| writer.write(out, index))
}

fn float_tensor(values: &[f32]) -> Result<Tensor, InferError> {
    Ok(Tensor::from_f32(vec![values.len()], values)?)
}

fn list<T>(
    items: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<(), String>,
) -> Result<Vec<u8>, InferError> {
    let mut out = b"{\"results\":[".to_vec();
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(&mut out, item).map_err(InferError::Internal)?;
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn write(form: Form, outputs: Vec<(&str, Tensor)>) -> Result<String, InferError> {
        let outputs = outputs.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
        form.write(&server::Response { outputs }).map(|out| String::from_utf8(out).unwrap())
    }

    fn floats(shape: &[usize], items: &[f32]) -> Tensor {
        Tensor::from_f32(shape.to_vec(), items).unwrap()
    }

    #[test]
    fn answers_have_the_form_of_the_request_and_unwrap_a_single_output() {
        let y = || floats(&[2, 2], &[1.0, -0.5, f32::NAN, f32::INFINITY]);
        let s = || Tensor::from_strings(vec![2], &[&b"a\""[..], &b"\xff"[..]]).unwrap();
        for (form, outputs, expected) in [
            (Form::Rows, vec![("y", y())], r#"{"predictions":[[1.0,-0.5],[NaN,Infinity]]}"#),
            (Form::Columns, vec![("y", y())], r#"{"outputs":[[1.0,-0.5],[NaN,Infinity]]}"#),
            (
                Form::Rows,
                vec![("y", y()), ("s", s())],
                r#"{"predictions":[{"y":[1.0,-0.5],"s":"a\""},{"y":[NaN,Infinity],"s":{"b64":"/w=="}}]}"#,
            ),
            (
                Form::Columns,
                vec![("y", floats(&[], &[7.0])), ("s_bytes", s())],
                r#"{"outputs":{"y":7.0,"s_bytes":[{"b64":"YSI="},{"b64":"/w=="}]}}"#,
            ),
            (Form::Rows, vec![("y", floats(&[2, 0], &[]))], r#"{"predictions":[[],[]]}"#),
            (Form::Rows, vec![("y", floats(&[0, 3], &[]))], r#"{"predictions":[]}"#),
        ] {
            assert_eq!(write(form, outputs).unwrap(), expected);
        }
    }

    #[test]
    fn rows_need_one_batch_dimension_over_all_outputs() {
        let two = vec![("a", floats(&[2], &[1.0, 2.0])), ("b", floats(&[1], &[1.0]))];
        let error = write(Form::Rows, two).unwrap_err().to_string();
        assert!(error.contains("b has inconsistent batch size: 1 expecting: 2"), "{error}");
        let error = write(Form::Rows, vec![("a", floats(&[], &[1.0]))]).unwrap_err().to_string();
        assert!(error.contains("no shape information"), "{error}");
    }
}
