//! By what a result is judged: the metric, the bounds, the part of the data. Decides nothing.

use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, Duration, Percent};

/// What a model is judged by. Metrics with labels need a `label` array in the data; the others
/// compare the compressed model's outputs with the original's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Metric {
    /// The share of samples whose largest output is the label. Needs labels.
    Accuracy,
    /// The share of samples whose label is among the `topK` largest outputs. Needs labels.
    #[serde(alias = "Top5Accuracy")]
    TopKAccuracy,
    /// The F1 score, averaged over classes. Needs labels.
    F1,
    /// The area under the ROC curve of a two-class model. Needs labels.
    AUC,
    /// The mean squared error against the labels; smaller is better. Needs labels.
    MeanSquaredError,
    /// Edits for each character of the labels, after greedy CTC decoding of an output [samples, steps,
    /// classes]; smaller is better. Needs labels: class numbers, padded with negative ones.
    CharacterErrorRate,
    /// The share of samples whose largest output is the same as the original's.
    #[default]
    Agreement,
    /// The mean cosine between the outputs and the original's.
    Cosine,
    /// The signal-to-quantization-noise ratio of the outputs against the original's, in dB.
    SignalToNoise,
    /// The largest difference between an output and the original's; smaller is better.
    MaximumError,
}

impl Metric {
    /// Whether the metric is computed against labels (else against the original's outputs).
    pub fn needs_labels(self) -> bool {
        use Metric::{Agreement, Cosine, MaximumError, SignalToNoise};
        !matches!(self, Agreement | Cosine | SignalToNoise | MaximumError)
    }

    /// Whether a larger value is a better model.
    pub fn larger_is_better(self) -> bool {
        use Metric::{CharacterErrorRate, MaximumError, MeanSquaredError};
        !matches!(self, MeanSquaredError | CharacterErrorRate | MaximumError)
    }

    /// Whether no model can have more than 1.
    fn at_most_one(self) -> bool {
        self.larger_is_better() && self != Self::SignalToNoise
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

/// What an interval on both sides of a bound means: the samples do not tell whether the gate holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum WhenUndecided {
    /// The gate counts as failed: nothing is served that was not shown to be good enough.
    #[default]
    Fail,
    /// The figure itself decides, as if there were no noise.
    Estimate,
}

/// What the compressed model must satisfy to be served. A bound that is absent is not checked. A
/// measured figure holds or fails only when its whole interval does; see `whenUndecided`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Gates {
    /// What the model is judged by.
    #[serde(default)]
    pub metric: Metric,
    /// How many of the largest outputs count; only with `metric: TopKAccuracy`. 5 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 1000)))]
    pub top_k: Option<u32>,
    /// How far the metric may get worse than the original's, in points: `1%` lets 0.92 become 0.91.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_drop: Option<Percent>,
    /// The least value of the metric, for example 0.997 with `metric: Cosine`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<f64>,
    /// The largest value of a metric that is better when smaller, for example 0.05 with `metric:
    /// CharacterErrorRate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maximum: Option<f64>,
    /// The least ratio of the original's latency to the compressed model's, as the median of
    /// interleaved pairs: 1.2 means a fifth faster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 0.0, max = 1000.0)))]
    pub min_speedup: Option<f64>,
    /// The longest median latency of one inference where the model is compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_latency: Option<Duration>,
    /// The largest artifact, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// The most memory that a process takes which loads the model and answers, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory: Option<ByteSize>,
    /// How sure a verdict is: the confidence of the two-sided interval that must lie on one side of
    /// the bound. 0.95 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 0.5, max = 0.9999)))]
    pub confidence: Option<f64>,
    /// What happens when the bound lies within the interval; Fail by default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub when_undecided: WhenUndecided,
    /// What to do when a gate fails.
    #[serde(default)]
    pub on_failure: OnFailure,
}

// Recipes of before must keep their address.
fn is_default(value: &WhenUndecided) -> bool {
    *value == WhenUndecided::default()
}

impl Gates {
    /// The confidence of every interval.
    pub fn confidence(&self) -> f64 {
        self.confidence.unwrap_or(0.95)
    }

    /// Bounds that can never hold or never be read: the field, and what is wrong with its value.
    pub fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = self.misplaced();
        let mut fault = |field, what| faults.push((field, what));
        let metric = self.metric;
        if let Some(bound) = self.minimum.filter(|bound| metric.at_most_one() && *bound > 1.0) {
            fault("minimum", format!("is {bound}, and {metric:?} is never above 1; write a share"));
        }
        if let Some(bound) = self.maximum.filter(|bound| *bound < 0.0) {
            let what = format!("is {bound}, and {metric:?} is never below 0; write a larger bound");
            fault("maximum", what);
        }
        // NaN is in no range.
        if let Some(sure) = self.confidence.filter(|sure| !(0.5..=0.9999).contains(sure)) {
            fault("confidence", format!("is {sure}; write 0.5 to 0.9999, such as 0.95"));
        }
        let quantities = [
            ("maxDrop", self.max_drop.as_ref().and_then(|bound| bound.fraction().err())),
            ("maxSize", self.max_size.as_ref().and_then(|bound| bound.bytes().err())),
            ("maxMemory", self.max_memory.as_ref().and_then(|bound| bound.bytes().err())),
            ("maxLatency", self.max_latency.as_ref().and_then(|bound| bound.parse().err())),
        ];
        faults.extend(
            quantities.into_iter().filter_map(|(field, error)| Some((field, error?.to_string()))),
        );
        faults
    }

    /// Bounds that have no meaning for the metric.
    fn misplaced(&self) -> Vec<(&'static str, String)> {
        let (metric, mut faults) = (self.metric, Vec::new());
        let (wrong, right) =
            if metric.larger_is_better() { ("maximum", "minimum") } else { ("minimum", "maximum") };
        let set = if metric.larger_is_better() { self.maximum } else { self.minimum };
        if let Some(bound) = set {
            let better = if metric.larger_is_better() { "larger" } else { "smaller" };
            let what = format!("is {bound}, and {metric:?} is better when {better}; write {right}");
            faults.push((wrong, what));
        }
        let drops = !matches!(metric, Metric::SignalToNoise | Metric::MaximumError);
        if let (Some(bound), false) = (&self.max_drop, drops) {
            let what = format!("is {bound}, and {metric:?} is not in points; write {right}");
            faults.push(("maxDrop", what));
        }
        if let (Some(top), true) = (self.top_k, metric != Metric::TopKAccuracy) {
            let what = format!("is {top} and has no meaning with metric {metric:?}; remove it");
            faults.push(("topK", what));
        }
        faults
    }
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
    /// The class that means "no character" to `metric: CharacterErrorRate`; 0 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 0, max = 10000000)))]
    pub blank: Option<u32>,
    /// Interleaved pairs of inferences for the latency ratio; by default as many as fit into two
    /// seconds, at least 30 and at most 300.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 3, max = 10000)))]
    pub latency_pairs: Option<u32>,
}
