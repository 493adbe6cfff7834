//! How many pods meet the latency target: measured load through a measured model of the pods.
//!
//! Latency itself is a poor signal: flat until the knee, then without bound. What is measured is
//! arrivals and the time of batches; the model says how much load a pod takes within the target.
//! Pure and total: `now` is an argument. `docs/autoscaling.md` tells it in words.

pub mod capacity;
mod decide;
mod demand;
mod explain;
mod feedback;
mod gain;
mod ingest;
mod margin;
mod series;
mod slow;
mod state;

use std::time::Duration;

use lithe::latency::Signals;

pub use capacity::{Curve, Routing};
pub use decide::decide;
pub use explain::{Explanation, Figures, Reason};
pub use state::{Memory, State};

/// What the user declared, and what is known of the model before any request came.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// The least number of pods.
    pub min: u32,
    /// The largest number of pods.
    pub max: u32,
    /// The latency target in seconds.
    pub target: f64,
    /// The share of requests that must meet it, such as 0.95.
    pub share: f64,
    /// `scaling.holdFor`; a minute, or the start of a pod where that is longer.
    pub hold: Option<Duration>,
    /// `scaling.idleAfter`.
    pub idle: Duration,
    /// Pooled behind the gateway. Only then may the last pod go.
    pub routing: Routing,
    /// The digest of the served artifact. With another one the curve is learnt anew.
    pub revision: String,
    /// What the compression Job measured, if it did.
    pub prior: Option<Curve>,
    /// Requests in the largest batch, until a pod tells.
    pub batch: u32,
    /// Batches that a pod runs at once, until a pod tells.
    pub streams: u32,
    /// How long a pod takes from creation to ready, until one was seen.
    pub start: Duration,
    /// Whether a rollout is under way: then the number never falls.
    pub frozen: bool,
}

/// What is seen now.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Pods that are ordered (the Deployment's `spec.replicas`).
    pub replicas: u32,
    /// Pods that exist and are not being removed.
    pub pods: Vec<Pod>,
    /// Answers of the gateway's replicas about this model, those that answered; empty without one.
    pub gateways: Vec<Signals>,
}

/// One pod.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its name or uid: never given to another pod.
    pub id: String,
    /// Whether it is ready.
    pub ready: bool,
    /// Seconds from its creation until it was first ready, once it was.
    pub started: Option<f64>,
    /// Why it cannot be placed, in the scheduler's words.
    pub unschedulable: Option<String>,
    /// Its answer; nothing when it did not answer in time or not in this form.
    pub signals: Option<Signals>,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// How many pods.
    pub replicas: u32,
    /// A pod that is far slower than the others and should be deleted, so that another comes.
    pub replace: Option<String>,
}
