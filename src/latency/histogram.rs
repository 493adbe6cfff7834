//! A histogram of seconds whose buckets grow by a fixed factor, as OpenTelemetry's exponential
//! histogram at scale 3: eight buckets between a number and its double, each 9 % wide.
//!
//! Two histograms add bucket by bucket, so percentiles of many pods are those of all their
//! requests. The bucket that holds the latency target is split there: misses are counted exactly.

use serde::{Deserialize, Serialize};

/// The finest scale: `2^3` buckets to the octave.
const FINEST: u8 = 3;
/// Octaves that are covered: from 2^-20 s (1 us) to 2^12 s (68 minutes). What lies outside is
/// counted in the first or the last bucket.
const OCTAVES: usize = 32;
/// The exponent of the lowest bound.
const LOWEST: i32 = -20;
/// 2^(j/8): the bounds within an octave.
const BOUNDS: [f64; 8] = [
    1.0,
    1.0905077326652577,
    1.189207115002721,
    1.2968395546510096,
    std::f64::consts::SQRT_2,
    1.5422108254079407,
    1.681792830507429,
    1.8340080864093424,
];

/// Counts of durations; cumulative where it comes from a worker, a difference after [`Histogram::since`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Sparse", into = "Sparse")]
pub struct Histogram {
    scale: u8,
    counts: Vec<u64>,
    sum: f64,
    edge: Option<Edge>,
}

/// The exact split of one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    /// Where, in seconds: the latency target.
    pub at: f64,
    /// Of the bucket that holds `at`: those at most `at`.
    pub below: u64,
}

/// A percentile, and the bounds between which the exact one lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantile {
    /// The estimate in seconds: the bucket's counts spread evenly.
    pub value: f64,
    /// The exact one is above this.
    pub low: f64,
    /// The exact one is at most this; infinite in the last bucket, which takes all that is longer.
    pub high: f64,
}

/// A histogram that no process of Lithe writes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MalformedHistogram {
    /// The scale is unknown.
    #[error("the scale is {0}; 0 to 3 are known")]
    Scale(u8),
    /// A bucket lies outside the range.
    #[error("bucket {0} is not one of the {1} at this scale")]
    Bucket(usize, usize),
    /// A number is not a duration.
    #[error("{0} is {1}; a finite number of seconds that is not negative is wanted")]
    Seconds(&'static str, f64),
    /// More lie below the edge than in its bucket.
    #[error("{0} lie below the edge and {1} in its bucket")]
    Edge(u64, u64),
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Histogram {
    /// An empty one, with an exact edge at `target` seconds if one is given.
    pub fn new(target: Option<f64>) -> Self {
        let edge = target.filter(|at| at.is_finite() && *at > 0.0);
        Self {
            scale: FINEST,
            counts: vec![0; OCTAVES << FINEST],
            sum: 0.0,
            edge: edge.map(|at| Edge { at, below: 0 }),
        }
    }

    /// Puts it together from counts at the finest scale; missing ones are zero.
    pub(super) fn from_counts(
        counts: impl Iterator<Item = u64>,
        sum: f64,
        edge: Option<Edge>,
    ) -> Self {
        let mut made = Self { edge, sum, ..Self::new(None) };
        for (slot, count) in made.counts.iter_mut().zip(counts) {
            *slot = count;
        }
        let holds = made.edge.and_then(|edge| made.counts.get(Self::position(edge.at)).copied());
        if let (Some(edge), Some(holds)) = (&mut made.edge, holds) {
            edge.below = edge.below.min(holds);
        }
        made
    }

    /// How many buckets there are at the finest scale.
    pub const BUCKETS: usize = OCTAVES << FINEST;

    /// The bucket of `seconds` at the finest scale: 0 for what is too short, negative or no number.
    /// Takes no logarithm: the exponent and the leading digits decide.
    pub fn position(seconds: f64) -> usize {
        const MANTISSA: u64 = (1 << 52) - 1;
        const ONE: u64 = 1023 << 52;
        if seconds.is_nan() || seconds <= bound(0) {
            return 0;
        }
        let bits = seconds.to_bits();
        let exponent = (bits >> 52) as i32 - 1023;
        let digits = f64::from_bits((bits & MANTISSA) | ONE);
        // Bounds belong to the bucket below them.
        let within = BOUNDS.iter().filter(|bound| **bound < digits).count() as i32;
        let position = (exponent - LOWEST) * 8 + within - 1;
        usize::try_from(position).unwrap_or(0).min(Self::BUCKETS - 1)
    }

    /// Counts one duration in seconds.
    pub fn record(&mut self, seconds: f64) {
        let position = Self::position(seconds) >> (FINEST - self.scale);
        if let Some(count) = self.counts.get_mut(position) {
            *count = count.saturating_add(1);
        }
        self.sum += seconds.max(0.0);
        let shift = FINEST - self.scale;
        if let Some(edge) = &mut self.edge
            && Self::position(edge.at) >> shift == position
            && seconds <= edge.at
        {
            edge.below = edge.below.saturating_add(1);
        }
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |all, count| all.saturating_add(*count))
    }

    /// Their seconds in all.
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// The exact edge, if there is one.
    pub fn edge(&self) -> Option<Edge> {
        self.edge
    }

    /// The scale: `2^scale` buckets to the octave.
    pub fn scale(&self) -> u8 {
        self.scale
    }

    /// Adds `other`. Of different scales the coarser remains; of different edges none, unless one
    /// of the two has counted nothing.
    pub fn merge(&mut self, other: &Self) {
        if self.edge != other.edge && self.edge.map(|e| e.at) != other.edge.map(|e| e.at) {
            if self.count() == 0 {
                self.edge = other.edge.map(|edge| Edge { below: 0, ..edge });
            } else if other.count() > 0 {
                self.edge = None;
            }
        }
        let other = &self.level(other);
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.sum += other.sum;
        if let (Some(edge), Some(more)) = (&mut self.edge, other.edge)
            && edge.at == more.at
        {
            edge.below = edge.below.saturating_add(more.below);
        }
    }

    /// What came after `earlier` was read from the same process; nothing when a count has fallen,
    /// which a cumulative one never does.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut later = self.clone();
        let earlier = later.level(earlier);
        for (count, before) in later.counts.iter_mut().zip(&earlier.counts) {
            *count = count.checked_sub(*before)?;
        }
        later.sum = (later.sum - earlier.sum).max(0.0);
        later.edge = match (later.edge, earlier.edge) {
            (Some(edge), Some(before)) if edge.at == before.at => {
                Some(Edge { at: edge.at, below: edge.below.checked_sub(before.below)? })
            }
            // The target was changed between the two.
            _ => None,
        };
        Some(later)
    }

    /// Halves the number of buckets to the octave, down to one.
    pub fn coarsen(&mut self) {
        if self.scale == 0 {
            return;
        }
        if let Some(edge) = &mut self.edge {
            let position = Self::position(edge.at) >> (FINEST - self.scale);
            if position % 2 == 1 {
                let lower = self.counts.get(position - 1).copied().unwrap_or(0);
                edge.below = edge.below.saturating_add(lower);
            }
        }
        self.counts = self
            .counts
            .chunks(2)
            .map(|pair| pair.iter().fold(0_u64, |all, count| all.saturating_add(*count)))
            .collect();
        self.scale -= 1;
    }

    /// Brings itself and `other` to the coarser scale of the two; `other` as a copy.
    fn level(&mut self, other: &Self) -> Self {
        let mut other = other.clone();
        while self.scale > other.scale {
            self.coarsen();
        }
        while other.scale > self.scale {
            other.coarsen();
        }
        other
    }

    /// Buckets that hold something, in ascending order: above, at most, how many. The bucket with
    /// the edge comes in two parts.
    pub fn segments(&self) -> impl Iterator<Item = (f64, f64, u64)> + '_ {
        let shift = FINEST - self.scale;
        let edge = self.edge.map(|edge| (Self::position(edge.at) >> shift, edge));
        self.counts.iter().enumerate().flat_map(move |(position, count)| {
            let (low, high) = span(position, shift);
            let parts = match edge {
                Some((at, edge)) if at == position => {
                    [(low, edge.at, edge.below), (edge.at, high, count.saturating_sub(edge.below))]
                }
                _ => [(low, high, *count), (high, high, 0)],
            };
            parts.into_iter().filter(|(_, _, count)| *count > 0)
        })
    }

    /// The `q`-quantile, `q` between 0 and 1: the least duration that a share `q` does not exceed.
    /// Nothing when nothing was counted.
    pub fn quantile(&self, q: f64) -> Option<Quantile> {
        let total = self.count();
        // The first at least: the 0-quantile is the shortest.
        let rank = (q.clamp(0.0, 1.0) * total as f64).max(1.0);
        let mut below = 0.0;
        let mut last = None;
        for (low, high, count) in self.segments() {
            let count = count as f64;
            // A tolerance against q*n falling just above a whole number.
            if below + count >= rank - 1e-9 {
                let share = ((rank - below) / count).clamp(0.0, 1.0);
                let top = if high.is_finite() { high } else { low };
                return Some(Quantile { value: low + (top - low) * share, low, high });
            }
            below += count;
            last = Some(Quantile { value: low, low, high });
        }
        last
    }

    /// How many were longer than `seconds`: exact at the edge and at bounds of buckets, elsewhere
    /// the bucket's counts are spread evenly.
    pub fn above(&self, seconds: f64) -> f64 {
        self.segments()
            .map(|(low, high, count)| {
                let share = if seconds <= low {
                    1.0
                } else if seconds >= high || !high.is_finite() {
                    0.0
                } else {
                    (high - seconds) / (high - low)
                };
                share * count as f64
            })
            .sum()
    }
}

/// The bound number `position` of the finest scale, in seconds.
fn bound(position: usize) -> f64 {
    let digits = BOUNDS.get(position % 8).copied().unwrap_or(1.0);
    digits * f64::from(LOWEST + (position / 8) as i32).exp2()
}

/// The bounds of a bucket that joins `2^shift` of the finest scale.
fn span(position: usize, shift: u8) -> (f64, f64) {
    let low = if position == 0 { 0.0 } else { bound(position << shift) };
    let end = (position + 1) << shift;
    (low, if end >= Histogram::BUCKETS { f64::INFINITY } else { bound(end) })
}

/// What goes over the wire: only buckets that hold something.
#[derive(Clone, Serialize, Deserialize)]
struct Sparse {
    scale: u8,
    counts: Vec<(usize, u64)>,
    sum: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    edge: Option<Edge>,
}

impl From<Histogram> for Sparse {
    fn from(full: Histogram) -> Self {
        let counts = full.counts.into_iter().enumerate().filter(|(_, count)| *count > 0);
        Self { scale: full.scale, counts: counts.collect(), sum: full.sum, edge: full.edge }
    }
}

impl TryFrom<Sparse> for Histogram {
    type Error = MalformedHistogram;

    fn try_from(sparse: Sparse) -> Result<Self, MalformedHistogram> {
        if sparse.scale > FINEST {
            return Err(MalformedHistogram::Scale(sparse.scale));
        }
        let size = OCTAVES << sparse.scale;
        let mut counts = vec![0_u64; size];
        for (position, count) in sparse.counts {
            let slot = counts.get_mut(position);
            let slot = slot.ok_or(MalformedHistogram::Bucket(position, size))?;
            *slot = slot.saturating_add(count);
        }
        if !(sparse.sum.is_finite() && sparse.sum >= 0.0) {
            return Err(MalformedHistogram::Seconds("sum", sparse.sum));
        }
        if let Some(edge) = sparse.edge {
            if !(edge.at.is_finite() && edge.at > 0.0) {
                return Err(MalformedHistogram::Seconds("edge.at", edge.at));
            }
            let position = Self::position(edge.at) >> (FINEST - sparse.scale);
            let holds = counts.get(position).copied().unwrap_or(0);
            if edge.below > holds {
                return Err(MalformedHistogram::Edge(edge.below, holds));
            }
        }
        Ok(Self { scale: sparse.scale, counts, sum: sparse.sum, edge: sparse.edge })
    }
}
