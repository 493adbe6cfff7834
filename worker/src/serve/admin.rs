//! `/livez`, `/readyz` and `/metrics`, on a thread of their own: load on the model never fails a probe.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::server::Server;

/// The admin endpoints of `server`.
pub fn router(server: Arc<Server>) -> Router {
    let ready = server.clone();
    let readyz = move || {
        let (status, text) = match (ready.ready(), ready.state()) {
            (true, _) => (StatusCode::OK, "ready\n"),
            (false, "LOADING") => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
            (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        };
        async move { (status, text) }
    };
    let metrics = move || {
        let text = server.metrics.encode(server.name());
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        async move { ([(header::CONTENT_TYPE, kind)], text).into_response() }
    };
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}
