//! Workers and clients that speak HTTP/2 by hand, so that tests see and do what a library would
//! hide; and a gateway in this process that is fed through its channel.
// Each test program uses a part of it.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use lithe::gateway::{Configuration, Model, Worker, WorkerState};
use lithe_gateway::apply::{Gateway, apply};
use lithe_gateway::options::Limits;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What a worker does with requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// Answers with the request's body.
    #[default]
    Echo,
    /// Sends each piece back as it comes.
    Stream,
    /// Never answers.
    Silent,
    /// Refuses streams.
    Refuse,
    /// Says UNAVAILABLE, or 503.
    Unavailable,
    /// Closes the connection once it has the request.
    Break,
}

/// What tests look at.
#[derive(Debug, Default)]
pub struct Seen {
    pub requests: AtomicU64,
    pub cancelled: AtomicU64,
    pub ready: AtomicBool,
}

/// A worker: REST, gRPC and probes on one port.
pub struct FakeWorker {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl FakeWorker {
    pub async fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, manner)
    }

    pub fn on(listener: TcpListener, manner: Manner) -> Self {
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen { ready: AtomicBool::new(true), ..Seen::default() });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, manner, seen.clone(), stopped));
        Self { address, seen, stop, task }
    }

    pub fn told(&self, state: WorkerState) -> Worker {
        worker(self.address, state)
    }

    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Says GOAWAY, and ends when the last request is answered.
    pub async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

pub fn worker(address: SocketAddr, state: WorkerState) -> Worker {
    let port = address.port();
    Worker {
        address: address.ip(),
        http_port: port,
        grpc_port: port,
        admin_port: port,
        revision: String::new(),
        state,
    }
}

async fn accept(
    listener: TcpListener,
    manner: Manner,
    seen: Arc<Seen>,
    mut stop: watch::Receiver<bool>,
) {
    let mut connections = tokio::task::JoinSet::new();
    let stopped = stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (socket, _) = accepted.unwrap();
                connections.spawn(serve(socket, manner, seen.clone(), stopped.clone()));
            }
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(
    socket: TcpStream,
    manner: Manner,
    seen: Arc<Seen>,
    mut stop: watch::Receiver<bool>,
) {
    socket.set_nodelay(true).unwrap();
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
    let mut stopped = false;
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { break };
                let probe = request.uri().path() == "/readyz";
                if manner == Manner::Break && !probe {
                    seen.requests.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                tasks.spawn(handle(request, respond, manner, seen.clone()));
            }
            _ = stop.wait_for(|stop| *stop), if !stopped => {
                stopped = true;
                connection.graceful_shutdown();
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}

async fn handle(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    manner: Manner,
    seen: Arc<Seen>,
) {
    let (head, mut body) = request.into_parts();
    if head.uri.path() == "/readyz" {
        let status = if seen.ready.load(Ordering::SeqCst) { 200 } else { 503 };
        let _ = respond.send_response(Response::builder().status(status).body(()).unwrap(), true);
        return;
    }
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let grpc = head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc");
    match manner {
        Manner::Refuse => return respond.send_reset(Reason::REFUSED_STREAM),
        Manner::Unavailable => {
            let answer = if grpc {
                Response::builder().header("grpc-status", "14")
            } else {
                Response::builder().status(503)
            };
            let _ = respond.send_response(answer.body(()).unwrap(), true);
            return;
        }
        Manner::Silent => {
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            if reset.is_ok() {
                seen.cancelled.fetch_add(1, Ordering::SeqCst);
            }
            return;
        }
        Manner::Echo | Manner::Stream | Manner::Break => {}
    }
    let mut whole = BytesMut::new();
    if manner == Manner::Echo {
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            whole.extend_from_slice(&data);
        }
    }
    let mut answer = Response::builder();
    if let Some(timeout) = head.headers.get("grpc-timeout") {
        answer = answer.header("x-timeout", timeout);
    }
    if let Some(authority) = head.uri.authority() {
        answer = answer.header("x-authority", authority.as_str());
    }
    let Ok(mut sending) = respond.send_response(answer.body(()).unwrap(), false) else { return };
    if manner == Manner::Stream {
        while let Some(Ok(data)) = body.data().await {
            let _ = body.flow_control().release_capacity(data.len());
            push(&mut sending, data).await;
        }
    } else {
        push(&mut sending, whole.freeze()).await;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let _ =
        if grpc { sending.send_trailers(trailers) } else { sending.send_data(Bytes::new(), true) };
}

/// Sends `data` as the peer takes it; whether it took all.
pub async fn push(stream: &mut SendStream<Bytes>, mut data: Bytes) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let mut room = stream.capacity();
        while room == 0 {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(more)) => room = more,
                _ => return false,
            }
        }
        if stream.send_data(data.split_to(room.min(data.len())), false).is_err() {
            return false;
        }
    }
    true
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: HeaderMap,
}

impl Answer {
    /// The status of gRPC, wherever it stands.
    pub fn grpc(&self) -> Option<&str> {
        let status = self.trailers.get("grpc-status").or(self.headers.get("grpc-status"));
        status.map(|status| status.to_str().unwrap())
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// One connection of a client.
#[derive(Clone)]
pub struct Client {
    pub sender: SendRequest<Bytes>,
}

impl Client {
    pub async fn connect(
        address: SocketAddr,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
        let (sender, connection) = builder.handshake(socket).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    /// Sends one request of gRPC.
    pub async fn grpc(&self, body: impl Into<Bytes>) -> Result<Answer, h2::Error> {
        self.send(grpc_request(), body.into()).await
    }

    pub async fn send(&self, request: Request<()>, body: Bytes) -> Result<Answer, h2::Error> {
        let mut sender = self.sender.clone().ready().await?;
        let (answer, mut stream) = sender.send_request(request, false)?;
        let upload = async move {
            if push(&mut stream, body).await {
                let _ = stream.send_data(Bytes::new(), true);
            }
        };
        let download = async {
            let (head, mut body) = answer.await?.into_parts();
            let mut whole = BytesMut::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                whole.extend_from_slice(&data);
            }
            let trailers = body.trailers().await?.unwrap_or_default();
            let (status, headers) = (head.status.as_u16(), head.headers);
            Ok(Answer { status, headers, body: whole.freeze(), trailers })
        };
        let (_, answer) = tokio::join!(upload, download);
        answer
    }
}

pub fn grpc_request() -> Request<()> {
    Request::post("http://model.example/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// A gateway of one model in this process.
pub struct Running {
    pub gateway: Arc<Gateway>,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub model: Model,
    told: watch::Sender<Option<Arc<Configuration>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Two ports that were free a moment ago.
pub fn ports() -> (u16, u16) {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (one, other) = (free(), free());
    (one.local_addr().unwrap().port(), other.local_addr().unwrap().port())
}

pub fn model(workers: Vec<Worker>) -> Model {
    let (http_port, grpc_port) = ports();
    Model {
        uid: "u".into(),
        namespace: "n".into(),
        name: "m".into(),
        generation: 1,
        resource_version: "1".into(),
        http_port,
        grpc_port,
        target: None,
        weights: Vec::new(),
        workers,
    }
}

impl Running {
    pub async fn start(workers: Vec<Worker>, limits: Limits) -> Self {
        let model = model(workers);
        let gateway = Arc::new(Gateway::new(limits));
        let (told, configurations) = watch::channel(None);
        let (stop, stopped) = watch::channel(false);
        let local = [127, 0, 0, 1].into();
        let task = tokio::spawn(apply(gateway.clone(), local, configurations, stopped));
        let (http, grpc) = (model.http_port, model.grpc_port);
        let at = |port| SocketAddr::new(local, port);
        let mut running = Self { gateway, http: at(http), grpc: at(grpc), model, told, stop, task };
        let workers = std::mem::take(&mut running.model.workers);
        running.tell(workers).await;
        running
    }

    /// Tells the gateway of `workers`, and waits until it acknowledges.
    pub async fn tell(&mut self, workers: Vec<Worker>) {
        self.model.workers = workers;
        self.model.generation += 1;
        let models = vec![self.model.clone()];
        self.told.send_replace(Some(Arc::new(Configuration { models })));
        let generation = self.model.generation;
        until(|| {
            let models = self.gateway.acknowledgement().models;
            models.iter().any(|model| model.generation == generation && model.listening)
        })
        .await;
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.grpc).await.unwrap()
    }

    /// Stops as on SIGTERM, after the delay.
    pub async fn end(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }

    pub fn begin_to_end(&self) {
        self.stop.send_replace(true);
    }
}

/// Waits until `so`; the test's own time limit ends it otherwise.
pub async fn until(so: impl Fn() -> bool) {
    let looked = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looked).await.expect("it never became so");
}
