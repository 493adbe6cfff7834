//! Weights as 8-bit integers: w is about scale * q, with one scale per column, per row or for all.
//!
//! Bit for bit what `onnxruntime.quantization` writes for symmetric QInt8 (`compute_scale_zp`,
//! `quantize_nparray`): scale = f32(2 max|w| / (qmax - qmin)) computed in f64, q = round half to
//! even of w / scale in f32, clipped to [-128, 127]; a scale below the smallest normal is 1.

/// A quantized matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// The integers, in the weights' own order.
    pub values: Vec<i8>,
    /// One scale per channel.
    pub scales: Vec<f32>,
}

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channels {
    /// All of them.
    One,
    /// Those of one index along the last axis: the output channels of `x · W`.
    Last,
    /// Those of one index along the first axis: the rows of an embedding table.
    First,
}

/// Quantizes `weights`, a row-major matrix with rows of `width` numbers. `reduced` keeps to 7 bits.
///
/// Returns `None` when a weight is NaN or infinite.
pub fn quantize(
    weights: &[f32],
    width: usize,
    channels: Channels,
    reduced: bool,
) -> Option<Quantized> {
    let width = width.max(1);
    let count = match channels {
        Channels::One => 1,
        Channels::Last => width,
        Channels::First => weights.len() / width,
    };
    let mut largest = vec![0.0_f32; count];
    for (index, row) in weights.chunks(width).enumerate() {
        match channels {
            Channels::Last => {
                for (largest, weight) in largest.iter_mut().zip(row) {
                    *largest = greater(*largest, *weight);
                }
            }
            Channels::First | Channels::One => {
                let channel = if channels == Channels::One { 0 } else { index };
                if let Some(largest) = largest.get_mut(channel) {
                    *largest = row.iter().fold(*largest, |a, b| greater(a, *b));
                }
            }
        }
    }
    if largest.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let scales: Vec<f32> = largest.iter().map(|largest| scale(*largest, reduced)).collect();
    let mut values = Vec::with_capacity(weights.len());
    for (index, row) in weights.chunks(width).enumerate() {
        match channels {
            Channels::Last => values.extend(row.iter().zip(&scales).map(|(w, s)| round(*w, *s))),
            Channels::First | Channels::One => {
                let channel = if channels == Channels::One { 0 } else { index };
                let scale = scales.get(channel).copied().unwrap_or(1.0);
                values.extend(row.iter().map(|weight| round(*weight, scale)));
            }
        }
    }
    Some(Quantized { values, scales })
}

/// The larger magnitude; NaN wins, so that it is seen.
pub fn greater(a: f32, b: f32) -> f32 {
    let b = b.abs();
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

/// The scale for numbers up to `largest` in magnitude; `reduced` keeps to 7 bits.
pub fn scale(largest: f32, reduced: bool) -> f32 {
    let steps = if reduced { 128.0 } else { 254.0 };
    let scale = (f64::from(largest) + f64::from(largest)) / steps;
    if scale < f64::from(f32::MIN_POSITIVE) { 1.0 } else { scale as f32 }
}

/// The integer for `weight`.
pub fn round(weight: f32, scale: f32) -> i8 {
    (weight / scale).round_ties_even().clamp(-128.0, 127.0) as i8
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_their_own_scale_and_ties_go_to_even() {
        let q = quantize(&[127.0, 1.0, 0.5, -0.25], 2, Channels::Last, false).unwrap();
        assert_eq!(q.scales, [1.0, 1.0 / 127.0]);
        assert_eq!(q.values, [127, 127, 0, -32]);
    }

    #[test]
    fn rows_have_their_own_scale() {
        let q = quantize(&[127.0, 1.5, 0.0, 0.0], 2, Channels::First, false).unwrap();
        assert_eq!((q.scales, q.values), (vec![1.0, 1.0], vec![127, 2, 0, 0]));
    }

    #[test]
    fn the_reduced_range_is_seven_bits() {
        let q = quantize(&[64.0, -64.0, 3.0], 3, Channels::One, true).unwrap();
        assert_eq!((q.scales, q.values), (vec![1.0], vec![64, -64, 3]));
    }

    #[test]
    fn numbers_that_are_not_finite_are_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(quantize(&[1.0, bad, 2.0], 3, Channels::One, false), None);
        }
    }

    #[test]
    fn subnormal_and_empty_weights_have_scale_one() {
        let q = quantize(&[1e-40, 0.0], 2, Channels::One, false).unwrap();
        assert_eq!(q.scales, [1.0]);
        assert!(quantize(&[], 4, Channels::Last, false).unwrap().values.is_empty());
    }
}
