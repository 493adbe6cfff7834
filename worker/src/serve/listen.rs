//! The accept loop of every port: bounded connections, time-outs against slow peers, a graceful
//! stop that the caller may cut short. Errors of `accept` never end it.

use std::convert::Infallible;
use std::hash::BuildHasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, Response, Version, header};
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::Service;

use super::tls::Identity;

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
/// Bytes of one HTTP/2 frame that a peer may send: 10 MB are 40 of them, not 640.
const FRAME: u32 = 256 << 10;
/// Bytes a peer may send ahead on one connection.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// How long a peer may leave what was sent to it unread: what it holds up then is freed.
const UNREAD: Duration = Duration::from_secs(60);

/// How long a peer may take for the handshake of TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What is served on a port.
pub struct Port {
    /// The routes.
    pub router: Router,
    /// A connection older than about this is asked to come anew, after its requests are answered.
    pub age: Option<Duration>,
    /// The identity with which TLS is spoken, where it is.
    pub tls: Option<Arc<Identity>>,
}

/// Serves `port` on `listener` until `stop` becomes true and the last connection has ended.
/// Dropping the future closes what is left at once.
pub async fn listen(listener: TcpListener, port: Port, mut stop: watch::Receiver<bool>) {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS).max_buf_size(256 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(32 << 10)
        .max_frame_size(FRAME)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let served = Arc::new((builder, port));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        connections.spawn(connection(served.clone(), accepted, stop.clone()));
    }
    // Who connected already, and was not accepted yet, is served as well.
    while let Ok(accepted) = tokio::time::timeout(Duration::ZERO, accept(&listener, &places)).await
    {
        connections.spawn(connection(served.clone(), accepted, stop.clone()));
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

/// `age` give or take a tenth, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    // The seed of a new hasher is random.
    let random = std::hash::RandomState::new().hash_one(0) as u32;
    age.mul_f64(0.9 + 0.2 * f64::from(random) / f64::from(u32::MAX))
}

/// What a connection's requests and its age tell each other.
#[derive(Default)]
struct Told {
    http2: AtomicBool,
    old: AtomicBool,
}

/// The routes, on one connection. An old HTTP/1 connection ends with an answer that says so: one
/// that was closed between two requests would lose a request that is on its way.
#[derive(Clone)]
struct Aging {
    router: Router,
    told: Arc<Told>,
}

impl Service<Request<Incoming>> for Aging {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The router is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let http2 = request.version() == Version::HTTP_2;
        self.told.http2.store(http2, Ordering::Relaxed);
        let (answer, told) = (self.router.call(request), self.told.clone());
        Box::pin(async move {
            let mut answer = answer.await?;
            if !http2 && told.old.load(Ordering::Relaxed) {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        })
    }
}

async fn connection(
    served: Arc<(Builder<TokioExecutor>, Port)>,
    (stream, _place): Accepted,
    stop: watch::Receiver<bool>,
) {
    // Answers are small and wanted at once.
    let _ = stream.set_nodelay(true);
    if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD)) {
        tracing::debug!(%error, "bound the time of a slow reader");
    }
    let (builder, port) = &*served;
    let Some(identity) = &port.tls else { return serve(builder, port, stream, stop).await };
    let handshake = TlsAcceptor::from(identity.config()).accept(stream);
    match tokio::time::timeout(HANDSHAKE, handshake).await {
        Ok(Ok(stream)) => serve(builder, port, stream, stop).await,
        // A peer that is not let in is no event of ours.
        Ok(Err(error)) => tracing::debug!(%error, "handshake"),
        Err(_) => tracing::debug!("a handshake took longer than {HANDSHAKE:?}"),
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    builder: &Builder<TokioExecutor>,
    port: &Port,
    stream: S,
    mut stop: watch::Receiver<bool>,
) {
    let told = Arc::new(Told::default());
    let age = port.age.map(jittered);
    let aging = Aging { router: port.router.clone(), told: told.clone() };
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(aging));
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = ending(age, &told, &mut stop) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        // A peer that goes away is no event of ours.
        tracing::debug!(%error, "connection");
    }
}

/// When the connection must end: the server stops, or it is HTTP/2 and as old as `age`.
async fn ending(age: Option<Duration>, told: &Told, stop: &mut watch::Receiver<bool>) {
    if let Some(age) = age {
        tokio::select! {
            () = stopped(stop) => return,
            () = tokio::time::sleep(age) => told.old.store(true, Ordering::Relaxed),
        }
        if told.http2.load(Ordering::Relaxed) {
            return;
        }
    }
    stopped(stop).await;
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // When nobody can stop it any more, it has been.
    let _ = stop.wait_for(|stop| *stop).await;
}
