//! `lithe-gateway`: flags in, ports open, a clean end on SIGTERM.

use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser as _;
use lithe_gateway::apply::{Gateway, apply};
use lithe_gateway::options::Options;
use lithe_gateway::{admin, watch};
use tokio::signal::unix::{Signal, SignalKind, signal};

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log)?;
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider is installed"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run(options));
    // What is left after the deadline is cut off.
    runtime.shutdown_background();
    ended
}

async fn run(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let gateway = Arc::new(Gateway::new(options.limits));
    let listener = std::net::TcpListener::bind(options.admin)
        .with_context(|| format!("listen on --admin {}", options.admin))?;
    listener.set_nonblocking(true)?;
    admin::start(listener, gateway.clone())?;
    let (configurations, configured) = tokio::sync::watch::channel(None);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let applied = tokio::spawn(apply(gateway.clone(), options.address, configured, stopped));
    let source = async {
        match &options.file {
            Some(path) => {
                configurations.send_replace(Some(Arc::new(watch::file(path)?)));
                std::future::pending().await
            }
            None => watch::cluster(&options.namespaces, configurations.clone()).await,
        }
    };
    tokio::select! {
        ended = source => return ended.context("read the configuration"),
        () = either(&mut terminate, &mut interrupt) => {}
    }
    tracing::info!(delay = ?options.drain_delay, deadline = ?options.drain_deadline, "draining");
    gateway.drain();
    let drained = async {
        tokio::time::sleep(options.drain_delay).await;
        stop.send_replace(true);
        tokio::time::timeout(options.drain_deadline, applied).await.is_ok()
    };
    tokio::select! {
        clean = drained => tracing::info!(clean, "drained"),
        () = either(&mut terminate, &mut interrupt) => {
            tracing::warn!("a second signal ends the drain");
        }
    }
    Ok(())
}

async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}
