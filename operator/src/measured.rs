//! What pods and gateways told, and what follows for the number of pods: the memory between two
//! rounds of asking. It must not ask, nor know the clock.
//!
//! What is told of it changes only with something material: a model at rest is not written.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::ResourceExt as _;
use lithe::gateway::Acknowledgement;
use lithe::spec::ModelDeployment;
use lithe::status::{LatencyStatus, Verdict};

use crate::gateways::Acknowledged;
use crate::plan::scale::{self, Decision, Explanation, Observation, decide};
use crate::plan::scaling::Scaled;

/// Latency and words are told anew at most this often, in seconds.
const TELL: f64 = 30.0;
/// By how much a percentile must have moved to be told anew: below it, it is noise.
const MATERIAL: f64 = 0.2;

/// The memory.
#[derive(Default)]
pub struct Measured {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    models: HashMap<String, Entry>,
    acknowledged: Arc<Acknowledged>,
}

struct Entry {
    namespace: String,
    name: String,
    state: scale::State,
    seen: scale::Figures,
    told: Arc<Scaled>,
    told_at: f64,
    took: Duration,
    wanted: u32,
    in_flight: u64,
    queued: u64,
}

/// What became of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// What is told changed.
    Changed,
    /// It did not.
    Same,
    /// Newer ones were there already.
    TooLate,
}

/// The figures of one model for `/metrics`.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// The model's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Pods that are needed.
    pub wanted: u32,
    /// Requests per second over the last half minute.
    pub rate: f64,
    /// Requests that are being answered.
    pub in_flight: u64,
    /// Of them: those that wait.
    pub queued: u64,
    /// (percentile, seconds) over the last half minute; empty without requests.
    pub latency: Vec<(u32, f64)>,
}

impl Measured {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is told of the model with `uid`.
    pub fn scaled(&self, uid: &str) -> Option<Arc<Scaled>> {
        self.inner().models.get(uid).map(|entry| Arc::clone(&entry.told))
    }

    /// What the gateway's pods acknowledged last.
    pub fn acknowledged(&self) -> Arc<Acknowledged> {
        Arc::clone(&self.inner().acknowledged)
    }

    /// Takes in what gateway pods answered. One that did not answer keeps its last word, as long as
    /// it is one of `present`.
    ///
    /// Gives the UIDs of the models for which anything changed.
    pub fn acknowledge(
        &self,
        answers: Vec<(String, Acknowledgement)>,
        present: &HashSet<String>,
    ) -> HashSet<String> {
        let mut inner = self.inner();
        let mut new: Acknowledged = inner.acknowledged.as_ref().clone();
        new.retain(|address, _| present.contains(address));
        new.extend(answers);
        let changed = changes(&inner.acknowledged, &new);
        inner.acknowledged = Arc::new(new);
        changed
    }

    /// Forgets models that are not among `uids`.
    pub fn keep_only(&self, uids: &HashSet<String>) {
        self.inner().models.retain(|uid, _| uids.contains(uid));
    }

    /// Forgets everything: who leads no more must not go on from here later.
    pub fn forget(&self) {
        *self.inner() = Inner::default();
    }

    /// Takes in what was seen of `model` during `when`. What was asked before the last answers were
    /// taken in comes too late: its counters would seem to have gone back.
    pub fn take(
        &self,
        model: &ModelDeployment,
        spec: &scale::Spec,
        observation: &Observation,
        when: Range<Duration>,
    ) -> Taken {
        let mut inner = self.inner();
        let uid = model.uid().unwrap_or_default();
        if inner.models.get(&uid).is_some_and(|known| when.start < known.took) {
            return Taken::TooLate;
        }
        let (old, now) = (inner.models.remove(&uid), when.end);
        let (state, before) = match old {
            Some(entry) => (entry.state, Some((entry.told, entry.told_at))),
            None => (scale::State::new(spec, now, None), None),
        };
        let (decision, state, explanation) = decide(spec, state, observation, now);
        let going = before.as_ref().map(|(told, _)| told.replace.clone()).unwrap_or_default();
        // The decision says it once; it is due until the pod is on its way out.
        let mut replace: Vec<String> = going.into_iter().chain(decision.replace.clone()).collect();
        replace.retain(|id| observation.pods.iter().any(|pod| pod.id == *id));
        replace.dedup();
        let next = next(&decision, &explanation, replace);
        let (told, told_at, changed) = tell(before, next, now.as_secs_f64());
        let sum = |read: fn(&lithe::latency::Signals) -> u64| -> u64 {
            let pods = observation.pods.iter().filter_map(|pod| pod.signals.as_ref());
            let all: Vec<_> = observation.gateways.iter().collect();
            // The gateway counts what its pods count, too.
            if all.is_empty() { pods.map(read).sum() } else { all.into_iter().map(read).sum() }
        };
        let entry = Entry {
            namespace: model.namespace().unwrap_or_default(),
            name: model.name_any(),
            state,
            seen: explanation.figures,
            told,
            told_at,
            took: now,
            wanted: decision.replicas,
            in_flight: sum(|signals| signals.in_flight),
            queued: sum(|signals| signals.queued),
        };
        inner.models.insert(uid, entry);
        if changed { Taken::Changed } else { Taken::Same }
    }

    /// The figures of all models.
    pub fn figures(&self) -> Vec<Figures> {
        let inner = self.inner();
        inner.models.values().map(Entry::figures).collect()
    }
}

impl Entry {
    fn figures(&self) -> Figures {
        Figures {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            wanted: self.wanted,
            rate: self.seen.rate,
            in_flight: self.in_flight,
            queued: self.queued,
            latency: self
                .seen
                .latency
                .map(|seen| [50, 95, 99].into_iter().zip(seen).collect())
                .unwrap_or_default(),
        }
    }
}

/// The models for which a gateway pod applies something else than before.
fn changes(old: &Acknowledged, new: &Acknowledged) -> HashSet<String> {
    let flat = |all: &Acknowledged| -> HashSet<(String, String, u16, u16, bool)> {
        all.iter()
            .flat_map(|(address, answer)| {
                answer.models.iter().map(|applied| {
                    let listens = applied.listening && !answer.draining;
                    let ports = (applied.http_port, applied.grpc_port);
                    (address.clone(), applied.uid.clone(), ports.0, ports.1, listens)
                })
            })
            .collect()
    };
    let (old, new) = (flat(old), flat(new));
    old.symmetric_difference(&new).map(|(_, uid, ..)| uid.clone()).collect()
}

/// What there is to tell.
fn next(decision: &Decision, explanation: &Explanation, replace: Vec<String>) -> Scaled {
    Scaled {
        desired: decision.replicas,
        why: explanation.to_string(),
        verdict: Verdict::new(
            explanation.reason.active(),
            explanation.reason.as_str(),
            explanation.to_string(),
        ),
        latency: explanation.figures.latency.map(latency),
        replace,
    }
}

/// What is told after `new`, since when, and whether it is new.
///
/// | number of pods or pods to replace | reason of the condition, latency by a fifth | told 30 s ago | told anew |
/// |---|---|---|---|
/// | other | - | - | yes |
/// | same | other | yes | yes |
/// | same | other | no | no |
/// | same | same | - | no |
fn tell(before: Option<(Arc<Scaled>, f64)>, new: Scaled, now: f64) -> (Arc<Scaled>, f64, bool) {
    let Some((old, at)) = before else { return (Arc::new(new), now, true) };
    let urgent = old.desired != new.desired || old.replace != new.replace;
    let material = (old.verdict.truth, old.verdict.reason)
        != (new.verdict.truth, new.verdict.reason)
        || moved(old.latency.as_ref(), new.latency.as_ref());
    if urgent || (material && now - at >= TELL) {
        (Arc::new(new), now, true)
    } else {
        (old, at, false)
    }
}

/// The percentiles in words.
fn latency([p50, p95, p99]: [f64; 3]) -> LatencyStatus {
    let [p50, p95, p99] = [p50, p95, p99].map(words);
    LatencyStatus { p50, p95, p99, window: "30s".into() }
}

/// Seconds to three digits, as [`lithe::units::Duration`] reads them: `850us`, `12.3ms`, `1.25s`.
fn words(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "us"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = match value {
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{unit}")
}

/// Whether latency moved by more than noise.
fn moved(old: Option<&LatencyStatus>, new: Option<&LatencyStatus>) -> bool {
    let (old, new) = match (old, new) {
        (None, None) => return false,
        (Some(old), Some(new)) => (old, new),
        _ => return true,
    };
    [(&old.p50, &new.p50), (&old.p95, &new.p95), (&old.p99, &new.p99)].into_iter().any(|(a, b)| {
        let seconds = |text: &str| {
            lithe::units::Duration::from(text).parse().map_or(0.0, |time| time.as_secs_f64())
        };
        let (a, b) = (seconds(a), seconds(b));
        (a - b).abs() > MATERIAL * a.max(b)
    })
}

#[cfg(test)]
mod tests {
    use lithe::status::Truth;

    use super::*;
    use crate::plan::scale::Reason;

    fn explained(reason: Reason, p95: f64) -> Explanation {
        let figures = scale::Figures { latency: Some([0.01, p95, 0.05]), ..Default::default() };
        Explanation { reason, figures, sentences: vec![format!("p95 is {p95}.")] }
    }

    fn decided(replicas: u32) -> Decision {
        Decision { replicas, replace: None }
    }

    #[test]
    fn noise_is_not_told_and_a_step_is_told_at_once() {
        let said = |decision: &Decision, reason, p95| {
            let replace = decision.replace.iter().cloned().collect();
            next(decision, &explained(reason, p95), replace)
        };
        let (told, at, new) = tell(None, said(&decided(2), Reason::Staffed, 0.02), 0.0);
        assert!(new);
        let rows = [
            (decided(2), Reason::Staffed, 0.021, 100.0, false),
            (decided(2), Reason::Staffed, 0.04, 10.0, false),
            (decided(2), Reason::Staffed, 0.04, 31.0, true),
            (decided(2), Reason::Saturated, 0.02, 10.0, false),
            (decided(2), Reason::Saturated, 0.02, 31.0, true),
            (decided(3), Reason::Staffed, 0.02, 1.0, true),
            (Decision { replicas: 2, replace: Some("p".into()) }, Reason::Staffed, 0.02, 1.0, true),
        ];
        for (decision, reason, p95, now, changes) in rows {
            let before = Some((Arc::clone(&told), at));
            let (next, since, new) = tell(before, said(&decision, reason, p95), now);
            assert_eq!(new, changes, "{decision:?} {reason:?} {p95} at {now}");
            assert_eq!(since, if changes { now } else { at });
            assert_eq!(Arc::ptr_eq(&next, &told), !changes);
        }
    }

    #[test]
    fn answers_that_were_overtaken_are_no_news() {
        let model = serde_json::json!({
            "metadata": {"name": "m", "uid": "u"},
            "spec": {"model": {"uri": "pvc://m/a.onnx"}, "scaling": {"latency": {"target": "50ms"}}},
        });
        let model: ModelDeployment = serde_json::from_value(model).unwrap();
        let caches = crate::observe::Caches::default();
        let observed = crate::observe::observe(&caches, Arc::new(model.clone()));
        let spec = crate::plan::observation::spec(&observed).unwrap();
        let measured = Measured::default();
        let take = |from, to| {
            let when = Duration::from_secs(from)..Duration::from_secs(to);
            measured.take(&model, &spec, &Observation::default(), when)
        };
        assert_eq!(take(10, 12), Taken::Changed);
        assert_eq!(take(11, 13), Taken::TooLate);
        assert_eq!(take(12, 13), Taken::Same);
    }

    #[test]
    fn what_is_told_are_the_figures() {
        let told = next(&decided(4), &explained(Reason::Saturated, 1.25), Vec::new());
        assert_eq!(told.verdict.truth, Truth::False);
        assert_eq!(
            (told.verdict.reason, told.verdict.message.as_str()),
            ("Saturated", "p95 is 1.25.")
        );
        let latency = told.latency.clone().unwrap();
        assert_eq!([latency.p50, latency.p95, latency.p99], ["10.0ms", "1.25s", "50.0ms"]);
    }

    #[test]
    fn a_gateway_that_does_not_answer_keeps_its_last_word_until_it_is_gone() {
        let measured = Measured::default();
        let answer = |listening| Acknowledgement {
            draining: false,
            models: vec![lithe::gateway::Applied {
                uid: "u".into(),
                namespace: "n".into(),
                name: "m".into(),
                generation: 1,
                resource_version: "1".into(),
                http_port: 20000,
                grpc_port: 20001,
                listening,
                error: None,
                weights: Vec::new(),
                ready_workers: 0,
            }],
        };
        let both = HashSet::from(["a".to_owned(), "b".to_owned()]);
        let changed = |answers: Vec<(String, Acknowledgement)>, present: &HashSet<String>| {
            !measured.acknowledge(answers, present).is_empty()
        };
        assert!(changed(vec![("a".into(), answer(true)), ("b".into(), answer(false))], &both));
        assert!(!changed(Vec::new(), &both));
        assert!(changed(vec![("b".into(), answer(true))], &both));
        assert!(!changed(vec![("b".into(), answer(true))], &both));
        assert!(changed(Vec::new(), &HashSet::from(["a".to_owned()])));
        assert_eq!(measured.acknowledged().len(), 1);
    }
}
