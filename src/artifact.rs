//! What a compression Job made: the [`Manifest`] that lies beside the artifact in the store, and
//! the [`Outcome`] that fits into a container's termination message.
//!
//! The artifact's bytes are deterministic; the Manifest also holds measured figures, which are not.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::recipe::{Goal, Metric, Recipe, Step};

/// The `schema` of a [`Manifest`].
pub const MANIFEST_SCHEMA: &str = "lithe.dev/manifest/v1alpha1";

/// ModelPack: the OCI artifact type of a model.
pub const MODEL_ARTIFACT_TYPE: &str = "application/vnd.cncf.model.manifest.v1+json";
/// ModelPack: the media type of the model's configuration blob.
pub const MODEL_CONFIG_MEDIA_TYPE: &str = "application/vnd.cncf.model.config.v1+json";
/// ModelPack: the media type of a layer that is one weight file as it is.
pub const MODEL_WEIGHT_MEDIA_TYPE: &str = "application/vnd.cncf.model.weight.v1.raw";
/// ModelPack: the media type of a layer that documents the model; ours is the [`Manifest`].
pub const MODEL_DOC_MEDIA_TYPE: &str = "application/vnd.cncf.model.doc.v1.raw";
/// ModelPack: the annotation that names a layer's file.
pub const FILEPATH_ANNOTATION: &str = "org.cncf.model.filepath";
/// The file name of the model inside an artifact.
pub const MODEL_FILE: &str = "model.onnx";
/// The media type of a layer that is the report for people.
pub const REPORT_MEDIA_TYPE: &str = "application/vnd.lithe.report.v1+html";
/// The file name of the report inside an artifact.
pub const REPORT_FILE: &str = "report.html";
/// The file name of the Manifest inside an artifact.
pub const MANIFEST_FILE: &str = "manifest.json";

/// The exit code of a Job whose input can never work: the Job does not try again.
pub const EXIT_REFUSED: i32 = 42;
/// The exit code of a Job whose result failed a gate: the Job does not try again.
pub const EXIT_GATE_FAILED: i32 = 43;

/// Everything known about one artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`MANIFEST_SCHEMA`].
    pub schema: String,
    /// The content address of (source, data, recipe, worker): see [`crate::recipe::artifact_key`].
    pub key: Digest,
    /// The model as it came.
    pub source: Source,
    /// The evaluation data's digest, when there was data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Digest>,
    /// What was to be done.
    pub recipe: Recipe,
    /// The file that is served.
    pub model: File,
    /// The model's inputs, in graph order.
    pub inputs: Vec<TensorSignature>,
    /// The model's outputs, in graph order.
    pub outputs: Vec<TensorSignature>,
    /// What each step did.
    pub steps: Vec<StepReport>,
    /// How the steps were found, when the recipe named a goal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchReport>,
    /// How the result compares with the original; absent without data and steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation: Option<EvaluationReport>,
    /// Each gate that was checked.
    #[serde(default)]
    pub gates: Vec<GateResult>,
    /// The layers of the compressed model that have weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerReport>,
    /// Activations that are kept in 8 bits with ranges measured before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub activations: Vec<ActivationReport>,
    /// The page with all of this for people, beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<File>,
    /// The memory of both models, when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryReport>,
    /// What made and measured it.
    pub environment: Environment,
}

impl Manifest {
    /// Where the report lies, of an artifact at `uri`: in a registry a blob by its digest, elsewhere
    /// the file beside the model.
    pub fn report_uri(&self, uri: &str) -> Option<String> {
        let report = self.report.as_ref()?;
        let registry = uri.strip_prefix("oci://").and_then(|rest| rest.split_once('@'));
        Some(match registry {
            Some((name, _)) => format!("oci://{name}@{}", report.digest),
            None => format!("{uri}/{}", report.name),
        })
    }
}

/// The model as it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The digest of the source file.
    pub digest: Digest,
    /// Its size in bytes, external data included.
    pub size: u64,
    /// Numbers in its initializers.
    pub parameters: u64,
    /// The version of the default operator set.
    pub opset: i64,
}

/// One file of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    /// The file's name.
    pub name: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TensorSignature {
    /// The tensor's name.
    pub name: String,
    /// The element type in Open Inference Protocol terms: `FP32`, `INT64`, `BYTES`, ….
    pub datatype: String,
    /// The dimensions; -1 where any size fits.
    pub shape: Vec<i64>,
}

/// What one step did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StepReport {
    /// The step's name, such as `quantize.dynamic`.
    pub name: String,
    /// Nodes the step changed.
    pub matched: u64,
    /// Nodes the step could have changed and did not, by reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// Layers that stayed in floats so that the gates hold, the costliest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub excluded: Vec<Excluded>,
    /// What the step says in one line, such as `14 BatchNormalization folded, 3 Dropout removed`.
    #[serde(default)]
    pub summary: String,
    /// Bytes of the model before the step.
    pub size_before: u64,
    /// Bytes of the model after it.
    pub size_after: u64,
    /// Numbers in initializers after the step.
    pub parameters: u64,
    /// The metric after the step, when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<f64>,
    /// The share of equal largest outputs after the step, when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// The mean cosine of the outputs with the original's after the step, when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// The original's median latency over this step's, when it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup: Option<f64>,
}

/// How the steps were found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SearchReport {
    /// What was made small.
    pub goal: Goal,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Every recipe that was tried, and what became of it.
    pub candidates: Vec<CandidateReport>,
    /// The steps that were chosen; empty when nothing beat the original.
    pub chosen: Vec<Step>,
}

/// One recipe that a search tried.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CandidateReport {
    /// Its steps.
    pub steps: Vec<Step>,
    /// Samples that judged it; 0 when it was refused or not tried.
    pub samples: u64,
    /// Bytes of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<f64>,
    /// The original's median latency over the candidate's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup: Option<f64>,
    /// Peak bytes of a process that loads and runs it, when the goal is Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Whether none is at least as small, as good and as fast, and better in one of them.
    pub front: bool,
    /// What became of it: chosen, the gates that failed, why it was refused.
    pub verdict: String,
}

/// A layer that stayed in floats so that the gates hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Excluded {
    /// The node's name.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// The noise that it alone, quantized, brings into the judged output: its share of the output's power.
    pub noise: f64,
}

/// One layer of the compressed model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerReport {
    /// The node's name, else that of its output.
    pub name: String,
    /// The operator, such as `Conv`.
    pub op: String,
    /// Numbers in its weights.
    pub parameters: u64,
    /// Bits of one weight.
    pub bits: u64,
    /// The share of its weights that are zero.
    pub sparsity: f64,
    /// The signal-to-noise ratio of its output against the original's in dB, errors of earlier layers
    /// included; 200 for equal outputs, absent where the original has no such output or without data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_to_noise: Option<f64>,
    /// Why a step left it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_alone: Option<String>,
}

/// The values of one activation of the original, and where static quantization clips them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ActivationReport {
    /// The activation.
    pub name: String,
    /// The lower end of the first bin.
    pub low: f64,
    /// The upper end of the last bin.
    pub high: f64,
    /// Values in each bin.
    pub counts: Vec<u64>,
    /// The smallest value that 8 bits hold.
    pub clip_low: f64,
    /// The largest value that 8 bits hold.
    pub clip_high: f64,
}

/// Nodes that a step left alone, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// The operator, such as `Conv`.
    pub op: String,
    /// How many.
    pub count: u64,
    /// Why.
    pub reason: String,
    /// Up to three of their names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
}

/// How the result compares with the original on the evaluation split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EvaluationReport {
    /// The output that was judged.
    pub output: String,
    /// Samples that were compared.
    pub samples: u64,
    /// What the model was judged by.
    pub metric: Metric,
    /// The original's value.
    pub original: f64,
    /// The compressed model's value.
    pub compressed: f64,
    /// Between which figures that lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// The share of samples with the same largest output.
    pub agreement: f64,
    /// The mean cosine of the outputs.
    pub cosine: f64,
    /// The signal-to-quantization-noise ratio in dB; absent where the outputs are equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal_to_noise: Option<f64>,
    /// The latency ratio from interleaved pairs.
    pub latency: LatencyReport,
}

/// Latency of original and compressed model, measured in turns on the same inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LatencyReport {
    /// Median of one inference of the original, in seconds.
    pub original_seconds: f64,
    /// Median of one inference of the compressed model, in seconds.
    pub compressed_seconds: f64,
    /// The median over pairs of original over compressed: above 1 is faster.
    pub speedup: f64,
    /// Pairs that were measured.
    pub pairs: u64,
    /// Samples per inference.
    pub batch_size: u64,
    /// Between which figures the speed-up lies; absent with too few pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// The same for the seconds of the compressed model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compressed_interval: Option<Interval>,
}

/// Between which figures a measured one lies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
    /// How sure that is: 0.95 misses on each side once in forty times. 1 for what is exact.
    pub confidence: f64,
    /// How it was computed: `Wilson`, `Tango`, `paired t`, `jackknife`, `DeLong`, `sign test`, `exact`.
    pub method: String,
}

/// Whether a gate holds, as far as the samples tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GateVerdict {
    /// The whole interval satisfies the bound.
    #[default]
    Held,
    /// No part of the interval satisfies the bound.
    Failed,
    /// The bound lies within the interval, or there are too few samples for one.
    Undecided,
}

/// The most memory of a process that loads a model and answers, for both models, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryReport {
    /// The original's.
    pub original: u64,
    /// The compressed model's.
    pub compressed: u64,
}

/// One gate, its bound and the figure it saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateResult {
    /// The gate's field, such as `maxDrop`.
    pub gate: String,
    /// The bound as the user wrote it.
    pub bound: String,
    /// The figure that was measured, as text with its unit.
    pub measured: String,
    /// Whether the model may be served as far as this gate says: it held, or it is undecided and
    /// `whenUndecided` let the figure decide.
    pub passed: bool,
    /// What the samples tell.
    #[serde(default)]
    pub verdict: GateVerdict,
    /// The measured figure in the bound's own unit (shares, not percent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Between which figures it lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// How many samples or pairs would decide an undecided gate, if the figure stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decides_at: Option<u64>,
}

/// What made and measured an artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    /// The version of Lithe's worker.
    pub worker: String,
    /// The version of ONNX Runtime.
    pub onnxruntime: String,
    /// The processor's model name.
    pub cpu: String,
    /// Instruction sets that decide about int8: `avx2`, `avx512f`, `avx512_vnni`, `avx_vnni`, `amx_int8`, ….
    pub isa: Vec<String>,
    /// Threads that were used.
    pub threads: u32,
}

/// What a Job says in its termination message (at most 4096 bytes, so steps are in brief).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all_fields = "camelCase")]
pub enum Outcome {
    /// An artifact is in the store.
    Made(Box<Made>),
    /// The input can never work, or the result failed a gate.
    Refused(Refusal),
}

/// The artifact in brief.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    /// Where the artifact lies, by digest: `oci://host/name@sha256:…`, `s3://bucket/prefix/sha256/…`.
    pub uri: String,
    /// The digest of the model file that is served.
    pub digest: Digest,
    /// The digest of the Manifest.
    pub manifest: Digest,
    /// The key under which the store holds it.
    pub key: Digest,
    /// The digest of the source.
    pub source: Digest,
    /// Bytes of the model file.
    pub size: u64,
    /// Bytes of the source.
    pub original_size: u64,
    /// Whether the store already held it, so that nothing was computed.
    #[serde(default)]
    pub reused: bool,
    /// Whether a failed gate made this the original instead of the compressed model.
    #[serde(default)]
    pub fallback: Option<String>,
    /// The metric's name, when something was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// The original's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original_value: Option<f64>,
    /// The compressed model's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The share of samples with the same largest output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f64>,
    /// The mean cosine of the outputs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<f64>,
    /// The latency ratio; above 1 is faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speedup: Option<f64>,
    /// Samples that judged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<u64>,
    /// Where the report for people lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// The steps in one line each, such as `quantize.dynamic: 24 MatMul, 3 Gather; 69.1 MB -> 17.6 MB`.
    #[serde(default)]
    pub steps: Vec<String>,
    /// The steps that a search chose, as they would stand in `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
}

/// Why there is no artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// A condition reason: one of [`crate::names::reason`].
    pub reason: String,
    /// What was seen, in one sentence.
    pub message: String,
    /// The spec field to look at, such as `spec.model.digest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The digest of the source, when it could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Digest>,
}

/// The most bytes that Kubernetes keeps of a termination message.
pub const TERMINATION_MESSAGE_BYTES: usize = 4096;

impl Outcome {
    /// The termination message: JSON of at most [`TERMINATION_MESSAGE_BYTES`], shortened where it
    /// must be (steps first, then the message's end).
    pub fn to_message(&self) -> String {
        let mut outcome = self.clone();
        loop {
            let text = serde_json::to_string(&outcome).unwrap_or_default();
            if text.len() <= TERMINATION_MESSAGE_BYTES {
                return text;
            }
            match &mut outcome {
                Self::Made(made) if !made.steps.is_empty() => {
                    made.steps.pop();
                }
                Self::Made(made) if made.chosen.is_some() => made.chosen = None,
                Self::Refused(refusal) => {
                    let keep = refusal.message.chars().count() * 3 / 4;
                    refusal.message = refusal.message.chars().take(keep).collect();
                }
                Self::Made(_) => return text,
            }
        }
    }

    /// Reads a termination message; `None` when it is something else.
    pub fn from_message(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_refusal_still_fits_and_still_parses() {
        let outcome = Outcome::Refused(Refusal {
            reason: "Corrupt".into(),
            message: "é\"".repeat(10_000),
            field: Some("spec.model.uri".into()),
            source: None,
        });
        let text = outcome.to_message();
        assert!(text.len() <= TERMINATION_MESSAGE_BYTES, "{}", text.len());
        let Some(Outcome::Refused(read)) = Outcome::from_message(&text) else {
            unreachable!("{text}")
        };
        assert_eq!(read.reason, "Corrupt");
    }

    #[test]
    fn other_messages_are_not_outcomes() {
        assert_eq!(Outcome::from_message("panicked at"), None);
        assert_eq!(Outcome::from_message(""), None);
    }
}
