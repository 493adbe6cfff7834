//! The repository, trace and log extensions of OIP v2 over HTTP. Bodies are optional.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::{Model, Shared, body, reply};
use crate::serve::error::InferError;
use crate::serve::model::VERSION;
use crate::serve::repository;
use crate::serve::settings::{Log, Setting, keep, trace};

/// The most bytes of a request for one of these.
const LIMIT: usize = 1 << 20;

/// The object in a body; an empty one when nothing came.
async fn object(headers: &HeaderMap, body: Body) -> Result<Map<String, Value>, InferError> {
    let body = body::read(headers, body, LIMIT).await?;
    if body.is_empty() {
        return Ok(Map::new());
    }
    serde_json::from_slice(&body)
        .map_err(|error| InferError::Invalid(format!("the request is no JSON object: {error}")))
}

/// `POST v2/repository/index`
pub async fn index(
    State(server): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, InferError> {
    let only_ready = object(&headers, body).await?.get("ready") == Some(&Value::Bool(true));
    let listed = server.ready() || !only_ready;
    let model = json!({"name": server.name(), "version": VERSION, "state": server.state()});
    Ok(reply(StatusCode::OK, &Value::from(if listed { vec![model] } else { Vec::new() })))
}

/// `POST v2/repository/models/{model}/load`
pub async fn load(
    State(server): Shared,
    Path(at): Path<Model>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, InferError> {
    let body = object(&headers, body).await?;
    let overrides = body.get("parameters").and_then(Value::as_object).map_or(0, Map::len);
    repository::load(&server, &at.model, overrides)?;
    Ok(reply(StatusCode::OK, &json!({"name": at.model, "load": true})))
}

/// `POST v2/repository/models/{model}/unload`
pub async fn unload(State(server): Shared, Path(at): Path<Model>) -> InferError {
    repository::unload(&server, &at.model)
}

/// The values of a setting in JSON: one, a list, or null for the default.
fn values(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::Array(items) => items.iter().flat_map(values).collect(),
        Value::String(text) => vec![text.clone()],
        other => vec![other.to_string()],
    }
}

async fn unchanged(current: &[Setting], headers: &HeaderMap, body: Body) -> Result<(), InferError> {
    for (name, value) in object(headers, body).await? {
        keep(current, &name, &values(&value))?;
    }
    Ok(())
}

fn trace_body(settings: Vec<Setting>) -> Response {
    // The level is a list for Triton's clients, the rest is not.
    let value = |name, values: Vec<String>| match name {
        "trace_level" => json!(values),
        _ => json!(values.concat()),
    };
    let settings =
        settings.into_iter().map(|(name, values)| (name.to_owned(), value(name, values)));
    reply(StatusCode::OK, &Value::Object(settings.collect()))
}

/// `GET v2/trace/setting`
pub async fn get_trace() -> Response {
    trace_body(trace())
}

/// `POST v2/trace/setting`
pub async fn set_trace(headers: HeaderMap, body: Body) -> Result<Response, InferError> {
    let settings = trace();
    unchanged(&settings, &headers, body).await?;
    Ok(trace_body(settings))
}

/// `GET v2/models/{model}/trace/setting`
pub async fn get_model_trace(
    State(server): Shared,
    Path(at): Path<Model>,
) -> Result<Response, InferError> {
    server.model_ready(&at.model, &at.version)?;
    Ok(get_trace().await)
}

/// `POST v2/models/{model}/trace/setting`
pub async fn set_model_trace(
    State(server): Shared,
    Path(at): Path<Model>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, InferError> {
    server.model_ready(&at.model, &at.version)?;
    set_trace(headers, body).await
}

fn log_body(log: Log) -> Response {
    let flags = log.flags().map(|(name, on)| (name.to_owned(), Value::from(on)));
    let texts = log.texts().map(|(name, text)| (name.to_owned(), Value::from(text)));
    let verbose = ("log_verbose_level".to_owned(), Value::from(log.verbose()));
    let settings = flags.into_iter().chain(texts).chain([verbose]);
    reply(StatusCode::OK, &Value::Object(settings.collect()))
}

/// `GET v2/logging`
pub async fn get_log() -> Response {
    log_body(Log::now())
}

/// `POST v2/logging`
pub async fn set_log(headers: HeaderMap, body: Body) -> Result<Response, InferError> {
    let log = Log::now();
    unchanged(&log.all(), &headers, body).await?;
    Ok(log_body(log))
}
