//! A histogram that many threads count into without a lock. It never asks for the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::histogram::{Edge, Histogram};

/// Counts durations: three relaxed additions each.
#[derive(Debug)]
pub struct Recorder {
    counts: Vec<AtomicU64>,
    nanoseconds: AtomicU64,
    target: Option<Target>,
}

#[derive(Debug)]
struct Target {
    at: f64,
    position: usize,
    below: AtomicU64,
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Recorder {
    /// An empty one, with an exact edge at `target` if one is given.
    pub fn new(target: Option<Duration>) -> Self {
        let at = target.map(|target| target.as_secs_f64()).filter(|at| *at > 0.0);
        Self {
            counts: (0..Histogram::BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            nanoseconds: AtomicU64::new(0),
            target: at.map(|at| Target {
                at,
                position: Histogram::position(at),
                below: AtomicU64::new(0),
            }),
        }
    }

    /// Counts one.
    pub fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let position = Histogram::position(seconds);
        if let Some(count) = self.counts.get(position) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if let Some(target) = &self.target
            && target.position == position
            && seconds <= target.at
        {
            target.below.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted so far. Counts that come in meanwhile are in this answer or the next.
    pub fn snapshot(&self) -> Histogram {
        let below = |target: &Target| target.below.load(Ordering::Relaxed);
        let edge = self.target.as_ref().map(|target| Edge { at: target.at, below: below(target) });
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let seconds = self.nanoseconds.load(Ordering::Relaxed) as f64 * 1e-9;
        Histogram::from_counts(counts, seconds, edge)
    }
}
