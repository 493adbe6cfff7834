//! Holds the measured figures against the recipe's bounds.
//!
//! A bound is held against the point estimate; where the metric is a mean over samples the result
//! also tells the 95 % interval of the paired difference, so that a reader sees whether more samples
//! could turn it.

use lithe::artifact::{GateResult, LatencyReport};
use lithe::recipe::{Gates, Metric};
use lithe::units::{NotAQuantity, human_bytes};

use crate::compress::evaluate::Judgement;

/// What was measured of the compressed model.
pub struct Measured<'a> {
    /// Its bytes.
    pub size: u64,
    /// Its metric beside the original's; `None` without data.
    pub judgement: Option<&'a Judgement>,
    /// Its latency beside the original's; `None` without data.
    pub latency: Option<&'a LatencyReport>,
}

/// Whether `gates` hold a bound that can only be judged with data.
pub fn need_data(gates: &Gates) -> bool {
    gates.max_drop.is_some() || gates.minimum.is_some() || gates.min_speedup.is_some()
}

/// Checks every bound of `gates`, in the order of its fields. An output that is not finite fails
/// whatever the bounds.
///
/// # Errors
/// A bound that is no quantity.
pub fn check(gates: &Gates, measured: &Measured<'_>) -> Result<Vec<GateResult>, NotAQuantity> {
    let mut results = Vec::new();
    if let Some(judgement) = measured.judgement {
        if judgement.broken > 0 {
            results.push(GateResult {
                gate: "finite".into(),
                bound: "no NaN or infinity that the original does not give".into(),
                measured: format!("{} of {} samples", judgement.broken, judgement.samples),
                passed: false,
            });
        }
        if let Some(bound) = &gates.max_drop {
            let (drop, half) = judgement.drop;
            let interval = half.map_or_else(String::new, |half| {
                format!(
                    " (95 % interval {:.3} to {:.3})",
                    100.0 * (drop - half),
                    100.0 * (drop + half)
                )
            });
            results.push(GateResult {
                gate: "maxDrop".into(),
                bound: bound.to_string(),
                measured: format!(
                    "{:?} {:.4} to {:.4}, a drop of {:.3} points{interval}",
                    gates.metric,
                    judgement.original,
                    judgement.value,
                    100.0 * drop
                ),
                // Sums of a thousand rounded terms differ in the last digits.
                passed: drop <= bound.fraction()? + 1e-12,
            });
        }
        if let Some(bound) = gates.minimum {
            let holds = match gates.metric {
                Metric::MeanSquaredError => judgement.value <= bound,
                _ => judgement.value >= bound,
            };
            results.push(GateResult {
                gate: "minimum".into(),
                bound: bound.to_string(),
                measured: format!("{:?} {:.4}", gates.metric, judgement.value),
                passed: holds,
            });
        }
    }
    if let (Some(bound), Some(latency)) = (gates.min_speedup, measured.latency) {
        results.push(GateResult {
            gate: "minSpeedup".into(),
            bound: bound.to_string(),
            measured: format!("{:.2}", latency.speedup),
            passed: latency.speedup >= bound,
        });
    }
    if let Some(bound) = &gates.max_size {
        results.push(GateResult {
            gate: "maxSize".into(),
            bound: bound.to_string(),
            measured: format!("{} bytes ({})", measured.size, human_bytes(measured.size)),
            passed: measured.size <= bound.bytes()?,
        });
    }
    Ok(results)
}

/// The gates that failed, in one line; `None` when all held.
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

    fn judgement(original: f64, value: f64) -> Judgement {
        Judgement {
            original,
            value,
            agreement: 1.0,
            cosine: 1.0,
            signal_to_noise: None,
            drop: (original - value, Some(0.001)),
            samples: 1000,
            broken: 0,
        }
    }

    #[test]
    fn a_drop_at_the_bound_passes_and_beyond_it_fails() {
        let gates = Gates { max_drop: Some("1%".into()), ..Gates::default() };
        for (value, passes) in [(0.91, true), (0.909, false), (0.95, true)] {
            let judged = judgement(0.92, value);
            let measured = Measured { size: 1, judgement: Some(&judged), latency: None };
            let results = check(&gates, &measured).unwrap();
            assert_eq!(results[0].passed, passes, "{value}");
        }
    }

    #[test]
    fn a_failed_gate_says_bound_and_figure() {
        let gates = Gates { max_size: Some("1Ki".into()), ..Gates::default() };
        let measured = Measured { size: 2048, judgement: None, latency: None };
        let line = failures(&check(&gates, &measured).unwrap()).unwrap();
        assert_eq!(line, "gate maxSize is 1Ki, measured 2048 bytes (2.0 kB)");
    }

    #[test]
    fn outputs_that_are_not_finite_fail_without_any_bound() {
        let mut judged = judgement(1.0, 1.0);
        judged.broken = 2;
        let measured = Measured { size: 1, judgement: Some(&judged), latency: None };
        assert!(failures(&check(&Gates::default(), &measured).unwrap()).is_some());
    }
}
