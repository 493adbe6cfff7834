//! How much load pods can take within the latency target: the closed form, and its inverse.
//!
//! Batches of `b` take `alpha + beta * b` seconds; the wait is Erlang C's with the correction of
//! Allen and Cunneen, at the rate of full batches. At the target the form is within some per cent
//! of exact simulation; far below it tells too little, so it is only asked how much is too much.

use lithe::latency::Moments;
use serde::{Deserialize, Serialize};

/// The line of execution time over batch size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    /// Seconds that a batch takes however small it is.
    pub alpha: f64,
    /// Seconds that each request adds.
    pub beta: f64,
    /// The squared coefficient of variation of the time about the line.
    pub scatter: f64,
}

impl Curve {
    /// Seconds for a batch of `b`.
    pub fn seconds(&self, b: f64) -> f64 {
        self.alpha + self.beta * b
    }

    /// Whether it can be planned with.
    pub fn sound(&self) -> bool {
        let fine = |value: f64| value.is_finite() && value >= 0.0;
        fine(self.alpha) && fine(self.beta) && fine(self.scatter) && self.seconds(1.0) > 0.0
    }

    /// The least-squares line through `seen`, drawn towards `prior` as if that had been measured
    /// [`RIDGE`] times at one request and as often at `batch`: requests of one size only tell
    /// nothing about the slope. Nothing when less than [`ENOUGH`] batches were seen.
    pub fn fit(seen: &Moments, prior: &Self, batch: u32) -> Option<Self> {
        if seen.n.is_nan() || seen.n < ENOUGH {
            return None;
        }
        let mut sums = *seen;
        for b in [1.0, f64::from(batch.max(2))] {
            sums.add(&Moments::of(b, prior.seconds(b)), RIDGE);
        }
        let spread = sums.n * sums.bb - sums.b * sums.b;
        if spread.is_nan() || spread <= 1e-9 {
            return None;
        }
        let beta = ((sums.n * sums.bs - sums.b * sums.s) / spread).max(0.0);
        let alpha = ((sums.s - beta * sums.b) / sums.n).max(1e-6);
        // What is left over of the measured ones alone.
        let square = seen.ss - 2.0 * (alpha * seen.s + beta * seen.bs)
            + alpha * alpha * seen.n
            + 2.0 * alpha * beta * seen.b
            + beta * beta * seen.bb;
        let mean = seen.s / seen.n;
        let scatter = (square / seen.n / (mean * mean).max(1e-18)).clamp(0.0, 4.0);
        Some(Self { alpha, beta, scatter })
    }

    /// Whether `other` differs so much that plans made with one are wrong with the other.
    pub fn differs(&self, other: &Self, batch: u32) -> bool {
        let ratio = |b: f64| (other.seconds(b) / self.seconds(b) - 1.0).abs();
        ratio(f64::from(batch)) > 0.04 || ratio(1.0) > 0.06
    }
}

/// Batches before a line is drawn through them.
const ENOUGH: f64 = 200.0;
/// How many measurements the prior counts for, at each end.
const RIDGE: f64 = 30.0;
/// The share of the target that is planned with: the form is up to 5 % too hopeful.
pub const SAFETY: f64 = 0.9;
/// The largest load of a pod as a share of its maximum: beyond it latency explodes with any error.
const UTILISATION: f64 = 0.92;
/// The largest load where no load at all meets the target.
const HOPELESS: f64 = 0.7;

/// Whose pods serve whose requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Each request goes to one of the least loaded pods (the gateway): pods share their work.
    Pooled,
    /// Connections stay with their pod (kube-proxy): each has a queue of its own.
    Direct,
}

/// What decides how much pods can take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// The batch curve.
    pub curve: Curve,
    /// Requests in the largest batch.
    pub batch: u32,
    /// Batches that one pod runs at once.
    pub streams: u32,
    /// The latency target in seconds.
    pub target: f64,
    /// The share of requests that must meet it, such as 0.95.
    pub share: f64,
    /// Whether pods share their work.
    pub routing: Routing,
}

impl Model {
    /// Requests per second of one stream that never waits for requests.
    fn most(&self) -> f64 {
        let batch = f64::from(self.batch.max(1));
        batch / self.curve.seconds(batch).max(1e-9)
    }

    /// Whether even a request alone in an idle pod takes too long.
    pub fn infeasible(&self) -> bool {
        self.curve.seconds(1.0) > self.target
    }

    /// The percentile of latency, in seconds, of `servers` streams that share their work, each with
    /// `rate` requests per second; infinite when they cannot keep up.
    fn latency(&self, servers: u32, rate: f64) -> f64 {
        let Curve { alpha, beta, scatter } = self.curve;
        let batch = f64::from(self.batch.max(1));
        let most = self.most();
        let load = rate / most;
        if load >= 0.999 {
            return f64::INFINITY;
        }
        // The batch that forms while one of its own size runs.
        let formed = if rate * beta >= 1.0 {
            batch
        } else {
            (rate * alpha / (1.0 - rate * beta)).min(batch)
        };
        // One more than usual at the percentile; at little load requests are alone.
        let service = self.curve.seconds((formed.max(1.0) + formed.min(1.0)).min(batch));
        let waits = erlang_c(servers, load);
        let late = 1.0 - self.share;
        let wait = if waits <= late {
            0.0
        } else {
            (waits / late).ln() * (1.0 + scatter) / 2.0 / (f64::from(servers) * most * (1.0 - load))
        };
        wait + service
    }

    /// Requests per second that each of `pods` can take within the target, by bisection.
    pub fn per_pod(&self, pods: u32) -> f64 {
        let streams = self.streams.max(1);
        let servers = match self.routing {
            Routing::Pooled => pods.max(1).saturating_mul(streams),
            Routing::Direct => streams,
        };
        let goal = SAFETY * self.target;
        let (mut low, mut high) = (0.0, self.most());
        for _ in 0..20 {
            let middle = 0.5 * (low + high);
            if self.latency(servers, middle) <= goal { low = middle } else { high = middle }
        }
        let bound = UTILISATION * self.most();
        // A target that only an idle pod meets is near to none: plan as without one.
        let least = if self.curve.seconds(1.0) > goal { HOPELESS * self.most() } else { 0.0 };
        f64::from(streams) * low.min(bound).max(least)
    }
}

/// The probability that a request must wait, with `servers` at `load` each (0 to 1).
fn erlang_c(servers: u32, load: f64) -> f64 {
    if load >= 1.0 {
        return 1.0;
    }
    // Beyond this many, pods no longer gain by sharing.
    let servers = servers.min(MOST_SERVERS);
    let offered = load * f64::from(servers);
    let blocked = (1..=servers).fold(1.0, |b, i| offered * b / (f64::from(i) + offered * b));
    blocked / (1.0 - load + load * blocked)
}

const MOST_SERVERS: u32 = 512;

/// Capacities of one model by the number of pods, computed once each.
#[derive(Clone, Debug)]
pub struct Capacity {
    model: Model,
    known: Vec<f64>,
}

impl Capacity {
    /// The capacities of `model`.
    pub fn new(model: Model) -> Self {
        Self { model, known: Vec::new() }
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Requests per second that each of `pods` can take.
    pub fn per_pod(&mut self, pods: u32) -> f64 {
        // More than these gain less than a thousandth by sharing.
        let pods = pods.clamp(1, 256);
        let index = pods as usize - 1;
        while self.known.len() <= index {
            let next = self.model.per_pod(self.known.len() as u32 + 1);
            // Never less than with one pod fewer: bisection leaves a grain.
            let last = self.known.last().copied().unwrap_or(0.0);
            self.known.push(next.max(last));
        }
        self.known.get(index).copied().unwrap_or(0.0)
    }

    /// Requests per second that `pods` can take together.
    pub fn of(&mut self, pods: u32) -> f64 {
        f64::from(pods) * self.per_pod(pods)
    }

    /// The least number of pods, at most `most`, that can take `rate` requests per second; none for
    /// none.
    pub fn need(&mut self, rate: f64, most: u32) -> u32 {
        if rate.is_nan() || rate <= 0.0 {
            return 0;
        }
        let most = most.max(1);
        let (mut low, mut high) = (0, 1);
        while high < most && self.of(high) < rate {
            (low, high) = (high, high.saturating_mul(2).min(most));
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.of(middle) >= rate { high = middle } else { low = middle }
        }
        high
    }
}
