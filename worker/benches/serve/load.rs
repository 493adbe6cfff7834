//! Load in a closed loop (each client waits for its answer) and in an open one (arrivals do not).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::sync::mpsc;

use crate::client::{Client, End, Protocol};
use crate::worker::{self, Worker};

/// The most requests per second that the open loop sends: its own processor time stays small.
pub const MOST: f64 = 6000.0;
/// Connections of the open loop.
const CONNECTIONS: usize = 8;
/// Rounds before each closed one that do not count.
const WARM: Duration = Duration::from_millis(60);

/// One contestant in one round. Times in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Requests per second.
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
    /// The server's processor time for one request.
    pub cpu: f64,
}

impl Figures {
    fn of(mut times: Vec<f64>, elapsed: Duration, rows: usize, cpu: f64) -> Self {
        let requests = (times.len() * rows) as f64;
        Self {
            rate: requests / elapsed.as_secs_f64(),
            p50: percentile(&mut times, 0.5),
            p99: percentile(&mut times, 0.99),
            cpu: cpu * 1e6 / requests,
        }
    }
}

fn percentile(times: &mut [f64], share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = (times.len() as f64 * share) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// The rounds of all contestants, in the order in which they first came.
#[derive(Default)]
pub struct Rounds(Vec<String>, BTreeMap<String, Vec<Figures>>);

impl Rounds {
    pub fn add(&mut self, contestant: &str, figures: Figures) {
        if !self.1.contains_key(contestant) {
            self.0.push(contestant.to_owned());
        }
        self.1.entry(contestant.to_owned()).or_default().push(figures);
    }

    /// The medians of one contestant, each by itself.
    pub fn median(&self, contestant: &str) -> Figures {
        let rounds = self.1.get(contestant).map(Vec::as_slice).unwrap_or_default();
        let median = |read: fn(&Figures) -> f64| {
            percentile(&mut rounds.iter().map(read).collect::<Vec<_>>(), 0.5)
        };
        Figures {
            rate: median(|figures| figures.rate),
            p50: median(|figures| figures.p50),
            p99: median(|figures| figures.p99),
            cpu: median(|figures| figures.cpu),
        }
    }

    pub fn medians(&self) -> impl Iterator<Item = (&str, Figures)> {
        self.0.iter().map(|contestant| (contestant.as_str(), self.median(contestant)))
    }
}

/// The runtime by itself, for `time`, with `rows` requests in each inference.
pub fn bare<T>(time: Duration, rows: usize, mut run: impl FnMut() -> Result<T>) -> Result<Figures> {
    let (mut times, cpu, start) = (Vec::new(), worker::cpu("self")?, Instant::now());
    while start.elapsed() < time || times.is_empty() {
        let began = Instant::now();
        run()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    let elapsed = start.elapsed();
    Ok(Figures::of(times, elapsed, rows, worker::cpu("self")? - cpu))
}

/// `clients` that each send the next request when the last one is answered.
pub async fn closed(
    worker: &Worker,
    protocol: Protocol,
    body: &Bytes,
    clients: usize,
    time: Duration,
) -> Result<Figures> {
    let address = worker.address(protocol);
    let connections = (0..clients).map(|_| Client::connect(protocol, address));
    let mut connections = try_join_all(connections).await?;
    try_join_all(connections.iter_mut().map(|client| repeat(client, body, WARM))).await?;
    let (cpu, start) = (worker.cpu()?, Instant::now());
    let all = try_join_all(connections.iter_mut().map(|client| repeat(client, body, time))).await?;
    let (elapsed, cpu) = (start.elapsed(), worker.cpu()? - cpu);
    Ok(Figures::of(all.concat(), elapsed, 1, cpu))
}

async fn repeat(client: &mut Client, body: &Bytes, time: Duration) -> Result<Vec<f64>> {
    let (mut times, start) = (Vec::new(), Instant::now());
    while start.elapsed() < time || times.is_empty() {
        let began = Instant::now();
        if let End::Answered(_) = client.call(body).await? {
            times.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    Ok(times)
}

/// What an open loop saw. Times in milliseconds.
pub struct Overload {
    /// Requests per second that were answered within the limit.
    pub good: f64,
    pub accepted_p99: f64,
    /// The share that was refused.
    pub refused: f64,
    pub refusal_p99: f64,
}

/// Sends `rate` requests per second for `time`, whatever becomes of them.
pub async fn open(
    worker: &Worker,
    body: &Bytes,
    rate: f64,
    time: Duration,
    limit: Duration,
) -> Result<Overload> {
    let address = worker.address(Protocol::Grpc);
    let connecting = (0..CONNECTIONS).map(|_| Client::connect(Protocol::Grpc, address));
    let connections = try_join_all(connecting).await?;
    let (ends, mut ended) = mpsc::unbounded_channel();
    let (start, mut sent) = (Instant::now(), 0_usize);
    while start.elapsed() < time {
        let due = (start.elapsed().as_secs_f64() * rate) as usize;
        for client in connections.iter().cycle().skip(sent % CONNECTIONS).take(due - sent) {
            let Client::Grpc(client) = client else { continue };
            let (mut client, body, ends) =
                (Client::Grpc(client.clone()), body.clone(), ends.clone());
            tokio::spawn(async move {
                let began = Instant::now();
                let end = client.call(&body).await;
                let _ = ends.send((began.elapsed(), end));
            });
        }
        sent = due;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(ends);
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    while let Some((time, end)) = ended.recv().await {
        let times = if matches!(end?, End::Answered(_)) { &mut accepted } else { &mut refused };
        times.push(time.as_secs_f64() * 1e3);
    }
    let limit = limit.as_secs_f64() * 1e3;
    let good = accepted.iter().filter(|time| **time <= limit).count();
    Ok(Overload {
        good: good as f64 / start.elapsed().as_secs_f64(),
        refused: refused.len() as f64 / (accepted.len() + refused.len()).max(1) as f64,
        accepted_p99: percentile(&mut accepted, 0.99),
        refusal_p99: percentile(&mut refused, 0.99),
    })
}
