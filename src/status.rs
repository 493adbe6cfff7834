//! What the user reads: `status` of a `ModelDeployment` and its conditions.
//!
//! Only `report` in the operator makes values of these types; time is always an argument.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::artifact::Made;
use crate::gateway::RevisionWeight;
use crate::spec::TrafficMode;

/// What the operator saw and did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// The `metadata.generation` that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the deployment stands, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Accepted, ModelVerified, Compressed, Progressing, Available, ScalingActive, Ready.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The source as it was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceStatus>,
    /// The artifact that is served, or rolled out now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactStatus>,
    /// The Job that works or worked on the newest spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
    /// The address in the cluster that clients use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// Pods that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pods that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Pods that serve the newest artifact.
    #[serde(default)]
    pub updated_replicas: i32,
    /// `ready/wanted`, for the printer column.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas_text: Option<String>,
    /// The label selector of the pods, as the scale subresource wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Request latency in the last window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyStatus>,
    /// The last change of the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale: Option<LastScale>,
    /// The way of requests, and the gateway's ports for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficStatus>,
    /// How long a pod of the served artifact takes from its creation until it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cold_start: Option<ColdStart>,
    /// The last failure of a pod or Job, in the words of the cluster. Kept until a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
    /// Artifacts that were served before, newest first. Going back to one of their specs needs no Job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ArtifactStatus>,
}

/// Where the deployment stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// Nothing was done yet.
    #[default]
    Pending,
    /// The Job fetches, verifies and compresses.
    Compressing,
    /// Pods are being replaced.
    RollingOut,
    /// The declared model is served.
    Serving,
    /// The declared model has no pod since no request came; the next request starts one.
    Idle,
    /// The last good version is served while the newest spec failed or waits.
    Degraded,
    /// Nothing is served, and the newest spec failed.
    Failed,
}

/// The source as it was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// The address.
    pub uri: String,
    /// The digest of the bytes.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
}

/// The artifact that is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactStatus {
    /// The digest of the request (model and compression of the spec) that it answers.
    pub request: Digest,
    /// Where it lies.
    pub uri: String,
    /// The digest of the served file.
    pub digest: Digest,
    /// The digest's first digits, for the printer column.
    pub short_digest: String,
    /// The digest of the Manifest, which holds the whole report.
    pub manifest: Digest,
    /// The source it was made from.
    pub source: Digest,
    /// Bytes of the served file.
    pub size: u64,
    /// Bytes of the source.
    pub original_size: u64,
    /// `69.1 MB -> 17.6 MB`.
    pub sizes: String,
    /// The metric's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The original's value of the metric, such as `0.9130`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_value: Option<String>,
    /// The served model's value of the metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The share of samples with the same answer as the original.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<String>,
    /// The mean cosine of the outputs with the original's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<String>,
    /// The original's latency over the served model's: `2.87x`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup_text: Option<String>,
    /// Samples that judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Where the report for people lies, an HTML page. In a registry it is a blob:
    /// `oras blob fetch --output report.html` with what stands after `oci://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// The steps in one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// The steps that the search for `compression.objective` chose: write them into
    /// `compression.steps` in its place to pin them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// Why the original is served although compression was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// When the Job reported it.
    pub made: Time,
    /// When the last pod of its rollout became ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_out: Option<Time>,
}

impl ArtifactStatus {
    /// The artifact that a Job reported for `request` at `now`.
    pub fn new(request: Digest, made: &Made, now: Time) -> Self {
        use crate::units::human_bytes;
        let number = |value: f64| format!("{value:.4}");
        Self {
            request,
            uri: made.uri.clone(),
            short_digest: made.digest.short().to_owned(),
            digest: made.digest.clone(),
            manifest: made.manifest.clone(),
            source: made.source.clone(),
            size: made.size,
            original_size: made.original_size,
            sizes: format!("{} -> {}", human_bytes(made.original_size), human_bytes(made.size)),
            metric: made.metric.map(|metric| format!("{metric:?}")),
            original_value: made.original_value.map(number),
            value: made.value.map(number),
            agreement: made.agreement.map(|share| format!("{:.2}%", share * 100.0)),
            cosine: made.cosine.map(number),
            speedup_text: made.speedup.map(|ratio| format!("{ratio:.2}x")),
            samples: made.samples,
            report: made.report.clone(),
            steps: made.steps.clone(),
            chosen: made.chosen.clone(),
            fallback: made.fallback.clone(),
            made: now,
            rolled_out: None,
        }
    }
}

/// The Job that works or worked on the newest spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// The Job's name.
    pub name: String,
    /// The digest of the request it works on.
    pub request: Digest,
    /// Why it was started.
    pub why: String,
    /// When it was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Time>,
    /// How it ended: `Succeeded`, or a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
}

/// The address in the cluster that clients use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// Open Inference Protocol over REST.
    pub http: String,
    /// Open Inference Protocol over gRPC.
    pub grpc: String,
}

/// Request latency in the last window.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LatencyStatus {
    /// The median.
    pub p50: String,
    /// The 95th percentile.
    pub p95: String,
    /// The 99th percentile.
    pub p99: String,
    /// The length of the window.
    pub window: String,
}

/// The way of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficStatus {
    /// Where the Service leads now.
    pub mode: TrafficMode,
    /// The port of every gateway pod for the model's HTTP requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_port: Option<u16>,
    /// The port of every gateway pod for the model's gRPC requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_port: Option<u16>,
    /// The shares of the revisions, while more than one is served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<RevisionWeight>,
    /// Since when the Service leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

/// How long a pod takes from its creation until it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ColdStart {
    /// The first digits of the artifact's digest: another artifact starts in another time.
    pub artifact: String,
    /// The longest of the measured times.
    pub longest: String,
    /// How many pods were measured.
    pub pods: u32,
}

/// The last change of the number of pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastScale {
    /// When.
    pub time: Time,
    /// From how many pods.
    pub from: i32,
    /// To how many pods.
    pub to: i32,
    /// Why.
    pub reason: String,
}

/// A failure in the words of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// When it was first seen.
    pub time: Time,
    /// The object that failed, such as `pod/magika-5f6d-x2x9l`.
    pub object: String,
    /// The cluster's or the worker's reason, such as `OOMKilled` or `GateFailed`.
    pub reason: String,
    /// The cluster's or the worker's message.
    pub message: String,
    /// The exit code, when a container ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
}

/// The kinds of condition, in the order in which `kubectl describe` shows them.
pub mod condition {
    /// The running version can do all that the spec asks.
    pub const ACCEPTED: &str = "Accepted";
    /// The source was fetched and passed every check.
    pub const MODEL_VERIFIED: &str = "ModelVerified";
    /// There is an artifact for the newest spec that passed its gates.
    pub const COMPRESSED: &str = "Compressed";
    /// The newest artifact is rolled out, or on its way.
    pub const PROGRESSING: &str = "Progressing";
    /// Enough pods serve (the newest artifact or the last good one).
    pub const AVAILABLE: &str = "Available";
    /// The number of pods follows its rule.
    pub const SCALING_ACTIVE: &str = "ScalingActive";
    /// The newest spec is served by enough pods.
    pub const READY: &str = "Ready";

    /// All of them, in order.
    pub const ALL: [&str; 7] =
        [ACCEPTED, MODEL_VERIFIED, COMPRESSED, PROGRESSING, AVAILABLE, SCALING_ACTIVE, READY];
}

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// It is not known yet.
    Unknown,
}

impl Truth {
    /// The text of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(so: bool) -> Self {
        if so { Self::True } else { Self::False }
    }
}

/// A verdict on one kind of condition, before time and history are added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it is so.
    pub truth: Truth,
    /// One of [`crate::names::reason`].
    pub reason: &'static str,
    /// For people: the object or field, what was seen, what to do.
    pub message: String,
}

impl Verdict {
    /// A verdict.
    pub fn new(truth: impl Into<Truth>, reason: &'static str, message: impl Into<String>) -> Self {
        Self { truth: truth.into(), reason, message: message.into() }
    }
}

/// The condition of kind `kind` after `verdict`: `lastTransitionTime` moves only when the status does.
pub fn condition(
    before: &[Condition],
    kind: &str,
    verdict: Verdict,
    generation: Option<i64>,
    now: Time,
) -> Condition {
    let status = verdict.truth.as_str().to_owned();
    let since = before
        .iter()
        .find(|condition| condition.type_ == kind && condition.status == status)
        .map_or(now, |condition| condition.last_transition_time.clone());
    Condition {
        type_: kind.to_owned(),
        status,
        reason: verdict.reason.to_owned(),
        // The API refuses messages over 32768 bytes; what people read is far shorter.
        message: verdict.message.chars().take(2048).collect(),
        observed_generation: generation,
        last_transition_time: since,
    }
}
