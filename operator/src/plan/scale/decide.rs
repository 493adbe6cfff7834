//! The decision: from what is known now to a number of pods.

use std::time::Duration;

use super::explain::{Explanation, Figures, Reason, digits, pods, time};
use super::ingest::{Now, WINDOW, ingest};
use super::state::State;
use super::{Decision, Observation, Routing, Spec, demand, feedback, slow};

/// Seconds between an order and the beginning of a start: a look, a scheduler, a kubelet.
const ORDER: f64 = 4.0;
/// Scaling down needs this share of ready pods to be known.
const KNOWN: f64 = 0.8;
/// The least time that a need must have been over.
const HOLD: f64 = 60.0;

/// Decides how many pods there should be. `now` counts from any fixed moment of a clock that never
/// goes back; call it every two seconds or so.
pub fn decide(
    spec: &Spec,
    mut state: State,
    seen: &Observation,
    now: Duration,
) -> (Decision, State, Explanation) {
    let now = now.as_secs_f64();
    let seconds = (now - state.looked).clamp(0.0, WINDOW);
    let current = ingest(&mut state, spec, seen, now);
    let mut told = Explanation::default();
    figures(&state, spec, &current, &mut told.figures);
    let wanted = match load(&mut state, spec, &current, now) {
        Some(load) => {
            state.blind = None;
            staff(
                &mut state,
                spec,
                seen,
                &Look { current: &current, load, now, seconds, ordered: seen.replicas },
                &mut told,
            )
        }
        None if current.answered => first(seen, &mut told),
        None => blind(&mut state, seen, now, &mut told),
    };
    let mut decision = Decision { replicas: bounds(spec, wanted, &mut told), replace: None };
    if let Some((id, times)) = slow::slow(&state, seen, now) {
        told.sentences.push(format!(
            "Pod {id} takes {times:.1} times as long for its batches as the one in the middle; it is replaced."
        ));
        state.replaced = now;
        decision.replace = Some(id);
    }
    state.looked = now;
    (decision, state, told)
}

/// What a decision looks at.
struct Look<'a> {
    current: &'a Now,
    load: demand::Load,
    now: f64,
    seconds: f64,
    ordered: u32,
}

/// The load, from the gateways or the pods, whichever counted more; none while nobody answers.
fn load(state: &mut State, spec: &Spec, current: &Now, now: f64) -> Option<demand::Load> {
    if !current.answered && (current.ready > 0 || spec.routing == Routing::Direct) {
        return None;
    }
    let at_pods = demand::load(&state.at_pods, now);
    let at_gateways = demand::load(&state.at_gateways, now);
    match (at_pods, at_gateways) {
        (Some(pods), Some(gateways)) if gateways.long >= pods.long => Some(gateways),
        (None, Some(gateways)) => Some(gateways),
        // Without a ready pod and without a gateway there is nobody to ask.
        (pods, _) => pods.or_else(|| (current.ready == 0).then(demand::Load::default)),
    }
}

fn figures(state: &State, spec: &Spec, current: &Now, figures: &mut Figures) {
    let mut latency = lithe::latency::Histogram::new(Some(spec.target));
    let (mut ended, mut missed) = (0, 0);
    for recent in &state.recent {
        latency.merge(&recent.latency);
        ended += recent.ended;
        missed += recent.missed;
    }
    let quantile = |q| latency.quantile(q).map(|quantile| quantile.value);
    figures.latency = quantile(0.5)
        .zip(quantile(0.95))
        .zip(quantile(0.99))
        .map(|((p50, p95), p99)| [p50, p95, p99]);
    figures.missed = missed as f64 / ended.max(1) as f64;
    figures.curve = state.model.capacity.model().curve;
    figures.correction = state.model.correction;
    figures.start = state.model.start(spec);
    (figures.ready, figures.known) = (current.ready, current.known);
}

/// Counters were read once: a load shows from the second time on.
fn first(seen: &Observation, told: &mut Explanation) -> u32 {
    told.reason = Reason::Held;
    told.sentences.push(format!(
        "The first figures are in; load shows from the second on, and the number stays at {} until then.",
        seen.replicas
    ));
    seen.replicas
}

/// Nobody answers: the number stays as it is.
fn blind(state: &mut State, seen: &Observation, now: f64, told: &mut Explanation) -> u32 {
    let since = *state.blind.get_or_insert(now);
    told.reason = Reason::MetricsUnavailable;
    let ready = seen.pods.iter().filter(|pod| pod.ready).count();
    told.sentences.push(format!(
        "None of {} ready pods answers on its admin port for {}; the number stays at {}.",
        ready,
        time(now - since),
        seen.replicas,
    ));
    seen.replicas
}

/// How many pods the load needs, held.
fn staff(
    state: &mut State,
    spec: &Spec,
    seen: &Observation,
    look: &Look<'_>,
    told: &mut Explanation,
) -> u32 {
    let plan = plan(state, spec, look, &mut told.figures);
    let figures = told.figures;
    told.sentences.push(format!(
        "{} requests/s come, {} are provided for (margin {:.2}); a pod takes {} within {}: {} needed.",
        digits(figures.rate),
        digits(figures.planned),
        figures.margin,
        digits(figures.per_pod),
        time(spec.target),
        pods(plan),
    ));
    let hold = spec.hold.map_or(HOLD.max(figures.start), |hold| hold.as_secs_f64());
    let pressed = look.now < state.pressed;
    state.needed.push_back((look.now, plan));
    state.needed.retain(|(when, _)| *when >= look.now - hold);
    let mut wanted = state.needed.iter().map(|(_, count)| *count).max().unwrap_or(plan);
    let known = f64::from(look.current.known) >= KNOWN * f64::from(look.current.ready);
    let young = look.now - state.began < hold;
    if wanted < seen.replicas {
        let why = match (pressed, known, young) {
            _ if spec.frozen => Some("a rollout is under way"),
            (true, _, _) => Some("requests wait too long"),
            (_, false, _) => Some("too few pods answer"),
            (_, _, true) => Some("the load was not seen for long enough"),
            _ => None,
        };
        if let Some(why) = why {
            wanted = seen.replicas;
            told.reason = Reason::Held;
            told.sentences.push(format!("No pod goes: {why}."));
        }
    } else if plan < wanted && wanted == seen.replicas {
        told.reason = Reason::Held;
        told.sentences.push(format!("{} stay for {}.", pods(wanted), time(hold)));
    }
    wanted = zero(state, spec, look, wanted, told);
    limits(state, spec, look, plan, wanted, told)
}

/// Pods that the load needs now.
fn plan(state: &mut State, spec: &Spec, look: &Look<'_>, figures: &mut Figures) -> u32 {
    let (now, load, current) = (look.now, look.load, look.current);
    let horizon = figures.start + ORDER;
    let level = load.level();
    let series =
        if state.at_gateways.span(30.0) > 0.0 { &state.at_gateways } else { &state.at_pods };
    let forecast = demand::forecast(level, demand::trend(series, now, horizon), horizon);
    state.margin.judge(now, load.short, forecast, horizon);
    let margin = state.margin.factor();
    let correction = state.model.correction;
    let ready = current.ready.max(1);
    let capacity = state.model.capacity.of(ready) / correction;
    // More than can be in pods that keep the target (Little's law): it must be worked off as well.
    let excess = (current.inside - capacity * spec.target).max(0.0);
    let mut planned = margin * forecast + excess / (0.5 * figures.start).max(30.0);
    let sudden = load.quick > 1.15 * capacity
        && load.quick > load.long + 3.0 * (load.long.max(1.0) / 4.0).sqrt();
    if sudden || excess > 0.5 * capacity * spec.target || current.oldest > spec.target {
        state.pressed = now + figures.start.max(30.0);
    }
    if now < state.pressed {
        planned = planned.max(load.quick).max(load.short);
    }
    feedback::learn(state, spec, look.seconds, excess, now);
    let recent = state.recent.back();
    let (missed, ended) = recent.map_or((0, 0), |recent| (recent.missed, recent.ended));
    state.budget.spend(missed, ended, look.seconds, 1.0 - spec.share);
    state.budget.remember(now, load.short);
    let most = spec.max.saturating_mul(8).max(64);
    let correction = state.model.correction;
    let needed = state.model.capacity.need(planned * correction, most);
    figures.floor = state.model.capacity.need(state.budget.floor() * correction, most);
    figures.rate = load.long;
    figures.forecast = forecast;
    figures.planned = planned;
    figures.margin = margin;
    figures.correction = correction;
    figures.needed = needed.max(figures.floor);
    figures.per_pod = state.model.capacity.per_pod(figures.needed.max(1)) / correction;
    figures.missed_long = state.budget.used();
    figures.needed
}

/// To zero when nothing has come for long and somebody holds what comes; from zero at once.
fn zero(state: &State, spec: &Spec, look: &Look<'_>, wanted: u32, told: &mut Explanation) -> u32 {
    let allowed = spec.min == 0 && spec.routing == Routing::Pooled;
    let idle = look.now - state.busy;
    let wait = spec.idle.as_secs_f64();
    if allowed
        && idle >= wait
        && look.current.inside == 0.0
        && !spec.frozen
        && look.current.answered
    {
        told.reason = Reason::Idle;
        told.sentences = vec![format!("No request came for {}: no pod.", time(idle))];
        return 0;
    }
    // Asleep, it is woken by a request and by nothing else: not by a young memory, nor by figures
    // of a rollout.
    let waits = look.current.held > 0 || look.current.inside > 0.0 || look.load.quick > 0.0;
    if spec.min == 0 && look.ordered == 0 && !waits {
        told.reason = Reason::Idle;
        told.sentences = vec!["No request came: no pod.".into()];
        return 0;
    }
    if look.current.held > 0 && look.current.ready == 0 {
        told.sentences.push(format!("{} requests are held for the first pod.", look.current.held));
    }
    wanted.max(1)
}

/// What more pods could not mend.
fn limits(
    state: &State,
    spec: &Spec,
    look: &Look<'_>,
    plan: u32,
    wanted: u32,
    told: &mut Explanation,
) -> u32 {
    let mut wanted = wanted;
    let curve = told.figures.curve;
    if let Some(bound) = state.gain.bound(look.now).filter(|bound| wanted > *bound) {
        wanted = bound;
        told.reason = Reason::NoGain;
        let (few, answers) = state.gain.before().unwrap_or_default();
        told.sentences.insert(0, format!(
            "{} gave no more answers than {} ({}/s): what they share is the bottleneck; no more are ordered for now.",
            pods(bound), pods(few), digits(answers),
        ));
    } else if plan > spec.max {
        told.reason = Reason::Saturated;
        told.sentences
            .insert(0, format!("{} are needed, maxReplicas is {}.", pods(plan), spec.max));
    } else if let Some(words) = &look.current.unschedulable {
        told.reason = Reason::CapacityBlocked;
        told.sentences.insert(0, format!("A pod cannot be placed: {words}."));
    }
    if state.model.capacity.model().infeasible() {
        told.reason = Reason::TargetInfeasible;
        told.sentences.insert(0, format!(
            "Target {}, one inference takes {} alone: no number of pods meets it; pods are kept below 70 % of what they can do.",
            time(spec.target), time(curve.seconds(1.0)),
        ));
    }
    wanted
}

fn bounds(spec: &Spec, wanted: u32, told: &mut Explanation) -> u32 {
    let most = spec.max.max(1);
    let least = if spec.routing == Routing::Direct { spec.min.max(1) } else { spec.min };
    let bounded = wanted.clamp(least.min(most), most);
    if bounded > wanted && told.reason != Reason::Idle {
        told.sentences.push(format!("minReplicas is {}.", spec.min));
    }
    bounded
}

#[cfg(test)]
mod tests {
    use lithe::latency::Signals;

    use super::*;

    fn spec(frozen: bool) -> Spec {
        Spec {
            min: 0,
            max: 4,
            target: 0.1,
            share: 0.95,
            hold: None,
            idle: Duration::from_secs(5),
            routing: Routing::Pooled,
            revision: "a".into(),
            prior: None,
            batch: 1,
            streams: 1,
            start: Duration::from_secs(3),
            frozen,
        }
    }

    #[test]
    fn what_sleeps_is_woken_by_a_request_and_by_nothing_else() {
        for frozen in [false, true] {
            let spec = spec(frozen);
            let mut state = State::new(&spec, Duration::ZERO, None);
            let mut seen = Observation {
                gateways: vec![Signals { boot: "g".into(), ready: true, ..Default::default() }],
                ..Default::default()
            };
            for second in (0..120).step_by(2) {
                let (decision, next, told) =
                    decide(&spec, state, &seen, Duration::from_secs(second));
                assert_eq!((decision.replicas, told.reason), (0, Reason::Idle), "at {second} s");
                state = next;
            }
            let gateway = seen.gateways.first_mut().unwrap();
            (gateway.queued, gateway.in_flight, gateway.counters.arrivals) = (1, 1, 1);
            let (decision, _, told) = decide(&spec, state, &seen, Duration::from_secs(121));
            assert_eq!(decision.replicas, 1, "{told}");
        }
    }
}
