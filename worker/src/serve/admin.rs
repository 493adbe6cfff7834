//! `/livez`, `/readyz`, `/metrics` and `/signals`, on a thread of their own: load on the model never fails a probe.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::server::Server;

/// The admin endpoints of `server`.
pub fn router(server: Arc<Server>) -> Router {
    let (ready, signalling) = (server.clone(), server.clone());
    let readyz = move || {
        let (status, text) = match (ready.ready(), ready.state()) {
            (true, _) => (StatusCode::OK, "ready\n"),
            (false, "LOADING") => (StatusCode::SERVICE_UNAVAILABLE, "loading\n"),
            (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        };
        async move { (status, text) }
    };
    let metrics = move || {
        let text = server.metrics_text();
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        async move { ([(header::CONTENT_TYPE, kind)], text).into_response() }
    };
    let signals = move || {
        let signals = signalling.signals();
        async move {
            let json = serde_json::to_vec(&signals).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR);
            json.map(|json| ([(header::CONTENT_TYPE, "application/json")], json))
        }
    };
    Router::new()
        .route("/signals", get(signals))
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}
