//! Compares two models' latency in turns, so that whatever else the machine does slows both alike.

use std::time::Instant;

use lithe::artifact::LatencyReport;

use crate::compress::data::Samples;
use crate::runtime::{RuntimeError, Session};
use crate::tensor::Tensor;

/// Pairs when the recipe does not say: the median of 30 ratios moves by some percent between runs.
pub const PAIRS: u32 = 30;
/// Inferences of each model before it counts: the first ones allocate.
const WARM_UP: usize = 3;

/// Times `original` and `compressed` on the same samples, `pairs` times each.
///
/// Which one goes first alternates. The speed-up is the median of the pairs' ratios.
pub fn measure(
    original: &Session,
    compressed: &Session,
    samples: &Samples,
    pairs: u32,
) -> Result<LatencyReport, RuntimeError> {
    let batch = samples.batch(1);
    let batches = samples.count() / batch.max(1);
    let time = |session: &Session, pair: usize| {
        let inputs = samples.inputs(pair % batches.max(1) * batch, batch);
        let inputs: Vec<(&str, &Tensor)> =
            inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let start = Instant::now();
        session.run(&inputs, &[])?;
        Ok::<f64, RuntimeError>(start.elapsed().as_secs_f64())
    };
    for pair in 0..WARM_UP {
        time(original, pair)?;
        time(compressed, pair)?;
    }
    let (mut before, mut after, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..pairs as usize {
        let (first, second) = if pair % 2 == 0 {
            let first = time(original, pair)?;
            (first, time(compressed, pair)?)
        } else {
            let second = time(compressed, pair)?;
            (time(original, pair)?, second)
        };
        before.push(first);
        after.push(second);
        ratios.push(first / second.max(1e-9));
    }
    Ok(LatencyReport {
        original_seconds: median(&mut before),
        compressed_seconds: median(&mut after),
        speedup: median(&mut ratios),
        pairs: u64::from(pairs),
        batch_size: batch as u64,
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
    fn the_median_is_the_middle() {
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&mut []), 0.0);
    }
}
