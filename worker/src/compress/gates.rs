//! Holds the measured figures against the recipe's bounds.
//!
//! A gate is held or failed only when its whole interval lies on one side of the bound, so that noise
//! neither passes nor fails a model; otherwise it is undecided, and says how many samples would do.

use lithe::artifact::{GateResult, GateVerdict, LatencyReport};
use lithe::recipe::{Gates, Metric, WhenUndecided};
use lithe::units::{NotAQuantity, human_bytes};

use crate::compress::evaluate::Judgement;
use crate::compress::metrics::Estimate;

/// More samples than this would decide nothing that matters.
const MOST_TIMES: f64 = 1e6;
/// Sums of a thousand rounded terms differ in the last digits.
const ROUNDING: f64 = 1e-12;

/// What was measured of the compressed model.
pub struct Measured<'a> {
    /// Its bytes.
    pub size: u64,
    /// Its metric beside the original's; `None` without data.
    pub judgement: Option<&'a Judgement>,
    /// Its latency beside the original's; `None` without data.
    pub latency: Option<&'a LatencyReport>,
    /// The most memory of a process that serves it, in bytes; `None` where it was not measured.
    pub memory: Option<u64>,
}

/// Whether `gates` hold a bound that can only be judged with data.
pub fn need_data(gates: &Gates) -> bool {
    gates.max_drop.is_some()
        || gates.minimum.is_some()
        || gates.maximum.is_some()
        || gates.min_speedup.is_some()
        || gates.max_latency.is_some()
}

/// On which side of the bound the figure must be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    AtLeast,
    AtMost,
}

/// What an interval from `low` to `high` tells about `bound`.
///
/// | side | whole interval good | whole interval bad | else |
/// |---|---|---|---|
/// | at least | low >= bound: Held | high < bound: Failed | Undecided |
/// | at most | high <= bound: Held | low > bound: Failed | Undecided |
fn decide(side: Side, bound: f64, (low, high): (f64, f64)) -> GateVerdict {
    let (good, bad) = match side {
        Side::AtLeast => (low >= bound - ROUNDING, high < bound - ROUNDING),
        Side::AtMost => (high <= bound + ROUNDING, low > bound + ROUNDING),
    };
    match (good, bad) {
        (true, _) => GateVerdict::Held,
        (_, true) => GateVerdict::Failed,
        _ => GateVerdict::Undecided,
    }
}

/// One bound of the recipe.
struct Bound<'a> {
    gate: &'static str,
    text: String,
    side: Side,
    bound: f64,
    estimate: &'a Estimate,
}

impl Bound<'_> {
    /// How many samples would decide, with the figure as it is; `None` where no number would.
    fn decides_at(&self) -> Option<u64> {
        let decided = |times: f64| {
            let ends = self.estimate.grown(times)?;
            (decide(self.side, self.bound, ends) != GateVerdict::Undecided).then_some(times)
        };
        let mut enough = 2.0;
        while decided(enough).is_none() {
            enough *= 2.0;
            if enough > MOST_TIMES {
                return None;
            }
        }
        let mut few = enough / 2.0;
        for _ in 0..20 {
            let middle = f64::midpoint(few, enough);
            if decided(middle).is_some() { enough = middle } else { few = middle }
        }
        Some((self.estimate.count as f64 * enough).ceil() as u64)
    }

    /// The verdict; `figure` is the figure in words and `unit` writes a number as the figure does.
    fn judge(self, gates: &Gates, figure: String, unit: &dyn Fn(f64) -> String) -> GateResult {
        let estimate = self.estimate;
        let ends = estimate.interval.as_ref().map(|interval| (interval.low, interval.high));
        let verdict =
            ends.map_or(GateVerdict::Undecided, |ends| decide(self.side, self.bound, ends));
        let alone = decide(self.side, self.bound, (estimate.value, estimate.value));
        let passed = match verdict {
            GateVerdict::Undecided if gates.when_undecided == WhenUndecided::Estimate => {
                alone == GateVerdict::Held
            }
            other => other == GateVerdict::Held,
        };
        let noun = if self.gate == "minSpeedup" || self.gate == "maxLatency" {
            "pairs"
        } else {
            "samples"
        };
        let mut measured = figure;
        match estimate.interval.as_ref().filter(|interval| interval.confidence < 1.0) {
            Some(interval) => measured.push_str(&format!(
                " ({} % interval {} to {}, {}, {} {noun})",
                100.0 * interval.confidence,
                unit(interval.low),
                unit(interval.high),
                interval.method,
                estimate.count
            )),
            None if ends.is_none() => {
                measured
                    .push_str(&format!(" ({} {noun}, too few for an interval)", estimate.count));
            }
            None => {}
        }
        let undecided = verdict == GateVerdict::Undecided;
        let decides_at = if undecided && ends.is_some() { self.decides_at() } else { None };
        if undecided {
            let more = match (decides_at, ends) {
                (Some(count), _) => format!("about {count} {noun} would decide"),
                (None, Some(_)) => format!("no number of {noun} would decide"),
                (None, None) => format!("give more {noun}"),
            };
            measured.push_str(&format!(": undecided, {more}"));
        }
        GateResult {
            gate: self.gate.into(),
            bound: self.text,
            measured,
            passed,
            verdict,
            value: Some(estimate.value),
            interval: estimate.interval.clone(),
            decides_at,
        }
    }
}

/// Checks every bound of `gates`, in the order of its fields. An output that is not finite fails
/// whatever the bounds.
///
/// # Errors
/// A bound that is no quantity.
pub fn check(gates: &Gates, measured: &Measured<'_>) -> Result<Vec<GateResult>, NotAQuantity> {
    let mut results = Vec::new();
    if let Some(judgement) = measured.judgement {
        results.extend(finite(judgement));
        metric(gates, judgement, &mut results)?;
    }
    if let Some(latency) = measured.latency {
        speed(gates, latency, &mut results)?;
    }
    let bytes = [
        ("maxSize", &gates.max_size, Some(measured.size)),
        ("maxMemory", &gates.max_memory, measured.memory),
    ];
    for (gate, bound, seen) in bytes {
        let (Some(bound), Some(seen)) = (bound, seen) else { continue };
        let estimate = Estimate::exact(seen as f64, 1);
        let text = bound.to_string();
        let bound = bound.bytes()? as f64;
        let bound = Bound { gate, text, side: Side::AtMost, bound, estimate: &estimate };
        let figure = format!("{seen} bytes ({})", human_bytes(seen));
        results.push(bound.judge(gates, figure, &|bytes| format!("{bytes:.0}")));
    }
    Ok(results)
}

fn finite(judgement: &Judgement) -> Option<GateResult> {
    (judgement.broken > 0).then(|| GateResult {
        gate: "finite".into(),
        bound: "no NaN or infinity that the original does not give".into(),
        measured: format!("{} of {} samples", judgement.broken, judgement.samples),
        passed: false,
        verdict: GateVerdict::Failed,
        value: Some(judgement.broken as f64),
        interval: None,
        decides_at: None,
    })
}

fn metric(
    gates: &Gates,
    judgement: &Judgement,
    results: &mut Vec<GateResult>,
) -> Result<(), NotAQuantity> {
    let name = gates.metric;
    let decimal = |value: f64| format!("{value:.4}");
    let points = |value: f64| format!("{:.3}", 100.0 * value);
    if let (Some(bound), Some(drop)) = (&gates.max_drop, &judgement.drop) {
        let figure = format!(
            "{name:?} {:.4} to {:.4}, a drop of {} points",
            judgement.original,
            judgement.value,
            points(drop.value)
        );
        let (text, side) = (bound.to_string(), Side::AtMost);
        let bound = Bound { gate: "maxDrop", text, side, bound: bound.fraction()?, estimate: drop };
        results.push(bound.judge(gates, figure, &points));
    }
    let bounds =
        [("minimum", Side::AtLeast, gates.minimum), ("maximum", Side::AtMost, gates.maximum)];
    for (gate, side, bound) in bounds {
        let Some(bound) = bound else { continue };
        let unit = if name == Metric::SignalToNoise { " dB" } else { "" };
        let figure = format!("{name:?} {:.4}{unit}", judgement.value);
        let text = bound.to_string();
        let bound = Bound { gate, text, side, bound, estimate: &judgement.estimate };
        results.push(bound.judge(gates, figure, &decimal));
    }
    Ok(())
}

fn speed(
    gates: &Gates,
    latency: &LatencyReport,
    results: &mut Vec<GateResult>,
) -> Result<(), NotAQuantity> {
    let pairs = usize::try_from(latency.pairs).unwrap_or(usize::MAX);
    if let Some(bound) = gates.min_speedup {
        let estimate = Estimate::root(latency.speedup, pairs, latency.interval.clone());
        let text = bound.to_string();
        let bound =
            Bound { gate: "minSpeedup", text, side: Side::AtLeast, bound, estimate: &estimate };
        let figure = format!("{:.3}", latency.speedup);
        results.push(bound.judge(gates, figure, &|ratio| format!("{ratio:.3}")));
    }
    if let Some(bound) = &gates.max_latency {
        let estimate =
            Estimate::root(latency.compressed_seconds, pairs, latency.compressed_interval.clone());
        let (text, side) = (bound.to_string(), Side::AtMost);
        let bound = bound.parse()?.as_secs_f64();
        let bound = Bound { gate: "maxLatency", text, side, bound, estimate: &estimate };
        let milliseconds = |seconds: f64| format!("{:.3} ms", 1e3 * seconds);
        results.push(bound.judge(gates, milliseconds(latency.compressed_seconds), &milliseconds));
    }
    Ok(())
}

/// The gates that did not pass, in one line; `None` when all did.
pub fn failures(results: &[GateResult]) -> Option<String> {
    let failed: Vec<String> = results
        .iter()
        .filter(|result| !result.passed)
        .map(|result| {
            format!("gate {} is {}, measured {}", result.gate, result.bound, result.measured)
        })
        .collect();
    (!failed.is_empty()).then(|| failed.join("; "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use crate::compress::metrics::{Scored, figures};

    /// A judgement on `count` samples of which the first `lost` only the original gets right.
    fn judgement(count: usize, lost: usize) -> Judgement {
        let sample = |at: usize| Scored {
            original: 1.0,
            candidate: f64::from(u8::from(at >= lost)),
            ..Scored::default()
        };
        let scored: Vec<Scored> = (0..count).map(sample).collect();
        Judgement::of(Metric::Accuracy, &scored, 0.95).unwrap()
    }

    fn drop_gate(bound: &str) -> Gates {
        Gates { metric: Metric::Accuracy, max_drop: Some(bound.into()), ..Gates::default() }
    }

    fn only(gates: &Gates, judged: &Judgement) -> GateResult {
        let measured = Measured { size: 1, judgement: Some(judged), latency: None, memory: None };
        check(gates, &measured).unwrap().remove(0)
    }

    #[test]
    fn noise_neither_passes_nor_fails_a_gate() {
        // The same drop of one point: 3 samples of 300 prove nothing, 1000 of 100000 do.
        let rows = [
            (300, 3, "1.1%", GateVerdict::Undecided),
            (300, 3, "5%", GateVerdict::Held),
            (300, 30, "5%", GateVerdict::Failed),
            (100_000, 1000, "1.1%", GateVerdict::Held),
            (100_000, 1000, "0.9%", GateVerdict::Failed),
        ];
        for (count, lost, bound, verdict) in rows {
            let result = only(&drop_gate(bound), &judgement(count, lost));
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert_eq!(result.passed, verdict == GateVerdict::Held);
        }
    }

    #[test]
    fn an_undecided_gate_says_how_many_samples_would_decide() {
        let result = only(&drop_gate("1.1%"), &judgement(300, 3));
        let wanted = result.decides_at.unwrap();
        assert!(
            result.measured.contains(&format!("undecided, about {wanted} samples")),
            "{result:?}"
        );
        let lost = (wanted as f64 / 100.0).round() as usize;
        let enough = only(&drop_gate("1.1%"), &judgement(wanted as usize + 100, lost));
        assert_eq!(enough.verdict, GateVerdict::Held, "{enough:?}");
        // The figure is the bound itself.
        let never = only(&drop_gate("1%"), &judgement(300, 3));
        assert_eq!((never.verdict, never.decides_at), (GateVerdict::Undecided, None));
    }

    #[test]
    fn an_undecided_gate_passes_by_its_figure_only_when_asked() {
        let gates = Gates { when_undecided: WhenUndecided::Estimate, ..drop_gate("1.1%") };
        let result = only(&gates, &judgement(300, 3));
        assert_eq!((result.verdict, result.passed), (GateVerdict::Undecided, true));
        let gates = Gates { when_undecided: WhenUndecided::Estimate, ..drop_gate("0.9%") };
        assert!(!only(&gates, &judgement(300, 3)).passed);
    }

    #[test]
    fn a_failed_gate_says_bound_and_figure() {
        let gates = Gates { max_size: Some("1Ki".into()), ..Gates::default() };
        let measured = Measured { size: 2048, judgement: None, latency: None, memory: None };
        let line = failures(&check(&gates, &measured).unwrap()).unwrap();
        assert_eq!(line, "gate maxSize is 1Ki, measured 2048 bytes (2.0 kB)");
    }

    #[test]
    fn outputs_that_are_not_finite_fail_without_any_bound() {
        let mut judged = judgement(10, 0);
        judged.broken = 2;
        let measured = Measured { size: 1, judgement: Some(&judged), latency: None, memory: None };
        assert!(failures(&check(&Gates::default(), &measured).unwrap()).is_some());
    }

    #[test]
    fn a_metric_of_one_sample_is_undecided() {
        let one = [Scored { candidate: 0.999, cosine: 0.999, ..Scored::default() }];
        assert!(figures(Metric::Cosine, &one, 0.95).unwrap().value.interval.is_none());
        let judged = Judgement::of(Metric::Cosine, &one, 0.95).unwrap();
        let gates = Gates { metric: Metric::Cosine, minimum: Some(0.9), ..Gates::default() };
        let result = only(&gates, &judged);
        assert_eq!(result.verdict, GateVerdict::Undecided);
        assert!(result.measured.contains("too few"), "{result:?}");
    }
}
