//! Connections to one port of one worker: HTTP/2 with prior knowledge, which all of a worker's
//! ports speak, so that one connection carries many requests of either kind and says of each
//! whether the worker looked at it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::TcpStream;

/// Requests on one connection at a time; workers allow 256.
const STREAMS: u32 = 200;
/// Connections to one port of one worker.
const CONNECTIONS: usize = 64;
/// A pod in the same cluster answers within milliseconds, or it is not there.
const CONNECT: Duration = Duration::from_secs(1);
/// How often a connection's worker is asked whether it lives, and how long it may take to answer.
const PING: Duration = Duration::from_secs(10);
/// Bytes that a worker may send ahead on one stream.
const STREAM_WINDOW: u32 = 1 << 20;
/// Bytes that a worker may send ahead on one connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Larger frames than the 16 KiB of the RFC: tensors come in fewer pieces.
const FRAME: u32 = 64 << 10;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// The worker cannot be reached.
    #[error("connect to {address}: {reason}")]
    Unreachable {
        /// Its address.
        address: SocketAddr,
        /// The system's reason.
        reason: String,
    },
    /// Every connection is full.
    #[error("{CONNECTIONS} connections to {0} have {STREAMS} requests each")]
    Full(SocketAddr),
}

/// The connections to one port.
#[derive(Debug)]
pub struct Pool {
    address: SocketAddr,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// One connects, the others wait for its connection.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Bytes>,
    streams: AtomicU32,
    closed: AtomicBool,
}

/// A place for one request on a connection; free again when dropped.
#[derive(Debug)]
pub struct Lease {
    connection: Arc<Connection>,
    /// Takes the request.
    pub sender: SendRequest<Bytes>,
}

impl Lease {
    /// Keeps further requests off the connection.
    pub fn retire(&self) {
        self.connection.closed.store(true, Ordering::Release);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    /// No connection yet to `address`.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connections: Mutex::default(), connecting: tokio::sync::Mutex::default() }
    }

    /// A place on a connection, made when there is none.
    ///
    /// # Errors
    /// When the worker cannot be reached, or every connection is full.
    pub async fn acquire(&self) -> Result<Lease, PoolError> {
        loop {
            let mut lease = match self.free() {
                Some(lease) => lease,
                None => self.connect().await?,
            };
            // A worker that sent GOAWAY takes no more.
            match std::future::poll_fn(|cx| lease.sender.poll_ready(cx)).await {
                Ok(()) => return Ok(lease),
                Err(_) => lease.retire(),
            }
        }
    }

    fn connections(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn free(&self) -> Option<Lease> {
        let mut connections = self.connections();
        connections.retain(|connection| !connection.closed.load(Ordering::Acquire));
        // The first with room: the others become idle, and further ones are opened late.
        connections.iter().find_map(Connection::lease)
    }

    async fn connect(&self) -> Result<Lease, PoolError> {
        let _alone = self.connecting.lock().await;
        if let Some(lease) = self.free() {
            return Ok(lease);
        }
        if self.connections().len() >= CONNECTIONS {
            return Err(PoolError::Full(self.address));
        }
        let connection = Arc::new(connect(self.address).await?);
        let lease = connection.lease_first();
        self.connections().push(connection);
        Ok(lease)
    }
}

impl Connection {
    fn lease(self: &Arc<Self>) -> Option<Lease> {
        let allowed = u32::try_from(self.sender.current_max_send_streams()).unwrap_or(u32::MAX);
        if self.streams.load(Ordering::Acquire) >= allowed.min(STREAMS) {
            return None;
        }
        Some(self.lease_first())
    }

    fn lease_first(self: &Arc<Self>) -> Lease {
        self.streams.fetch_add(1, Ordering::AcqRel);
        Lease { sender: self.sender.clone(), connection: self.clone() }
    }
}

async fn connect(address: SocketAddr) -> Result<Connection, PoolError> {
    let unreachable = |reason: String| PoolError::Unreachable { address, reason };
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| unreachable(format!("no answer within {CONNECT:?}")))?
        .map_err(|error| unreachable(error.to_string()))?;
    stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
    let (sender, mut driver) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .enable_push(false)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|error| unreachable(error.to_string()))?;
    let mut pings = driver.ping_pong();
    let mut driver = Box::pin(driver);
    tokio::select! {
        ended = &mut driver => {
            let reason = ended.err().map_or("it closed".into(), |error| error.to_string());
            return Err(unreachable(reason));
        }
        answered = tokio::time::timeout(CONNECT, alive(&mut pings)) => match answered {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(unreachable(error.to_string())),
            Err(_) => return Err(unreachable(format!("no answer within {CONNECT:?}"))),
        },
    }
    tokio::spawn(async move {
        tokio::select! {
            ended = driver => if let Err(error) = ended {
                tracing::debug!(%address, %error, "connection to a worker");
            },
            () = silent(pings) => tracing::warn!(%address, "a worker does not answer pings"),
        }
    });
    Ok(Connection { sender, streams: AtomicU32::new(0), closed: AtomicBool::new(false) })
}

/// The worker itself answers on the connection. The kernel completes connections that nobody has
/// accepted, and resets them when the worker ends: a request that was written into one would be lost,
/// and nobody could say whether it was looked at.
async fn alive(pings: &mut Option<h2::PingPong>) -> Result<(), h2::Error> {
    match pings {
        Some(pings) => pings.ping(h2::Ping::opaque()).await.map(drop),
        None => Ok(()),
    }
}

/// Ends when the worker does not answer a ping in time.
async fn silent(pings: Option<h2::PingPong>) {
    let Some(mut pings) = pings else { return std::future::pending().await };
    loop {
        tokio::time::sleep(PING).await;
        match tokio::time::timeout(PING, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection ended by itself: its driver tells.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
