//! What `/metrics` says. Labels are bounded: verbs, resources, code classes, outcomes.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::measured::Figures;
use crate::queue::Depth;

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

/// Labels of the queue's length.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabels {
    line: String,
}

/// Labels of the number of objects.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

/// Labels of the figures by which a model is scaled. As many as there are models with a latency
/// target; those of a model go with it.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ModelLabels {
    namespace: String,
    model: String,
}

/// Labels of a percentile.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PercentileLabels {
    namespace: String,
    model: String,
    percentile: String,
}

/// The figures by which models are scaled, as an HPA or KEDA may read them, too.
#[derive(Default)]
struct Scaling {
    wanted: Family<ModelLabels, Gauge>,
    rate: Family<ModelLabels, Gauge<f64, AtomicU64>>,
    in_flight: Family<ModelLabels, Gauge>,
    queued: Family<ModelLabels, Gauge>,
    latency: Family<PercentileLabels, Gauge<f64, AtomicU64>>,
}

impl Scaling {
    fn register(&self, registry: &mut Registry) {
        let mut add = |name: &str, help: &str, metric: &Family<ModelLabels, Gauge>| {
            registry.register(name, help, metric.clone());
        };
        add("scaling_wanted_replicas", "Pods that the latency target needs", &self.wanted);
        add("scaling_in_flight", "Requests that are being answered", &self.in_flight);
        add("scaling_queued", "Requests that wait", &self.queued);
        registry.register(
            "scaling_request_rate",
            "Requests per second in the last minute",
            self.rate.clone(),
        );
        registry.register(
            "scaling_latency_seconds",
            "Percentiles of latency in the last minute, over all pods",
            self.latency.clone(),
        );
    }

    /// Only what `all` holds: a model that went leaves no figure behind.
    fn tell(&self, all: Vec<Figures>) {
        self.wanted.clear();
        self.rate.clear();
        self.in_flight.clear();
        self.queued.clear();
        self.latency.clear();
        for figures in all {
            let Figures { namespace, name: model, wanted, rate, in_flight, queued, latency } =
                figures;
            let labels = ModelLabels { namespace: namespace.clone(), model: model.clone() };
            self.wanted.get_or_create(&labels).set(i64::from(wanted));
            self.rate.get_or_create(&labels).set(rate);
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            self.in_flight.get_or_create(&labels).set(count(in_flight));
            self.queued.get_or_create(&labels).set(count(queued));
            for (percentile, seconds) in latency {
                let (namespace, model) = (namespace.clone(), model.clone());
                let percentile = percentile.to_string();
                let labels = PercentileLabels { namespace, model, percentile };
                self.latency.get_or_create(&labels).set(seconds);
            }
        }
    }
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    reconciles: Family<OutcomeLabels, Counter>,
    duration: Histogram,
    queued: Family<QueueLabels, Gauge>,
    phases: Family<PhaseLabels, Gauge>,
    unreadable: Counter,
    leader: Gauge,
    scaling: Scaling,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("lithe");
        let requests = Family::<RequestLabels, Counter>::default();
        let reconciles = Family::<OutcomeLabels, Counter>::default();
        // 1 ms to 16 s: from "nothing to do" to a slow API server.
        let duration = Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let queued = Family::<QueueLabels, Gauge>::default();
        let phases = Family::<PhaseLabels, Gauge>::default();
        let (unreadable, leader) = (Counter::default(), Gauge::default());
        registry.register("api_requests", "Requests to the API server", requests.clone());
        registry.register("reconciles", "Reconciles by outcome", reconciles.clone());
        registry.register("reconcile_seconds", "Time of one reconcile", duration.clone());
        registry.register("queue_length", "Objects that wait", queued.clone());
        registry.register("models", "ModelDeployments by phase", phases.clone());
        registry.register(
            "unreadable_models",
            "ModelDeployments that came in a form that this version cannot read",
            unreadable.clone(),
        );
        registry.register("leader", "1 while this process leads", leader.clone());
        let scaling = Scaling::default();
        scaling.register(&mut registry);
        Self {
            registry,
            requests,
            reconciles,
            duration,
            queued,
            phases,
            unreadable,
            leader,
            scaling,
        }
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

    /// Counts a reconcile that took `time`.
    pub fn reconcile(&self, outcome: &str, time: Duration) {
        self.reconciles.get_or_create(&OutcomeLabels { outcome: outcome.into() }).inc();
        self.duration.observe(time.as_secs_f64());
    }

    /// Says how many objects wait.
    pub fn queued(&self, depth: Depth) {
        let Depth { urgent, normal, later } = depth;
        for (line, length) in [("urgent", urgent), ("normal", normal), ("later", later)] {
            set(&self.queued.get_or_create(&QueueLabels { line: line.into() }), length);
        }
    }

    /// Says how many objects are in `phase`.
    pub fn phase(&self, phase: &str, count: usize) {
        set(&self.phases.get_or_create(&PhaseLabels { phase: phase.into() }), count);
    }

    /// Counts an object that cannot be read.
    pub fn unreadable(&self) {
        self.unreadable.inc();
    }

    /// Says the figures of all models that are scaled.
    pub fn scaling(&self, figures: Vec<Figures>) {
        self.scaling.tell(figures);
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

fn set(gauge: &Gauge, count: usize) {
    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
}
