//! `/metrics`, `/livez`, `/readyz`. Liveness does not depend on the API server.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use crate::controller::Context;

/// Serves until `shutdown`.
pub async fn serve(
    address: SocketAddr,
    context: Arc<Context>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .with_state(context);
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await?;
    Ok(())
}

async fn metrics(State(context): State<Arc<Context>>) -> String {
    context.metrics.queued(context.queue.len());
    context.metrics.text()
}

async fn ready(State(context): State<Arc<Context>>) -> (StatusCode, &'static str) {
    if context.caches.ready() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the first lists are not complete")
    }
}
