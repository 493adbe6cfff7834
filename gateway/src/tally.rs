//! What is counted: for the autoscaler the sums of a model, for people the outcomes and latencies of
//! each of its revisions. Counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lithe::latency::{Counters, Moments, Recorder, Refused};

/// The protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// REST, over HTTP/1.1 or HTTP/2.
    Http,
    /// gRPC.
    Grpc,
}

impl Protocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Http, Self::Grpc];

    /// The value of a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A worker answered.
    Ok,
    /// A worker, or the gateway, said that the request is wrong.
    Invalid,
    /// A worker refused for want of capacity.
    WorkerRefused,
    /// A worker failed.
    WorkerFailed,
    /// The worker went away meanwhile.
    Broken,
    /// Too many requests waited or ran.
    Full,
    /// No worker took it in time.
    NoWorker,
    /// The client's deadline passed.
    Deadline,
    /// The client went away.
    Cancelled,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::Invalid,
        Self::WorkerRefused,
        Self::WorkerFailed,
        Self::Broken,
        Self::Full,
        Self::NoWorker,
        Self::Deadline,
        Self::Cancelled,
    ];

    /// The value of a label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::WorkerRefused => "worker_refused",
            Self::WorkerFailed => "worker_failed",
            Self::Broken => "broken",
            Self::Full => "full",
            Self::NoWorker => "no_worker",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
        }
    }

    /// What a status of gRPC says. Codes that tell of the request, not of the worker, are invalid.
    pub fn of_grpc(status: &[u8]) -> Self {
        match status {
            b"0" => Self::Ok,
            b"1" => Self::Cancelled,
            b"4" => Self::Deadline,
            b"8" => Self::WorkerRefused,
            b"2" | b"13" | b"14" | b"15" => Self::WorkerFailed,
            _ => Self::Invalid,
        }
    }

    /// What a status of HTTP says.
    pub fn of_http(status: http::StatusCode) -> Self {
        match status.as_u16() {
            429 => Self::WorkerRefused,
            504 => Self::Deadline,
            500.. => Self::WorkerFailed,
            400.. => Self::Invalid,
            _ => Self::Ok,
        }
    }

    /// Whether the worker did well: nothing for what says nothing about it.
    pub fn health(self) -> Option<bool> {
        match self {
            Self::Ok | Self::Invalid => Some(true),
            Self::WorkerFailed | Self::Broken => Some(false),
            _ => None,
        }
    }
}

/// What one revision did over one protocol.
#[derive(Debug, Default)]
pub struct Series {
    outcomes: [AtomicU64; Outcome::ALL.len()],
    /// From the arrival to the head of the answer, of what a worker answered.
    pub duration: Recorder,
}

impl Series {
    /// Counts one end.
    pub fn count(&self, outcome: Outcome) {
        if let Some(count) = self.outcomes.get(outcome as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts, with their outcomes.
    pub fn outcomes(&self) -> impl Iterator<Item = (Outcome, u64)> + '_ {
        let counts = self.outcomes.iter().map(|count| count.load(Ordering::Relaxed));
        Outcome::ALL.into_iter().zip(counts)
    }
}

/// The sums of one model that the autoscaler reads.
#[derive(Debug)]
pub struct Counts {
    /// Another one means that everything began at zero.
    pub boot: String,
    /// The latency target in force.
    pub target: Option<Duration>,
    arrivals: AtomicU64,
    completions: AtomicU64,
    failures: AtomicU64,
    full: AtomicU64,
    deadline: AtomicU64,
    no_worker: AtomicU64,
    missed: AtomicU64,
    latency: Recorder,
    queue_time: Recorder,
}

impl Counts {
    /// Sums that begin at zero.
    pub fn new(boot: String, target: Option<Duration>) -> Self {
        Self {
            boot,
            target,
            arrivals: AtomicU64::new(0),
            completions: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            full: AtomicU64::new(0),
            deadline: AtomicU64::new(0),
            no_worker: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            latency: Recorder::new(target),
            queue_time: Recorder::new(None),
        }
    }

    /// Counts a request that came.
    pub fn arrived(&self) {
        self.arrivals.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the time until a worker was chosen.
    pub fn assigned(&self, waited: Duration) {
        self.queue_time.record(waited);
    }

    /// Counts an end; `took` is the time to the head of a worker's answer.
    pub fn ended(&self, outcome: Outcome, took: Option<Duration>) {
        let counter = match outcome {
            Outcome::Ok => &self.completions,
            Outcome::Full => &self.full,
            Outcome::Deadline => &self.deadline,
            Outcome::NoWorker | Outcome::WorkerRefused => &self.no_worker,
            Outcome::Invalid | Outcome::WorkerFailed | Outcome::Broken | Outcome::Cancelled => {
                &self.failures
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let answered = took.filter(|_| outcome == Outcome::Ok);
        if let Some(took) = answered {
            self.latency.record(took);
        }
        let late = answered.zip(self.target).is_some_and(|(took, target)| took > target);
        let turned_away = matches!(
            outcome,
            Outcome::Full | Outcome::Deadline | Outcome::NoWorker | Outcome::WorkerRefused
        );
        if late || turned_away {
            self.missed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The sums so far.
    pub fn read(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            arrivals: read(&self.arrivals),
            completions: read(&self.completions),
            failures: read(&self.failures),
            refused: Refused {
                queue_full: read(&self.full),
                deadline: read(&self.deadline),
                other: read(&self.no_worker),
            },
            missed: read(&self.missed),
            batches: Moments::default(),
            latency: self.latency.snapshot(),
            queue_time: self.queue_time.snapshot(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_counted_once_and_a_late_or_refused_one_is_missed() {
        let counts = Counts::new("b".into(), Some(Duration::from_millis(50)));
        for outcome in Outcome::ALL {
            counts.arrived();
            counts.ended(outcome, Some(Duration::from_millis(60)));
        }
        counts.arrived();
        counts.ended(Outcome::Ok, Some(Duration::from_millis(50)));
        let read = counts.read();
        let ends = read.completions + read.failures + read.refused.total();
        assert_eq!((read.arrivals, ends), (10, 10));
        assert_eq!(read.missed, 5, "one late, four turned away");
        assert_eq!(read.latency.count(), 2);
    }

    #[test]
    fn only_what_speaks_of_the_worker_is_held_against_it() {
        let rows = [("0", Some(true)), ("3", Some(true)), ("14", Some(false)), ("13", Some(false))];
        for (status, wanted) in rows {
            assert_eq!(Outcome::of_grpc(status.as_bytes()).health(), wanted, "{status}");
        }
        for status in ["1", "4", "8"] {
            assert_eq!(Outcome::of_grpc(status.as_bytes()).health(), None, "{status}");
        }
        let rows = [(200, Some(true)), (404, Some(true)), (429, None), (500, Some(false))];
        for (status, wanted) in rows {
            let status = http::StatusCode::from_u16(status).unwrap_or_default();
            assert_eq!(Outcome::of_http(status).health(), wanted, "{status}");
        }
    }
}
