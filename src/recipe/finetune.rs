//! The step `finetune`: the training signal, the optimizer, the learning rate. Decides nothing.

use serde::{Deserialize, Serialize};

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
