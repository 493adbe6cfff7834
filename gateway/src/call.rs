//! One request from its arrival to its end: however it ends, it is counted once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::model::Model;
use crate::tally::{Counts, Outcome, Protocol};
use crate::worker::{Busy, Worker};

/// A request under way; dropping it counts its end, as cancelled unless another was set.
#[derive(Debug)]
pub struct Call {
    /// Its model.
    pub model: Arc<Model>,
    /// Its protocol.
    pub protocol: Protocol,
    /// When it came.
    pub arrived: Instant,
    counts: Arc<Counts>,
    busy: Option<Busy>,
    took: Option<Duration>,
    outcome: Outcome,
}

impl Call {
    /// A request that came just now.
    pub fn begin(model: Arc<Model>, protocol: Protocol, now: Instant) -> Self {
        let counts = model.counts();
        counts.arrived();
        model.in_flight.fetch_add(1, Ordering::AcqRel);
        Self {
            model,
            protocol,
            arrived: now,
            counts,
            busy: None,
            took: None,
            outcome: Outcome::Cancelled,
        }
    }

    /// It goes to `worker` at `now`.
    pub fn assign(&mut self, worker: Arc<Worker>, now: Instant) {
        if self.busy.is_none() {
            self.counts.assigned(now.saturating_duration_since(self.arrived));
        }
        self.busy = Some(Busy::at(worker));
    }

    /// The head of the answer came at `now`, `sent` after it was sent.
    pub fn answered(&mut self, sent: Duration, outcome: Outcome, now: Instant) {
        self.took = Some(now.saturating_duration_since(self.arrived));
        // A worker that fails fast must not look fast.
        if let Some(busy) = self.busy.as_ref().filter(|_| outcome.health() != Some(false)) {
            busy.worker().answered(sent, now);
        }
    }

    /// How it ends.
    pub fn end(&mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.model.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.counts.ended(self.outcome, self.took);
        let worker = self.busy.as_ref().map(Busy::worker);
        if let (Some(worker), Some(success)) = (worker, self.outcome.health()) {
            self.model.judge(worker, success, Instant::now());
        }
        let counted =
            worker.map_or_else(|| self.model.revision(""), |worker| worker.counted.clone());
        let series = counted.series(self.protocol);
        series.count(self.outcome);
        if let Some(took) = self.took {
            series.duration.record(took);
        }
    }
}

/// Counts a request as unanswered at a worker until dropped; then others may be called to it.
#[derive(Debug)]
pub struct Unanswered {
    model: Arc<Model>,
    worker: Arc<Worker>,
}

impl Unanswered {
    /// One more unanswered at `worker`.
    pub fn at(model: Arc<Model>, worker: Arc<Worker>) -> Self {
        worker.unanswered.fetch_add(1, Ordering::AcqRel);
        Self { model, worker }
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.worker.unanswered.fetch_sub(1, Ordering::AcqRel);
        self.model.release();
    }
}
