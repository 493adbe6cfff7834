//! The step `quantize`: modes and their knobs, and which of them a mode does not read.

use serde::{Deserialize, Serialize};

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

/// How weights become integers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub enum Rounding {
    /// Each to the nearest.
    #[default]
    Nearest,
    /// One after the other, the later ones taking up the errors of the earlier ones; only with
    /// `mode: WeightOnly`. Worth it with 4 bits.
    Gptq,
    /// Up or down by what the layer's result loses least by; only with `mode: Static`. Takes minutes.
    AdaRound,
}

/// Which layers may stay in floats so that the gates hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
pub struct Fallback {
    /// Layers that may stay in floats at most. They are ranked by the noise that each of them alone,
    /// quantized, brings into the judged output.
    #[cfg_attr(feature = "crd", schemars(range(min = 1, max = 256)))]
    pub max_excluded: u32,
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
    /// as the target wants it by default: Unsigned on X64, else Signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<WeightType>,
    /// Whether weights give up one bit for processors that saturate; as the target wants it by default:
    /// Always for signed weights on X64, else Never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reduce_range: Option<ReduceRange>,
    /// Bits of a weight, 4 or 8; only with `mode: WeightOnly`. 4 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 4, max = 8)))]
    pub bits: Option<u8>,
    /// Weights that share a scale: 16, 32, 64, 128 or 256; only with `mode: WeightOnly`. 32 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "crd", schemars(range(min = 16, max = 256)))]
    pub block_size: Option<u32>,
    /// How weights become integers; Nearest by default. The other two calibrate on data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rounding: Option<Rounding>,
    /// Whether biases take back by how much 8 bits shift the mean of a layer's result; only with
    /// `mode: Static`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bias_correction: bool,
    /// Leave the layers in floats that cost most, as many as the gates on the metric need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
    /// Nodes that stay untouched, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "crd", schemars(length(max = 256), inner(length(max = 256))))]
    pub exclude: Vec<String>,
}

impl Quantize {
    /// Whether it measures something on calibration data: ranges, roundings, or what a layer costs.
    pub fn calibrates(&self) -> bool {
        self.mode == QuantizeMode::Static
            || self.rounding.is_some_and(|rounding| rounding != Rounding::Nearest)
            || self.fallback.is_some()
    }

    /// Fields that are set although the mode does not read them, and values that no mode takes.
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        use QuantizeMode::{Dynamic, Static, WeightOnly};
        let default = Self::default();
        let set = [
            ("calibration", self.calibration.is_some(), &[Static][..]),
            ("granularity", self.granularity != default.granularity, &[Dynamic, Static]),
            ("convolutions", self.convolutions != default.convolutions, &[Dynamic]),
            ("weights", self.weights.is_some(), &[Dynamic, Static]),
            ("reduceRange", self.reduce_range.is_some(), &[Dynamic, Static]),
            ("biasCorrection", self.bias_correction, &[Static]),
            ("rounding", self.rounding == Some(Rounding::Gptq), &[WeightOnly]),
            ("rounding", self.rounding == Some(Rounding::AdaRound), &[Static]),
            ("fallback", self.fallback.is_some(), &[Dynamic, Static, WeightOnly]),
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
        if let Some(Fallback { max_excluded: 0 }) = self.fallback {
            faults
                .push(("fallback.maxExcluded", "is 0; write 1 or more, or remove fallback".into()));
        }
        let wrong = |block: &u32| !(16..=256).contains(block) || !block.is_power_of_two();
        if let Some(block) = self.block_size.filter(|block| mode == WeightOnly && wrong(block)) {
            faults.push(("blockSize", format!("is {block}; write 16, 32, 64, 128 or 256")));
        }
        faults
    }
}
