//! What `/metrics` says. Labels are bounded: verbs, resources, code classes, outcomes.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Labels of a request to the API server.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    resource: String,
    code: String,
}

/// Labels of a reconcile.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: String,
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    reconciles: Family<OutcomeLabels, Counter>,
    duration: Histogram,
    queued: Gauge,
    leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lithe");
        let requests = Family::<RequestLabels, Counter>::default();
        let reconciles = Family::<OutcomeLabels, Counter>::default();
        // 1 ms to 16 s: from "nothing to do" to a slow API server.
        let duration = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let (queued, leader) = (Gauge::default(), Gauge::default());
        registry.register("api_requests", "Requests to the API server", requests.clone());
        registry.register("reconciles", "Reconciles by outcome", reconciles.clone());
        registry.register("reconcile_seconds", "Time of one reconcile", duration.clone());
        registry.register("queue_length", "Objects that wait", queued.clone());
        registry.register("leader", "1 while this process leads", leader.clone());
        Self { registry, requests, reconciles, duration, queued, leader }
    }
}

impl Metrics {
    /// Counts a request; `code` 0 is one without an answer.
    pub fn request(&self, verb: &str, resource: &str, code: u16) {
        let code = match code {
            0 => "none".to_owned(),
            code => format!("{}xx", code / 100),
        };
        let labels = RequestLabels { verb: verb.into(), resource: resource.into(), code };
        self.requests.get_or_create(&labels).inc();
    }

    /// Counts a reconcile that took `seconds`.
    pub fn reconcile(&self, outcome: &str, seconds: f64) {
        self.reconciles.get_or_create(&OutcomeLabels { outcome: outcome.into() }).inc();
        self.duration.observe(seconds);
    }

    /// Says how many objects wait.
    pub fn queued(&self, length: usize) {
        self.queued.set(i64::try_from(length).unwrap_or(i64::MAX));
    }

    /// Says whether this process leads.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// The text of `/metrics`.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
