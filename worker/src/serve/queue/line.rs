//! Who waits, who is refused, who runs next: a state machine that is told the time.
//!
//! It neither locks nor runs anything. One inference runs at a time; what becomes of a request is
//! decided when it comes ([`Line::admit`]) and when the model is free ([`Line::next`]).

mod choose;
mod shed;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::curve::Curve;
use super::policy::{Limits, Policy, TARGET_FACTOR};
use super::{Work, rows};
use crate::serve::error::InferError;
use crate::tensor::Tensor;

/// Where an answer goes.
pub type Reply = oneshot::Sender<Result<Vec<Tensor>, InferError>>;

/// An inference of at most this time runs on the thread that brought the request when nothing else
/// is there: waking another thread and being woken by it costs as much.
const INLINE: Duration = Duration::from_micros(300);
/// The bounds of what a refused client is told to wait.
const RETRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(60));

/// A request that waits.
#[derive(Debug)]
pub struct Waiting {
    /// What it asks for.
    pub work: Work,
    /// Where its answer goes.
    pub reply: Reply,
    /// When it came.
    pub since: Instant,
    id: u64,
    /// Its rows where it may be joined with others.
    rows: Option<usize>,
    bytes: usize,
    level: usize,
    /// When its answer is worth nothing any more.
    expires: Option<Instant>,
    /// When waiting turns into `on_timeout`.
    timeout: Option<Instant>,
}

impl Waiting {
    /// Rows for the estimate of time; a request without rows counts as one.
    pub fn rows(&self) -> usize {
        self.rows.unwrap_or(1)
    }
}

/// What to do now.
#[derive(Debug)]
pub enum Turn {
    /// Run these as one inference, then call [`Line::finish`].
    Run(Vec<Waiting>),
    /// Ask again at this time, or when a request came.
    Wait(Instant),
    /// Ask again when a request came or the inference ended.
    Idle,
}

#[derive(Debug, Default)]
struct Level {
    fresh: VecDeque<Waiting>,
    /// Behind the fresh ones, for they waited too long.
    delayed: VecDeque<Waiting>,
    rows: usize,
    bytes: usize,
}

impl Level {
    fn len(&self) -> usize {
        self.fresh.len() + self.delayed.len()
    }

    fn left(&mut self, gone: &Waiting) {
        self.rows = self.rows.saturating_sub(gone.rows());
        self.bytes = self.bytes.saturating_sub(gone.bytes);
    }
}

/// What waits for one model.
#[derive(Debug)]
pub struct Line {
    policy: Policy,
    limits: Limits,
    curve: Curve,
    levels: Vec<Level>,
    last_id: u64,
    /// Until when the inference that runs should take.
    busy: Option<Instant>,
    /// Nothing waiting becomes late before this.
    earliest: Option<Instant>,
    /// Rows that were in the system together of late: how much company may be expected.
    company: f64,
    waited: bool,
}

impl Line {
    /// An empty line for a model whose warm-up measured `curve`.
    pub fn new(policy: Policy, limits: Limits, curve: Curve) -> Self {
        let levels = (0..policy.levels.max(1)).map(|_| Level::default()).collect();
        Self {
            policy,
            limits,
            curve,
            levels,
            last_id: 0,
            busy: None,
            earliest: None,
            company: 1.0,
            waited: false,
        }
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.levels.iter().map(Level::len).sum()
    }

    /// When the oldest request that waits came.
    pub fn oldest(&self) -> Option<Instant> {
        let heads =
            self.levels.iter().flat_map(|level| [level.fresh.front(), level.delayed.front()]);
        heads.flatten().map(|waiting| waiting.since).min()
    }

    /// Whether an inference runs.
    pub fn busy(&self) -> bool {
        self.busy.is_some()
    }

    /// Takes `work` in, or refuses it at once. Requests of lower priority that had to go for it are
    /// answered through `gone`. Returns the key for [`Line::cancel`].
    ///
    /// # Errors
    /// [`InferError::Overloaded`] when too much waits, or when the answer would come too late.
    pub fn admit(
        &mut self,
        work: Work,
        reply: Reply,
        now: Instant,
        gone: &mut Vec<(Reply, InferError)>,
    ) -> Result<u64, InferError> {
        let waiting = self.waiting(work, reply, now);
        self.in_time(&waiting, now)?;
        self.make_room(&waiting, gone)?;
        let id = waiting.id;
        let late = [self.hopeless_from(&waiting), waiting.timeout].into_iter().flatten().min();
        self.earliest = [self.earliest, late].into_iter().flatten().min();
        if let Some(level) = self.levels.get_mut(waiting.level) {
            level.rows += waiting.rows();
            level.bytes += waiting.bytes;
            level.fresh.push_back(waiting);
        }
        Ok(id)
    }

    fn waiting(&mut self, work: Work, reply: Reply, now: Instant) -> Waiting {
        self.last_id += 1;
        let after = |time: Option<Duration>| time.and_then(|time| now.checked_add(time));
        let target = self.policy.target.map(|target| target * TARGET_FACTOR);
        Waiting {
            id: self.last_id,
            rows: rows::rows(&work),
            bytes: work.inputs.iter().map(|(_, tensor)| tensor.data().len()).sum(),
            level: self.policy.level(work.priority),
            expires: [work.deadline, after(target)].into_iter().flatten().min(),
            timeout: after(self.policy.timeout),
            since: now,
            work,
            reply,
        }
    }

    /// What the requests of `level` and above still take, with `rows` more in one request more.
    fn time_ahead(&self, level: usize, rows: usize, now: Instant) -> Duration {
        let ahead = self.levels.iter().take(level + 1);
        let (requests, all) = ahead
            .fold((1, rows), |(requests, all), level| (requests + level.len(), all + level.rows));
        let inferences = match &self.policy.batching {
            Some(batching) => all.div_ceil(batching.max.max(1)),
            None => requests,
        };
        let running =
            self.busy.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        running + self.curve.time(inferences, all)
    }

    /// The first request after a pause always runs: only so is a curve corrected that is too slow.
    fn in_time(&self, waiting: &Waiting, now: Instant) -> Result<(), InferError> {
        let Some(expires) = waiting.expires else { return Ok(()) };
        if !self.busy() && self.len() == 0 {
            return Ok(());
        }
        let time = self.time_ahead(waiting.level, waiting.rows(), now);
        if now + time <= expires {
            return Ok(());
        }
        let left = expires.saturating_duration_since(now);
        Err(late(time, format!("the answer would take {time:.1?}, {left:.1?} are left")))
    }

    fn make_room(
        &mut self,
        waiting: &Waiting,
        gone: &mut Vec<(Reply, InferError)>,
    ) -> Result<(), InferError> {
        let sum = |levels: &[Level]| {
            levels.iter().fold((0, 0), |(n, bytes), level| (n + level.len(), bytes + level.bytes))
        };
        // One request alone may always wait, however large it is.
        let crowded = |(requests, bytes): (usize, usize), limits: &Limits| {
            requests >= limits.requests || (requests > 0 && bytes + waiting.bytes > limits.bytes)
        };
        let (requests, bytes) = sum(&self.levels);
        let kept = sum(self.levels.get(..=waiting.level).unwrap_or_default());
        if crowded(kept, &self.limits) {
            let time = self.time_ahead(self.levels.len(), 0, waiting.since);
            let text = format!("the queue is full: {requests} requests with {bytes} bytes wait");
            return Err(full(time, text));
        }
        while crowded(sum(&self.levels), &self.limits) {
            let Some(lowest) = self.levels.iter_mut().rev().find(|level| level.len() > 0) else {
                break;
            };
            let Some(last) = lowest.delayed.pop_back().or_else(|| lowest.fresh.pop_back()) else {
                break;
            };
            lowest.left(&last);
            let time = self.time_ahead(self.levels.len(), 0, waiting.since);
            let text = "a request of higher priority took the place in the full queue".to_owned();
            gone.push((last.reply, full(time, text)));
        }
        Ok(())
    }

    /// From when on `waiting` cannot be answered in time even if it ran at once.
    fn hopeless_from(&self, waiting: &Waiting) -> Option<Instant> {
        waiting.expires?.checked_sub(self.curve.time(1, waiting.rows()))
    }

    /// Gives up the place of a request whose client does not wait any more.
    pub fn cancel(&mut self, id: u64) {
        for level in &mut self.levels {
            let mut left = None;
            for queue in [&mut level.fresh, &mut level.delayed] {
                let at = queue.iter().position(|waiting| waiting.id == id);
                left = left.or(at.and_then(|at| queue.remove(at)));
            }
            if let Some(left) = left {
                level.left(&left);
                return;
            }
        }
    }

    /// Whether `work` may run now on the thread that brought it; [`Line::finish`] must follow.
    pub fn begin_inline(&mut self, work: &Work, now: Instant) -> bool {
        if self.busy() || self.len() > 0 || !self.curve.known() {
            return false;
        }
        let rows = rows::rows(work);
        let time = self.curve.time(1, rows.unwrap_or(1));
        let joins = rows.is_some_and(|rows| self.joins(rows));
        if time > INLINE || (joins && self.patience(rows.unwrap_or(1)) > Duration::ZERO) {
            return false;
        }
        self.busy = now.checked_add(time);
        true
    }

    /// What to run, if anything. Requests that cannot be answered in time any more are answered
    /// through `gone`.
    pub fn next(&mut self, now: Instant, gone: &mut Vec<(Reply, InferError)>) -> Turn {
        if self.busy() {
            return Turn::Idle;
        }
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.shed(now, gone);
        }
        let Some((batch, until)) = self.choose(now) else { return Turn::Idle };
        if let Some(until) = until.filter(|until| *until > now) {
            self.waited = true;
            return Turn::Wait(until);
        }
        let batch = self.take(&batch);
        let rows = batch.iter().map(Waiting::rows).sum::<usize>();
        if std::mem::take(&mut self.waited) && (rows as f64) < self.company {
            // The company did not come; it is not waited for again until it is seen.
            self.company = rows as f64;
        }
        self.busy = now.checked_add(self.curve.time(1, rows));
        Turn::Run(batch)
    }

    /// The inference ended: `rows` were answered in `time`, or it failed.
    pub fn finish(&mut self, rows: usize, time: Option<Duration>) {
        self.busy = None;
        if let Some(time) = time {
            self.curve.add(rows, time);
        }
        let waiting: usize = self.levels.iter().map(|level| level.rows).sum();
        self.company = (0.9 * self.company).max((rows + waiting) as f64);
    }
}

fn full(retry: Duration, message: String) -> InferError {
    InferError::Overloaded { message, retry: retry.clamp(RETRY.0, RETRY.1), late: false }
}

fn late(retry: Duration, message: String) -> InferError {
    InferError::Overloaded { message, retry: retry.clamp(RETRY.0, RETRY.1), late: true }
}
