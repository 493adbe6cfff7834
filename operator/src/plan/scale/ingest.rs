//! From cumulative answers to what happened since the last look: arrivals by the second, batches,
//! misses, starts of pods. A pod that does not answer is unknown, never idle.

use lithe::latency::{Counters, Histogram};

use super::capacity::{Curve, Model};
use super::state::{Learnt, Recent, Seen, State};
use super::{Observation, Spec};

/// Looks without an answer, after which a pod is unknown.
const PATIENCE: u32 = 3;
/// Batches are forgotten at this rate per second: half in six minutes.
const FORGET: f64 = 0.002;
/// Those of a single pod: half in twenty seconds.
const FORGET_POD: f64 = 1.0 / 30.0;
/// Starts of pods that are kept.
const STARTS: usize = 20;
/// How far back misses and percentiles look.
pub(super) const WINDOW: f64 = 30.0;

/// What is the case now.
#[derive(Clone, Debug, Default)]
pub(super) struct Now {
    /// Pods that are ready.
    pub ready: u32,
    /// Of those, pods that are known.
    pub known: u32,
    /// Whether anybody answered at this look.
    pub answered: bool,
    /// Requests in pods and gateways.
    pub inside: f64,
    /// Requests that wait in the gateway for a pod.
    pub held: u64,
    /// How long the oldest request waits, in seconds.
    pub oldest: f64,
    /// The scheduler's words about a pod that it cannot place.
    pub unschedulable: Option<String>,
    /// Requests that came since the last look.
    pub came: u64,
}

/// Takes an observation in.
pub(super) fn ingest(state: &mut State, spec: &Spec, seen: &Observation, now: f64) -> Now {
    let mut answer = Now {
        unschedulable: seen.pods.iter().find_map(|pod| pod.unschedulable.clone()),
        ..Now::default()
    };
    adopt(state, spec, seen);
    state.pods.retain(|id, _| seen.pods.iter().any(|pod| pod.id == *id));
    let mut ended = Recent {
        at: now,
        ended: 0,
        missed: 0,
        refused: 0,
        completed: 0,
        latency: Histogram::new(Some(spec.target)),
    };
    from_pods(state, seen, now, &mut answer, &mut ended);
    from_gateways(state, seen, now, &mut answer, &mut ended);
    state.recent.push_back(ended);
    state.recent.retain(|recent| recent.at > now - WINDOW);
    learn_curve(state, spec);
    if answer.came > 0 || answer.inside > 0.0 {
        state.busy = now;
    }
    if state.steady.0 != answer.ready {
        state.steady = (answer.ready, now);
    }
    answer
}

/// Another artifact, target, or shape of pods: the model is made anew, what is known of traffic stays.
fn adopt(state: &mut State, spec: &Spec, seen: &Observation) {
    if state.revision != spec.revision {
        state.revision.clone_from(&spec.revision);
        state.model = Learnt::new(spec, None);
    }
    let answers = || seen.pods.iter().filter_map(|pod| pod.signals.as_ref());
    let told = |get: fn(&lithe::latency::Signals) -> u32, otherwise: u32| {
        let most = answers().filter(|signals| signals.ready).map(get).max();
        most.filter(|count| *count > 0).unwrap_or(otherwise)
    };
    let before = *state.model.capacity.model();
    let model = Model {
        curve: before.curve,
        batch: told(|signals| signals.max_batch, spec.batch).clamp(1, 1 << 16),
        streams: told(|signals| signals.streams, spec.streams).clamp(1, 1 << 10),
        target: spec.target,
        share: spec.share,
        routing: spec.routing,
    };
    if model != before {
        state.model.capacity = super::capacity::Capacity::new(model);
    }
}

fn from_pods(
    state: &mut State,
    seen: &Observation,
    now: f64,
    answer: &mut Now,
    ended: &mut Recent,
) {
    let before = state.looked;
    let fade = (-(now - before) * FORGET).exp();
    state.model.batches = state.model.batches.scaled(fade);
    let fresh = state.began == before;
    for pod in &seen.pods {
        let known = state.pods.contains_key(&pod.id);
        let entry = state
            .pods
            .entry(pod.id.clone())
            .or_insert_with(|| Seen { since: if fresh { now } else { before }, ..Seen::default() });
        if let Some(seconds) = pod.started.filter(|_| !entry.start_counted) {
            entry.start_counted = true;
            if seconds.is_finite() && seconds >= 0.0 {
                state.model.starts.push_back(seconds);
                if state.model.starts.len() > STARTS {
                    state.model.starts.pop_front();
                }
            }
        }
        entry.missed = if pod.signals.is_some() { 0 } else { entry.missed.saturating_add(1) };
        if pod.ready {
            answer.ready += 1;
            answer.known += u32::from(entry.missed < PATIENCE);
        }
        let Some(signals) = &pod.signals else { continue };
        answer.answered = true;
        answer.inside += signals.in_flight as f64;
        answer.oldest = answer.oldest.max(signals.oldest_queued);
        let (counters, since) = match &entry.answer {
            Some((last, at)) => (signals.since(last).counters, *at),
            // It came since the memory began: everything it counted is new.
            None if known || !fresh => (signals.counters.clone(), entry.since),
            // What it counted before the memory began is nobody's.
            None => (Counters::default(), entry.since),
        };
        if since < now {
            state.at_pods.add(counters.arrivals, since, now);
        }
        count(ended, &counters);
        answer.came += counters.arrivals;
        entry.batches = entry.batches.scaled((-(now - before) * FORGET_POD).exp());
        entry.batches.add(&counters.batches, 1.0);
        state.model.batches.add(&counters.batches, 1.0);
        entry.answer = Some((signals.clone(), now));
    }
    state.at_pods.expect(answer.ready, before, now);
    let unknown = f64::from(answer.ready) / f64::from(answer.known.max(1));
    if answer.known > 0 {
        answer.inside *= unknown.max(1.0);
    }
}

fn from_gateways(
    state: &mut State,
    seen: &Observation,
    now: f64,
    answer: &mut Now,
    ended: &mut Recent,
) {
    let before = state.looked;
    state.gateways.retain(|_, (_, at)| *at > now - 60.0);
    for signals in &seen.gateways {
        answer.held += signals.queued;
        answer.oldest = answer.oldest.max(signals.oldest_queued);
        let last = state.gateways.insert(signals.boot.clone(), (signals.clone(), now));
        let Some((last, at)) = last.filter(|(_, at)| *at < now) else { continue };
        let grown = signals.since(&last).counters;
        state.at_gateways.add(grown.arrivals, at, now);
        answer.came += grown.arrivals;
        if !answer.answered {
            count(ended, &grown);
        }
    }
    state.at_gateways.expect(state.gateways.len() as u32, before, now);
    answer.answered |= !seen.gateways.is_empty();
    answer.inside += answer.held as f64;
}

fn count(ended: &mut Recent, counters: &Counters) {
    let refused = counters.refused.total();
    ended.ended += counters.completions + counters.failures + refused;
    ended.completed += counters.completions;
    ended.refused += refused;
    // A refusal is a miss, whatever the pod thinks of it.
    ended.missed += counters.missed.max(refused);
    ended.latency.merge(&counters.latency);
}

fn learn_curve(state: &mut State, spec: &Spec) {
    let model = *state.model.capacity.model();
    let prior = spec.prior.filter(Curve::sound).unwrap_or(state.model.curve);
    let Some(curve) = Curve::fit(&state.model.batches, &prior, model.batch) else { return };
    state.model.curve = curve;
    if model.curve.differs(&curve, model.batch) {
        let model = Model { curve, ..model };
        state.model.capacity = super::capacity::Capacity::new(model);
    }
}
