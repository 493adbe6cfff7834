//! A histogram of fixed size that counts as `numpy.histogram` does on 32-bit floats, bin for bin:
//! edges as `numpy.linspace` rounds them, and each value held against the edges of its bin.

/// Bins of a histogram; onnxruntime's number for Percentile.
pub const BINS: usize = 2048;

/// Counts of values between two ends, in [`BINS`] bins of equal width.
#[derive(Clone, Debug)]
pub struct Histogram {
    low: f32,
    high: f32,
    step: f32,
    counts: Vec<u64>,
}

impl Histogram {
    /// An empty histogram from `low` to `high`; `None` where the bins would have no width or the
    /// width is beyond 32-bit floats.
    pub fn new(low: f32, high: f32) -> Option<Self> {
        let step = (high - low) / BINS as f32;
        let usable = step.is_normal() && step > 0.0 && low.is_finite() && high.is_finite();
        usable.then(|| Self { low, high, step, counts: vec![0; BINS] })
    }

    /// The lower edge of bin `index`; of [`BINS`], the upper end.
    pub fn edge(&self, index: usize) -> f32 {
        if index >= BINS { self.high } else { index as f32 * self.step + self.low }
    }

    /// The middle of bin `index`.
    pub fn middle(&self, index: usize) -> f64 {
        (f64::from(self.edge(index)) + f64::from(self.edge(index + 1))) / 2.0
    }

    /// How often each bin was hit.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Counts `value`, unless it lies outside.
    pub fn add(&mut self, value: f32) {
        if !(value >= self.low && value <= self.high) {
            return;
        }
        let place = (value - self.low) / (self.high - self.low) * BINS as f32;
        let mut index = (place as usize).min(BINS - 1);
        // Rounding can put a value one bin beside its own.
        if value < self.edge(index) {
            index = index.saturating_sub(1);
        }
        if index != BINS - 1 && value >= self.edge(index + 1) {
            index += 1;
        }
        if let Some(count) = self.counts.get_mut(index) {
            *count += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_belong_to_the_first_and_the_last_bin() {
        let mut histogram = Histogram::new(-1.0, 1.0).unwrap();
        [-1.0, 1.0, 0.0, 1.5, f32::NAN].into_iter().for_each(|value| histogram.add(value));
        let hit: Vec<usize> = (0..BINS).filter(|at| histogram.counts()[*at] > 0).collect();
        assert_eq!(hit, [0, BINS / 2, BINS - 1]);
        assert_eq!(histogram.edge(BINS), 1.0);
    }

    #[test]
    fn every_value_lies_between_the_edges_of_its_bin() {
        let mut histogram = Histogram::new(-0.3, 0.7).unwrap();
        for i in 0..BINS {
            histogram.add(histogram.edge(i));
        }
        assert!(histogram.counts().iter().all(|count| *count == 1));
    }

    #[test]
    fn what_has_no_width_has_no_histogram() {
        assert!(Histogram::new(0.0, 0.0).is_none());
        assert!(Histogram::new(-f32::MAX, f32::MAX).is_none());
        assert!(Histogram::new(0.0, 1e-42).is_none());
    }
}
