//! What the user reads: status from what was observed, planned and written. Pure; it runs after a
//! failed write too, so that errors reach the object.

pub mod events;
pub mod verdicts;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lithe::names::{LABEL_ROLE, LABEL_UID, PORT_GRPC, ROLE_SERVE};
use lithe::status::{
    Address, ArtifactStatus, HistoryEntry, JobStatus, ModelDeploymentStatus, Phase, SourceStatus,
    condition,
};

use crate::apply::{Applied, WriteError};
use crate::objects::{service, uid};
use crate::observe::Observed;
use crate::plan::Plan;
use crate::plan::compress::JobState;
use crate::plan::rollout::{Progress, progress};

/// The status after `applied`.
pub fn report(
    observed: &Observed,
    plan: &Plan,
    applied: &Result<Applied, WriteError>,
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
    let ready = conditions.iter().any(|c| c.type_ == condition::READY && c.status == "True");
    let artifact = artifact(observed, plan, &before, &progress, now);
    ModelDeploymentStatus {
        observed_generation: generation,
        phase: Some(phase(plan, applied, &progress, ready)),
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
        latency: None,
        last_scale: before.last_scale,
        last_failure: plan.failure.clone(),
    }
}

/// Where the deployment stands.
///
/// | ready | refused or failed | serving | Job works | phase |
/// |---|---|---|---|---|
/// | yes | - | - | - | Serving |
/// | no | yes | yes | - | Degraded |
/// | no | yes | no | - | Failed |
/// | no | no | - | yes | Compressing |
/// | no | no | - | no, artifact there | RollingOut |
/// | no | no | - | no, none yet | Pending |
fn phase(
    plan: &Plan,
    applied: &Result<Applied, WriteError>,
    progress: &Progress,
    ready: bool,
) -> Phase {
    let failed = !plan.refused.is_empty()
        || (!plan.current && matches!(plan.job, JobState::Failed(_)))
        || applied.is_err()
        || (plan.current && progress.stuck);
    match (ready, failed) {
        (true, _) => Phase::Serving,
        (_, true) if progress.ready > 0 => Phase::Degraded,
        (_, true) => Phase::Failed,
        _ if !plan.current
            && (plan.start.is_some() || matches!(plan.job, JobState::Running(_))) =>
        {
            Phase::Compressing
        }
        _ if plan.current => Phase::RollingOut,
        _ => Phase::Pending,
    }
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
            .get(lithe::names::ANNOTATION_REQUEST)
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
        (_, JobState::Made(made)) => {
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

/// Artifacts that were served before, newest first.
fn history(
    observed: &Observed,
    before: &ModelDeploymentStatus,
    artifact: Option<&ArtifactStatus>,
) -> Vec<HistoryEntry> {
    let mut entries = before.history.clone();
    if let (Some(old), Some(new)) = (&before.artifact, artifact)
        && old.request != new.request
        && old.rolled_out.is_some()
    {
        entries.insert(
            0,
            HistoryEntry {
                digest: old.digest.clone(),
                uri: old.uri.clone(),
                request: old.request.clone(),
                rolled_out: old.rolled_out.clone(),
            },
        );
    }
    entries.truncate(observed.model.spec.rollout.history as usize);
    entries
}

fn job(
    observed: &Observed,
    plan: &Plan,
    before: &ModelDeploymentStatus,
    now: &Time,
) -> Option<JobStatus> {
    let same = before.job.clone().filter(|job| job.request == plan.request);
    if let Some(why) = &plan.start {
        let model = observed.model.as_ref();
        return Some(JobStatus {
            name: lithe::names::job(&model.name_any(), &uid(model), &plan.request),
            request: plan.request.clone(),
            why: why.clone(),
            started: Some(now.clone()),
            finished: None,
            result: None,
        });
    }
    let mut job = same.or_else(|| before.job.clone())?;
    if job.request != plan.request || job.finished.is_some() {
        return Some(job);
    }
    job.result = match &plan.job {
        JobState::Made(made) if made.reused => Some("Succeeded: the store already held it".into()),
        JobState::Made(_) => Some("Succeeded".into()),
        JobState::Failed(refusal) => Some(refusal.reason.clone()),
        _ => None,
    };
    job.finished = job.result.as_ref().map(|_| now.clone());
    Some(job)
}

fn address(observed: &Observed) -> Address {
    let model = observed.model.as_ref();
    let host = format!("{}.{}.svc", service::name(model), model.namespace().unwrap_or_default());
    Address {
        http: format!("http://{host}:{}", service::HTTP),
        grpc: format!("{host}:{PORT_GRPC}"),
    }
}
