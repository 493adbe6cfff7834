//! `/metrics`, `/livez`, `/readyz`. Liveness does not depend on the API server: a process that
//! lost it has to stay up and go on when it is back.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use lithe::status::Phase;

use crate::controller::Context;

const PHASES: [Phase; 7] = [
    Phase::Pending,
    Phase::Compressing,
    Phase::RollingOut,
    Phase::Serving,
    Phase::Idle,
    Phase::Degraded,
    Phase::Failed,
];

/// Serves until `shutdown`.
pub async fn serve(
    address: SocketAddr,
    context: Arc<Context>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(alive))
        .route("/readyz", get(ready))
        .with_state(context);
    let listener = tokio::net::TcpListener::bind(address).await?;
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await?;
    Ok(())
}

async fn metrics(State(context): State<Arc<Context>>) -> String {
    context.metrics.queued(context.queue.depth());
    context.metrics.scaling(context.measured.figures());
    for phase in PHASES {
        let count = context.caches.models.count(|model| {
            model.status.as_ref().and_then(|status| status.phase).unwrap_or_default() == phase
        });
        context.metrics.phase(&format!("{phase:?}"), count);
    }
    context.metrics.text()
}

async fn alive(State(context): State<Arc<Context>>) -> (StatusCode, &'static str) {
    if context.pulse.beats() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "the loop stands still")
    }
}

async fn ready(State(context): State<Arc<Context>>) -> (StatusCode, &'static str) {
    if context.caches.ready() {
        (StatusCode::OK, "ok")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the first lists are not complete")
    }
}
