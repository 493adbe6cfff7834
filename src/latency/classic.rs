//! The same histogram as the classic one of Prometheus: cumulative counts by `le` in seconds.

use std::fmt::Write as _;

use super::histogram::Histogram;

/// Bounds are every second of an octave's eight up from 2^-14 s (61 us) to 2^7 s (128 s): steps of
/// 19 %, 85 bounds; a percentile read from them is off by at most that.
const STEPS: std::ops::RangeInclusive<i32> = -14 * 4..=7 * 4;

impl Histogram {
    /// The bounds in seconds with how many were at most that long, ascending, the exact edge among
    /// them; the last bound is infinite and holds all. The same bounds for every histogram of one
    /// target, as Prometheus wants.
    pub fn classic(&self) -> Vec<(f64, u64)> {
        let mut bounds: Vec<f64> = STEPS.map(|step| (f64::from(step) / 4.0).exp2()).collect();
        bounds.extend(self.edge().map(|edge| edge.at));
        bounds.sort_by(f64::total_cmp);
        bounds.dedup();
        bounds.push(f64::INFINITY);
        let mut segments = self.segments().peekable();
        let mut below = 0_u64;
        let mut answer = Vec::with_capacity(bounds.len());
        for bound in bounds {
            // Bounds of the two grids differ by rounding at most; what straddles belongs above.
            while let Some((_, high, count)) = segments.peek()
                && (*high <= bound * (1.0 + 1e-12) || bound == f64::INFINITY)
            {
                below = below.saturating_add(*count);
                segments.next();
            }
            answer.push((bound, below));
        }
        answer
    }
}

/// Writes `histogram` to `text` as Prometheus reads it: `name_bucket`, `name_sum`, `name_count`.
/// `labels` are written as they stand between the braces, such as `model="magika"`; may be empty.
pub fn write_classic(text: &mut String, name: &str, labels: &str, histogram: &Histogram) {
    let comma = if labels.is_empty() { "" } else { "," };
    for (bound, count) in histogram.classic() {
        let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
    }
    let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    let _ = writeln!(text, "{name}_sum{braces} {}", histogram.sum());
    let _ = writeln!(text, "{name}_count{braces} {}", histogram.count());
}
