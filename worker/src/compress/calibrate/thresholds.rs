//! From a histogram to the range that loses least: Percentile as onnxruntime has it, Entropy (least
//! Kullback-Leibler divergence), and least mean squared error. Never widens what was seen.

use super::Range;
use super::histogram::{BINS, Histogram};
use crate::compress::quantize_static::parameters::{Activation, Integers};

/// The percentile that is kept; onnxruntime's `CalibPercentile`.
const PERCENTILE: f64 = 99.999;
/// Levels that Entropy compares with: those of a magnitude in 8 bits with a sign. onnxruntime takes
/// as many bins as levels by default, which leaves one candidate, the full range.
const LEVELS: usize = 128;
/// What counts for a bin that occurs and that its level denies, as in onnxruntime's
/// `smooth_distribution`: without it one far outlier would forbid every threshold below it.
const SMOOTHING: f64 = 1e-4;
/// Shares of the range that MeanSquaredError tries: 1, 0.995, … down to 0.5.
const SHARES: u32 = 101;

/// Cuts half of the rarest 0.001 % on each side, at bin edges (`HistogramCollector.
/// compute_percentile`, not symmetric). `histogram` spans the largest magnitude on both sides.
pub fn percentile(histogram: &Histogram, seen: Range) -> Range {
    let total: u64 = histogram.counts().iter().sum();
    let mut sum = 0.0;
    let distribution: Vec<f64> = histogram
        .counts()
        .iter()
        .map(|count| {
            sum += *count as f64 / total as f64;
            sum
        })
        .collect();
    let cut = (100.0 - PERCENTILE) / 200.0;
    let at = |share: f64| histogram.edge(distribution.partition_point(|below| *below < share));
    clamp(Range { low: at(cut), high: at(1.0 - cut) }, seen)
}

fn clamp(range: Range, seen: Range) -> Range {
    Range { low: range.low.max(seen.low), high: range.high.min(seen.high) }
}

/// The threshold on magnitudes at which the clipped distribution is nearest to itself in [`LEVELS`]
/// levels (Migacz, "8-bit inference with TensorRT", 2017). `histogram` counts magnitudes from 0 up.
pub fn entropy(histogram: &Histogram, seen: Range) -> Range {
    let counts: Vec<f64> = histogram.counts().iter().map(|count| *count as f64).collect();
    let mut best = (f64::INFINITY, BINS);
    let mut clipped: f64 = counts.iter().sum();
    let mut kept = 0.0;
    for (bins, count) in counts.iter().enumerate() {
        if bins >= LEVELS {
            // Sums of whole numbers below 2^53 are exact, so this is the tail's own sum.
            let divergence = divergence(counts.get(..bins).unwrap_or_default(), kept, clipped);
            if divergence < best.0 {
                best = (divergence, bins);
            }
        }
        kept += count;
        clipped -= count;
    }
    if divergence(&counts, kept, clipped) < best.0 {
        best.1 = BINS;
    }
    let threshold = histogram.edge(best.1);
    clamp(Range { low: -threshold, high: threshold }, seen)
}

/// The Kullback-Leibler divergence of `kept` counts, with what is `clipped` in the last bin, from the
/// same counts in levels.
fn divergence(counts: &[f64], kept: f64, clipped: f64) -> f64 {
    let last = counts.len().saturating_sub(1);
    let occurs = |at: usize, count: f64| if at == last { count + clipped } else { count };
    if kept <= 0.0 {
        return f64::INFINITY;
    }
    let total = kept + clipped;
    let mut divergence = 0.0;
    for level in 0..LEVELS {
        let start = level * counts.len() / LEVELS;
        let end = (level + 1) * counts.len() / LEVELS;
        let group = counts.get(start..end).unwrap_or_default();
        let filled =
            group.iter().enumerate().filter(|(at, c)| occurs(start + at, **c) > 0.0).count();
        let spread = group.iter().sum::<f64>() / filled.max(1) as f64;
        for (at, count) in group.iter().enumerate() {
            let count = occurs(start + at, *count);
            if count > 0.0 {
                let (p, q) = (count / total, spread.max(SMOOTHING) / kept);
                divergence += p * (p / q).ln();
            }
        }
    }
    divergence
}

/// The share of the range whose 8-bit form has the least squared error over the histogram; the
/// widest of equals. `histogram` spans the range with zero.
pub fn mean_squared_error(histogram: &Histogram, seen: Range, integers: Integers) -> Range {
    let full = seen.with_zero();
    let mut best = (f64::INFINITY, full);
    for number in 0..SHARES {
        let share = 1.0 - 0.005 * f64::from(number);
        let scaled = |end: f32| (f64::from(end) * share) as f32;
        let range = Range { low: scaled(full.low), high: scaled(full.high) };
        let error = squared_error(histogram, Activation::of(range, integers));
        if error < best.0 {
            best = (error, range);
        }
    }
    best.1
}

fn squared_error(histogram: &Histogram, activation: Activation) -> f64 {
    let counts = histogram.counts().iter().enumerate().filter(|(_, count)| **count > 0);
    let errors = counts.map(|(index, count)| {
        let value = histogram.middle(index);
        let error = value - activation.round_trip(value);
        *count as f64 * (error * error)
    });
    errors.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(low: f32, high: f32, values: impl Iterator<Item = f32>) -> Histogram {
        let mut histogram = Histogram::new(low, high).unwrap();
        values.for_each(|value| histogram.add(value));
        histogram
    }

    #[test]
    fn even_values_are_not_clipped() {
        let even = || (1..=40_960).map(|i| i as f32 / 40_960.0);
        let seen = Range { low: 0.0, high: 1.0 };
        let error = mean_squared_error(&histogram(0.0, 1.0, even()), seen, Integers::Unsigned);
        assert!(error.high > 0.985, "{error:?}");
        let entropy = entropy(&histogram(0.0, 1.0, even()), seen);
        assert!(entropy.high > 0.9, "{entropy:?}");
    }

    #[test]
    fn the_percentile_cuts_half_on_each_side() {
        // One in a million on each side is less than 0.0005 %; ten are more.
        let mut few = histogram(-1.0, 1.0, (0..1_000_000).map(|_| 0.25));
        few.add(1.0);
        let seen = Range { low: -0.5, high: 1.0 };
        let cut = percentile(&few, seen);
        assert!(cut.high <= 0.2505 && cut.low >= -0.5, "{cut:?}");
        (0..10).for_each(|_| few.add(1.0));
        assert!(percentile(&few, seen).high > 0.99);
    }

    #[test]
    fn a_range_is_never_wider_than_what_was_seen() {
        let values = histogram(-2.0, 2.0, [-1.0, 2.0].into_iter());
        let seen = Range { low: -1.0, high: 2.0 };
        assert_eq!(percentile(&values, seen), clamp(percentile(&values, seen), seen));
    }
}
