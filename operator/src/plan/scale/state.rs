//! What is remembered between two looks, and what of it outlives the operator.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lithe::latency::{Histogram, Moments, Signals};
use serde::{Deserialize, Serialize};

use super::Spec;
use super::capacity::{Capacity, Curve, Model};
use super::margin::{Budget, Margin};
use super::series::Series;

/// What is remembered. It lives in memory; after a restart the number of pods is held until it is
/// there again.
#[derive(Clone, Debug)]
pub struct State {
    /// When this memory began.
    pub(super) began: f64,
    /// The last look.
    pub(super) looked: f64,
    /// Since when nobody has answered.
    pub(super) blind: Option<f64>,
    pub(super) revision: String,
    pub(super) pods: BTreeMap<String, Seen>,
    pub(super) gateways: BTreeMap<String, (Signals, f64)>,
    pub(super) at_pods: Series,
    pub(super) at_gateways: Series,
    pub(super) recent: VecDeque<Recent>,
    pub(super) model: Learnt,
    pub(super) margin: Margin,
    pub(super) budget: Budget,
    /// What was needed, over the hold.
    pub(super) needed: VecDeque<(f64, u32)>,
    /// Until when capacity is short.
    pub(super) pressed: f64,
    /// Since when as many pods are ready as now.
    pub(super) steady: (u32, f64),
    /// When a request was last seen.
    pub(super) busy: f64,
    pub(super) gain: super::gain::Gain,
    pub(super) replaced: f64,
}

/// One pod as it was last seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Its last answer, and when.
    pub answer: Option<(Signals, f64)>,
    /// Since when it is known.
    pub since: f64,
    /// Looks without an answer.
    pub missed: u32,
    /// Its batches over the last half minute.
    pub batches: Moments,
    /// Whether its start was counted.
    pub start_counted: bool,
}

/// What ended between two looks.
#[derive(Clone, Debug)]
pub(super) struct Recent {
    pub at: f64,
    pub ended: u64,
    pub missed: u64,
    pub refused: u64,
    pub completed: u64,
    pub latency: Histogram,
}

/// What was learnt of the pods of one revision.
#[derive(Clone, Debug)]
pub(super) struct Learnt {
    pub batches: Moments,
    pub curve: Curve,
    pub capacity: Capacity,
    /// Pods behave as if they were this many times as loaded.
    pub correction: f64,
    /// Seconds from creation to ready, the last ones.
    pub starts: VecDeque<f64>,
}

/// What outlives the operator: small enough for an annotation or the status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// The digest of the artifact that it speaks of.
    pub revision: String,
    /// The batch curve.
    pub curve: Curve,
    /// How loaded pods behave, over how loaded they are.
    pub correction: f64,
    /// Seconds from creation to ready, if a start was seen.
    pub start: Option<f64>,
}

/// Where nothing was measured: a batch takes half the target, whatever its size, so that the first
/// plan is careful and the first measurement corrects it.
fn guess(spec: &Spec) -> Curve {
    Curve { alpha: 0.1 * spec.target, beta: 0.4 * spec.target, scatter: 0.05 }
}

impl Learnt {
    pub fn new(spec: &Spec, memory: Option<&Memory>) -> Self {
        let memory = memory.filter(|memory| memory.revision == spec.revision && memory.sound());
        let prior = spec.prior.filter(Curve::sound).unwrap_or_else(|| guess(spec));
        let curve = memory.map_or(prior, |memory| memory.curve);
        let model = Model {
            curve,
            batch: spec.batch.max(1),
            streams: spec.streams.max(1),
            target: spec.target,
            share: spec.share,
            routing: spec.routing,
        };
        Self {
            batches: Moments::default(),
            curve,
            capacity: Capacity::new(model),
            correction: memory.map_or(1.0, |memory| memory.correction),
            starts: memory.and_then(|memory| memory.start).into_iter().collect(),
        }
    }

    /// The time a start takes: nine of ten of the last ones took no longer.
    pub fn start(&self, spec: &Spec) -> f64 {
        let mut starts: Vec<f64> = self.starts.iter().copied().collect();
        starts.sort_by(f64::total_cmp);
        let at = 0.9 * starts.len().saturating_sub(1) as f64;
        starts.get(at as usize).copied().unwrap_or(spec.start.as_secs_f64())
    }
}

impl Memory {
    fn sound(&self) -> bool {
        self.curve.sound()
            && (0.5..=3.0).contains(&self.correction)
            && self.start.is_none_or(|start| start.is_finite() && start >= 0.0)
    }
}

impl State {
    /// Begins, or begins again after a restart with what was kept.
    pub fn new(spec: &Spec, now: Duration, memory: Option<&Memory>) -> Self {
        let now = now.as_secs_f64();
        Self {
            began: now,
            looked: now,
            blind: None,
            revision: spec.revision.clone(),
            pods: BTreeMap::new(),
            gateways: BTreeMap::new(),
            at_pods: Series::default(),
            at_gateways: Series::default(),
            recent: VecDeque::new(),
            model: Learnt::new(spec, memory),
            margin: Margin::default(),
            budget: Budget::default(),
            needed: VecDeque::new(),
            pressed: f64::NEG_INFINITY,
            steady: (0, now),
            busy: now,
            gain: super::gain::Gain::default(),
            replaced: f64::NEG_INFINITY,
        }
    }

    /// What should be kept over a restart.
    pub fn memory(&self) -> Memory {
        let starts = &self.model.starts;
        Memory {
            revision: self.revision.clone(),
            curve: self.model.curve,
            correction: self.model.correction,
            start: starts.iter().copied().max_by(f64::total_cmp),
        }
    }
}
