//! `ModelDeployment`: what a user declares. The doc comments are what `kubectl explain` prints.
//!
//! The schema, with its CEL rules, refuses what can never be right; what the running version
//! cannot do yet is accepted by the schema and answered with `Accepted=False`, reason `Unsupported`.
// One attribute for each rule of a type is how `KubeSchema` takes them.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::recipe::{Evaluation, Gates, Objective, Recipe, Step, Target};
use crate::status::ModelDeploymentStatus;
use crate::units::{ByteSize, Duration, Percent};

/// A model, how to compress it, and how to serve it.
///
/// Lithe fetches and verifies the model, compresses it in a Job as `compression` says, and rolls
/// out pods that serve the result only when it passes its gates. What happened and why is in
/// `status`; `kubectl describe` shows it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "lithe.dev",
    version = "v1alpha1",
    kind = "ModelDeployment",
    plural = "modeldeployments",
    singular = "modeldeployment",
    shortname = "md",
    category = "all",
    namespaced,
    status = "ModelDeploymentStatus",
    derive = "PartialEq",
    doc = "A model, how to compress it, and how to serve it.",
    scale(
        spec_replicas_path = ".spec.scaling.minReplicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether the declared model is served by enough pods."
    ),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where the deployment stands."
    ),
    printcolumn(
        name = "Artifact",
        type_ = "string",
        json_path = ".status.artifact.shortDigest",
        description = "The first digits of the served file's digest."
    ),
    printcolumn(
        name = "Size",
        type_ = "string",
        json_path = ".status.artifact.sizes",
        description = "The size before and after compression."
    ),
    printcolumn(
        name = "Speedup",
        type_ = "string",
        json_path = ".status.artifact.speedupText",
        description = "The original's latency over the served model's."
    ),
    printcolumn(
        name = "Replicas",
        type_ = "string",
        json_path = ".status.replicasText",
        description = "Ready pods of wanted pods."
    ),
    printcolumn(
        name = "P95",
        type_ = "string",
        json_path = ".status.latency.p95",
        description = "The 95th percentile of request latency in the last window."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1,
        description = "Why it is ready or not."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.scaling) || self.scaling.minReplicas > 0 || !has(self.traffic) || !has(self.traffic.mode) || self.traffic.mode != 'Direct'").message("minReplicas 0 needs the gateway, which keeps requests while the first pod starts: leave traffic.mode out, or set scaling.minReplicas: 1").field_path(".traffic.mode"))]
pub struct ModelDeploymentSpec {
    /// Where the model comes from.
    pub model: Model,
    /// How the model is compressed. Without it the verified original is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// How a pod serves the model.
    #[serde(default)]
    pub runtime: Runtime,
    /// Where the pods run.
    #[serde(default)]
    pub placement: Placement,
    /// How many pods serve the model.
    #[serde(default)]
    pub scaling: Scaling,
    /// How requests reach the pods.
    #[serde(default)]
    pub traffic: Traffic,
    /// How a new artifact replaces the one that is served.
    #[serde(default)]
    pub rollout: Rollout,
}

/// Where the model comes from.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.uri.matches('^(s3|gs|az|https|oci|pvc|hf)://[^/@\\\\s]+/[^\\\\s]*[^/\\\\s]$')").message("must be one of s3://bucket/key, gs://bucket/key, az://container/key, https://host/path, oci://registry/name:tag, pvc://claim/path, hf://owner/name, with no user, no space and no trailing slash").field_path(".uri"))]
#[x_kube(validation = Rule::new("!self.uri.contains('/../') && !self.uri.endsWith('/..')").message("must not contain '..'").field_path(".uri"))]
pub struct Model {
    /// The model's address: `s3://bucket/key`, `https://host/path`, `oci://registry/name:tag`, or
    /// `pvc://claim/path` for a PersistentVolumeClaim in the same namespace.
    #[schemars(length(min = 1, max = 2048))]
    pub uri: String,
    /// The model's format.
    #[serde(default)]
    pub format: ModelFormat,
    /// The SHA-256 that the model's bytes must have. Without it the digest of the first fetch is
    /// taken and shown in `status.source.digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The name of a Secret in the same namespace with the source's credentials. Keys for `s3://`:
    /// `access-key-id`, `secret-access-key`, and optionally `endpoint`, `region`, `session-token`;
    /// for `oci://` and `https://`: `username` and `password`, or `token`; optionally `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: Option<String>,
}

/// The format of a model file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ModelFormat {
    /// An ONNX file.
    #[default]
    ONNX,
    /// A TensorFlow SavedModel directory.
    SavedModel,
    /// A TorchScript file.
    TorchScript,
    /// A `torch.export` archive.
    TorchExport,
}

/// How the model is compressed.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.steps) != has(self.objective)").message("give either steps, or an objective to search for them"))]
#[x_kube(validation = Rule::new("!has(self.gates) || has(self.data)").message("gates are measured on data: give compression.data").field_path(".gates"))]
pub struct Compression {
    /// The data that calibrates and judges the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataSource>,
    /// The steps, in the order in which they run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    pub steps: Vec<Step>,
    /// What the result must satisfy to be served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gates: Option<Gates>,
    /// Which part of the data judges the result, and how much of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<Evaluation>,
    /// Search for the steps instead of naming them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// Where the artifact will run, which decides about the form of 8-bit numbers. By default what
    /// `placement` says: TensorRT for `runtime.engine: TensorRT`, Arm64 for the node selector
    /// `kubernetes.io/arch: arm64`, X64Vnni for a node selector with one of node feature discovery's
    /// labels `feature.node.kubernetes.io/cpu-cpuid.{AVX512VNNI,AVXVNNI,AMXINT8}`, else X64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// The seed of every random choice.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9007199254740991_u64))]
    pub seed: u64,
    /// Compute resources of the Job. Memory should be at least four times the model's size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How long the Job may take.
    #[serde(default = "default_deadline")]
    pub deadline: Duration,
}

impl ModelDeploymentSpec {
    /// The recipe of the Job, when there is something to compress.
    pub fn recipe(&self) -> Option<Recipe> {
        let compression = self.compression.as_ref()?;
        // Left out where it is the default, so that recipes without it keep their address.
        let target = Some(self.target()).filter(|target| *target != Target::default());
        Some(Recipe {
            steps: compression.steps.clone(),
            gates: compression.gates.clone(),
            evaluation: compression.evaluation.clone(),
            objective: compression.objective.clone(),
            target,
            seed: compression.seed,
        })
    }

    /// Where the artifact will run: as declared, else as the placement says.
    pub fn target(&self) -> Target {
        const VNNI: [&str; 3] = ["AVX512VNNI", "AVXVNNI", "AMXINT8"];
        let declared = self.compression.as_ref().and_then(|compression| compression.target);
        let selects = |label: &str, value: &str| {
            self.placement.node_selector.get(label).is_some_and(|seen| seen == value)
        };
        let feature = |name| format!("feature.node.kubernetes.io/cpu-cpuid.{name}");
        declared.unwrap_or_else(|| {
            if self.runtime.engine == Engine::TensorRT {
                Target::TensorRT
            } else if selects("kubernetes.io/arch", "arm64") {
                Target::Arm64
            } else if VNNI.iter().any(|name| selects(&feature(name), "true")) {
                Target::X64Vnni
            } else {
                Target::X64
            }
        })
    }
}

fn default_deadline() -> Duration {
    Duration("1h".into())
}

/// Where the data comes from: an `.npz` with one array per model input by its name, and `label`.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.uri.matches('^(s3|gs|az|https|oci|pvc|hf)://[^/@\\\\s]+/[^\\\\s]*[^/\\\\s]$') && !self.uri.contains('/../')").message("must be one of s3://bucket/key, gs://bucket/key, az://container/key, https://host/path, oci://registry/name:tag, pvc://claim/path, with no user, no space, no '..' and no trailing slash").field_path(".uri"))]
pub struct DataSource {
    /// The data's address, in the same forms as `model.uri`.
    #[schemars(length(min = 1, max = 2048))]
    pub uri: String,
    /// The SHA-256 that the data's bytes must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// The name of a Secret in the same namespace with the data's credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub credentials_secret: Option<String>,
}

/// CPU and memory of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// What the scheduler sets aside, such as `{cpu: 500m, memory: 512Mi}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 8))]
    pub requests: BTreeMap<String, ResourceAmount>,
    /// What the container may not exceed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 8))]
    pub limits: BTreeMap<String, ResourceAmount>,
}

/// A Kubernetes quantity, such as `500m` or `512Mi`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ResourceAmount(pub String);

impl JsonSchema for ResourceAmount {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ResourceAmount".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^[0-9]{1,15}(\\.[0-9]{1,6})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$",
            "maxLength": 24,
        })
    }
}

impl From<&Resources> for ResourceRequirements {
    fn from(resources: &Resources) -> Self {
        use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
        let map = |amounts: &BTreeMap<String, ResourceAmount>| {
            (!amounts.is_empty()).then(|| {
                amounts
                    .iter()
                    .map(|(name, amount)| (name.clone(), Quantity(amount.0.clone())))
                    .collect()
            })
        };
        Self { requests: map(&resources.requests), limits: map(&resources.limits), claims: None }
    }
}

/// How a pod serves the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// What executes the model.
    #[serde(default)]
    pub engine: Engine,
    /// Compute resources of a serving pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Threads of one inference; by default as many as the pod's CPU limit gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub threads: Option<u32>,
    /// Put requests that arrive together into one inference.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batching: Option<Batching>,
    /// The protocols that are served; OpenInference by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub protocols: Vec<Protocol>,
    /// The largest request, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_request_size: Option<ByteSize>,
    /// Speak the protocols over TLS. Probes and metrics stay on a port of their own, without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Let in only who has a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
}

/// TLS from Secrets of the same namespace, which pods mount; a renewed certificate is taken without
/// a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// The Secret with `tls.crt` and `tls.key`, as cert-manager makes it.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// The Secret with `ca.crt`: only clients with a certificate of this authority are let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub client_ca_secret_name: Option<String>,
}

/// Bearer tokens from a Secret of the same namespace, which pods mount; changes are taken without a
/// restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Auth {
    /// The Secret whose every value is a token that lets its bearer in.
    #[schemars(length(min = 1, max = 253))]
    pub token_secret_name: String,
}

/// What executes the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Engine {
    /// ONNX Runtime on the CPU.
    #[default]
    ONNXRuntime,
    /// TensorRT on NVIDIA GPUs.
    TensorRT,
    /// TensorRT where there is an accelerator, else ONNX Runtime.
    Auto,
}

/// A protocol in which clients ask for predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// Open Inference Protocol v2 (KServe, Triton) over gRPC and REST.
    OpenInference,
    /// TensorFlow Serving over gRPC and REST.
    TensorFlowServing,
    /// KServe v1 over REST.
    KServeV1,
}

/// Put requests that arrive together into one inference. The model's inputs and outputs must all
/// have an open first dimension, the batch; a pod whose model has not does not get ready, and says
/// why.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxQueueDelay) || duration(self.maxQueueDelay) <= duration('10s')").message("must be at most 10s").field_path(".maxQueueDelay"))]
#[x_kube(validation = Rule::new("!has(self.preferredBatchSizes) || self.preferredBatchSizes.all(rows, rows >= 1 && rows <= self.maxBatchSize)").message("must be between 1 and maxBatchSize").field_path(".preferredBatchSizes"))]
pub struct Batching {
    /// The most samples in one inference. A request with more runs alone.
    #[schemars(range(min = 1, max = 65536))]
    pub max_batch_size: u32,
    /// How long a request may wait for company; `0s` takes only what waits already. Without it the
    /// worker waits as long as pays: it knows what inferences of each size take, how many requests
    /// come, and the latency target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queue_delay: Option<Duration>,
    /// Sizes that run at once when the waiting requests make exactly one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub preferred_batch_sizes: Vec<u32>,
    /// How many priorities requests may ask for, 1 the most urgent. When there is too much to do
    /// the least urgent are refused first; requests without one are in the middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub priority_levels: Option<u32>,
    /// How many requests wait, and how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePolicy>,
}

/// How many requests wait in a pod, and how long.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.onTimeout) || has(self.timeout)").message("onTimeout needs a timeout").field_path(".onTimeout"))]
pub struct QueuePolicy {
    /// Requests that may wait; more are refused at once. 256 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100000))]
    pub size: Option<u32>,
    /// How long a request may wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What happens to a request that waited that long; Reject by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<OnTimeout>,
}

/// What happens to a request that waited too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnTimeout {
    /// It is refused.
    Reject,
    /// It waits on, behind every other request of its priority.
    Delay,
}

/// Where the pods run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// The accelerator that each pod gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
}

/// The accelerator that each pod gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// The extended resource, such as `nvidia.com/gpu` or `nvidia.com/mig-1g.10gb`.
    #[schemars(length(min = 3, max = 253), regex(pattern = r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$"))]
    pub resource: String,
    /// How many of it.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: u32,
    /// The product, as the label `nvidia.com/gpu.product` of the node says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub product: Option<String>,
}

fn one() -> u32 {
    1
}

/// How many pods serve the model.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas").message("scaling.minReplicas must not be above scaling.maxReplicas"))]
#[x_kube(validation = Rule::new("!has(self.maxReplicas) || self.minReplicas == self.maxReplicas || has(self.latency) || (has(self.mode) && self.mode == 'External')").message("a range of replicas needs something that scales: give scaling.latency, or mode: External"))]
#[x_kube(validation = Rule::new("self.minReplicas > 0 || has(self.latency) || (has(self.mode) && self.mode == 'External')").message("minReplicas 0 needs something that starts a pod again: give scaling.latency, or mode: External").field_path(".minReplicas"))]
#[x_kube(validation = Rule::new("!has(self.mode) || self.mode != 'Latency' || has(self.latency)").message("mode: Latency needs the target: give scaling.latency").field_path(".latency"))]
#[x_kube(validation = Rule::new("!has(self.idleAfter) || (duration(self.idleAfter) >= duration('5s') && duration(self.idleAfter) <= duration('24h'))").message("must be between 5s and 24h").field_path(".idleAfter"))]
#[x_kube(validation = Rule::new("!has(self.holdFor) || (duration(self.holdFor) >= duration('5s') && duration(self.holdFor) <= duration('24h'))").message("must be between 5s and 24h").field_path(".holdFor"))]
pub struct Scaling {
    /// Who sets the number of pods; Latency when `latency` is given, else Fixed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ScalingMode>,
    /// The least number of pods. `kubectl scale` and external autoscalers set this field.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10000))]
    pub min_replicas: u32,
    /// The largest number of pods; as `minReplicas` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub max_replicas: Option<u32>,
    /// The latency that requests must meet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyTarget>,
    /// How long a need must have been over before pods go; by default a minute, or as long as a pod
    /// takes to start where that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_for: Option<Duration>,
    /// With `minReplicas: 0`: how long no request may have come before the last pod goes; 5m by
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_after: Option<Duration>,
}

impl Default for Scaling {
    fn default() -> Self {
        Self {
            mode: None,
            min_replicas: 1,
            max_replicas: None,
            latency: None,
            hold_for: None,
            idle_after: None,
        }
    }
}

impl Scaling {
    /// Who sets the number of pods.
    pub fn mode(&self) -> ScalingMode {
        match (self.mode, &self.latency) {
            (Some(mode), _) => mode,
            (None, Some(_)) => ScalingMode::Latency,
            (None, None) => ScalingMode::Fixed,
        }
    }

    /// The largest number of pods; at least one, or nothing would ever serve.
    pub fn most(&self) -> u32 {
        self.max_replicas.unwrap_or(self.min_replicas).max(self.min_replicas).max(1)
    }
}

impl ModelDeploymentSpec {
    /// The way of requests: what `traffic.mode` says; else through the gateway where pods come and
    /// go, and straight to the pods where their number is fixed.
    pub fn traffic_mode(&self) -> TrafficMode {
        let scaling = &self.scaling;
        let moves = scaling.mode() == ScalingMode::Latency && scaling.most() > 1;
        self.traffic.mode.unwrap_or(if moves || scaling.min_replicas == 0 {
            TrafficMode::Gateway
        } else {
            TrafficMode::Direct
        })
    }
}

/// Who sets the number of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScalingMode {
    /// `minReplicas`, until somebody changes it.
    #[default]
    Fixed,
    /// Lithe, from the measured request latency.
    Latency,
    /// An HPA or KEDA through the scale subresource.
    External,
}

/// The latency that requests must meet.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.target) >= duration('1ms') && duration(self.target) <= duration('10m')").message("must be between 1ms and 10m").field_path(".target"))]
pub struct LatencyTarget {
    /// The percentile that must meet the target.
    #[serde(default = "default_percentile")]
    #[schemars(range(min = 50, max = 99))]
    pub percentile: u32,
    /// The latency from the arrival of a request to its reply.
    pub target: Duration,
}

fn default_percentile() -> u32 {
    95
}

/// How requests reach the pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Through Lithe's gateway, or directly to the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TrafficMode>,
}

/// The way of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficMode {
    /// Through the gateway, which picks the least loaded pod.
    Gateway,
    /// Through the Service, straight to the pods.
    Direct,
}

/// How a new artifact replaces the one that is served.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.steps) || (has(self.strategy) && self.strategy == 'Canary')").message("steps belong to strategy: Canary").field_path(".steps"))]
pub struct Rollout {
    /// All pods one after another, or a growing share of the traffic.
    #[serde(default)]
    pub strategy: RolloutStrategy,
    /// The shares of traffic that a canary gets, one after another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub steps: Vec<Percent>,
    /// What a canary must satisfy to go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
    /// Pods that may be missing while pods are replaced. 0 never takes a pod down before its
    /// successor is ready; 1 is for clusters without a spare accelerator.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    pub max_unavailable: u32,
    /// How long a rollout may stand still before it counts as failed.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: Duration,
    /// Earlier artifacts that `status.history` remembers.
    #[serde(default = "default_history")]
    #[schemars(range(min = 0, max = 20))]
    pub history: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::default(),
            steps: Vec::new(),
            analysis: None,
            max_unavailable: 0,
            progress_deadline: default_progress_deadline(),
            history: default_history(),
        }
    }
}

fn default_progress_deadline() -> Duration {
    Duration("10m".into())
}

fn default_history() -> u32 {
    5
}

/// The kind of rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStrategy {
    /// One pod after another, each ready before the next goes.
    #[default]
    RollingUpdate,
    /// A growing share of the traffic, with a judgement after each step.
    Canary,
}

/// What a canary must satisfy to go on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Analysis {
    /// The largest share of failed requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_error_rate: Option<Percent>,
    /// The largest ratio of the canary's latency to the stable pods'.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_latency_ratio: Option<f64>,
    /// The least share of mirrored requests with the same answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_agreement: Option<Percent>,
}

/// The CustomResourceDefinition as it stands in `crds/modeldeployments.yaml`.
pub fn manifest() -> String {
    use kube::CustomResourceExt as _;
    let mut crd = serde_json::to_value(ModelDeployment::crd()).unwrap_or_default();
    drop_foreign_formats(&mut crd);
    drop_step_defaults(&mut crd);
    let crd = serde_yaml::to_string(&crd).unwrap_or_default();
    format!(
        "# Generated from src/spec.rs and src/status.rs; tests/crds.rs fails when it drifts.\n\
         # Write it anew with: UPDATE=1 cargo test --features crd --test crds\n{crd}"
    )
}

/// A default inside a list makes `kubectl apply` send the whole list at every apply, for it compares
/// lists as one value: the same manifest would never be "unchanged". The defaults still hold; those
/// who read a step fill them in.
fn drop_step_defaults(crd: &mut serde_json::Value) {
    const STEP: &str =
        "/schema/openAPIV3Schema/properties/spec/properties/compression/properties/steps/items";
    fn drop(schema: &mut serde_json::Value) {
        let Some(schema) = schema.as_object_mut() else { return };
        schema.remove("default");
        let inner = schema.get_mut("properties").and_then(serde_json::Value::as_object_mut);
        inner.into_iter().flat_map(|inner| inner.values_mut()).for_each(drop);
    }
    let versions = crd.pointer_mut("/spec/versions").and_then(serde_json::Value::as_array_mut);
    versions.into_iter().flatten().filter_map(|v| v.pointer_mut(STEP)).for_each(drop);
}

/// The API server warns at every apply of a CRD about integer formats that OpenAPI does not know.
fn drop_foreign_formats(schema: &mut serde_json::Value) {
    use serde_json::Value;
    match schema {
        Value::Object(fields) => {
            let foreign = |value: &mut Value| value.as_str().is_some_and(|f| f.starts_with("uint"));
            if fields.get_mut("format").is_some_and(foreign) {
                fields.remove("format");
            }
            fields.values_mut().for_each(drop_foreign_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_foreign_formats),
        _ => {}
    }
}
