//! Probes, metrics, and what the operator asks, on a thread of their own: load on the models never
//! fails a probe or delays a wake.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use lithe::gateway::{PATH_CONFIGURATION, PATH_DEMAND, PATH_SIGNALS};

use crate::apply::Gateway;
use crate::metrics;

/// A question for demand is answered after this time at the latest; proxies and the operator's own
/// time limit are longer.
const LONGEST: Duration = Duration::from_secs(20);

/// Serves `gateway`'s admin port on `listener`, until the process ends.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(listener: std::net::TcpListener, gateway: Arc<Gateway>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async move {
            let served = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => axum::serve(listener, router(gateway)).await,
                Err(error) => Err(error),
            };
            if let Err(error) = served {
                tracing::error!(%error, "the admin port");
            }
        });
    })?;
    Ok(())
}

fn router(gateway: Arc<Gateway>) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .route(PATH_CONFIGURATION, get(configuration))
        .route(PATH_SIGNALS, get(signals))
        .route(PATH_DEMAND, get(demand))
        .with_state(gateway)
}

async fn readyz(State(gateway): State<Arc<Gateway>>) -> (StatusCode, &'static str) {
    match (gateway.ready(), gateway.draining()) {
        (true, _) => (StatusCode::OK, "ready\n"),
        (false, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "no configuration was read yet\n"),
    }
}

async fn scrape(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics::text(&gateway.models(), Instant::now()))
}

fn json(value: &impl serde::Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn configuration(State(gateway): State<Arc<Gateway>>) -> Response {
    json(&gateway.acknowledgement())
}

async fn signals(State(gateway): State<Arc<Gateway>>) -> Response {
    json(&gateway.signals(Instant::now()))
}

async fn demand(State(gateway): State<Arc<Gateway>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let after = query.split('&').find_map(|part| part.strip_prefix("after="));
    let Ok(seen) = after.unwrap_or("0").parse::<u64>() else {
        let told = format!("after={:?} is no number", after.unwrap_or_default());
        return (StatusCode::BAD_REQUEST, told).into_response();
    };
    let mut demanded = gateway.demanded();
    let news = demanded.wait_for(|sequence| *sequence != seen);
    let _ = tokio::time::timeout(LONGEST, news).await;
    json(&gateway.demand())
}
