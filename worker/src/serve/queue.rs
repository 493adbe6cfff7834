//! Between the protocols and the model: requests wait in a bounded line, run one inference at a
//! time, several together where batching is declared, and get their own answer back.
//!
//! What is decided is in [`line`]; here are the lock, the thread and the futures. A request whose
//! client went away or whose deadline passed is dropped without running a kernel.

mod curve;
mod line;
mod policy;
mod rows;
mod run;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use curve::Curve;
use line::{Line, Reply, Turn};
pub use policy::{Batching, Limits, OnTimeout, Policy};
pub use rows::{batchable, cut};

use super::error::InferError;
use super::metrics::Metrics;
use super::model::Backend;
use crate::tensor::Tensor;

/// One inference to run.
#[derive(Debug)]
pub struct Work {
    /// The inputs, checked against the signature.
    pub inputs: Vec<(String, Tensor)>,
    /// The outputs to return, in order; all of them when empty.
    pub wanted: Vec<String>,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
    /// The level it asks for, 1 the most urgent; 0 for the default.
    pub priority: u64,
}

type Answer = Result<Vec<Tensor>, InferError>;

struct State {
    line: Line,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    backend: Arc<dyn Backend>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After an inference of `rows` rows that took `time`, or failed.
    fn finish(&self, rows: usize, time: Option<Duration>) {
        let mut state = self.state();
        state.line.finish(rows, time);
        let more = state.line.len() > 0;
        drop(state);
        if more {
            self.changed.notify_one();
        }
    }
}

/// The queue; its thread ends when it is dropped.
pub struct Queue {
    shared: Arc<Shared>,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.changed.notify_all();
    }
}

impl Queue {
    /// Starts the thread of `backend`, whose warm-up measured `curve`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        backend: Arc<dyn Backend>,
        (policy, limits): (Policy, Limits),
        curve: Curve,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let state = State { line: Line::new(policy, limits, curve), closed: false };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        let shared = Arc::new(Shared { state, changed, backend, metrics });
        let queue = Self { shared: shared.clone() };
        std::thread::Builder::new().name("inference".into()).spawn(move || work(&shared))?;
        Ok(queue)
    }

    /// Runs `work` when its turn comes. Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`InferError::Overloaded`] at once when too much waits or the answer would be late;
    /// [`InferError::Deadline`] when the deadline passes first; [`InferError::Internal`] with the
    /// model's words when it fails.
    pub async fn run(&self, work: Work) -> Answer {
        let now = Instant::now();
        let deadline = work.deadline;
        let late =
            || InferError::Deadline("the deadline passed before the result was there".into());
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(late());
        }
        let (answer, id) = match self.enter(work, now)? {
            Entered::Answered(answer) => return answer,
            Entered::Waits(answer, id) => (answer, id),
        };
        let mut place = Place { shared: &self.shared, id: Some(id) };
        let answer = match deadline {
            None => Ok(answer.await),
            Some(deadline) => tokio::time::timeout_at(deadline.into(), answer).await,
        };
        let Ok(answer) = answer else { return Err(late()) };
        place.id = None;
        answer.map_err(|_| InferError::Unavailable("the server is ending".into()))?
    }

    /// Takes `work` into the line, or runs it here and now when that is quicker.
    fn enter(&self, work: Work, now: Instant) -> Result<Entered, InferError> {
        let mut state = self.shared.state();
        if state.line.begin_inline(&work, now) {
            drop(state);
            self.shared.metrics.queued(Duration::ZERO);
            return Ok(Entered::Answered(run::alone(&self.shared, &work)));
        }
        let (reply, answer) = oneshot::channel();
        let mut gone = Vec::new();
        let admitted = state.line.admit(work, reply, now, &mut gone);
        drop(state);
        tell(gone);
        let id = admitted?;
        self.shared.changed.notify_one();
        Ok(Entered::Waits(answer, id))
    }

    /// How many requests wait, and since when the oldest does.
    pub fn waiting(&self) -> (usize, Option<Instant>) {
        let state = self.shared.state();
        (state.line.len(), state.line.oldest())
    }
}

/// What became of a request that was admitted.
enum Entered {
    Answered(Answer),
    Waits(oneshot::Receiver<Answer>, u64),
}

/// A request's place in the line, given up when nobody waits for the answer any more.
struct Place<'a> {
    shared: &'a Shared,
    id: Option<u64>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.state().line.cancel(id);
        }
    }
}

fn tell(gone: Vec<(Reply, InferError)>) {
    for (reply, error) in gone {
        // The client may have gone meanwhile.
        let _ = reply.send(Err(error));
    }
}

/// The thread that runs the model.
fn work(shared: &Shared) {
    let mut state = shared.state();
    loop {
        let now = Instant::now();
        let mut gone = Vec::new();
        let turn = state.line.next(now, &mut gone);
        if !gone.is_empty() {
            drop(state);
            tell(gone);
            state = shared.state();
            if !matches!(turn, Turn::Run(_)) {
                continue;
            }
        }
        match turn {
            Turn::Run(batch) => {
                drop(state);
                run::together(shared, batch);
                state = shared.state();
            }
            Turn::Idle if state.closed && state.line.len() == 0 => return,
            Turn::Idle => {
                state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            Turn::Wait(until) => {
                let time = until.saturating_duration_since(now);
                let waited = shared.changed.wait_timeout(state, time);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// How long a request with the OIP parameter `timeout` in microseconds may wait.
pub fn after_micros(now: Instant, micros: u64) -> Option<Instant> {
    // Zero means no limit, as in Triton.
    (micros > 0).then(|| now.checked_add(Duration::from_micros(micros))).flatten()
}
