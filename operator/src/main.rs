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
use lithe_operator::{admin, client, scrape, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    let traces = telemetry::init(&config)?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let context = Arc::new(context(config).await?);
    let stop = CancellationToken::new();
    let listen = context.config.listen;
    let admin = admin::serve(listen, Arc::clone(&context), stop.clone().cancelled_owned());
    let mut admin = tokio::spawn(admin);
    let lease = tokio::spawn(lead(Arc::clone(&context)));
    tokio::spawn(controller::run(Arc::clone(&context)));
    tokio::spawn(scrape::run(Arc::clone(&context)));
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
        ended = &mut admin => return ended?,
    }
    tracing::info!("stopping");
    context.leadership.release();
    let _ = tokio::time::timeout(Duration::from_secs(2), lease).await;
    stop.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
    if let Some(traces) = traces {
        let _ = traces.shutdown();
    }
    Ok(())
}

async fn context(config: Config) -> anyhow::Result<Context> {
    let metrics = Arc::new(Metrics::default());
    let clients = client::clients(&metrics).await?;
    let Config { lease_namespace, lease_name, identity, concurrency, .. } = &config;
    Ok(Context {
        leadership: Leadership::new(
            clients.requests.clone(),
            lease_namespace,
            lease_name,
            identity,
        ),
        // A few places are kept for repairs, whatever waits.
        queue: Queue::new(*concurrency, (concurrency / 3).max(1)),
        caches: Caches::default(),
        answers: Default::default(),
        measured: Default::default(),
        ports: Default::default(),
        pulse: Default::default(),
        clients,
        config,
        metrics,
    })
}

async fn lead(context: Arc<Context>) {
    let told = |leads| {
        context.metrics.leads(leads);
        tracing::info!(leads, identity = context.config.identity, "leadership");
        if leads {
            controller::look_at_all(&context);
        }
    };
    context.leadership.hold(told).await;
}
