//! One model: its workers, who waits for them, and which of them gets the next request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use lithe::gateway;
use lithe::latency::Signals;
use tokio::sync::watch;

use crate::balance;
use crate::hold::{Bounds, Hold};
use crate::options::Limits;
use crate::outlier;
use crate::probe;
use crate::retry::Budget;
use crate::tally::Counts;
use crate::upload::Replay;
use crate::worker::{Revision, Worker};

/// Held requests that a worker gets at once: enough to fill its batches, and few enough that its own
/// queue (256) refuses none of them when another gateway sends as many.
const AT_ONCE: usize = 64;
/// When a client asks again while nobody knows how long a worker takes to start.
const COLD_START: Duration = Duration::from_secs(5);

/// What all models of one gateway share.
#[derive(Debug)]
pub struct Shared {
    /// What each model may use.
    pub limits: Limits,
    /// Grows when a model without a worker gets its first held request.
    pub demand: watch::Sender<u64>,
    /// Bytes of requests that are kept to be sent again.
    pub replay: Arc<Replay>,
}

/// One model.
#[derive(Debug)]
pub struct Model {
    /// What the gateway shares.
    pub shared: Arc<Shared>,
    told: RwLock<Arc<gateway::Model>>,
    workers: RwLock<Arc<Vec<Arc<Worker>>>>,
    revisions: Mutex<BTreeMap<String, Arc<Revision>>>,
    counts: RwLock<Arc<Counts>>,
    /// Requests that wait for a worker.
    pub hold: Arc<Hold>,
    /// Requests under way, waiting ones included.
    pub in_flight: AtomicUsize,
    /// Retries that may be made.
    pub budget: Mutex<Budget>,
    probing: AtomicBool,
    first_held: Mutex<Option<Instant>>,
    /// Nanoseconds from the last first held request to a worker; 0 before.
    cold_start: AtomicU64,
    /// Why a port does not listen.
    pub port_error: Mutex<Option<String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn target(told: &gateway::Model) -> Option<Duration> {
    told.target.as_ref().and_then(|target| target.parse().ok())
}

fn boot() -> String {
    format!("{:016x}", fastrand::u64(..))
}

impl Model {
    /// A model as `told`, without workers until [`Model::tell`].
    pub fn new(told: &gateway::Model, shared: Arc<Shared>) -> Self {
        let bounds =
            Bounds { requests: shared.limits.held_requests, bytes: shared.limits.held_bytes };
        Self {
            shared,
            told: RwLock::new(Arc::new(told.clone())),
            workers: RwLock::default(),
            revisions: Mutex::default(),
            counts: RwLock::new(Arc::new(Counts::new(boot(), target(told)))),
            hold: Arc::new(Hold::new(bounds)),
            in_flight: AtomicUsize::new(0),
            budget: Mutex::default(),
            probing: AtomicBool::new(false),
            first_held: Mutex::default(),
            cold_start: AtomicU64::new(0),
            port_error: Mutex::default(),
        }
    }

    /// What was told last.
    pub fn told(&self) -> Arc<gateway::Model> {
        self.told.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its workers.
    pub fn workers(&self) -> Arc<Vec<Arc<Worker>>> {
        self.workers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Where its requests are counted.
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `namespace/name`, for people.
    pub fn title(&self) -> String {
        let told = self.told();
        format!("{}/{}", told.namespace, told.name)
    }

    /// The counts of `revision`; the empty one also has what no worker got.
    pub fn revision(&self, revision: &str) -> Arc<Revision> {
        locked(&self.revisions).entry(revision.to_owned()).or_default().clone()
    }

    /// All revisions that are counted.
    pub fn revisions(&self) -> Vec<(String, Arc<Revision>)> {
        locked(&self.revisions)
            .iter()
            .map(|(name, counts)| (name.clone(), counts.clone()))
            .collect()
    }

    /// Takes over what is told: workers that stay keep their connections.
    pub fn tell(self: &Arc<Self>, told: &gateway::Model) {
        let before = self.workers();
        let keep = |worker: &gateway::Worker| {
            let same = |known: &&Arc<Worker>| {
                known.address == (worker.address, worker.http_port).into()
                    && known.revision == worker.revision
            };
            let known = before.iter().find(same).cloned();
            if let Some(known) = &known {
                known.tell(worker.state);
            }
            known.unwrap_or_else(|| Arc::new(Worker::new(worker, self.revision(&worker.revision))))
        };
        let workers: Vec<_> = told.workers.iter().map(keep).collect();
        locked(&self.revisions)
            .retain(|name, _| name.is_empty() || told.workers.iter().any(|w| w.revision == *name));
        if self.counts().target != target(told) {
            let fresh = Arc::new(Counts::new(boot(), target(told)));
            *self.counts.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        }
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(told.clone());
        *self.workers.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(workers);
        self.changed();
    }

    /// Calls who waits, or looks for whom they wait.
    pub fn changed(self: &Arc<Self>) {
        if self.available() {
            if let Some(since) = locked(&self.first_held).take() {
                let took = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                self.cold_start.store(took, Ordering::Relaxed);
            }
            self.release();
        }
        self.probe();
    }

    /// Whether a request would find a worker.
    pub fn available(&self) -> bool {
        self.workers().iter().any(|worker| worker.ready() || worker.draining())
    }

    /// Workers that take requests.
    pub fn ready(&self) -> usize {
        self.workers().iter().filter(|worker| worker.ready()).count()
    }

    /// The worker for the next request, another than `avoid` if there is one; nothing when none
    /// serves.
    pub fn pick(&self, avoid: Option<&Arc<Worker>>, now: Instant) -> Option<Arc<Worker>> {
        let workers = self.workers();
        let revision = self.share(&workers);
        let fits = |worker: &Worker| {
            worker.ready() && revision.as_ref().is_none_or(|wanted| *wanted == worker.revision)
        };
        let other = |worker: &Worker| avoid.is_none_or(|avoid| avoid.address != worker.address);
        // Ejected workers are better than none, and so is one that is about to end.
        choose(&workers, now, |worker| fits(worker) && other(worker) && !worker.ejected(now))
            .or_else(|| choose(&workers, now, |worker| fits(worker) && other(worker)))
            .or_else(|| choose(&workers, now, |worker| worker.ready() && other(worker)))
            .or_else(|| choose(&workers, now, Worker::ready))
            .or_else(|| choose(&workers, now, Worker::draining))
    }

    /// The revision whose turn it is, among those that have a worker; nothing without weights.
    fn share(&self, workers: &[Arc<Worker>]) -> Option<String> {
        let told = self.told();
        if told.weights.is_empty() {
            return None;
        }
        let serves = |revision: &str| {
            workers.iter().any(|worker| worker.revision == revision && worker.ready())
        };
        let weights =
            told.weights.iter().map(|share| if serves(&share.revision) { share.weight } else { 0 });
        let place = balance::weighted(weights, fastrand::u64(..))?;
        told.weights.get(place).map(|share| share.revision.clone())
    }

    /// Calls as many held requests as workers have room for.
    pub fn release(&self) {
        if self.hold.len() == 0 {
            return;
        }
        let workers = self.workers();
        let some_ready = workers.iter().any(|worker| worker.ready());
        let serves = |worker: &&Arc<Worker>| {
            if some_ready { worker.ready() } else { worker.draining() }
        };
        let room = |worker: &Arc<Worker>| {
            let unanswered = worker.unanswered.load(Ordering::Acquire);
            AT_ONCE.saturating_sub(usize::try_from(unanswered).unwrap_or(usize::MAX))
        };
        let room: usize = workers.iter().filter(serves).map(room).sum();
        self.hold.call(room.saturating_sub(self.hold.called()));
    }

    /// A request took its place in the queue, as the `only` one or not.
    pub fn waits(self: &Arc<Self>, only: bool) {
        if self.available() {
            // A worker came since it was looked for, or others wait for room.
            self.release();
            return;
        }
        if only {
            locked(&self.first_held).get_or_insert_with(Instant::now);
            self.shared.demand.send_modify(|sequence| *sequence += 1);
        }
        self.probe();
    }

    /// Asks workers that are not known to be ready, unless somebody does already.
    fn probe(self: &Arc<Self>) {
        if probe::wanted(self) && !self.probing.swap(true, Ordering::AcqRel) {
            let model = self.clone();
            tokio::spawn(async move {
                probe::probe(&model).await;
                model.probing.store(false, Ordering::Release);
                // What began to be wanted meanwhile found the flag set.
                if probe::wanted(&model) {
                    model.probe();
                }
            });
        }
    }

    /// `worker` could not be reached: no request goes there until a probe succeeds.
    pub fn lose(self: &Arc<Self>, worker: &Worker) {
        worker.lose();
        self.probe();
    }

    /// Holds an answer of `worker` for or against it.
    pub fn judge(&self, worker: &Worker, success: bool, now: Instant) {
        let failing = worker.health().record(success);
        if failing {
            self.eject(worker, now, "failures in a row");
        }
    }

    /// Ends a window of success rates.
    pub fn compare(&self, now: Instant) {
        let workers = self.workers();
        let rates: Vec<_> =
            workers.iter().map(|worker| (worker, worker.health().window())).collect();
        let known: Vec<f64> = rates.iter().filter_map(|(_, rate)| *rate).collect();
        let Some(limit) = outlier::threshold(&known) else { return };
        for (worker, rate) in rates {
            if rate.is_some_and(|rate| rate < limit) {
                self.eject(worker, now, "fewer successes than the others");
            }
        }
    }

    fn eject(&self, worker: &Worker, now: Instant, why: &str) {
        let workers = self.workers();
        let out = workers.iter().filter(|worker| worker.ejected(now)).count();
        if worker.ejected(now) || !outlier::may_eject(out, workers.len()) {
            return;
        }
        let time = worker.eject(now);
        tracing::warn!(model = self.title(), worker = %worker.address, why, ?time, "ejected");
    }

    /// When a client that found no worker should come back.
    pub fn retry_after(&self) -> Duration {
        match self.cold_start.load(Ordering::Relaxed) {
            0 => COLD_START,
            nanoseconds => Duration::from_nanos(nanoseconds).max(Duration::from_secs(1)),
        }
    }

    /// What the autoscaler reads, as of `now`.
    pub fn signals(&self, now: Instant) -> Signals {
        let counts = self.counts();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let cold_start = self.cold_start.load(Ordering::Relaxed);
        Signals {
            boot: counts.boot.clone(),
            ready: self.ready() > 0,
            target: counts.target.map(|target| target.as_secs_f64()),
            in_flight: number(self.in_flight.load(Ordering::Acquire)),
            queued: number(self.hold.len()),
            oldest_queued: self
                .hold
                .oldest()
                .map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
            cold_start: (cold_start > 0).then_some(cold_start as f64 * 1e-9),
            counters: counts.read(),
            ..Signals::default()
        }
    }
}

/// The cheaper of two random workers that are `wanted`.
fn choose(
    workers: &[Arc<Worker>],
    now: Instant,
    wanted: impl Fn(&Worker) -> bool,
) -> Option<Arc<Worker>> {
    let candidates = || workers.iter().filter(|worker| wanted(worker));
    let (one, other) = balance::two(candidates().count(), fastrand::u64(..))?;
    // Between the two walks a worker may have gone.
    let (one, other) = (candidates().nth(one)?, candidates().nth(other)?);
    let second = balance::cheaper(one.load(now), other.load(now)).is_gt();
    Some(if second { other } else { one }.clone())
}
