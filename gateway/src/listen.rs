//! The accept loop of one port: HTTP/1.1 and HTTP/2 with prior knowledge, bounded connections,
//! time-outs against slow peers, GOAWAY at the end. Errors of `accept` never end it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::model::Model;
use crate::proxy::proxy;
use crate::tally::Protocol;

/// Connections of one port: each costs some 20 KiB while idle.
const CONNECTIONS: usize = 4096;
/// Concurrent requests of one HTTP/2 connection, as at a worker.
const STREAMS: u32 = 256;
/// How long a peer may take to send its headers, or stay idle on HTTP/1.
const HEADERS: Duration = Duration::from_secs(75);
/// How often a silent HTTP/2 peer is asked whether it lives.
const PING: Duration = Duration::from_secs(30);
/// Bytes a peer may send ahead on one stream. Smaller than a worker's, since nothing is computed
/// here: within a cluster 256 KiB for each round trip are more than a network carries.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// Bytes a peer may send ahead on one connection.
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Larger frames than the 16 KiB of the RFC: tensors come in fewer pieces.
const FRAME: u32 = 64 << 10;
/// Bytes of answers that wait for a slow peer on one stream.
const SEND_BUFFER: usize = 128 << 10;

/// What a port is for.
#[derive(Clone, Debug)]
pub struct Purpose {
    /// The model that is asked.
    pub model: Arc<Model>,
    /// Its protocol.
    pub protocol: Protocol,
}

/// Serves `listener` until `stop` becomes true and the last connection has ended. Dropping the
/// future closes what is left at once.
pub async fn listen(listener: TcpListener, purpose: Purpose, mut stop: watch::Receiver<bool>) {
    let builder = Arc::new(builder());
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        connections.spawn(connection(builder.clone(), accepted, purpose.clone(), stop.clone()));
    }
    // Who connected already, and was not accepted yet, is served as well.
    while let Ok(accepted) = tokio::time::timeout(Duration::ZERO, accept(&listener, &places)).await
    {
        connections.spawn(connection(builder.clone(), accepted, purpose.clone(), stop.clone()));
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

fn builder() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(256 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(32 << 10)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
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
    Purpose { model, protocol }: Purpose,
    mut stop: watch::Receiver<bool>,
) {
    // Answers are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        // On the heap, since it is much larger than what an open stream needs after the head of its
        // answer, and hyper keeps room for the larger of the two.
        let answered = Box::pin(proxy(model.clone(), protocol, request));
        async move { Ok::<_, Infallible>(answered.await) }
    });
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

/// Until somebody stops it, or nobody can any more.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
