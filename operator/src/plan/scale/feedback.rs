//! The loop that makes up for what the model does not know, in the space of load: pods behave as if
//! they were so many times as loaded. Latency is not linear in load; load is.
//!
//! It moves on evidence at the target only: missed although the model says there is room, or met
//! with ease although the model says there is none.

use lithe::latency::Histogram;

use super::Spec;
use super::capacity::SAFETY;
use super::ingest::WINDOW;
use super::state::State;

/// Requests in the window that make evidence.
const ENOUGH: u64 = 200;
/// The part of the way that is gone at each look of two seconds.
const PACE: f64 = 0.08;
/// What was learnt is forgotten in this many seconds, so that it is tested again.
const FORGET: f64 = 7200.0;

/// Learns from the last half minute. `excess` requests are more than pods in good order hold.
pub(super) fn learn(state: &mut State, spec: &Spec, seconds: f64, excess: f64, now: f64) {
    let looks = seconds / 2.0;
    state.model.correction += (1.0 - state.model.correction) * (seconds / FORGET);
    let (pods, since) = state.steady;
    if pods == 0 || now - since < WINDOW {
        return;
    }
    let (mut ended, mut missed, mut completed) = (0, 0, 0);
    let mut latency = Histogram::new(Some(spec.target));
    for recent in &state.recent {
        ended += recent.ended;
        missed += recent.missed;
        completed += recent.completed;
        latency.merge(&recent.latency);
    }
    let allowed = 1.0 - spec.share;
    let missing = missed as f64 / ended.max(1) as f64;
    if missing > 6.0 * allowed {
        state.gain.overloaded(now, pods, completed as f64 / WINDOW);
    }
    // What pods are loaded with is what they themselves counted.
    let tens = [0.0, 10.0, 20.0].map(|ago| state.at_pods.between(now - ago - 10.0, now - ago));
    let [Some(a), Some(b), Some(c)] = tens else { return };
    let (mean, most) = ((a + b + c) / 3.0, a.max(b).max(c));
    // A load that moves, or a backlog, says nothing about what pods can take.
    if ended < ENOUGH || most > 1.15 * mean || excess > 0.0 {
        return;
    }
    let capacity = state.model.capacity.per_pod(pods);
    let load = most / f64::from(pods);
    let correction = &mut state.model.correction;
    let slow = latency.above(SAFETY * 0.8 * spec.target) / ended as f64;
    let step = |pace: f64| 1.0 - (1.0 - pace).powf(looks);
    if missing > allowed && load < capacity / *correction {
        *correction += step(PACE) * ((capacity / load).min(2.5) - *correction);
    } else if slow < allowed && missing < 0.2 * allowed && load > 0.97 * capacity / *correction {
        *correction += step(0.3 * PACE) * ((capacity / load).max(0.8) - *correction);
    }
}
