//! The protocols over HTTP: the routes, and OIP v2. Every answer is JSON with the content type that kserve's client
//! insists on; a missing content type of a request is no error.

pub mod body;
mod extensions;
mod json;
mod message;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde_json::{Value, json};

pub use message::{HEADER_LENGTH, decode};

use super::error::InferError;
use super::metrics::Protocol;
use super::model::{Signature, VERSION};
use super::protocols::Served;
use super::server::Server;
use super::{EXTENSIONS, PLATFORM, SERVER_NAME, classification, describe, protocols, tfs};

type Shared = State<Arc<Server>>;

/// The routes of the protocols in `served` on `server`.
pub fn router(server: Arc<Server>, served: Vec<Served>) -> Router {
    let mut router = Router::new();
    if served.contains(&Served::OpenInference) {
        router = router.merge(open_inference(server.clone()));
    }
    let v1 = tfs::rest::router(server.clone(), &served);
    let unknown = move |request: Request<Body>| async move {
        protocols::no_path(&served, request.uri().path())
    };
    router
        .merge(v1)
        .fallback(unknown)
        .method_not_allowed_fallback(|request: Request<Body>| async move {
            wrong_method(request.method(), request.uri().path())
        })
        .layer(middleware::from_fn(move |request, next| send_away(server.clone(), request, next)))
}

fn open_inference(server: Arc<Server>) -> Router {
    let mut router = Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models", get(models))
        .route("/v2/models/stats", get(statistics))
        .route("/v2/repository/index", post(extensions::index))
        .route("/v2/repository/models/{model}/load", post(extensions::load))
        .route("/v2/repository/models/{model}/unload", post(extensions::unload))
        .route("/v2/trace/setting", get(extensions::get_trace).post(extensions::set_trace))
        .route("/v2/logging", get(extensions::get_log).post(extensions::set_log))
        .route("/v2/systemsharedmemory/{*rest}", any(shared_memory))
        .route("/v2/cudasharedmemory/{*rest}", any(shared_memory));
    for model in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        router = router
            .route(model, get(metadata))
            .route(&format!("{model}/ready"), get(model_ready))
            .route(&format!("{model}/config"), get(config))
            .route(&format!("{model}/stats"), get(model_statistics))
            .route(&format!("{model}/infer"), post(infer))
            .route(
                &format!("{model}/trace/setting"),
                get(extensions::get_model_trace).post(extensions::set_model_trace),
            );
    }
    router.with_state(server)
}

/// While the server drains, its HTTP/1 clients are told to connect anew, and so elsewhere: a
/// request on a kept connection would cross with its end.
async fn send_away(server: Arc<Server>, request: Request<Body>, next: Next) -> Response {
    let told = request.version() <= Version::HTTP_11;
    let mut response = next.run(request).await;
    if told && server.draining() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// JSON with the content type that clients compare literally.
pub fn reply(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

impl IntoResponse for InferError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            Self::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Deadline(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let mut response = reply(status, &json!({"error": self.to_string()}));
        if let Some(retry) = self.retry_after() {
            // The header counts whole seconds.
            let seconds = retry.as_secs() + u64::from(retry.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}

async fn shared_memory(request: Request<Body>) -> InferError {
    let path = request.uri().path();
    InferError::Unsupported(format!("{path}: shared memory is not offered by {SERVER_NAME}"))
}

/// The refusal of `method` at `path`.
pub fn wrong_method(method: &Method, path: &str) -> Response {
    let text = format!("{method} is not answered at {path}");
    reply(StatusCode::METHOD_NOT_ALLOWED, &json!({"error": text}))
}

async fn server_metadata() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    let body = json!({"name": SERVER_NAME, "version": version, "extensions": EXTENSIONS});
    reply(StatusCode::OK, &body)
}

async fn live() -> Response {
    reply(StatusCode::OK, &json!({"live": true}))
}

fn readiness(ready: bool, body: &Value) -> Response {
    reply(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

async fn ready(State(server): Shared) -> Response {
    let ready = server.ready();
    readiness(ready, &json!({"ready": ready}))
}

async fn models(State(server): Shared) -> Response {
    reply(StatusCode::OK, &json!({"models": [server.name()]}))
}

/// The model and the version in a path; the version is empty where the path has none.
#[derive(serde::Deserialize)]
struct Model {
    model: String,
    #[serde(default)]
    version: String,
}

async fn model_ready(State(server): Shared, Path(at): Path<Model>) -> Result<Response, InferError> {
    let ready = server.model_ready(&at.model, &at.version)?;
    Ok(readiness(ready, &json!({"name": at.model, "ready": ready})))
}

async fn metadata(State(server): Shared, Path(at): Path<Model>) -> Result<Response, InferError> {
    let Signature { inputs, outputs } = server.signature(&at.model, &at.version)?;
    let body = json!({
        "name": at.model, "versions": [VERSION], "platform": PLATFORM,
        "inputs": inputs, "outputs": outputs,
    });
    Ok(reply(StatusCode::OK, &body))
}

async fn config(State(server): Shared, Path(at): Path<Model>) -> Result<Response, InferError> {
    let config = describe::config(&at.model, server.signature(&at.model, &at.version)?);
    let inputs = config.input.iter().map(|tensor| {
        json!({"name": tensor.name, "data_type": tensor.data_type().as_str_name(), "dims": tensor.dims})
    });
    let outputs = config.output.iter().map(|tensor| {
        json!({"name": tensor.name, "data_type": tensor.data_type().as_str_name(), "dims": tensor.dims})
    });
    let body = json!({
        "name": config.name, "platform": config.platform, "backend": config.backend,
        "max_batch_size": config.max_batch_size, "default_model_filename": config.default_model_filename,
        "input": inputs.collect::<Vec<_>>(), "output": outputs.collect::<Vec<_>>(),
    });
    Ok(reply(StatusCode::OK, &body))
}

async fn statistics(State(server): Shared) -> Response {
    reply(StatusCode::OK, &statistics_body(&server))
}

async fn model_statistics(
    State(server): Shared,
    Path(at): Path<Model>,
) -> Result<Response, InferError> {
    server.model_ready(&at.model, &at.version)?;
    Ok(reply(StatusCode::OK, &statistics_body(&server)))
}

fn statistics_body(server: &Server) -> Value {
    let model = describe::statistics(server);
    let inference = model.inference_stats.unwrap_or_default();
    let duration = |duration: Option<lithe::inference::StatisticDuration>| {
        let duration = duration.unwrap_or_default();
        json!({"count": duration.count, "ns": duration.ns})
    };
    json!({"model_stats": [{
        "name": model.name, "version": model.version, "last_inference": model.last_inference,
        "inference_count": model.inference_count, "execution_count": model.execution_count,
        "inference_stats": {
            "success": duration(inference.success), "fail": duration(inference.fail),
            "queue": duration(inference.queue), "compute_input": duration(inference.compute_input),
            "compute_infer": duration(inference.compute_infer),
            "compute_output": duration(inference.compute_output),
            "cache_hit": duration(inference.cache_hit), "cache_miss": duration(inference.cache_miss),
        },
        "batch_stats": [],
    }]})
}

async fn infer(
    State(server): Shared,
    Path(at): Path<Model>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, InferError> {
    let body = body::read(&headers, body, server.max_request_bytes).await;
    let call = server.metrics.begin(Protocol::Http);
    let result = match body {
        Ok(body) => answer(&server, at, &headers, body).await,
        Err(error) => Err(error),
    };
    call.end(&result);
    let (header, parts) = result?;
    Ok(body::write(&headers, header, parts).await)
}

/// The JSON part of the answer and its binary parts.
async fn answer(
    server: &Server,
    at: Model,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<(Vec<u8>, Vec<Bytes>), InferError> {
    let signature = server.signature(&at.model, &at.version)?;
    let (request, form) = message::decode(at.model, at.version, headers, &body, signature)?;
    let response = classification::apply(&form.classes, server.infer(request).await?)?;
    message::encode(server.name(), &form, response)
}
