//! Compares two models' latency in turns, so that whatever else the machine does slows both alike.

use std::time::{Duration, Instant};

use lithe::artifact::LatencyReport;

use crate::compress::data::Samples;
use crate::compress::statistics;
use crate::onnx::Refusal;
use crate::runtime::Session;
use crate::tensor::Tensor;

/// The least pairs when the recipe does not say: the interval of a median needs some.
const FEWEST: u32 = 30;
/// The most pairs when the recipe does not say.
const MOST: u32 = 300;
/// How long pairs are measured when the recipe does not say. Whether a gate holds does not matter for
/// it: who stops when the figure pleases measures luck.
const PATIENCE: Duration = Duration::from_secs(2);
/// Inferences of each model before it counts: the first ones allocate.
const WARM_UP: usize = 3;

/// How much is measured, and how sure the intervals are.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pairs; `None` for as many as fit into [`PATIENCE`].
    pub pairs: Option<u32>,
    /// The confidence of the intervals.
    pub confidence: f64,
}

impl Effort {
    fn enough(&self, pairs: u32, elapsed: Duration) -> bool {
        match self.pairs {
            Some(wanted) => pairs >= wanted,
            None => pairs >= MOST || (pairs >= FEWEST && elapsed > PATIENCE),
        }
    }
}

/// Times `original` and `compressed` on the same samples, in pairs.
///
/// Which one goes first alternates. The speed-up is the median of the pairs' ratios, its interval that
/// of the sign test.
///
/// # Errors
/// What is wrong with the samples, or the runtime's words.
pub fn measure(
    original: &Session,
    compressed: &Session,
    samples: &Samples,
    effort: Effort,
) -> Result<LatencyReport, Refusal> {
    let invalid = |error: &dyn std::fmt::Display| {
        Refusal::new(lithe::names::reason::DATA_INVALID, error.to_string())
    };
    let batch = samples.batch(1);
    let batches = samples.count() / batch.max(1);
    let time = |session: &Session, pair: usize| {
        let inputs = samples.inputs(pair % batches.max(1) * batch, batch);
        let inputs = inputs.map_err(|error| invalid(&error))?;
        let inputs: Vec<(&str, &Tensor)> =
            inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let start = Instant::now();
        session.run(&inputs, &[]).map_err(|error| invalid(&error))?;
        Ok::<f64, Refusal>(start.elapsed().as_secs_f64())
    };
    for pair in 0..WARM_UP {
        time(original, pair)?;
        time(compressed, pair)?;
    }
    let (mut before, mut after, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let (start, mut pairs) = (Instant::now(), 0);
    while !effort.enough(pairs, start.elapsed()) {
        let sample = pairs as usize;
        let (first, second) = if sample.is_multiple_of(2) {
            let first = time(original, sample)?;
            (first, time(compressed, sample)?)
        } else {
            let second = time(compressed, sample)?;
            (time(original, sample)?, second)
        };
        before.push(first);
        after.push(second);
        ratios.push(first / second.max(1e-9));
        pairs += 1;
    }
    // `median` leaves them sorted, as the intervals want them.
    Ok(LatencyReport {
        original_seconds: median(&mut before),
        compressed_seconds: median(&mut after),
        speedup: median(&mut ratios),
        pairs: u64::from(pairs),
        batch_size: batch as u64,
        interval: statistics::median(&ratios, effort.confidence),
        compressed_interval: statistics::median(&after, effort.confidence),
    })
}

/// The middle value, or the mean of the two middle ones; 0 of nothing.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    if values.len() % 2 == 1 {
        at(middle)
    } else {
        (at(middle.saturating_sub(1)) + at(middle)) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_end_by_number_or_by_time_never_by_result() {
        let free = Effort { pairs: None, confidence: 0.95 };
        let rows = [(29, 9, false), (30, 1, false), (30, 3, true), (299, 1, false), (300, 1, true)];
        for (pairs, seconds, wanted) in rows {
            assert_eq!(free.enough(pairs, Duration::from_secs(seconds)), wanted, "{pairs}");
        }
        let asked = Effort { pairs: Some(3), ..free };
        assert!(!asked.enough(2, Duration::from_secs(99)) && asked.enough(3, Duration::ZERO));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }
}
