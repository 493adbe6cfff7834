//! From what was observed and answered to what `plan/scale.rs` decides on. Pure.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use lithe::latency::Signals;
use lithe::names::reason;

use crate::observe::Observed;
use crate::plan::rollout::progress;
use crate::plan::scale::{Observation, Pod as Seen, Routing, Spec};
use crate::plan::scaling::served_before;
use crate::plan::{failure, traffic};
use crate::report::cold_start;

/// How long no request may have come before the last pod goes.
const IDLE: Duration = Duration::from_secs(300);
/// How long a pod takes to start, until one was seen: an image to pull, a model to fetch and load.
const START: Duration = Duration::from_secs(30);

/// What was answered in one round.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    /// By the UID of the pod that answered.
    pub pods: HashMap<String, Signals>,
    /// Of each gateway pod that answered: by the UID of the model.
    pub gateways: Vec<HashMap<String, Signals>>,
}

/// What the user declared, as the decision reads it; nothing without a latency target.
pub fn spec(observed: &Observed) -> Option<Spec> {
    let model = observed.model.as_ref();
    let scaling = &model.spec.scaling;
    let latency = scaling.latency.as_ref()?;
    let time = |text: &Option<lithe::units::Duration>| text.as_ref().and_then(|t| t.parse().ok());
    let status = model.status.as_ref();
    let artifact = status.and_then(|status| status.artifact.as_ref());
    let start = status.and_then(|status| status.cold_start.as_ref());
    let start = start.and_then(|start| lithe::units::Duration::from(&*start.longest).parse().ok());
    let batching = model.spec.runtime.batching.as_ref();
    Some(Spec {
        min: scaling.min_replicas,
        max: scaling.most(),
        target: latency.target.parse().ok()?.as_secs_f64(),
        share: f64::from(latency.percentile) / 100.0,
        hold: time(&scaling.hold_for),
        idle: time(&scaling.idle_after).unwrap_or(IDLE),
        routing: if traffic::leads_to_gateway(observed) {
            Routing::Pooled
        } else {
            Routing::Direct
        },
        revision: artifact.map(|artifact| artifact.digest.to_string()).unwrap_or_default(),
        prior: None,
        batch: batching.map_or(1, |batching| batching.max_batch_size),
        streams: 1,
        start: start.unwrap_or(START),
        frozen: progress(observed).old > 0 || !served_before(observed, artifact),
    })
}

/// What is seen of one model.
pub fn observation(observed: &Observed, answers: &Answers) -> Observation {
    let ordered =
        observed.deployment.as_ref().and_then(|deployment| deployment.spec.as_ref()?.replicas);
    let uid = observed.model.uid().unwrap_or_default();
    let alive = observed.serving.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Observation {
        replicas: ordered.and_then(|replicas| u32::try_from(replicas).ok()).unwrap_or(0),
        pods: alive.map(|pod| seen(pod, observed, answers)).collect(),
        gateways: answers.gateways.iter().filter_map(|all| all.get(&uid).cloned()).collect(),
    }
}

fn seen(pod: &Pod, observed: &Observed, answers: &Answers) -> Seen {
    let id = pod.uid().unwrap_or_default();
    let trouble = failure::of_pod(pod, &observed.hints);
    let placed = [reason::UNSCHEDULABLE, reason::INSUFFICIENT_ACCELERATORS];
    Seen {
        ready: is_ready(pod),
        started: cold_start::start(pod).map(|time| time.as_secs_f64()),
        unschedulable: trouble
            .filter(|trouble| placed.contains(&trouble.reason))
            .map(|trouble| trouble.message),
        signals: answers.pods.get(&id).cloned(),
        id,
    }
}

/// Whether `pod` takes requests.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}
