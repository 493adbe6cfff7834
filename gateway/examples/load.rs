//! The load of `cargo e2e bench gateway`: a worker that answers small gRPC requests at once, and a
//! driver that measures the same requests straight to it and through proxies, in turns.
//!
//! Built with the gateway in the release profile, so that the driver is not what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A small inference: a hundred bytes each way.
const BODY: &[u8] = &[7; 100];
/// Connections of the driver: as many clients as a small service has.
const CONNECTIONS: usize = 8;
/// Requests under way on each while the most is measured.
const CONCURRENT: usize = 16;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Answer on this address until killed.
    Worker {
        /// Where.
        address: SocketAddr,
    },
    /// Measure targets in turns; prints JSON lines.
    Drive {
        /// `name=address=pid`; the first goes straight to the worker (pid 0).
        targets: Vec<Target>,
        /// Seconds of each measurement of each target in each round.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Rounds.
        #[arg(long, default_value_t = 4)]
        rounds: usize,
        /// Streams that are held open.
        #[arg(long, default_value_t = 10_000)]
        streams: usize,
    },
}

#[derive(Clone)]
struct Target {
    name: String,
    address: SocketAddr,
    /// The process whose processor time and memory count, with its children; 0 for none.
    process: u32,
}

impl std::str::FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('=').collect();
        let [name, address, process] = parts.as_slice() else {
            bail!("name=address=pid, not {text}")
        };
        Ok(Self { name: (*name).into(), address: address.parse()?, process: process.parse()? })
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.verb {
        Verb::Worker { address } => runtime.block_on(worker(address)),
        Verb::Drive { targets, seconds, rounds, streams } => {
            let span = Duration::from_secs_f64(seconds);
            runtime.block_on(drive(&targets, span, rounds, streams))
        }
    }
}

async fn worker(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(256);
            let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(reply(request, respond));
            }
        });
    }
}

/// Sends every piece back as it comes, after the head.
async fn reply(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut body = request.into_body();
    let head = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut stream = respond.send_response(head, false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        stream.send_data(data, false)?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    stream.send_trailers(trailers)?;
    Ok(())
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Bytes>> {
    let socket = TcpStream::connect(address).await.with_context(|| format!("connect {address}"))?;
    socket.set_nodelay(true)?;
    let (sender, connection) = h2::client::handshake(socket).await?;
    tokio::spawn(connection);
    Ok(sender)
}

fn head() -> Result<Request<()>> {
    let request = Request::post("http://bench/inference.GRPCInferenceService/ModelInfer");
    Ok(request.header("content-type", "application/grpc").header("te", "trailers").body(())?)
}

/// One request, whole; its time.
async fn call(sender: &SendRequest<Bytes>) -> Result<Duration> {
    let begun = Instant::now();
    let mut sender = sender.clone().ready().await?;
    let (answer, mut stream) = sender.send_request(head()?, false)?;
    stream.send_data(Bytes::from_static(BODY), true)?;
    let mut body = answer.await?.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    if trailers.get("grpc-status").is_none_or(|status| status != "0") {
        bail!("the answer has the trailers {trailers:?}");
    }
    Ok(begun.elapsed())
}

async fn drive(targets: &[Target], span: Duration, rounds: usize, streams: usize) -> Result<()> {
    let gateway = targets.get(1).context("targets: the worker, then the gateway")?;
    let mut rate = f64::MAX;
    let mut most = vec![(0_u64, 0.0, 0.0); targets.len()];
    for _ in 0..rounds {
        for (target, sum) in targets.iter().zip(&mut most) {
            let before = processor(target.process)?;
            let (count, seconds) = closed(target, span).await?;
            sum.0 += count;
            sum.1 += seconds;
            sum.2 += processor(target.process)? - before;
        }
    }
    for (target, (count, seconds, processor)) in targets.iter().zip(&most) {
        let per_second = *count as f64 / seconds;
        // Half of what the slowest carries: more would measure queues.
        rate = rate.min(per_second / 2.0);
        let per_core = (target.process > 0).then(|| *count as f64 / processor);
        println!(
            "{}",
            json!({"measure": "most", "target": target.name, "requests": count,
                "requests_per_second": per_second, "requests_per_core_second": per_core})
        );
    }
    let mut seen = vec![(Vec::new(), 0_u64); targets.len()];
    for _ in 0..rounds {
        for (target, (times, failed)) in targets.iter().zip(&mut seen) {
            for time in open(target, span, rate).await? {
                match time {
                    Ok(time) => times.push(time),
                    Err(_) => *failed += 1,
                }
            }
        }
    }
    for (target, (times, failed)) in targets.iter().zip(&mut seen) {
        times.sort_unstable();
        let at = |share: f64| {
            let place = (share * times.len() as f64) as usize;
            times
                .get(place.min(times.len().saturating_sub(1)))
                .map_or(0.0, |time| time.as_secs_f64() * 1e6)
        };
        println!(
            "{}",
            json!({"measure": "latency", "target": target.name, "requests": times.len(),
                "requests_per_second": rate, "failed": failed,
                "p50_us": at(0.5), "p99_us": at(0.99)})
        );
    }
    held(gateway, streams).await
}

/// As many requests as go: every place sends the next when its last is answered.
async fn closed(target: &Target, span: Duration) -> Result<(u64, f64)> {
    let begun = Instant::now();
    let end = begun + span;
    let mut places = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let sender = connect(target.address).await?;
        for _ in 0..CONCURRENT {
            let sender = sender.clone();
            places.spawn(async move {
                let mut count = 0_u64;
                while Instant::now() < end {
                    call(&sender).await?;
                    count += 1;
                }
                anyhow::Ok(count)
            });
        }
    }
    let mut count = 0;
    while let Some(place) = places.join_next().await {
        count += place??;
    }
    Ok((count, begun.elapsed().as_secs_f64()))
}

/// `rate` requests a second, sent when they are due whether or not others are answered. A thread
/// sleeps between them, since the runtime's own clock counts milliseconds.
async fn open(target: &Target, span: Duration, rate: f64) -> Result<Vec<Result<Duration>>> {
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        let sender = connect(target.address).await?;
        call(&sender).await?;
        senders.push(sender);
    }
    let (told, mut times) = mpsc::unbounded_channel();
    let runtime = tokio::runtime::Handle::current();
    let gap = Duration::from_secs_f64(1.0 / rate);
    let pacer = std::thread::spawn(move || {
        let begun = Instant::now();
        let mut due = begun;
        for sender in senders.iter().cycle() {
            let now = Instant::now();
            if now >= begun + span {
                break;
            }
            std::thread::sleep(due.saturating_duration_since(now));
            let (sender, told) = (sender.clone(), told.clone());
            runtime.spawn(async move { told.send(call(&sender).await) });
            due += gap;
        }
    });
    let mut all = Vec::new();
    while let Some(time) = times.recv().await {
        all.push(time);
    }
    pacer.join().map_err(|_| anyhow::anyhow!("the pacer ended"))?;
    Ok(all)
}

/// Opens `streams` streams, and sends a piece over each of them three times.
async fn held(target: &Target, streams: usize) -> Result<()> {
    let before = memory(target.process)?;
    let mut open: Vec<(SendStream<Bytes>, RecvStream)> = Vec::new();
    let mut senders = Vec::new();
    while open.len() < streams {
        let sender = connect(target.address).await?;
        call(&sender).await?;
        for _ in 0..250.min(streams - open.len()) {
            let (answer, stream) = sender.clone().ready().await?.send_request(head()?, false)?;
            open.push((stream, answer.await?.into_body()));
        }
        senders.push(sender);
    }
    let mut after = vec![memory(target.process)?];
    for _ in 0..3 {
        for (stream, body) in &mut open {
            stream.send_data(Bytes::from_static(BODY), false)?;
            let data = body.data().await.context("a stream ended")??;
            body.flow_control().release_capacity(data.len())?;
        }
        after.push(memory(target.process)?);
    }
    println!(
        "{}",
        json!({"measure": "streams", "target": target.name, "streams": open.len(),
            "before_bytes": before, "after_bytes": after})
    );
    Ok(())
}

/// Processor seconds of `process` and its children.
fn processor(process: u32) -> Result<f64> {
    let mut ticks = 0;
    for process in family(process)? {
        let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = fields.split_whitespace().skip(11);
        for field in fields.by_ref().take(2) {
            ticks += field.parse::<u64>()?;
        }
    }
    // Linux has told ticks of 10 ms to programs for ever.
    Ok(ticks as f64 / 100.0)
}

/// Resident bytes of `process`.
fn memory(process: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 =
        line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?;
    Ok(kib << 10)
}

fn family(process: u32) -> Result<Vec<u32>> {
    if process == 0 {
        return Ok(Vec::new());
    }
    let path = format!("/proc/{process}/task/{process}/children");
    let children = std::fs::read_to_string(path).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    Ok(std::iter::once(process).chain(children).collect())
}
