//! The bounded queue between the protocols and the threads that run the model.
//!
//! Admission is decided here, in requests and in bytes, before any work. A request whose client
//! went away or whose deadline passed is dropped without running a kernel.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::error::{InferError, RETRY_AFTER};
use super::metrics::Metrics;
use super::model::Backend;
use crate::tensor::Tensor;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that wait, without those that run.
    pub requests: usize,
    /// Bytes of their tensors.
    pub bytes: usize,
}

/// One inference to run.
pub struct Work {
    /// The inputs, checked against the signature.
    pub inputs: Vec<(String, Tensor)>,
    /// The outputs to return, in order.
    pub wanted: Vec<String>,
    /// When the client stops waiting.
    pub deadline: Option<Instant>,
}

struct Waiting {
    work: Work,
    bytes: usize,
    since: Instant,
    reply: oneshot::Sender<Result<Vec<Tensor>, InferError>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue; its threads end when it is dropped.
pub struct Queue {
    shared: Arc<Shared>,
    limits: Limits,
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.state().closed = true;
        self.shared.arrived.notify_all();
    }
}

impl Queue {
    /// Starts one thread for `backend`, which runs one inference at a time.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(
        backend: Arc<dyn Backend>,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), arrived: Condvar::new() });
        let queue = Self { shared: shared.clone(), limits };
        std::thread::Builder::new().name("inference".into()).spawn(move || {
            while let Some(waiting) = next(&shared) {
                serve(backend.as_ref(), &metrics, waiting);
            }
        })?;
        Ok(queue)
    }

    /// Runs `work` when its turn comes. Dropping the future gives the place up.
    ///
    /// # Errors
    /// [`InferError::Overloaded`] at once when the queue is full; [`InferError::Deadline`] when the
    /// deadline passes first; [`InferError::Internal`] with the model's words when it fails.
    pub async fn run(&self, work: Work) -> Result<Vec<Tensor>, InferError> {
        let late =
            || InferError::Deadline("the deadline passed before the result was there".into());
        let deadline = work.deadline;
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return Err(late());
        }
        let reply = self.admit(work)?;
        let gone = |_| InferError::Unavailable("the server is ending".into());
        match deadline {
            None => reply.await.map_err(gone)?,
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), reply).await {
                Ok(reply) => reply.map_err(gone)?,
                Err(_) => Err(late()),
            },
        }
    }

    fn admit(
        &self,
        work: Work,
    ) -> Result<oneshot::Receiver<Result<Vec<Tensor>, InferError>>, InferError> {
        let bytes = work.inputs.iter().map(|(_, tensor)| tensor.data().len()).sum::<usize>();
        let (reply, answer) = oneshot::channel();
        let mut state = self.shared.state();
        // One request alone may always wait, however large it is.
        let full = state.waiting.len() >= self.limits.requests
            || (!state.waiting.is_empty() && state.bytes + bytes > self.limits.bytes);
        if full {
            let (requests, bytes) = (state.waiting.len(), state.bytes);
            return Err(InferError::Overloaded {
                message: format!("the queue is full: {requests} requests with {bytes} bytes wait"),
                retry: RETRY_AFTER,
            });
        }
        state.bytes += bytes;
        state.waiting.push_back(Waiting { work, bytes, since: Instant::now(), reply });
        drop(state);
        self.shared.arrived.notify_one();
        Ok(answer)
    }
}

fn next(shared: &Shared) -> Option<Waiting> {
    let mut state = shared.state();
    loop {
        if let Some(waiting) = state.waiting.pop_front() {
            state.bytes = state.bytes.saturating_sub(waiting.bytes);
            return Some(waiting);
        }
        if state.closed {
            return None;
        }
        state = shared.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

fn serve(backend: &dyn Backend, metrics: &Metrics, waiting: Waiting) {
    let Waiting { work, since, reply, .. } = waiting;
    let start = Instant::now();
    metrics.queued(start.saturating_duration_since(since));
    if reply.is_closed() || work.deadline.is_some_and(|deadline| deadline <= start) {
        // The waiting side has its own timer and says so.
        return;
    }
    let result = run(backend, &work);
    metrics.computed(start.elapsed(), result.is_ok());
    // The client may have gone meanwhile.
    let _ = reply.send(result);
}

fn run(backend: &dyn Backend, work: &Work) -> Result<Vec<Tensor>, InferError> {
    let inputs: Vec<_> = work.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let wanted: Vec<_> = work.wanted.iter().map(String::as_str).collect();
    // A panic must not end the only thread that answers.
    catch_unwind(AssertUnwindSafe(|| backend.run(&inputs, &wanted)))
        .map_err(|_| InferError::Internal("the inference panicked".into()))?
        .map_err(|error| InferError::Internal(error.to_string()))
}

/// How long a request with the OIP parameter `timeout` in microseconds may wait.
pub fn after_micros(now: Instant, micros: u64) -> Option<Instant> {
    // Zero means no limit, as in Triton.
    (micros > 0).then(|| now.checked_add(Duration::from_micros(micros))).flatten()
}
