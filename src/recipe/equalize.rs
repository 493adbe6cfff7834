//! The step `equalize`: numbers move between layers so that each loses less in few bits. The model
//! computes what it computed before.

use serde::{Deserialize, Serialize};

/// Between what the numbers move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum EqualizeMethod {
    /// Between the weights of consecutive layers with nothing but ReLU or pooling between them, until
    /// their channels have equal ranges. Best before `quantize` with `granularity: PerTensor` and for
    /// depthwise convolutions. Needs no data.
    #[default]
    CrossLayer,
    /// From activations into the weights that multiply them, so that activations lose their outliers.
    /// Best before `quantize` of transformers. Measured on calibration data.
    SmoothQuant,
}

/// Move numbers between layers before they are quantized.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Equalize {
    /// Between what; CrossLayer by default.
    #[serde(default)]
    pub method: EqualizeMethod,
    /// How much of the activations' range moves, from 0 to 1; only with `method: SmoothQuant`. 0.5 by
    /// default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 0.0, max = 1.0)))]
    pub strength: Option<f64>,
    /// Nodes that stay untouched, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 256), inner(length(max = 256))))]
    pub exclude: Vec<String>,
}

impl Equalize {
    pub(super) fn faults(&self) -> Option<(&'static str, String)> {
        let strength = self.strength?;
        if self.method == EqualizeMethod::CrossLayer {
            let what = "has no meaning with method CrossLayer; remove it".to_owned();
            return Some(("strength", what));
        }
        // NaN is in no range.
        let inside = (0.0..=1.0).contains(&strength);
        (!inside).then(|| ("strength", format!("is {strength}; write a number from 0 to 1")))
    }
}
