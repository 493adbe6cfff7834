//! What the operator and a dashboard read: histograms in seconds, with bounded labels.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::error::InferError;
use super::signals::Signalled;

/// The protocol a request came by; the value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// OIP v2 over gRPC.
    Grpc,
    /// OIP v2 over HTTP.
    Http,
    /// TensorFlow Serving over gRPC.
    TensorflowGrpc,
    /// TensorFlow Serving over HTTP, and KServe v1 where both are served.
    TensorflowHttp,
    /// KServe v1 over HTTP.
    KserveV1,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    protocol: &'static str,
    outcome: &'static str,
}

/// Bounds from 50 us to 60 s, each a quarter above the last: a percentile read from them is off by
/// at most 12 %, and 64 of them stay cheap to scrape.
fn histogram() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 1.25, 64))
}

/// A count and the time it took.
#[derive(Debug, Default)]
pub struct Total {
    count: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Total {
    fn add(&self, time: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// How many, and their nanoseconds in all.
    pub fn read(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.nanoseconds.load(Ordering::Relaxed))
    }
}

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: std::sync::RwLock<Registry>,
    requests: Family<Labels, Histogram, fn() -> Histogram>,
    queue: Histogram,
    compute: Histogram,
    batch: Histogram,
    executions: Counter,
    in_flight: Gauge,
    waiting: Gauge,
    load: Gauge<f64, AtomicU64>,
    ready: Gauge,
    /// Requests that were answered.
    pub success: Total,
    /// Requests that were not.
    pub failure: Total,
    /// Waiting in the queue.
    pub queued: Total,
    /// Running the model.
    pub computed: Total,
    /// Requests that were run with success.
    pub inferences: AtomicU64,
    /// What autoscaling reads.
    pub signals: Signalled,
    /// Failed requests by Triton's reasons, in the order of [`REASONS`].
    reasons: [AtomicU64; 4],
    last_inference: AtomicU64,
}

impl Metrics {
    /// Nothing counted yet; misses are counted by `target`.
    pub fn new(target: Option<Duration>) -> Self {
        let metrics = Self {
            registry: std::sync::RwLock::default(),
            requests: Family::new_with_constructor(histogram),
            queue: histogram(),
            compute: histogram(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            executions: Counter::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            load: Gauge::default(),
            ready: Gauge::default(),
            success: Total::default(),
            failure: Total::default(),
            queued: Total::default(),
            computed: Total::default(),
            inferences: AtomicU64::new(0),
            signals: Signalled::new(target),
            reasons: Default::default(),
            last_inference: AtomicU64::new(0),
        };
        metrics.register();
        metrics
    }

    fn register(&self) {
        let Ok(mut all) = self.registry.write() else { return };
        all.register(
            "lithe_request_duration_seconds",
            "From a request's last byte to its answer",
            self.requests.clone(),
        );
        all.register("lithe_queue_seconds", "Waiting for the model", self.queue.clone());
        all.register("lithe_compute_seconds", "Running the model", self.compute.clone());
        all.register("lithe_batch_rows", "Rows of one inference", self.batch.clone());
        all.register("lithe_executions", "Inferences that were run", self.executions.clone());
        all.register(
            "lithe_requests_in_flight",
            "Requests that are being answered",
            self.in_flight.clone(),
        );
        all.register(
            "lithe_requests_waiting",
            "Requests that wait for the model",
            self.waiting.clone(),
        );
        all.register("lithe_load_seconds", "From the process's start to ready", self.load.clone());
        all.register(
            "lithe_ready",
            "1 while the model is loaded, warm and not draining",
            self.ready.clone(),
        );
    }

    /// Names the model that is served, once.
    pub fn serves(&self, model: &str, digest: &str, runtime: &str) {
        self.signals.set_revision(digest);
        let labels = [("model", model), ("digest", digest), ("runtime", runtime)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        if let Ok(mut registry) = self.registry.write() {
            registry.register(
                "lithe_model",
                "The model that is served",
                Info::new(labels.to_vec()),
            );
        }
    }

    /// Sets how long the process took to get ready.
    pub fn loaded(&self, time: Duration) {
        self.load.set(time.as_secs_f64());
        self.signals.set_cold_start(time);
    }

    /// Sets whether the model takes requests.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(ready.into());
    }

    /// Begins a request; dropping the result before [`Call::end`] counts it as cancelled.
    pub fn begin(&self, protocol: Protocol) -> Call<'_> {
        self.in_flight.inc();
        self.signals.arrived();
        Call { metrics: self, protocol, start: Instant::now(), outcome: "cancelled" }
    }

    /// Counts the time one request waited.
    pub fn queued(&self, time: Duration) {
        self.queue.observe(time.as_secs_f64());
        self.signals.started(time);
        self.queued.add(time);
    }

    /// Counts one run of the model with `rows` rows, for `requests` when it succeeded.
    pub fn computed(&self, time: Duration, rows: usize, requests: Option<usize>) {
        self.compute.observe(time.as_secs_f64());
        self.batch.observe(rows as f64);
        if let Some(requests) = requests {
            self.executions.inc();
            self.signals.executed(requests, time);
            self.computed.add(time);
            self.inferences.fetch_add(requests as u64, Ordering::Relaxed);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or_default();
        self.last_inference.store(now, Ordering::Relaxed);
    }

    /// Requests that are being answered.
    pub fn in_flight(&self) -> u64 {
        u64::try_from(self.in_flight.get()).unwrap_or_default()
    }

    /// Tells the latency that requests should meet, and which percentile of them.
    pub fn aims(&self, target: Duration, percentile: u32) {
        let labels = [("percentile".into(), percentile.to_string().into())];
        if let Ok(mut registry) = self.registry.write() {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(target.as_secs_f64());
            registry.sub_registry_with_labels(labels.into_iter()).register(
                "lithe_latency_target_seconds",
                "The latency that requests should meet",
                gauge,
            );
        }
    }

    /// When the model last ran, in milliseconds since the epoch.
    pub fn last_inference(&self) -> u64 {
        self.last_inference.load(Ordering::Relaxed)
    }

    /// The OpenMetrics text while `waiting` requests wait, with Triton's counters under their own
    /// names and in their units, so that its dashboards work.
    pub fn encode(&self, model: &str, waiting: usize) -> String {
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
        let mut text = String::new();
        if let Ok(registry) = self.registry.read() {
            let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        }
        // Triton's counters end without `_total`, which the encoder does not write.
        let end = "# EOF\n";
        text.truncate(text.len().saturating_sub(end.len()));
        let model = model.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let mut line = |name: &str, labels: &str, value: u64| {
            if !text.contains(&format!("# TYPE {name} ")) {
                let _ = writeln!(text, "# TYPE {name} unknown");
            }
            let _ = writeln!(text, "{name}{{model=\"{model}\",version=\"1\"{labels}}} {value}");
        };
        for (reason, count) in REASONS.iter().zip(&self.reasons) {
            let labels = format!(",reason=\"{reason}\"");
            line("nv_inference_request_failure", &labels, count.load(Ordering::Relaxed));
        }
        let micros = |total: &Total| total.read().1 / 1000;
        for (name, value) in [
            ("request_success", self.success.read().0),
            ("count", self.inferences.load(Ordering::Relaxed)),
            ("exec_count", self.computed.read().0),
            ("pending_request_count", waiting as u64),
            ("request_duration_us", micros(&self.success) + micros(&self.failure)),
            ("queue_duration_us", micros(&self.queued)),
            ("compute_input_duration_us", 0),
            ("compute_infer_duration_us", micros(&self.computed)),
            ("compute_output_duration_us", 0),
        ] {
            line(&format!("nv_inference_{name}"), "", value);
        }
        text + end
    }
}

/// Why Triton says that a request failed.
const REASONS: [&str; 4] = ["REJECTED", "CANCELED", "BACKEND", "OTHER"];

/// The place in [`REASONS`] of an outcome that is not `ok`.
fn reason(outcome: &str) -> usize {
    match outcome {
        "overloaded" | "late" | "deadline" => 0,
        "cancelled" => 1,
        "error" => 2,
        _ => 3,
    }
}

/// A request that is being answered.
pub struct Call<'a> {
    metrics: &'a Metrics,
    protocol: Protocol,
    start: Instant,
    outcome: &'static str,
}

impl Call<'_> {
    /// Ends the request with `result`.
    pub fn end<T>(mut self, result: &Result<T, InferError>) {
        self.outcome = result.as_ref().err().map_or("ok", InferError::outcome);
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let time = self.start.elapsed();
        self.metrics.in_flight.dec();
        let protocol = match self.protocol {
            Protocol::Grpc => "grpc",
            Protocol::Http => "http",
            Protocol::TensorflowGrpc => "tensorflow_grpc",
            Protocol::TensorflowHttp => "tensorflow_http",
            Protocol::KserveV1 => "kserve_v1",
        };
        let labels = Labels { protocol, outcome: self.outcome };
        self.metrics.requests.get_or_create(&labels).observe(time.as_secs_f64());
        let succeeded = self.outcome == "ok";
        self.metrics.signals.ended(self.outcome, time);
        let total = if succeeded { &self.metrics.success } else { &self.metrics.failure };
        total.add(time);
        let reasons = &self.metrics.reasons;
        if let Some(count) = reasons.get(reason(self.outcome)).filter(|_| !succeeded) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_once_whatever_its_end() {
        let metrics = Metrics::new(None);
        metrics.begin(Protocol::Grpc).end(&Ok(()));
        metrics.begin(Protocol::Http).end::<()>(&Err(InferError::Invalid("x".into())));
        drop(metrics.begin(Protocol::Http));
        metrics.computed(Duration::from_micros(70), 5, Some(2));
        let text = metrics.encode("m\"", 3);
        for line in [
            "lithe_request_duration_seconds_count{protocol=\"grpc\",outcome=\"ok\"} 1",
            "lithe_request_duration_seconds_count{protocol=\"http\",outcome=\"invalid\"} 1",
            "lithe_request_duration_seconds_count{protocol=\"http\",outcome=\"cancelled\"} 1",
            "lithe_requests_in_flight 0",
            "nv_inference_request_success{model=\"m\\\"\",version=\"1\"} 1",
            "nv_inference_request_failure{model=\"m\\\"\",version=\"1\",reason=\"CANCELED\"} 1",
            "nv_inference_request_failure{model=\"m\\\"\",version=\"1\",reason=\"OTHER\"} 1",
            "nv_inference_count{model=\"m\\\"\",version=\"1\"} 2",
            "nv_inference_exec_count{model=\"m\\\"\",version=\"1\"} 1",
            "nv_inference_compute_infer_duration_us{model=\"m\\\"\",version=\"1\"} 70",
            "nv_inference_pending_request_count{model=\"m\\\"\",version=\"1\"} 3",
            "lithe_requests_waiting 3",
            "lithe_batch_rows_bucket{le=\"8.0\"} 1",
        ] {
            assert!(text.lines().any(|seen| seen == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
