//! Six sums over executed batches from which the line `seconds = alpha + beta * batch` and the
//! scatter about it can be had exactly. They add over pods and over time.

use serde::{Deserialize, Serialize};

/// Sums over batches of their size `b` (requests) and execution time `s` (seconds of wall time).
/// Whole numbers are exact up to 2^53.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Moments {
    /// How many batches.
    pub n: f64,
    /// The sum of `b`.
    pub b: f64,
    /// The sum of `s`.
    pub s: f64,
    /// The sum of `b * b`.
    pub bb: f64,
    /// The sum of `b * s`.
    pub bs: f64,
    /// The sum of `s * s`.
    pub ss: f64,
}

impl Moments {
    /// Counts one executed batch of `batch` requests that took `seconds`.
    pub fn record(&mut self, batch: u32, seconds: f64) {
        self.add(&Self::of(f64::from(batch), seconds), 1.0);
    }

    /// The sums of one batch.
    pub fn of(b: f64, s: f64) -> Self {
        Self { n: 1.0, b, s, bb: b * b, bs: b * s, ss: s * s }
    }

    /// Adds `weight` times `other`.
    pub fn add(&mut self, other: &Self, weight: f64) {
        let mut sums = self.sums();
        for (sum, more) in sums.iter_mut().zip(other.sums()) {
            *sum += weight * more;
        }
        *self = Self::from(sums);
    }

    /// All sums times `factor`: below one it forgets.
    pub fn scaled(&self, factor: f64) -> Self {
        Self::from(self.sums().map(|sum| sum * factor))
    }

    /// What came after `earlier`; nothing when the number of batches or any other sum has fallen.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut sums = self.sums();
        for (sum, before) in sums.iter_mut().zip(earlier.sums()) {
            *sum -= before;
        }
        sums.iter().all(|sum| *sum >= 0.0).then(|| Self::from(sums))
    }

    /// Whether all sums are finite, not negative, and could come from batches of one or more.
    pub fn sound(&self) -> bool {
        let near = |small: f64, large: f64| small <= large * (1.0 + 1e-9) + 1e-9;
        self.sums().iter().all(|sum| sum.is_finite() && *sum >= 0.0)
            && near(self.n, self.b)
            && near(self.b, self.bb)
            && near(self.s, self.bs)
            && near(self.b * self.b, self.n * self.bb)
            && near(self.s * self.s, self.n * self.ss)
    }

    fn sums(&self) -> [f64; 6] {
        [self.n, self.b, self.s, self.bb, self.bs, self.ss]
    }
}

impl From<[f64; 6]> for Moments {
    fn from([n, b, s, bb, bs, ss]: [f64; 6]) -> Self {
        Self { n, b, s, bb, bs, ss }
    }
}
