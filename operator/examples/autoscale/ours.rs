//! Lithe's own decision, as the operator runs it: every two seconds, from the pods' answers.

use std::time::Duration;

use lithe_operator::plan::scale::{self, Curve, Observation, Routing, Spec, State, decide};

use crate::chance::Chance;
use crate::pods::{Controller, Pod, Profile, SHARE, Second};
use crate::twin::MOST;

/// Seconds between two looks.
const LOOK: u64 = 2;

/// The operator's decision in a run.
pub struct Lithe {
    spec: Spec,
    state: Option<State>,
    lost: f64,
    chance: Chance,
    slow: Option<u64>,
}

impl Lithe {
    /// For a profile whose curve the compression Job measured exactly.
    pub fn new(profile: &Profile) -> Self {
        let curve = Curve {
            alpha: profile.alpha,
            beta: profile.beta,
            scatter: profile.scatter * profile.scatter,
        };
        let spec = Spec {
            min: 1,
            max: MOST,
            target: profile.target,
            share: SHARE,
            hold: None,
            idle: Duration::from_secs(300),
            routing: Routing::Pooled,
            revision: "simulated".into(),
            prior: Some(curve),
            batch: profile.batch as u32,
            streams: 1,
            start: Duration::from_secs_f64(profile.cold),
            frozen: false,
        };
        Self { spec, state: None, lost: 0.0, chance: Chance::new(3), slow: None }
    }

    /// The same, but the curve was measured this many times too fast or too slow.
    pub fn with_prior(profile: &Profile, factor: f64) -> Self {
        let mut lithe = Self::new(profile);
        if let Some(prior) = &mut lithe.spec.prior {
            prior.alpha *= factor;
            prior.beta *= factor;
        }
        lithe
    }

    /// The same, but requests go straight to the pods, and it knows.
    pub fn direct(profile: &Profile) -> Self {
        let mut lithe = Self::new(profile);
        lithe.spec.routing = Routing::Direct;
        lithe
    }

    /// The same, but this share of answers never comes.
    pub fn with_losses(profile: &Profile, share: f64) -> Self {
        Self { lost: share, ..Self::new(profile) }
    }

    fn observe(&mut self, pods: &[Pod], now: f64, replicas: u32) -> Observation {
        let stays = pods.iter().filter(|pod| !pod.leaving);
        let pods = stays.map(|pod| {
            let lost = self.lost > 0.0 && self.chance.unit() < self.lost;
            scale::Pod {
                id: pod.id.to_string(),
                ready: pod.ready,
                // The first ones were there before.
                started: (pod.ready && pod.created > 0.0).then_some(pod.ready_at - pod.created),
                unschedulable: None,
                signals: (pod.ready && !lost).then(|| pod.answer(now)),
            }
        });
        Observation { replicas, pods: pods.collect(), gateways: Vec::new() }
    }
}

impl Controller for Lithe {
    fn step(&mut self, second: &Second, pods: &[Pod], ordered: u32) -> Option<u32> {
        if !(second.end as u64).is_multiple_of(LOOK) {
            return None;
        }
        let now = Duration::from_secs_f64(second.end);
        let seen = self.observe(pods, second.end, ordered);
        let state =
            self.state.take().unwrap_or_else(|| State::new(&self.spec, Duration::ZERO, None));
        let (decision, state, _) = decide(&self.spec, state, &seen, now);
        self.state = Some(state);
        self.slow = decision.replace.and_then(|id| id.parse().ok());
        Some(decision.replicas)
    }

    fn reads_signals(&self) -> bool {
        true
    }

    fn replace(&mut self) -> Option<u64> {
        self.slow.take()
    }
}
