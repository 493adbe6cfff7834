//! `lithe-operator`: flags in, controller on, a clean end on SIGTERM.

use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use lithe_operator::config::Config;
use lithe_operator::controller::{self, Context};
use lithe_operator::lease::Leadership;
use lithe_operator::metrics::Metrics;
use lithe_operator::observe::Caches;
use lithe_operator::queue::Queue;
use lithe_operator::{admin, client, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let traces = telemetry::init(&config)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let metrics = Arc::new(Metrics::default());
    let client = client::client(Arc::clone(&metrics)).await?;
    let leadership = Leadership::new(
        client.clone(),
        &config.lease_namespace,
        &config.lease_name,
        &config.identity,
    );
    // A few workers are kept for repairs, whatever waits.
    let queue = Queue::new((config.concurrency / 4).max(1));
    let listen = config.listen;
    let context =
        Arc::new(Context { client, caches: Caches::default(), queue, config, metrics, leadership });
    let stop = CancellationToken::new();
    let admin = admin::serve(listen, Arc::clone(&context), stop.clone().cancelled_owned());
    let admin = tokio::spawn(admin);
    let leader = Arc::clone(&context);
    tokio::spawn(async move {
        let told = |leads| {
            leader.metrics.leads(leads);
            tracing::info!(leads, "leadership");
            if leads {
                controller::look_at_all(&leader);
            }
        };
        leader.leadership.hold(told).await;
    });
    tokio::spawn(controller::run(Arc::clone(&context)));
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("stopping");
    context.leadership.release().await;
    stop.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(2), admin).await;
    if let Some(traces) = traces {
        let _ = traces.shutdown();
    }
    Ok(())
}
