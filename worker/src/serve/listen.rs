//! The accept loop of every port: bounded connections, time-outs against slow peers, a graceful
//! stop that the caller may cut short. Errors of `accept` never end it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

/// Connections of one port: each costs some 20 KiB while idle.
const CONNECTIONS: usize = 4096;
/// Concurrent requests of one HTTP/2 connection.
const STREAMS: u32 = 256;
/// How long a peer may take to send its headers, or stay idle on HTTP/1.
const HEADERS: Duration = Duration::from_secs(75);
/// How often a silent HTTP/2 peer is asked whether it lives.
const PING: Duration = Duration::from_secs(30);
/// Bytes a peer may send ahead on one stream: large tensors need more than the 64 KiB of the RFC.
const STREAM_WINDOW: u32 = 2 << 20;
/// Bytes a peer may send ahead on one connection.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Serves `router` on `listener` until `stop` becomes true and the last connection has ended.
/// Dropping the future closes what is left at once.
pub async fn listen(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(256 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(32 << 10)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let builder = Arc::new(builder);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        connections.spawn(connection(builder.clone(), accepted, router.clone(), stop.clone()));
    }
    // Who connected already, and was not accepted yet, is served as well.
    while let Ok(accepted) = tokio::time::timeout(Duration::ZERO, accept(&listener, &places)).await
    {
        connections.spawn(connection(builder.clone(), accepted, router.clone(), stop.clone()));
    }
    // No more connections; those that are open end by themselves.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A connection and its place among [`CONNECTIONS`].
type Accepted = (TcpStream, OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Accepted {
    loop {
        // The semaphore is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { std::future::pending().await };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                // Out of descriptors, for example: some will be free soon.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    builder: Arc<Builder<TokioExecutor>>,
    (stream, _place): Accepted,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let service = TowerToHyperService::new(router);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stopped(&mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // A peer that goes away is no event of ours.
        tracing::debug!(%error, "connection");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // When nobody can stop it any more, it has been.
    let _ = stop.wait_for(|stop| *stop).await;
}
