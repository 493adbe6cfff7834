//! Pods request by request: cold start, queue, batches, routing, shedding, draining. Time goes on
//! by events; once a second a controller looks and may change the number of pods.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use lithe::latency::{Histogram, Signals};

use crate::chance::Chance;
use crate::score::Score;

/// A kind of model and machine.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name in the table.
    pub name: &'static str,
    /// Seconds of a batch, however small.
    pub alpha: f64,
    /// Seconds that each request adds.
    pub beta: f64,
    /// Requests in the largest batch.
    pub batch: usize,
    /// The latency target in seconds, for 95 % of requests.
    pub target: f64,
    /// Seconds from creation to ready in the mean.
    pub cold: f64,
    /// The coefficient of variation of the time of a batch.
    pub scatter: f64,
}

/// The percentile that must meet the target.
pub const SHARE: f64 = 0.95;

/// The two profiles: one where batches gain little, one where they gain threefold.
pub fn profiles() -> [Profile; 2] {
    let cpu = Profile {
        name: "cpu",
        alpha: 0.005,
        beta: 0.035,
        batch: 4,
        target: 0.250,
        cold: 20.0,
        scatter: 0.1,
    };
    let gpu = Profile {
        name: "gpu",
        alpha: 0.080,
        beta: 0.020,
        batch: 8,
        target: 0.600,
        cold: 60.0,
        scatter: 0.1,
    };
    [cpu, gpu]
}

impl Profile {
    /// Seconds of a batch of `b`.
    pub fn seconds(&self, b: usize) -> f64 {
        self.alpha + self.beta * b as f64
    }

    /// Requests per second of a pod that never waits.
    pub fn most(&self) -> f64 {
        self.batch as f64 / self.seconds(self.batch)
    }
}

/// What is not as usual in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Odd {
    /// Requests go to any pod instead of the less loaded of two.
    pub random_routing: bool,
    /// One pod becomes two and a half times as slow after ten minutes.
    pub slow_pod: bool,
    /// Cold starts take exactly the mean.
    pub exact_cold: bool,
}

/// What one pod did in one second, as scraped by those who look at pods.
#[derive(Clone, Copy, Debug)]
pub struct PodSecond {
    /// Which pod.
    pub id: u64,
    /// Answers and their seconds in all.
    pub done: u32,
    /// Their latencies in all.
    pub latency: f64,
    /// The share of the second in which it computed.
    pub busy: f64,
    /// Whether it is going away.
    pub leaving: bool,
}

/// What may be known of one second.
#[derive(Clone, Debug, Default)]
pub struct Second {
    /// Its end.
    pub end: f64,
    /// Requests that came to pods.
    pub arrivals: u32,
    /// Latencies by the default buckets of Prometheus' clients, the last above all of them.
    pub classic: [u32; 12],
    /// Requests in pods, and those that wait for one.
    pub in_flight: usize,
    /// Pods that are ready.
    pub ready: u32,
    /// Pods, starting ones included.
    pub total: u32,
    /// Each ready pod.
    pub pods: Vec<PodSecond>,
}

/// The default buckets of Prometheus' clients, in seconds.
pub const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Something that sets the number of pods.
pub trait Controller {
    /// Looks at a second; `ordered` pods are ordered now. The new number, if it decides.
    fn step(&mut self, second: &Second, pods: &[Pod], ordered: u32) -> Option<u32>;

    /// Whether it reads the pods' signals.
    fn reads_signals(&self) -> bool {
        false
    }

    /// A pod that it wants replaced.
    fn replace(&mut self) -> Option<u64> {
        None
    }
}

/// A pod.
#[derive(Debug)]
pub struct Pod {
    /// Never given twice.
    pub id: u64,
    /// When it was created.
    pub created: f64,
    /// When it is or was ready.
    pub ready_at: f64,
    /// Whether it is ready.
    pub ready: bool,
    /// Whether it takes no more requests.
    pub leaving: bool,
    /// What a worker would answer on its admin port.
    pub signals: Signals,
    slowness: f64,
    queue: VecDeque<f64>,
    running: Vec<f64>,
    began: f64,
    takes: f64,
    second: PodSecond,
}

impl Pod {
    fn load(&self) -> usize {
        self.queue.len() + self.running.len()
    }

    /// The pod's signals, with its gauges as they are at `now`.
    pub fn answer(&self, now: f64) -> Signals {
        let oldest = self.queue.front().map_or(0.0, |since| now - since);
        Signals {
            ready: self.ready,
            in_flight: self.load() as u64,
            queued: self.queue.len() as u64,
            oldest_queued: oldest.max(0.0),
            ..self.signals.clone()
        }
    }
}

/// When a batch ends; times are not negative, so their bits order as they do.
type End = Reverse<(u64, u64)>;

/// One run.
pub struct Run<'a> {
    profile: &'a Profile,
    odd: Odd,
    chance: Chance,
    pods: Vec<Pod>,
    ordered: u32,
    created: u64,
    waiting: VecDeque<f64>,
    ends: BinaryHeap<End>,
    second: Second,
    signals: bool,
    limits: Option<Limits>,
    score: Score,
}

/// Beyond these a run need not go on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that are late.
    pub late: u64,
    /// Seconds of pods.
    pub pod_seconds: f64,
}

impl<'a> Run<'a> {
    /// A run that begins with `pods` ready ones.
    pub fn new(profile: &'a Profile, odd: Odd, pods: u32) -> Self {
        let mut run = Self {
            profile,
            odd,
            chance: Chance::new(11),
            pods: Vec::new(),
            ordered: pods,
            created: 0,
            waiting: VecDeque::new(),
            ends: BinaryHeap::new(),
            second: Second::default(),
            signals: false,
            limits: None,
            score: Score::default(),
        };
        for _ in 0..pods {
            run.create(0.0);
        }
        for pod in &mut run.pods {
            pod.ready_at = 0.0;
        }
        run
    }

    fn create(&mut self, now: f64) {
        let profile = self.profile;
        let cold = if self.odd.exact_cold {
            profile.cold
        } else {
            let sigma = (1.0 + 0.15_f64 * 0.15).ln().sqrt();
            profile.cold * (sigma * self.chance.normal() - sigma * sigma / 2.0).exp()
        };
        let id = self.created;
        self.created += 1;
        let mut signals = Signals {
            boot: id.to_string(),
            target: Some(profile.target),
            streams: 1,
            max_batch: profile.batch as u32,
            cold_start: Some(cold),
            ..Signals::default()
        };
        signals.counters.latency = Histogram::new(Some(profile.target));
        self.pods.push(Pod {
            id,
            created: now,
            ready_at: now + cold,
            ready: false,
            leaving: false,
            signals,
            slowness: 1.0,
            queue: VecDeque::new(),
            running: Vec::new(),
            began: 0.0,
            takes: 0.0,
            second: PodSecond { id, done: 0, latency: 0.0, busy: 0.0, leaving: false },
        });
    }

    /// Runs only as long as it stays within `limits`; nothing when it does not.
    pub fn within(
        mut self,
        limits: Limits,
        arrivals: &[f64],
        seconds: usize,
        controller: &mut dyn Controller,
    ) -> Option<Score> {
        self.limits = Some(limits);
        let score = self.run(arrivals, seconds, controller);
        let kept = score.late <= limits.late && score.pod_seconds <= limits.pod_seconds;
        kept.then_some(score)
    }

    /// Runs `arrivals` for `seconds` under `controller`.
    pub fn run(
        mut self,
        arrivals: &[f64],
        seconds: usize,
        controller: &mut dyn Controller,
    ) -> Score {
        self.signals = controller.reads_signals();
        let mut arrivals = arrivals.iter().copied().peekable();
        for second in 0..seconds {
            let (now, end) = (second as f64, second as f64 + 1.0);
            let ready = self.begin_second(now);
            loop {
                let next = arrivals.peek().copied().filter(|at| *at < end);
                let done = self.ends.peek().map(|Reverse((at, _))| f64::from_bits(*at));
                match (next, done.filter(|at| *at < end)) {
                    (None, None) => break,
                    (Some(at), done) if done.is_none_or(|done| at <= done) => {
                        self.second.arrivals += 1;
                        self.route(at, at, &ready);
                        arrivals.next();
                    }
                    _ => self.finish(now),
                }
            }
            self.end_second(now, end);
            let score = &self.score;
            if self.limits.is_some_and(|limits| {
                score.late > limits.late || score.pod_seconds > limits.pod_seconds
            }) {
                break;
            }
            let decided = controller.step(&self.second, &self.pods, self.ordered);
            if let Some(id) = controller.replace() {
                self.pods.iter_mut().filter(|pod| pod.id == id).for_each(|pod| pod.leaving = true);
                self.scale(end, self.ordered);
            }
            if let Some(count) = decided {
                self.scale(end, count);
            }
        }
        self.score
    }

    fn begin_second(&mut self, now: f64) -> Vec<usize> {
        for pod in &mut self.pods {
            pod.ready |= pod.ready_at <= now;
        }
        let takes = |(index, pod): (usize, &Pod)| (pod.ready && !pod.leaving).then_some(index);
        let ready: Vec<usize> = self.pods.iter().enumerate().filter_map(takes).collect();
        if self.odd.slow_pod
            && now == 600.0
            && let Some(pod) = ready.first().and_then(|index| self.pods.get_mut(*index))
        {
            pod.slowness = 2.5;
        }
        self.second = Second { end: now + 1.0, ..Second::default() };
        if !ready.is_empty() {
            for since in std::mem::take(&mut self.waiting) {
                self.route(since, now, &ready);
            }
        }
        ready
    }

    fn route(&mut self, since: f64, now: f64, ready: &[usize]) {
        let Some(mut chosen) = self.any(ready) else {
            self.waiting.push_back(since);
            return;
        };
        if !self.odd.random_routing
            && let Some(other) = self.any(ready)
        {
            let load = |index: usize| self.pods.get(index).map_or(usize::MAX, Pod::load);
            if load(other) < load(chosen) {
                chosen = other;
            }
        }
        let Some(pod) = self.pods.get_mut(chosen) else { return };
        pod.signals.counters.arrivals += 1;
        pod.queue.push_back(since);
        if pod.running.is_empty() {
            self.start(chosen, now);
        }
    }

    fn any(&mut self, ready: &[usize]) -> Option<usize> {
        match ready {
            [] => None,
            [only] => Some(*only),
            many => many.get(self.chance.below(many.len())).copied(),
        }
    }

    /// Starts the next batch of a pod. Requests that must be late are shed.
    fn start(&mut self, index: usize, now: f64) {
        let profile = self.profile;
        let Some(pod) = self.pods.get_mut(index) else { return };
        let limit = profile.target - profile.seconds(pod.queue.len().min(profile.batch));
        while let Some(since) = pod.queue.front().copied()
            && now - since > limit
        {
            pod.queue.pop_front();
            pod.signals.counters.refused.deadline += 1;
            pod.signals.counters.missed += 1;
            self.score.request(true);
            tally(&mut self.second, now - since);
        }
        let batch = pod.queue.len().min(profile.batch);
        if batch == 0 {
            return;
        }
        pod.running.extend(pod.queue.drain(..batch));
        let noise = (1.0 + profile.scatter * self.chance.normal()).max(0.2);
        pod.takes = profile.seconds(batch) * pod.slowness * noise;
        pod.began = now;
        pod.signals.counters.batches.record(batch as u32, pod.takes);
        self.ends.push(Reverse(((now + pod.takes).to_bits(), pod.id)));
    }

    fn finish(&mut self, second: f64) {
        let Some(Reverse((at, id))) = self.ends.pop() else { return };
        let at = f64::from_bits(at);
        // Pods are in the order of their ids.
        let Ok(index) = self.pods.binary_search_by_key(&id, |pod| pod.id) else { return };
        let Some(pod) = self.pods.get_mut(index) else { return };
        for since in pod.running.drain(..) {
            let latency = at - since;
            let late = latency > self.profile.target;
            pod.second.done += 1;
            pod.second.latency += latency;
            if self.signals {
                pod.signals.counters.completions += 1;
                pod.signals.counters.missed += u64::from(late);
                pod.signals.counters.latency.record(latency);
            }
            self.score.request(late);
            tally(&mut self.second, latency);
        }
        pod.second.busy += at - pod.began.max(second);
        if !pod.queue.is_empty() {
            self.start(index, at);
        }
    }

    fn end_second(&mut self, now: f64, end: f64) {
        let second = &mut self.second;
        for pod in &mut self.pods {
            if !pod.running.is_empty() {
                pod.second.busy += end - pod.began.max(now);
            }
            let gone = pod.leaving && pod.load() == 0;
            self.score.pod_seconds += if gone { 0.0 } else { 1.0 };
            if pod.ready {
                second.in_flight += pod.load();
                let busy = pod.second.busy.min(1.0);
                second.pods.push(PodSecond { busy, leaving: pod.leaving, ..pod.second });
            }
            pod.second = PodSecond { done: 0, latency: 0.0, busy: 0.0, ..pod.second };
        }
        self.pods.retain(|pod| !(pod.leaving && pod.load() == 0));
        second.in_flight += self.waiting.len();
        let stays = self.pods.iter().filter(|pod| !pod.leaving);
        second.total = stays.clone().count() as u32;
        second.ready = stays.filter(|pod| pod.ready).count() as u32;
        self.score.trail.push((second.arrivals, second.ready, second.total));
    }

    fn scale(&mut self, now: f64, count: u32) {
        self.score.ordered(now, self.ordered, count);
        self.ordered = count;
        let stays = self.pods.iter().filter(|pod| !pod.leaving).count() as u32;
        for _ in stays..count {
            self.create(now);
        }
        // Those that are not ready go first, then the newest.
        let mut order: Vec<(bool, Reverse<u64>)> = self
            .pods
            .iter()
            .filter(|pod| !pod.leaving)
            .map(|pod| (pod.ready, Reverse(pod.id)))
            .collect();
        order.sort_unstable();
        for (_, Reverse(id)) in order.into_iter().take(stays.saturating_sub(count) as usize) {
            if let Ok(index) = self.pods.binary_search_by_key(&id, |pod| pod.id)
                && let Some(pod) = self.pods.get_mut(index)
            {
                pod.leaving = true;
            }
        }
    }
}

fn tally(second: &mut Second, latency: f64) {
    let bucket = BUCKETS.iter().filter(|bound| **bound < latency).count();
    if let Some(count) = second.classic.get_mut(bucket) {
        *count += 1;
    }
}
