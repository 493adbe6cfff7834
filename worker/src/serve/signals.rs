//! What autoscaling reads: counted with atomics on the way of each request, put together when the
//! operator asks on `GET /signals`.

use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use lithe::latency::{Counters, Moments, Recorder, Refused, Signals};

/// The counters of one process and its model.
#[derive(Debug)]
pub struct Signalled {
    boot: String,
    revision: OnceLock<String>,
    cold_start: OnceLock<Duration>,
    target: Option<Duration>,
    arrivals: AtomicU64,
    completions: AtomicU64,
    failures: AtomicU64,
    queue_full: AtomicU64,
    deadline: AtomicU64,
    other: AtomicU64,
    missed: AtomicU64,
    /// Locked once a batch, for six additions.
    batches: Mutex<Moments>,
    latency: Recorder,
    queue_time: Recorder,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Signalled {
    /// Nothing counted yet; misses are counted by `target`.
    pub fn new(target: Option<Duration>) -> Self {
        // The seed of a new hasher is random.
        let boot = std::hash::RandomState::new().hash_one(std::process::id());
        Self {
            boot: format!("{boot:016x}"),
            revision: OnceLock::new(),
            cold_start: OnceLock::new(),
            target,
            arrivals: AtomicU64::default(),
            completions: AtomicU64::default(),
            failures: AtomicU64::default(),
            queue_full: AtomicU64::default(),
            deadline: AtomicU64::default(),
            other: AtomicU64::default(),
            missed: AtomicU64::default(),
            batches: Mutex::default(),
            latency: Recorder::new(target),
            queue_time: Recorder::new(None),
        }
    }

    /// Names what is served, once.
    pub fn set_revision(&self, digest: &str) {
        let _ = self.revision.set(digest.to_owned());
    }

    /// Sets how long the process took until it was ready first.
    pub fn set_cold_start(&self, time: Duration) {
        let _ = self.cold_start.set(time);
    }

    /// A request came.
    pub fn arrived(&self) {
        count(&self.arrivals);
    }

    /// A request waited for `time` before its inference began.
    pub fn started(&self, time: Duration) {
        self.queue_time.record(time);
    }

    /// An inference for `requests` took `time`.
    pub fn executed(&self, requests: usize, time: Duration) {
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        batches.record(requests, time.as_secs_f64());
    }

    /// A request ended after `time` with `outcome`, in the words of the metrics' label.
    pub fn ended(&self, outcome: &str, time: Duration) {
        let capacity = match outcome {
            "ok" => {
                count(&self.completions);
                self.latency.record(time);
                if self.target.is_some_and(|target| time > target) {
                    count(&self.missed);
                }
                return;
            }
            "overloaded" => &self.queue_full,
            "late" | "deadline" => &self.deadline,
            "unavailable" => &self.other,
            _ => return count(&self.failures),
        };
        count(capacity);
        count(&self.missed);
    }

    /// What grew since the process started, and what never changes; the gauges are the caller's.
    pub fn read(&self) -> Signals {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let batches = *self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        Signals {
            boot: self.boot.clone(),
            revision: self.revision.get().cloned().unwrap_or_default(),
            target: self.target.map(|target| target.as_secs_f64()),
            streams: 1,
            cold_start: self.cold_start.get().map(Duration::as_secs_f64),
            counters: Counters {
                // Read after what ends, so that no more ended than came.
                completions: read(&self.completions),
                failures: read(&self.failures),
                refused: Refused {
                    queue_full: read(&self.queue_full),
                    deadline: read(&self.deadline),
                    other: read(&self.other),
                },
                missed: read(&self.missed),
                batches,
                latency: self.latency.snapshot(),
                queue_time: self.queue_time.snapshot(),
                arrivals: read(&self.arrivals),
            },
            ..Signals::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arrival_ends_as_one_thing() {
        let signalled = Signalled::new(Some(Duration::from_millis(5)));
        let outcomes = [
            ("ok", 4),
            ("ok", 6),
            ("overloaded", 0),
            ("late", 0),
            ("deadline", 9),
            ("unavailable", 0),
            ("invalid", 0),
            ("error", 3),
            ("cancelled", 3),
        ];
        for (outcome, ms) in outcomes {
            signalled.arrived();
            signalled.ended(outcome, Duration::from_millis(ms));
        }
        let Counters { arrivals, completions, failures, refused, missed, latency, .. } =
            signalled.read().counters;
        assert_eq!((arrivals, completions, failures), (9, 2, 3));
        assert_eq!(refused, Refused { queue_full: 1, deadline: 2, other: 1 });
        assert_eq!(missed, 5, "four refused, one late");
        assert_eq!(latency.count(), 2);
    }
}
