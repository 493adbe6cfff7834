//! Scales, zero points and integers of activations and biases in static quantization, bit for bit as
//! `onnxruntime.quantization` computes them (`compute_scale_zp`,
//! `quantize_bias_static_impl`, `_adjust_weight_scale_for_int32_bias`). Knows no graph.

use lithe::recipe::Target;

use crate::compress::calibrate::Range;
use crate::onnx::{TensorProto, weights};

/// The integers that an activation is quantized to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integers {
    /// 0 to 255.
    Unsigned,
    /// -128 to 127.
    Signed,
    /// -127 to 127 around a zero point of 0.
    Symmetric,
}

impl Integers {
    /// What `target` multiplies fastest; TensorRT takes nothing but symmetric ones.
    pub fn of(target: Target) -> Self {
        match target {
            Target::X64 | Target::X64Vnni => Self::Unsigned,
            Target::Arm64 => Self::Signed,
            Target::TensorRT => Self::Symmetric,
        }
    }

    /// The smallest and the largest integer.
    fn ends(self) -> (f64, f64) {
        match self {
            Self::Unsigned => (0.0, 255.0),
            Self::Signed => (-128.0, 127.0),
            Self::Symmetric => (-127.0, 127.0),
        }
    }

    /// A tensor of such integers.
    pub fn tensor(self, name: &str, dims: &[i64], values: &[i16]) -> TensorProto {
        match self {
            Self::Unsigned => {
                let bytes: Vec<u8> = values.iter().map(|value| *value as u8).collect();
                weights::from_u8(name, dims, &bytes)
            }
            Self::Signed | Self::Symmetric => {
                let bytes: Vec<i8> = values.iter().map(|value| *value as i8).collect();
                weights::from_i8(name, dims, &bytes)
            }
        }
    }
}

/// Scale and zero point of an activation in 8 bits: value = scale * (integer - zero).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    /// The step between neighbouring integers.
    pub scale: f32,
    /// The integer that is 0.
    pub zero: i16,
    /// Which integers there are.
    pub integers: Integers,
}

impl Activation {
    /// The parameters that map `range`, with zero in it, onto `integers`.
    pub fn of(range: Range, integers: Integers) -> Self {
        let Range { mut low, mut high } = range.with_zero();
        if integers == Integers::Symmetric {
            high = high.max(-low);
            low = -high;
        }
        let (least, most) = integers.ends();
        let scale = (f64::from(high) - f64::from(low)) / (most - least);
        if scale < f64::from(f32::MIN_POSITIVE) {
            return Self { scale: 1.0, zero: 0, integers };
        }
        // The quotient uses the scale before it is rounded to 32 bits, as the reference does.
        let zero = match integers {
            Integers::Symmetric => 0.0,
            _ => (least - f64::from(low) / scale).round_ties_even(),
        };
        Self { scale: scale as f32, zero: zero as i16, integers }
    }

    /// The integer for `value`, as onnxruntime's tool rounds constants.
    pub fn quantize(self, value: f32) -> i16 {
        let rounded = (value / self.scale).round_ties_even() + f32::from(self.zero);
        let (least, most) = self.integers.ends();
        rounded.clamp(least as f32, most as f32) as i16
    }

    /// `value` after it went through 8 bits.
    pub fn round_trip(self, value: f64) -> f64 {
        let (scale, zero) = (f64::from(self.scale), f64::from(self.zero));
        let (least, most) = self.integers.ends();
        let integer = ((value / scale).round_ties_even() + zero).clamp(least, most);
        (integer - zero) * scale
    }
}

/// Raises weight scales until the bias fits into 32 bits under `input` * weight scale.
///
/// With one scale for the tensor the reference computes in 64 bits, with one per channel partly in 32.
pub fn fit_bias(scales: &mut [f32], per_channel: bool, input: f32, bias: &[f32]) {
    const SAFETY: f64 = 1.0001;
    let steps = f64::from(i32::MAX) - f64::from(i32::MIN + 1);
    if !per_channel {
        let largest = bias.iter().fold(0.0_f64, |a, b| a.max(f64::from(*b).abs()));
        let needed = SAFETY * (2.0 * largest) / steps;
        scales.iter_mut().for_each(|scale| raise(scale, input, needed));
        return;
    }
    for (scale, bias) in scales.iter_mut().zip(bias) {
        let needed = SAFETY as f32 * (2.0 * bias.abs());
        raise(scale, input, f64::from(needed) / steps);
    }
}

/// Makes `scale` so large that `input` * `scale` is at least `needed`.
fn raise(scale: &mut f32, input: f32, needed: f64) {
    let product = f64::from(input) * f64::from(*scale);
    if product < needed && product > 0.0 {
        *scale = (f64::from(*scale) * (needed / product)) as f32;
    }
}

/// A bias as 32-bit integers with the scale of the products it is added to.
pub fn quantize_bias(bias: &[f32], input: f32, weights: &[f32]) -> (Vec<i32>, Vec<f32>) {
    let scales: Vec<f32> = weights.iter().map(|weight| input * weight).collect();
    let scale_of = |at: usize| match scales.as_slice() {
        [scale] => *scale,
        scales => scales.get(at).copied().unwrap_or(1.0),
    };
    let integer = |(at, value): (usize, &f32)| {
        let rounded = (f64::from(*value) / f64::from(scale_of(at))).round_ties_even();
        rounded.clamp(f64::from(i32::MIN), f64::from(i32::MAX)) as i32
    };
    (bias.iter().enumerate().map(integer).collect(), scales)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(low: f32, high: f32, integers: Integers) -> (f32, i16) {
        let activation = Activation::of(Range { low, high }, integers);
        (activation.scale, activation.zero)
    }

    #[test]
    fn zero_is_always_exact() {
        let unsigned = |low, high| of(low, high, Integers::Unsigned);
        assert_eq!(unsigned(-1.0, 1.0), (2.0 / 255.0, 128));
        assert_eq!(unsigned(1.0, 2.55), (0.01, 0));
        assert_eq!(unsigned(-2.55, -1.0).1, 255);
        assert_eq!(unsigned(0.0, 1e-40), (1.0, 0));
        assert_eq!(unsigned(f32::INFINITY, f32::NEG_INFINITY), (1.0, 0));
        assert_eq!(of(0.0, 2.55, Integers::Signed), (0.01, -128));
        assert_eq!(of(-0.5, 2.54, Integers::Symmetric), (0.02, 0));
    }

    #[test]
    fn values_outside_are_clipped() {
        let activation = Activation::of(Range { low: -1.0, high: 1.55 }, Integers::Unsigned);
        assert_eq!([-9.0, 0.0, 9.0].map(|value| activation.quantize(value)), [0, 100, 255]);
        assert_eq!(activation.round_trip(0.0), 0.0);
        let symmetric = Activation::of(Range { low: -1.27, high: 1.0 }, Integers::Symmetric);
        assert_eq!([-9.0, 0.0, 9.0].map(|value| symmetric.quantize(value)), [-127, 0, 127]);
    }

    #[test]
    fn a_bias_that_would_not_fit_raises_the_scale_of_its_channel_only() {
        let mut scales = [1e-9_f32, 0.5];
        let bias = [3.0_f32, 3.0];
        fit_bias(&mut scales, true, 0.01, &bias);
        assert_eq!(scales[1], 0.5);
        let (integers, _) = quantize_bias(&bias, 0.01, &scales);
        assert!(integers[0] > 2_147_000_000 && integers[0] < i32::MAX, "{integers:?}");
        let mut one = [1e-9_f32];
        fit_bias(&mut one, false, 0.01, &[1.0, -3.0]);
        let (integers, _) = quantize_bias(&[1.0, -3.0], 0.01, &one);
        assert!(integers[1] < -2_147_000_000 && integers[1] > i32::MIN, "{integers:?}");
    }
}
