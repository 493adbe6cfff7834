//! A pod that takes far longer for the same batches than the others: it is replaced.

use super::Observation;
use super::state::State;

/// So many times what the curve says, over what it is for the pod in the middle.
const SLOW: f64 = 1.5;
/// Batches of the last half minute that must be known of a pod.
const ENOUGH: f64 = 20.0;
/// Pods that must be known, so that there is a middle and enough remain.
const FEWEST: usize = 3;
/// At most one in so many seconds.
const PAUSE: f64 = 60.0;

/// The slowest pod and how many times slower than the middle it is, if it is slow enough.
pub(super) fn slow(state: &State, seen: &Observation, now: f64) -> Option<(String, f64)> {
    if now - state.replaced < PAUSE {
        return None;
    }
    let curve = state.model.capacity.model().curve;
    let mut ratios: Vec<(f64, &str)> = seen
        .pods
        .iter()
        .filter(|pod| pod.ready)
        .filter_map(|pod| Some((state.pods.get(&pod.id)?.batches, pod.id.as_str())))
        .filter(|(batches, _)| batches.n >= ENOUGH)
        .map(|(seen, id)| (seen.s / (curve.alpha * seen.n + curve.beta * seen.b).max(1e-9), id))
        .collect();
    if ratios.len() < FEWEST {
        return None;
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (middle, _) = *ratios.get(ratios.len() / 2)?;
    let (worst, id) = *ratios.last()?;
    (worst > SLOW * middle).then(|| (id.to_owned(), worst / middle))
}
