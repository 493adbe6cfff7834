//! What the user reads: status from what was observed, planned and written. Pure; it runs after a
//! failed write too, so that errors reach the object.

pub mod cold_start;
pub mod events;
pub mod verdicts;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lithe::Digest;
use lithe::names::{
    ANNOTATION_REQUEST, ANNOTATION_WHY, LABEL_ROLE, LABEL_UID, PORT_GRPC, ROLE_SERVE,
};
use lithe::status::{
    Address, ArtifactStatus, JobStatus, LastScale, LatencyStatus, ModelDeploymentStatus, Phase,
    SourceStatus, TrafficStatus, condition,
};

use crate::apply::Applied;
use crate::objects::{service, uid};
use crate::observe::Observed;
use crate::plan::Plan;
use crate::plan::compress::JobState;
use crate::plan::rollout::{Progress, progress};

/// The status after `applied`.
pub fn report(
    observed: &Observed,
    plan: &Plan,
    applied: &Applied,
    now: &Time,
) -> ModelDeploymentStatus {
    let model = observed.model.as_ref();
    let before = model.status.clone().unwrap_or_default();
    let progress = progress(observed);
    let generation = model.metadata.generation;
    let conditions = verdicts::all(observed, plan, applied, &progress)
        .into_iter()
        .map(|(kind, verdict)| {
            lithe::status::condition(&before.conditions, kind, verdict, generation, now.clone())
        })
        .collect::<Vec<_>>();
    let is = |kind: &str, status: &str| {
        conditions.iter().any(|condition| condition.type_ == kind && condition.status == status)
    };
    let ready = is(condition::READY, "True");
    // While a Job works, Progressing only repeats what holds the Job up.
    let stuck = !applied.failed.is_empty() || (plan.current && is(condition::PROGRESSING, "False"));
    let artifact = artifact(observed, plan, &before, &progress, now);
    ModelDeploymentStatus {
        observed_generation: generation,
        phase: Some(phase(plan, stuck, &progress, ready)),
        conditions,
        source: source(observed, plan, &before),
        history: history(observed, &before, artifact.as_ref()),
        artifact,
        job: job(observed, plan, &before, now),
        address: plan.artifact.as_ref().map(|_| address(observed)),
        replicas: progress.replicas,
        ready_replicas: progress.ready,
        updated_replicas: progress.updated,
        replicas_text: Some(format!("{}/{}", progress.ready, plan.replicas)),
        selector: Some(format!("{LABEL_UID}={},{LABEL_ROLE}={ROLE_SERVE}", uid(model))),
        latency: latency(observed, &before),
        last_scale: last_scale(plan, applied, now).or(before.last_scale),
        cold_start: cold_start::cold_start(observed, before.cold_start),
        traffic: traffic(plan),
        last_failure: plan.failure.clone(),
    }
}

/// Where the deployment stands.
///
/// | ready | refused or failed | serving | Job works | phase |
/// |---|---|---|---|---|
/// | yes | - | - | - | Serving, or Idle without a pod |
/// | no | yes | yes | - | Degraded |
/// | no | yes | no | - | Failed |
/// | no | no | - | yes | Compressing |
/// | no | no | - | no, artifact there | RollingOut |
/// | no | no | - | no, none yet | Pending |
fn phase(plan: &Plan, stuck: bool, progress: &Progress, ready: bool) -> Phase {
    let failed = !plan.refused.is_empty()
        || (!plan.current && matches!(plan.job, JobState::Failed(_)))
        || stuck;
    match (ready, failed) {
        (true, _) if plan.replicas == 0 => Phase::Idle,
        (true, _) => Phase::Serving,
        (_, true) if progress.ready > 0 => Phase::Degraded,
        (_, true) => Phase::Failed,
        _ if plan.current => Phase::RollingOut,
        _ if plan.start.is_none() && plan.job == JobState::Absent => Phase::Pending,
        _ => Phase::Compressing,
    }
}

/// The way of requests; nothing to say of a model that never used the gateway.
fn traffic(plan: &Plan) -> Option<TrafficStatus> {
    let lingers = plan.traffic.uses_gateway() || plan.traffic.through;
    lingers.then(|| plan.traffic.status())
}

/// Latency as it was told last; after a restart the one before goes on until there are figures.
fn latency(observed: &Observed, before: &ModelDeploymentStatus) -> Option<LatencyStatus> {
    match &observed.scaled {
        Some(scaled) => scaled.latency.clone(),
        None => before.latency.clone().filter(|_| observed.model.spec.scaling.latency.is_some()),
    }
}

/// The step that was written now.
fn last_scale(plan: &Plan, applied: &Applied, now: &Time) -> Option<LastScale> {
    let step = plan.step.as_ref().filter(|_| applied.failed.is_empty())?;
    Some(LastScale { time: now.clone(), from: step.from, to: step.to, reason: step.reason.clone() })
}

fn artifact(
    observed: &Observed,
    plan: &Plan,
    before: &ModelDeploymentStatus,
    progress: &Progress,
    now: &Time,
) -> Option<ArtifactStatus> {
    let mut artifact = plan.artifact.clone()?;
    let known = before.artifact.as_ref().filter(|known| known.request == artifact.request);
    artifact.rolled_out = known.and_then(|known| known.rolled_out.clone());
    if artifact.rolled_out.is_none() && progress.done && serves(observed, &artifact) {
        artifact.rolled_out = Some(now.clone());
    }
    Some(artifact)
}

/// Whether the observed Deployment is the one of `artifact`.
pub fn serves(observed: &Observed, artifact: &ArtifactStatus) -> bool {
    observed.deployment.as_ref().is_some_and(|deployment| {
        deployment
            .annotations()
            .get(ANNOTATION_REQUEST)
            .is_some_and(|request| request == artifact.request.as_str())
    })
}

fn source(
    observed: &Observed,
    plan: &Plan,
    before: &ModelDeploymentStatus,
) -> Option<SourceStatus> {
    let uri = observed.model.spec.model.uri.clone();
    match (&plan.artifact, &plan.job) {
        (_, JobState::Made(made, _)) => {
            Some(SourceStatus { uri, digest: made.source.clone(), size: made.original_size })
        }
        (Some(artifact), _) if plan.current => {
            let kept = before.source.clone().filter(|known| known.digest == artifact.source);
            Some(kept.unwrap_or(SourceStatus {
                uri,
                digest: artifact.source.clone(),
                size: artifact.original_size,
            }))
        }
        _ => before.source.clone(),
    }
}

/// Artifacts that were served before, newest first; the one that serves now is not among them.
fn history(
    observed: &Observed,
    before: &ModelDeploymentStatus,
    artifact: Option<&ArtifactStatus>,
) -> Vec<ArtifactStatus> {
    let now = artifact.map(|artifact| &artifact.request);
    let replaced = before.artifact.clone().filter(|old| old.rolled_out.is_some());
    let mut entries: Vec<ArtifactStatus> = Vec::new();
    for old in replaced.into_iter().chain(before.history.iter().cloned()) {
        let known = entries.iter().any(|entry| entry.request == old.request);
        if !known && Some(&old.request) != now {
            entries.push(old);
        }
    }
    entries.truncate(observed.model.spec.rollout.history as usize);
    entries
}

/// The Job of the newest request, or, without one, the last that there was.
fn job(
    observed: &Observed,
    plan: &Plan,
    before: &ModelDeploymentStatus,
    now: &Time,
) -> Option<JobStatus> {
    let Some(job) = observed.jobs.iter().find(|job| plan.keeps(job)) else {
        return before.job.clone();
    };
    let known = before.job.clone().filter(|known| {
        known.name == job.name_any() && known.started == job.metadata.creation_timestamp
    });
    let result = match &plan.job {
        JobState::Made(made, _) if made.reused => {
            Some("Succeeded: the store already held it".into())
        }
        JobState::Made(..) => Some("Succeeded".into()),
        JobState::Failed(refusal) => Some(refusal.reason.clone()),
        JobState::Absent
        | JobState::Running(_)
        | JobState::Unreadable(_)
        | JobState::Outdated(_) => known.as_ref().and_then(|known| known.result.clone()),
    };
    let ended = known.and_then(|known| known.finished).or_else(|| match &plan.job {
        JobState::Made(_, when) => Some(when.clone()),
        _ => Some(now.clone()),
    });
    let note = |name: &str| job.annotations().get(name).cloned();
    Some(JobStatus {
        name: job.name_any(),
        request: note(ANNOTATION_REQUEST)
            .and_then(|text| text.parse::<Digest>().ok())
            .unwrap_or_else(|| plan.request.clone()),
        why: note(ANNOTATION_WHY).unwrap_or_default(),
        started: job.metadata.creation_timestamp.clone(),
        finished: ended.filter(|_| result.is_some()),
        result,
    })
}

fn address(observed: &Observed) -> Address {
    let model = observed.model.as_ref();
    let host = format!("{}.{}.svc", service::name(model), model.namespace().unwrap_or_default());
    let scheme = if model.spec.runtime.tls.is_some() { "https" } else { "http" };
    Address {
        http: format!("{scheme}://{host}:{}", service::HTTP),
        grpc: format!("{host}:{PORT_GRPC}"),
    }
}
