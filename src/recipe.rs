//! What to do to a model, in order, and what the result must satisfy.
//!
//! The same types stand in `spec.compression` and in the recipe file that `lithe-worker compress`
//! reads, so a recipe tried on a laptop is pasted into a manifest unchanged.

use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::units::{ByteSize, Duration, Percent};

/// One whole compression: the steps, the gates and the seed of everything random.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipe {
    /// The steps, in the order in which they run.
    #[serde(default)]
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
    /// The seed of every random choice (split, shuffling). The same seed gives the same bytes.
    #[serde(default)]
    pub seed: u64,
}

impl Recipe {
    /// The content address of the recipe in canonical JSON. A field that a later version adds must be
    /// left out of the JSON while it has its default, so that recipes of before keep their address.
    pub fn digest(&self) -> Digest {
        Digest::of_json(self)
    }
}

/// The content address under which an artifact is kept: the same source, recipe and worker give
/// the same key, and a key that exists is never made again. `data` is the digest of the evaluation
/// data, since other data may let another model pass.
pub fn artifact_key(
    source: &Digest,
    data: Option<&Digest>,
    recipe: &Digest,
    worker: &str,
) -> Digest {
    Digest::of_json(&serde_json::json!({
        "source": source, "data": data, "recipe": recipe, "worker": worker,
    }))
}

/// One step; exactly one of its fields is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(kube::KubeSchema), x_kube(validation = Rule::new("(has(self.optimize) ? 1 : 0) + (has(self.prune) ? 1 : 0) + (has(self.finetune) ? 1 : 0) + (has(self.quantize) ? 1 : 0) == 1").message("a step is exactly one of optimize, prune, finetune, quantize; write one list item per step")))]
pub struct Step {
    /// Fold constants and BatchNormalization, drop dropout and identities, remove dead nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimize: Option<Optimize>,
    /// Remove weights, channels or attention heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prune: Option<Prune>,
    /// Train the model for a while, with its own original as teacher if wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finetune: Option<Finetune>,
    /// Store and compute with fewer bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
}

impl Step {
    /// The step's name as it stands in the report, such as `quantize.dynamic`.
    pub fn name(&self) -> String {
        match (&self.optimize, &self.prune, &self.finetune, &self.quantize) {
            (Some(_), ..) => "optimize".into(),
            (_, Some(p), ..) => format!("prune.{:?}", p.structure).to_lowercase(),
            (_, _, Some(_), _) => "finetune".into(),
            (.., Some(q)) => format!("quantize.{:?}", q.mode).to_lowercase(),
            _ => "empty".into(),
        }
    }

    /// What no model could mend: the path of each field within the step, the value seen and what to
    /// do. Both the operator and the worker refuse it.
    pub fn faults(&self) -> Vec<(String, String)> {
        let prune = self.prune.iter().flat_map(Prune::faults).map(|fault| ("prune", fault));
        let quantize = self.quantize.iter().flat_map(Quantize::faults);
        let all = prune.chain(quantize.map(|fault| ("quantize", fault)));
        all.map(|(step, (field, what))| (format!("{step}.{field}"), what)).collect()
    }
}

/// Which graph clean-ups run; all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Optimize {}

/// What a pruning step removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Structure {
    /// Whole channels or neurons with everything that depends on them: smaller and faster.
    #[default]
    Channels,
    /// Whole attention heads: smaller and faster.
    Heads,
    /// Single weights: smaller to store and transfer, not faster.
    Unstructured,
    /// Two of every four weights along the input axis: faster on GPUs with sparse tensor cores.
    TwoFour,
}

/// Where the least important weights are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum PruneScope {
    /// Over the whole model: layers that matter less lose more.
    #[default]
    Global,
    /// In each layer by itself: every layer loses the same share.
    Local,
}

/// Remove weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Prune {
    /// What is removed; Channels by default.
    #[serde(default)]
    pub structure: Structure,
    /// The share to remove, from 0 to below 1.
    #[cfg_attr(feature = "crd", schemars(range(min = 0.0, max = 0.99)))]
    pub sparsity: f64,
    /// Whether layers compete with each other; Global by default.
    #[serde(default)]
    pub scope: PruneScope,
    /// Nodes or initializers that stay untouched, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 256), inner(length(max = 256))))]
    pub exclude: Vec<String>,
}

impl Prune {
    fn faults(&self) -> Option<(&'static str, String)> {
        let sparsity = self.sparsity;
        // NaN is in no range.
        if !(sparsity > 0.0 && sparsity < 1.0) {
            let what = format!("is {sparsity}; write a share above 0 and below 1");
            return Some(("sparsity", what));
        }
        if self.structure == Structure::TwoFour && sparsity != 0.5 {
            let what = format!("is {sparsity}, and TwoFour always removes two of four; write 0.5");
            return Some(("sparsity", what));
        }
        None
    }
}

/// Where the training signal comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Teacher {
    /// The uncompressed model itself.
    #[default]
    Original,
    /// Only the labels of the data.
    Labels,
}

/// How the losses of a fine-tuning step are weighed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Loss {
    /// Weight of the loss against the labels.
    #[serde(default)]
    pub labels: f64,
    /// Weight of the loss against the teacher's outputs.
    #[serde(default)]
    pub distillation: f64,
    /// Softens the teacher's outputs; 1 leaves them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

/// The optimizer of a fine-tuning step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    #[default]
    AdamW,
    /// Stochastic gradient descent with momentum.
    Sgd,
}

/// The optimizer and its constants.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Optimizer {
    /// The kind of optimizer; AdamW by default.
    #[serde(default)]
    pub kind: OptimizerKind,
    /// Weight decay.
    #[serde(default)]
    pub weight_decay: f64,
}

/// How the learning rate moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Schedule {
    /// Stays as it is.
    Constant,
    /// Falls to zero along half a cosine.
    #[default]
    Cosine,
    /// Falls to zero along a line.
    Linear,
}

/// The learning rate over a fine-tuning step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct LearningRate {
    /// The largest rate.
    pub initial: f64,
    /// How it moves; Cosine by default.
    #[serde(default)]
    pub schedule: Schedule,
    /// Optimizer steps over which it rises from zero.
    #[serde(default)]
    pub warmup: u32,
}

/// What happens to BatchNormalization during fine-tuning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum BatchNormalization {
    /// Means and variances are measured again on the training data.
    #[default]
    Recalibrate,
    /// Left as they are.
    Frozen,
}

/// Train the model for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Finetune {
    /// Where the training signal comes from; Original by default.
    #[serde(default)]
    pub teacher: Teacher,
    /// How the losses are weighed.
    #[serde(default)]
    pub loss: Loss,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Passes over the training split.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 10000)))]
    pub epochs: u32,
    /// Samples per optimizer step.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 65536)))]
    pub batch_size: u32,
    /// The learning rate.
    pub learning_rate: LearningRate,
    /// The share of activations dropped while training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// What happens to BatchNormalization; Recalibrate by default.
    #[serde(default)]
    pub batch_normalization: BatchNormalization,
}

/// The kind of quantization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum QuantizeMode {
    /// int8 weights, activations quantized at run time; no calibration. Best for transformers on CPU.
    #[default]
    Dynamic,
    /// int8 weights and activations with ranges measured on calibration data. Best for CNNs on CPU, and for TensorRT.
    Static,
    /// 4- or 8-bit weights, activations untouched. Smallest file.
    WeightOnly,
    /// Half precision. For GPUs; no gain on x64 CPUs.
    Float16,
}

/// How static quantization chooses the range of an activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Calibration {
    /// The smallest and the largest value seen.
    MinMax,
    /// Like MinMax, but each sample moves the range a hundredth of the way to its own.
    MovingAverage,
    /// Cuts the rarest 0.001 %, half of it on each side.
    Percentile,
    /// Least Kullback-Leibler divergence between the full and the quantized distribution.
    #[default]
    Entropy,
    /// Least mean squared error.
    MeanSquaredError,
}

/// How many scales a weight gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Granularity {
    /// One scale for each output channel.
    #[default]
    PerChannel,
    /// One scale for the whole tensor.
    PerTensor,
}

/// What happens to embedding tables (Gather on a weight).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Embeddings {
    /// int8 with one scale for each row: a quarter of the size at hardly any loss.
    #[default]
    PerRow,
    /// Left in full precision.
    Keep,
}

/// What happens to the weights of convolutions in dynamic quantization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Convolutions {
    /// Kept as int8 in the file and expanded when the model is loaded: a quarter of the size at the
    /// same speed.
    #[default]
    Stored,
    /// Left in full precision.
    Keep,
}

/// Signed weights of 8 bits on processors that multiply 8-bit numbers with 16-bit saturation
/// (x64 without VNNI) need one bit less to stay exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum ReduceRange {
    /// 8-bit weights. Right for processors with VNNI, AMX or ARM dot products.
    #[default]
    Never,
    /// 7-bit weights. Right for x64 without VNNI.
    Always,
}

/// How the 8-bit weights of matrix products, and of convolutions with `mode: Static`, are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum WeightType {
    /// 0 to 255 around 128. Exact on every processor, so what was judged is what is served.
    #[default]
    Unsigned,
    /// -128 to 127, as ONNX Runtime's own tool writes. Fastest; on x64 without VNNI products saturate
    /// and the model is another one, unless `reduceRange: Always`, which is exact everywhere too.
    Signed,
}

/// Store and compute with fewer bits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Quantize {
    /// The kind of quantization; Dynamic by default.
    #[serde(default)]
    pub mode: QuantizeMode,
    /// How static quantization chooses ranges; only with `mode: Static`. They are measured on the
    /// data's `calibration/` arrays, else on samples drawn by the seed, which then judge nothing. Entropy
    /// by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// One scale per output channel, or one per tensor; PerChannel by default.
    #[serde(default)]
    pub granularity: Granularity,
    /// What happens to embedding tables; PerRow by default.
    #[serde(default)]
    pub embeddings: Embeddings,
    /// What happens to the weights of convolutions; only with `mode: Dynamic`. Stored by default.
    #[serde(default)]
    pub convolutions: Convolutions,
    /// How the 8-bit weights of matrix products, and of convolutions with `mode: Static`, are stored;
    /// Unsigned by default.
    #[serde(default)]
    pub weights: WeightType,
    /// Whether weights give up one bit for processors that saturate; only useful with `weights: Signed`.
    /// Never by default.
    #[serde(default)]
    pub reduce_range: ReduceRange,
    /// Bits of a weight, 4 or 8; only with `mode: WeightOnly`. 4 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 4, max = 8)))]
    pub bits: Option<u8>,
    /// Weights that share a scale: 16, 32, 64, 128 or 256; only with `mode: WeightOnly`. 32 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 16, max = 256)))]
    pub block_size: Option<u32>,
    /// Nodes that stay untouched, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 256), inner(length(max = 256))))]
    pub exclude: Vec<String>,
}

impl Quantize {
    /// Fields that are set although the mode does not read them, and values that no mode takes.
    fn faults(&self) -> Vec<(&'static str, String)> {
        use QuantizeMode::{Dynamic, Static, WeightOnly};
        let default = Self::default();
        let set = [
            ("calibration", self.calibration.is_some(), &[Static][..]),
            ("granularity", self.granularity != default.granularity, &[Dynamic, Static]),
            ("convolutions", self.convolutions != default.convolutions, &[Dynamic]),
            ("weights", self.weights != default.weights, &[Dynamic, Static]),
            ("reduceRange", self.reduce_range != default.reduce_range, &[Dynamic, Static]),
            ("bits", self.bits.is_some(), &[WeightOnly]),
            ("blockSize", self.block_size.is_some(), &[WeightOnly]),
        ];
        let mode = self.mode;
        let idle = set.into_iter().filter(|(_, set, modes)| *set && !modes.contains(&mode));
        let mut faults: Vec<_> = idle
            .map(|(field, ..)| (field, format!("has no meaning with mode {mode:?}; remove it")))
            .collect();
        if let Some(bits) = self.bits.filter(|bits| mode == WeightOnly && !matches!(bits, 4 | 8)) {
            let what = format!("is {bits}; ONNX Runtime multiplies weights of 4 or 8 bits");
            faults.push(("bits", what));
        }
        let wrong = |block: &u32| !(16..=256).contains(block) || !block.is_power_of_two();
        if let Some(block) = self.block_size.filter(|block| mode == WeightOnly && wrong(block)) {
            faults.push(("blockSize", format!("is {block}; write 16, 32, 64, 128 or 256")));
        }
        faults
    }
}

/// What a model is judged by. Metrics with labels need a `label` array in the data; the others
/// compare the compressed model's outputs with the original's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Metric {
    /// The share of samples whose largest output is the label. Needs labels.
    Accuracy,
    /// The share of samples whose label is among the five largest outputs. Needs labels.
    Top5Accuracy,
    /// The F1 score, averaged over classes. Needs labels.
    F1,
    /// The area under the ROC curve of a two-class model. Needs labels.
    AUC,
    /// The mean squared error against the labels; smaller is better. Needs labels.
    MeanSquaredError,
    /// The share of samples whose largest output is the same as the original's.
    #[default]
    Agreement,
    /// The mean cosine between the outputs and the original's.
    Cosine,
    /// The signal-to-quantization-noise ratio of the outputs against the original's, in dB.
    SignalToNoise,
}

impl Metric {
    /// Whether the metric is computed against labels (else against the original's outputs).
    pub fn needs_labels(self) -> bool {
        !matches!(self, Self::Agreement | Self::Cosine | Self::SignalToNoise)
    }

    /// Whether a larger value is a better model.
    pub fn larger_is_better(self) -> bool {
        self != Self::MeanSquaredError
    }
}

/// What to do when a gate fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum OnFailure {
    /// Keep serving what is served now; a first deployment serves nothing.
    #[default]
    KeepServing,
    /// Serve the verified original, uncompressed.
    ServeOriginal,
}

/// What the compressed model must satisfy to be served. A bound that is absent is not checked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Gates {
    /// What the model is judged by.
    #[serde(default)]
    pub metric: Metric,
    /// How far the metric may fall below the original's, in points: `1%` lets 0.92 become 0.91.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_drop: Option<Percent>,
    /// The least value of the metric, for example 0.997 with `metric: Cosine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// The least ratio of the original's median latency to the compressed model's: 1.2 means a fifth faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 0.0, max = 1000.0)))]
    pub min_speedup: Option<f64>,
    /// The largest artifact, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// What to do when a gate fails.
    #[serde(default)]
    pub on_failure: OnFailure,
}

/// Which part of the data judges the result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Evaluation {
    /// The model output that is judged, by name; the last one by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(length(max = 1024)))]
    pub output: Option<String>,
    /// Samples to use at most; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 100000000)))]
    pub max_samples: Option<u64>,
    /// Samples per inference while measuring the metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 4096)))]
    pub batch_size: Option<u32>,
    /// Interleaved pairs of inferences for the latency ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 3, max = 10000)))]
    pub latency_pairs: Option<u32>,
}

/// What a search makes as small as it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Goal {
    /// The median time of one inference.
    Latency,
    /// The bytes of the artifact.
    Size,
    /// The peak memory while serving.
    Memory,
}

/// Search for the best steps instead of naming them; the gates bound the search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Objective {
    /// What the search makes as small as it can.
    pub minimise: Goal,
    /// How long the search may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECIPE: &str = "
steps:
- optimize: {}
- quantize: {mode: Dynamic}
gates: {metric: Agreement, maxDrop: 1%, minSpeedup: 1.0}
";

    #[test]
    fn a_recipe_file_reads_as_it_is_documented() {
        let recipe: Recipe = serde_yaml::from_str(RECIPE).unwrap();
        let names: Vec<_> = recipe.steps.iter().map(Step::name).collect();
        assert_eq!(names, ["optimize", "quantize.dynamic"]);
    }

    #[test]
    fn a_misspelt_field_is_refused_by_name() {
        let error = serde_yaml::from_str::<Recipe>("steps:\n- quantise: {}\n").unwrap_err();
        assert!(error.to_string().contains("quantise"), "{error}");
    }

    #[test]
    fn every_part_of_the_key_changes_it() {
        let [a, b] = [Digest::of("a"), Digest::of("b")];
        let key = artifact_key(&a, None, &a, "1");
        for other in [
            artifact_key(&b, None, &a, "1"),
            artifact_key(&a, Some(&a), &a, "1"),
            artifact_key(&a, None, &b, "1"),
            artifact_key(&a, None, &a, "2"),
        ] {
            assert_ne!(key, other);
        }
    }
}
