//! How pods are replaced, and how far the replacement is.

use k8s_openapi::api::apps::v1::Deployment;

use crate::observe::Observed;
use crate::plan::failure;
use lithe::names::reason;

/// How pods are replaced.
///
/// | accelerator | spare one | replicas | opt-in | choice |
/// |---|---|---|---|---|
/// | no | - | - | no | one more first |
/// | yes | yes, as far as known | - | no | one more first |
/// | yes | no | above 1 | no | one less first: the others serve |
/// | yes | no | 1 | no | hold: the only pod is never taken down unasked |
/// | - | - | - | yes | one less first |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surge {
    /// A new pod is ready before an old one goes.
    OneMore,
    /// An old pod goes before a new one comes.
    OneLess {
        /// Whether the user asked for it by `rollout.maxUnavailable: 1`.
        asked: bool,
    },
    /// No accelerator is free and only one pod serves: it goes on serving.
    Hold,
}

/// How pods are replaced now.
pub fn surge(observed: &Observed, replicas: i32) -> Surge {
    let spec = &observed.model.spec;
    if spec.rollout.max_unavailable > 0 {
        return Surge::OneLess { asked: true };
    }
    if spec.placement.accelerator.is_none() {
        return Surge::OneMore;
    }
    let chosen_before = observed.deployment.as_ref().is_some_and(|deployment| one_less(deployment));
    let no_spare = progress(observed).old > 0
        && observed.serving.iter().any(|pod| {
            failure::of_pod(pod, &observed.hints)
                .is_some_and(|failure| failure.reason == reason::INSUFFICIENT_ACCELERATORS)
        });
    match (no_spare || (chosen_before && !progress(observed).done), replicas > 1) {
        (true, true) => Surge::OneLess { asked: false },
        (true, false) => Surge::Hold,
        (false, _) => Surge::OneMore,
    }
}

fn one_less(deployment: &Deployment) -> bool {
    use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
        .and_then(|strategy| strategy.rolling_update.as_ref())
        .is_some_and(|update| update.max_surge == Some(IntOrString::Int(0)))
}

/// How far a rollout is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pods that exist.
    pub replicas: i32,
    /// Pods that are ready.
    pub ready: i32,
    /// Pods of the newest template.
    pub updated: i32,
    /// Pods of older templates.
    pub old: i32,
    /// Pods that are wanted.
    pub wanted: i32,
    /// Whether every wanted pod is of the newest template and ready, and no other is left.
    pub done: bool,
    /// Why the Deployment's own controller could not make pods, in its words (a quota, for example).
    pub refused: Option<String>,
    /// Whether the rollout stood still for longer than `rollout.progressDeadline`.
    pub stuck: bool,
}

/// How far the rollout is, as the Deployment's own controller says.
pub fn progress(observed: &Observed) -> Progress {
    let Some(deployment) = &observed.deployment else { return Progress::default() };
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let Some(status) = &deployment.status else { return Progress { wanted, ..Default::default() } };
    let seen = status.observed_generation >= deployment.metadata.generation;
    let [replicas, ready, updated, available] = [
        status.replicas,
        status.ready_replicas,
        status.updated_replicas,
        status.available_replicas,
    ]
    .map(|count| count.unwrap_or(0));
    let conditions = status.conditions.iter().flatten();
    let find = |kind: &str| conditions.clone().find(|condition| condition.type_ == kind);
    Progress {
        replicas,
        ready,
        updated,
        old: replicas - updated,
        wanted,
        done: seen && wanted > 0 && updated == wanted && available == wanted && replicas == wanted,
        refused: find("ReplicaFailure")
            .filter(|condition| condition.status == "True")
            .and_then(|condition| condition.message.clone()),
        stuck: find("Progressing").is_some_and(|condition| {
            condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
        }),
    }
}
