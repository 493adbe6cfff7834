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

/// Where the channels of a weight lie: row-major as [outer, channels, inner]. One channel stands for
/// one scale for the whole tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Channels, each with a scale.
    pub channels: usize,
    /// Numbers that lie together.
    pub inner: usize,
}

impl Layout {
    /// The layout of a tensor of shape `dims` with channels along `axis`; `None` for one scale.
    pub fn of(dims: &[i64], axis: Option<usize>) -> Self {
        let size = |dim: &i64| usize::try_from(*dim).unwrap_or(0);
        match axis {
            None => Self { channels: 1, inner: dims.iter().map(size).product() },
            Some(axis) => Self {
                channels: dims.get(axis).map_or(1, size),
                inner: dims.iter().skip(axis + 1).map(size).product(),
            },
        }
    }

    /// Rows of `width` numbers among `count`, each a channel.
    pub fn rows(count: usize, width: usize) -> Self {
        let inner = width.max(1);
        Self { channels: count / inner, inner }
    }

    fn blocks<T>(self, values: &[T]) -> impl Iterator<Item = (usize, &[T])> {
        let channels = self.channels.max(1);
        values.chunks(self.inner.max(1)).enumerate().map(move |(at, block)| (at % channels, block))
    }
}

/// Quantizes `values`, which lie as `layout` says; `reduced` keeps to 7 bits.
///
/// Returns `None` when a weight is NaN or infinite.
pub fn quantize(values: &[f32], layout: Layout, reduced: bool) -> Option<Quantized> {
    let scales = scales(values, layout, reduced)?;
    Some(Quantized { values: integers(values, layout, &scales), scales })
}

/// One scale per channel of `values`, symmetric; `None` when a number is NaN or infinite.
pub fn scales(values: &[f32], layout: Layout, reduced: bool) -> Option<Vec<f32>> {
    let mut largest = vec![0.0_f32; layout.channels.max(1)];
    for (channel, block) in layout.blocks(values) {
        if let Some(largest) = largest.get_mut(channel) {
            *largest = block.iter().fold(*largest, |a, b| greater(a, *b));
        }
    }
    let finite = largest.iter().all(|value| value.is_finite());
    finite.then(|| largest.iter().map(|largest| scale(*largest, reduced)).collect())
}

/// The integers of `values` under `scales`, in the same order.
pub fn integers(values: &[f32], layout: Layout, scales: &[f32]) -> Vec<i8> {
    let mut integers = Vec::with_capacity(values.len());
    for (channel, block) in layout.blocks(values) {
        let scale = scales.get(channel).copied().unwrap_or(1.0);
        integers.extend(block.iter().map(|value| round(*value, scale)));
    }
    integers
}

/// The numbers that `integers` stand for under `scales`, in the same order.
pub fn floats(integers: &[i8], layout: Layout, scales: &[f32]) -> Vec<f32> {
    let mut floats = Vec::with_capacity(integers.len());
    for (channel, block) in layout.blocks(integers) {
        let scale = scales.get(channel).copied().unwrap_or(1.0);
        floats.extend(block.iter().map(|value| f32::from(*value) * scale));
    }
    floats
}

/// The larger magnitude; NaN wins, so that it is seen.
fn greater(a: f32, b: f32) -> f32 {
    let b = b.abs();
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

fn scale(largest: f32, reduced: bool) -> f32 {
    let steps = if reduced { 128.0 } else { 254.0 };
    let scale = (f64::from(largest) + f64::from(largest)) / steps;
    if scale < f64::from(f32::MIN_POSITIVE) { 1.0 } else { scale as f32 }
}

fn round(weight: f32, scale: f32) -> i8 {
    (weight / scale).round_ties_even().clamp(-128.0, 127.0) as i8
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ONE: Layout = Layout { channels: 1, inner: 3 };

    #[test]
    fn columns_have_their_own_scale_and_ties_go_to_even() {
        let q = quantize(&[127.0, 1.0, 0.5, -0.25], Layout::of(&[2, 2], Some(1)), false).unwrap();
        assert_eq!(q.scales, [1.0, 1.0 / 127.0]);
        assert_eq!(q.values, [127, 127, 0, -32]);
    }

    #[test]
    fn rows_have_their_own_scale() {
        let q = quantize(&[127.0, 1.5, 0.0, 0.0], Layout::rows(4, 2), false).unwrap();
        assert_eq!((q.scales, q.values), (vec![1.0, 1.0], vec![127, 2, 0, 0]));
    }

    #[test]
    fn the_reduced_range_is_seven_bits() {
        let q = quantize(&[64.0, -64.0, 3.0], ONE, true).unwrap();
        assert_eq!((q.scales, q.values), (vec![1.0], vec![64, -64, 3]));
    }

    #[test]
    fn numbers_that_are_not_finite_are_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(quantize(&[1.0, bad, 2.0], ONE, false), None);
        }
    }

    #[test]
    fn subnormal_and_empty_weights_have_scale_one() {
        let q = quantize(&[1e-40, 0.0], ONE, false).unwrap();
        assert_eq!(q.scales, [1.0]);
        assert!(quantize(&[], Layout::of(&[0, 4], Some(1)), false).unwrap().values.is_empty());
    }

    #[test]
    fn channels_lie_along_their_axis() {
        // [2, 2, 2] along axis 1.
        let values = [1.0, 2.0, 30.0, 40.0, -4.0, 3.0, 20.0, -10.0];
        let layout = Layout::of(&[2, 2, 2], Some(1));
        let channel_scales = scales(&values, layout, false).unwrap();
        assert_eq!(channel_scales, [4.0 / 127.0, 40.0 / 127.0]);
        let channel_integers = integers(&values, layout, &channel_scales);
        assert_eq!(channel_integers, [32, 64, 95, 127, -127, 95, 64, -32]);
    }
}
