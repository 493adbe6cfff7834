//! The step `prune`: what is removed, and where it is looked for. Decides nothing.

use serde::{Deserialize, Serialize};

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
    pub(super) fn faults(&self) -> Option<(&'static str, String)> {
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
