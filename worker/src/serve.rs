//! `lithe-worker serve`: one model, every protocol, three ports. The ports answer from the start,
//! say ready once the model is loaded and warm, and drain on SIGTERM so that nothing is lost.

mod admin;
mod auth;
mod classification;
pub mod decoders;
mod describe;
mod element;
mod error;
mod grpc;
#[cfg(test)]
mod hostile;
mod listen;
mod load;
mod metrics;
mod model;
mod options;
mod protocols;
mod queue;
mod repository;
mod rest;
mod security;
mod server;
mod settings;
mod signals;
mod tfs;
mod tls;
mod warm;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lithe::Digest;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic_health::server::HealthReporter;

pub use error::InferError;
use listen::Port;
pub use load::{LoadError, Source};
pub use metrics::{Metrics, Protocol};
pub use model::{Backend, Signature};
pub use options::Options;
pub use protocols::Served;
pub use queue::{Batching, Curve, Limits, OnTimeout, Policy};
pub use security::{Folders, Security, SecurityError};
pub use server::{Request, Response, Server};

/// The server's name in its metadata.
const SERVER_NAME: &str = "lithe";
/// The platform in a model's metadata, in Triton's words.
const PLATFORM: &str = "onnxruntime_onnx";
/// The extensions of the protocol that are offered.
const EXTENSIONS: [&str; 8] = [
    "binary_tensor_data",
    "classification",
    "logging",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
    "trace",
];

/// Where a server listens, and how much it takes.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model's name in requests.
    pub name: String,
    /// The address of the HTTP protocols.
    pub http: SocketAddr,
    /// The address of the gRPC protocols.
    pub grpc: SocketAddr,
    /// The address of the probes and metrics.
    pub admin: SocketAddr,
    /// The protocols that are spoken.
    pub protocols: Vec<Served>,
    /// Who may speak to them.
    pub security: Folders,
    /// The most bytes of one request.
    pub max_request_bytes: usize,
    /// How much may wait for the model.
    pub limits: Limits,
    /// How requests wait, and which of them are run together.
    pub policy: Policy,
    /// How long a connection lives before it is asked to come anew; for ever when `None`.
    pub connection_age: Option<Duration>,
}

/// How a server ends.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long new requests are still taken: endpoints need that long to spread.
    pub delay: Duration,
    /// How long the last requests may take after that.
    pub deadline: Duration,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be listened on.
    #[error("listen for {what} on {address}: {source}")]
    Listen {
        /// The protocol.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A thread or a signal cannot be had.
    #[error("start the server: {0}")]
    Start(#[from] std::io::Error),
    /// The descriptors of the protocol are broken.
    #[error("start reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The ports cannot be secured as declared.
    #[error("secure the ports: {0}")]
    Security(#[from] SecurityError),
    /// The model cannot be served.
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// A server that listens.
pub struct Running {
    /// The address of the HTTP protocols.
    pub http: SocketAddr,
    /// The address of the gRPC protocols.
    pub grpc: SocketAddr,
    /// The address of the probes and metrics.
    pub admin: SocketAddr,
    /// The state that the protocols share.
    pub server: Arc<Server>,
    /// What secures them.
    pub security: Security,
    health: HealthReporter,
    served: Vec<Served>,
    stop: watch::Sender<bool>,
    protocols: [JoinHandle<()>; 2],
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = |source| ServeError::Listen { what, address, source };
    TcpListener::bind(address).await.map_err(listen)
}

/// Listens on all three ports; nothing is ready until [`Running::load`].
///
/// # Errors
/// When an address is taken, or a thread cannot be started.
pub async fn start(settings: Settings) -> Result<Running, ServeError> {
    let Settings { name, http, grpc, admin, protocols, max_request_bytes, .. } = settings;
    let security = Security::open(settings.security)?;
    let http = bind("HTTP", http).await?;
    let grpc = bind("gRPC", grpc).await?;
    let admin = bind("admin", admin).await?;
    let addresses = (http.local_addr()?, grpc.local_addr()?, admin.local_addr()?);
    let server = Arc::new(Server::new(name, max_request_bytes, settings.policy, settings.limits));
    let (stop, stopped) = watch::channel(false);
    let age = settings.connection_age;
    let (grpc_router, health) = grpc::router(server.clone(), protocols.clone()).await?;
    admin_thread(admin.into_std()?, server.clone())?;
    tokio::spawn(security.clone().follow(stopped.clone()));
    let http_router = rest::router(server.clone(), protocols.clone());
    let port = |listener, router| {
        let router = auth::guard(router, security.tokens.clone());
        let port = Port { router, age, tls: security.tls.clone() };
        tokio::spawn(listen::listen(listener, port, stopped.clone()))
    };
    let ports = [port(http, http_router), port(grpc, grpc_router)];
    let (http, grpc, admin) = addresses;
    let served = protocols;
    Ok(Running { http, grpc, admin, server, security, health, served, stop, protocols: ports })
}

/// Probes are answered by a thread that does nothing else, until the process ends.
fn admin_thread(listener: std::net::TcpListener, server: Arc<Server>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let port = Port { router: admin::router(server), age: None, tls: None };
    std::thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async move {
            let (_open, stop) = watch::channel(false);
            match TcpListener::from_std(listener) {
                Ok(listener) => listen::listen(listener, port, stop).await,
                Err(error) => tracing::error!(%error, "listen for probes"),
            }
        });
    })?;
    Ok(())
}

impl Running {
    /// Takes the warm model, whose warm-up measured `curve`; the server says ready from here on.
    ///
    /// # Errors
    /// When the thread that runs it cannot be started, or batching is asked for and the model
    /// cannot run several requests at once.
    pub async fn load(&self, backend: Arc<dyn Backend>, curve: Curve) -> Result<(), ServeError> {
        self.server.load(backend, curve)?;
        grpc::report(&self.health, &self.server, &self.served, self.server.ready()).await;
        Ok(())
    }

    /// Says not ready, takes requests for `drain.delay`, then no more, and ends when the last one
    /// is answered or `drain.deadline` passed. Dropping the future ends at once.
    ///
    /// Returns whether every connection ended by itself.
    pub async fn drain(self, drain: Drain) -> bool {
        self.server.drain();
        grpc::report(&self.health, &self.server, &self.served, false).await;
        tokio::time::sleep(drain.delay).await;
        self.stop.send_replace(true);
        let [mut http, mut grpc] = self.protocols;
        let both = async {
            let _ = tokio::join!(&mut http, &mut grpc);
        };
        let clean = tokio::time::timeout(drain.deadline, both).await.is_ok();
        http.abort();
        grpc.abort();
        clean
    }
}

/// Serves as `options` say and returns the process's exit code.
pub fn main(options: Options, born: Instant) -> i32 {
    let served = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServeError::Start)
        .and_then(|runtime| {
            let served = runtime.block_on(serve(options, born));
            // An inference may still run for a client that is gone; nobody waits for it.
            runtime.shutdown_background();
            served
        });
    served.map_or_else(
        |error| {
            eprintln!("lithe-worker: {error}");
            1
        },
        |()| 0,
    )
}

/// Serves as `options` say until SIGTERM or SIGINT, then drains; a second signal ends at once.
/// `born` is when the process started.
///
/// # Errors
/// When a port cannot be had or the model cannot be loaded.
pub async fn serve(options: Options, born: Instant) -> Result<(), ServeError> {
    let mut signals = Signals::new()?;
    let running = start(options.settings()).await?;
    tracing::info!(http = %running.http, grpc = %running.grpc, admin = %running.admin, "listening");
    if let Some(target) = options.latency_target {
        running.server.metrics.aims(target, options.latency_percentile);
    }
    let ready = async {
        let loaded = load::load(&options.source(), options.threads(), options.batching()).await?;
        running.server.metrics.serves(&options.name, loaded.digest.as_str(), &loaded.runtime);
        running.load(loaded.backend, loaded.curve).await?;
        let total = born.elapsed();
        running.server.metrics.loaded(total);
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        tracing::info!(
            model = options.name, digest = %loaded.digest, threads = options.threads(),
            library_ms = ms(loaded.library), fetch_ms = ms(loaded.fetch), load_ms = ms(loaded.load),
            warm_ms = ms(loaded.warm), total_ms = ms(total), "ready"
        );
        Ok::<_, ServeError>(())
    };
    tokio::select! {
        ready = ready => ready?,
        () = signals.next() => return Ok(()),
    }
    signals.next().await;
    let drain = options.drain();
    tracing::info!(delay = ?drain.delay, deadline = ?drain.deadline, "draining");
    tokio::select! {
        clean = running.drain(drain) => tracing::info!(clean, "drained"),
        () = signals.next() => tracing::warn!("a second signal ends the drain"),
    }
    Ok(())
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What was loaded, with the time each part took.
struct Loaded {
    backend: Arc<dyn Backend>,
    curve: Curve,
    digest: Digest,
    runtime: String,
    library: Duration,
    fetch: Duration,
    load: Duration,
    warm: Duration,
}
