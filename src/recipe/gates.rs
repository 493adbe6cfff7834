//! By what a result is judged: the metric, the bounds, the part of the data. Decides nothing.

use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, Percent};

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
