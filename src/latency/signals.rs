//! What a worker answers on `GET /signals` of its admin port, and the gateway for each model: the
//! whole of what autoscaling knows about requests.
//!
//! Counters only grow while the process lives; gauges are of the moment. A field that is not known is
//! left aside: while an upgrade goes on, workers, gateways and operator are of two versions.

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::moments::Moments;

/// One process's view of one model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signals {
    /// Random, drawn when the process starts: another one means that counters began at zero.
    pub boot: String,
    /// The digest of the artifact that is served; empty in the gateway's sum over revisions.
    #[serde(default)]
    pub revision: String,
    /// Whether requests are taken.
    pub ready: bool,
    /// The latency target in seconds by which `missed` is counted.
    #[serde(default)]
    pub target: Option<f64>,
    /// Requests that are being answered, waiting ones included.
    #[serde(default)]
    pub in_flight: u64,
    /// Of them: those that wait for the model, or in the gateway for a worker.
    #[serde(default)]
    pub queued: u64,
    /// How long the oldest of those waits, in seconds.
    #[serde(default)]
    pub oldest_queued: f64,
    /// Batches that can run at once; 0 in the gateway.
    #[serde(default)]
    pub streams: u32,
    /// Requests that one batch can hold; 0 in the gateway.
    #[serde(default)]
    pub max_batch: u32,
    /// Seconds from the start of the process until it was ready first.
    #[serde(default)]
    pub cold_start: Option<f64>,
    /// What only grows.
    pub counters: Counters,
}

/// What only grows while the process lives. Every arrival ends as a completion, a failure or a
/// refusal, or is still in flight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Requests that came, refused ones included: the demand.
    pub arrivals: u64,
    /// Requests that were answered with a result.
    pub completions: u64,
    /// Requests that were taken and ended without a result, cancelled ones included.
    pub failures: u64,
    /// Requests that were turned away.
    pub refused: Refused,
    /// Requests that missed the latency target: answered late, or refused for want of capacity.
    pub missed: u64,
    /// Executed batches; empty in the gateway.
    #[serde(default)]
    pub batches: Moments,
    /// Seconds from arrival to the answer, of requests that were answered.
    #[serde(default)]
    pub latency: Histogram,
    /// Seconds from arrival to the start of the batch, or in the gateway to a worker.
    #[serde(default)]
    pub queue_time: Histogram,
}

/// Requests that were turned away, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// The queue was full.
    pub queue_full: u64,
    /// The deadline could no longer be met.
    pub deadline: u64,
    /// Anything else that has to do with capacity, such as no worker.
    pub other: u64,
}

impl Refused {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.queue_full.saturating_add(self.deadline).saturating_add(self.other)
    }
}

/// What came between two answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Increase {
    /// The differences.
    pub counters: Counters,
    /// Whether the process began anew in between; then the differences count from its start.
    pub reset: bool,
}

/// An answer that is not what a worker or gateway writes.
#[derive(Debug, thiserror::Error)]
pub enum MalformedSignals {
    /// It is not JSON of this form.
    #[error("the signals are malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// A number is not a duration.
    #[error("{field} is {seen}; a finite number of seconds that is not negative is wanted")]
    Seconds {
        /// The field.
        field: &'static str,
        /// Its value.
        seen: f64,
    },
    /// The sums of batches contradict each other.
    #[error("counters.batches are no sums over batches: {0:?}")]
    Batches(Moments),
}

impl Signals {
    /// Reads an answer and checks what its types do not.
    ///
    /// # Errors
    /// When it is not JSON of this form, or holds a number that cannot be.
    pub fn parse(json: &[u8]) -> Result<Self, MalformedSignals> {
        let signals: Self = serde_json::from_slice(json)?;
        let seconds = [
            ("oldestQueued", Some(signals.oldest_queued)),
            ("coldStart", signals.cold_start),
            ("target", signals.target),
        ];
        for (field, seen) in seconds {
            if let Some(seen) = seen.filter(|seen| !(seen.is_finite() && *seen >= 0.0)) {
                return Err(MalformedSignals::Seconds { field, seen });
            }
        }
        if !signals.counters.batches.sound() {
            return Err(MalformedSignals::Batches(signals.counters.batches));
        }
        Ok(signals)
    }

    /// What came after `earlier`, the last answer of the same pod. After a restart, seen by another
    /// boot id or by any counter that fell, everything the new process counted came since.
    pub fn since(&self, earlier: &Self) -> Increase {
        let same = (self.boot == earlier.boot).then(|| self.counters.since(&earlier.counters));
        match same.flatten() {
            Some(counters) => Increase { counters, reset: false },
            None => Increase { counters: self.counters.clone(), reset: true },
        }
    }
}

impl Counters {
    /// What came after `earlier`; nothing when any of them fell.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            arrivals: self.arrivals.checked_sub(earlier.arrivals)?,
            completions: self.completions.checked_sub(earlier.completions)?,
            failures: self.failures.checked_sub(earlier.failures)?,
            refused: Refused {
                queue_full: self.refused.queue_full.checked_sub(earlier.refused.queue_full)?,
                deadline: self.refused.deadline.checked_sub(earlier.refused.deadline)?,
                other: self.refused.other.checked_sub(earlier.refused.other)?,
            },
            missed: self.missed.checked_sub(earlier.missed)?,
            batches: self.batches.since(&earlier.batches)?,
            latency: self.latency.since(&earlier.latency)?,
            queue_time: self.queue_time.since(&earlier.queue_time)?,
        })
    }

    /// Adds those of another pod, or of another span of time.
    pub fn merge(&mut self, other: &Self) {
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        add(&mut self.arrivals, other.arrivals);
        add(&mut self.completions, other.completions);
        add(&mut self.failures, other.failures);
        add(&mut self.refused.queue_full, other.refused.queue_full);
        add(&mut self.refused.deadline, other.refused.deadline);
        add(&mut self.refused.other, other.refused.other);
        add(&mut self.missed, other.missed);
        self.batches.add(&other.batches, 1.0);
        self.latency.merge(&other.latency);
        self.queue_time.merge(&other.queue_time);
    }
}
