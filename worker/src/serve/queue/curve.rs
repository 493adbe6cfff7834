//! What an inference of b rows takes: s(b) = alpha + beta b, the least-squares line through what
//! was measured. Pure: no clock, no lock.

use std::time::Duration;

use lithe::latency::Moments;

/// The weight that a measurement keeps after each newer one: about the last hundred count.
const KEEP: f64 = 0.99;
/// How many measurements one of the warm-up is worth: it is the quiet machine's, and keeps a slope
/// where traffic brings one size only.
const PRIOR: f64 = 4.0;

/// The line, learnt from a warm-up and from every inference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Curve {
    prior: Moments,
    recent: Moments,
    /// Seconds of an inference whatever its size, and of each row.
    line: (f64, f64),
}

impl Curve {
    /// The curve of a warm-up: sizes in rows with the time each took.
    pub fn measured(points: &[(usize, Duration)]) -> Self {
        let mut curve = Self::default();
        for (rows, time) in points {
            curve.prior.add(&Moments::of(*rows as f64, time.as_secs_f64()), PRIOR);
        }
        curve.fit();
        curve
    }

    /// Takes one inference in.
    pub fn add(&mut self, rows: usize, time: Duration) {
        self.recent = self.recent.scaled(KEEP);
        self.recent.add(&Moments::of(rows as f64, time.as_secs_f64()), 1.0);
        self.fit();
    }

    fn fit(&mut self) {
        let mut all = self.prior;
        all.add(&self.recent, 1.0);
        let Moments { n, b, s, bb, bs, .. } = all;
        if n <= 0.0 {
            return;
        }
        let (mean_b, mean_s) = (b / n, s / n);
        let spread = bb / n - mean_b * mean_b;
        // One size only: nothing is known of a slope.
        let slope = if spread > 1e-6 * mean_b * mean_b {
            ((bs / n - mean_b * mean_s) / spread).max(0.0)
        } else {
            0.0
        };
        let slope = slope.min(mean_s / mean_b.max(1.0));
        self.line = ((mean_s - slope * mean_b).max(0.0), slope);
    }

    /// Seconds that every inference takes, whatever its size.
    pub fn fixed(&self) -> Duration {
        Duration::from_secs_f64(self.line.0)
    }

    /// Whether anything was measured.
    pub fn known(&self) -> bool {
        self.prior.n + self.recent.n > 0.0
    }

    /// What `inferences` with `rows` rows in all take; zero while nothing is known.
    pub fn time(&self, inferences: usize, rows: usize) -> Duration {
        Duration::from_secs_f64(self.line.0 * inferences as f64 + self.line.1 * rows as f64)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn micros(time: Duration) -> u128 {
        (time + Duration::from_nanos(500)).as_micros()
    }

    #[test]
    fn the_line_through_exact_points_is_found() {
        let at = |rows: usize| (rows, Duration::from_micros(500 + 20 * rows as u64));
        let mut curve = Curve::measured(&[at(1), at(2), at(4), at(8)]);
        assert_eq!((micros(curve.fixed()), micros(curve.time(1, 32))), (500, 1140));
        // Traffic of one size keeps the slope, and moves the line where the machine is slower.
        for _ in 0..1000 {
            curve.add(1, Duration::from_micros(1040));
        }
        let slow = micros(curve.time(1, 1));
        assert!((900..=1040).contains(&slow), "{slow}");
    }

    #[test]
    fn nothing_measured_and_one_size_promise_nothing() {
        assert_eq!(Curve::default().time(3, 9), Duration::ZERO);
        let curve = Curve::measured(&[(1, Duration::from_millis(2))]);
        assert_eq!(micros(curve.time(3, 9)), 6000);
    }

    #[test]
    fn a_falling_line_is_flat() {
        let curve =
            Curve::measured(&[(1, Duration::from_millis(3)), (8, Duration::from_millis(1))]);
        assert_eq!(micros(curve.time(1, 1)), 2000);
    }
}
