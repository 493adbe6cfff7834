//! Whether the newest spec needs a compression Job, and where that Job stands.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lithe::Digest;
use lithe::artifact::{EXIT_GATE_FAILED, EXIT_REFUSED, Made, Outcome, Refusal};
use lithe::names::{ANNOTATION_MEANS, ANNOTATION_REQUEST, CONTAINER_COMPRESS, reason};
use lithe::spec::ModelDeploymentSpec;
use lithe::status::ArtifactStatus;

use crate::observe::Observed;
use crate::plan::failure::{self, PodFailure};

/// Tries after a failure that may pass (a store that does not answer, a node that dies).
pub const RETRIES: i32 = 3;

/// Seconds after a Job's end in which the watch of its pod may still bring its words.
const WORDS_PATIENCE: i64 = 5;

/// Where the Job for a request stands.
#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    /// There is none.
    Absent,
    /// It has not ended; with what holds it up, when something does.
    Running(Option<PodFailure>),
    /// It made an artifact, at this time.
    Made(Box<Made>, Time),
    /// It ended without one, and will not be tried again for this request.
    Failed(Refusal),
    /// The Job of this name ended well but its words are lost: it must run again (the store makes
    /// that cheap).
    Unreadable(String),
    /// The Job of this name did not succeed, and the spec now gives it other means.
    Outdated(String),
}

impl JobState {
    /// The name of a Job that must go so that another can be tried.
    pub fn lost(&self) -> Option<&str> {
        match self {
            Self::Unreadable(name) | Self::Outdated(name) => Some(name),
            Self::Absent | Self::Running(_) | Self::Made(..) | Self::Failed(_) => None,
        }
    }
}

/// The digest of what `spec` asks to be made. How much memory or time the Job may take is not
/// part of it: more of either does not make another artifact.
pub fn request(spec: &ModelDeploymentSpec) -> Digest {
    let made = spec.compression.as_ref().map(|compression| {
        serde_json::json!({
            "recipe": spec.recipe(),
            "data": compression.data.as_ref().map(|data| (&data.uri, &data.digest)),
        })
    });
    Digest::of_json(&serde_json::json!({
        "uri": spec.model.uri, "format": spec.model.format, "digest": spec.model.digest,
        "compression": made,
    }))
}

/// The digest of what `spec` lets the Job use: another answer to the same request may come of it
/// (after an OOM kill, for example, or with credentials that work).
pub fn means(spec: &ModelDeploymentSpec) -> Digest {
    let compression = spec.compression.as_ref();
    Digest::of_json(&serde_json::json!({
        "model": spec.model.credentials_secret,
        "data": compression.and_then(|c| c.data.as_ref()).map(|data| &data.credentials_secret),
        "resources": compression.and_then(|compression| compression.resources.as_ref()),
        "deadline": compression.map(|compression| &compression.deadline),
        "nodes": spec.placement.node_selector,
        "tolerations": spec.placement.tolerations,
    }))
}

/// Why a Job is started, for people.
pub fn why(observed: &Observed, known: Option<&ArtifactStatus>) -> String {
    let status = observed.model.status.as_ref();
    let before = status.and_then(|status| status.job.as_ref());
    if before.is_some_and(|job| job.request == request(&observed.model.spec)) {
        return "the Job before was deleted, its result lost, or it now has other means".into();
    }
    let source = status.and_then(|status| status.source.as_ref());
    let uri = &observed.model.spec.model.uri;
    match (known, source) {
        (None, _) => "no artifact was made for this ModelDeployment yet".into(),
        (Some(_), Some(source)) if source.uri != *uri => {
            format!("spec.model.uri changed from {}", source.uri)
        }
        (Some(_), _) => "spec.model or spec.compression changed".into(),
    }
}

/// Where the Job for `request` stands.
pub fn job_state(observed: &Observed, request: &Digest, now: &Time) -> JobState {
    let is_ours = |job: &&Arc<Job>| {
        job.metadata.deletion_timestamp.is_none()
            && job.annotations().get(ANNOTATION_REQUEST).is_some_and(|r| r == request.as_str())
    };
    let Some(job) = observed.jobs.iter().find(is_ours) else { return JobState::Absent };
    let mut pods: Vec<&Pod> =
        observed.compressing.iter().map(AsRef::as_ref).filter(|pod| belongs(pod, job)).collect();
    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
    let outcome = pods.iter().rev().find_map(|pod| outcome(pod));
    if let Some(condition) = ended(job, "Complete") {
        return match outcome {
            Some((Outcome::Made(made), when)) => JobState::Made(made, when),
            _ if seconds_since(condition, now) < WORDS_PATIENCE => JobState::Running(None),
            _ => JobState::Unreadable(job.name_any()),
        };
    }
    let given = means(&observed.model.spec);
    if job.annotations().get(ANNOTATION_MEANS).is_some_and(|means| means != given.as_str()) {
        return JobState::Outdated(job.name_any());
    }
    let failed: Vec<_> =
        pods.iter().filter_map(|pod| failure::of_pod(pod, &observed.hints)).collect();
    match (ended(job, "Failed"), outcome) {
        (Some(_), Some((Outcome::Refused(refusal), _))) => JobState::Failed(mend(refusal, job)),
        (Some(condition), _) => {
            JobState::Failed(mend(unexplained(condition, failed.last().cloned()), job))
        }
        (None, _) => JobState::Running(held(observed, job, failed)),
    }
}

/// What holds up a Job that has not ended: its newest failure, or what the cluster says of a Job
/// that gets no pod.
fn held(observed: &Observed, job: &Job, mut failed: Vec<PodFailure>) -> Option<PodFailure> {
    let last = [Some(EXIT_REFUSED), Some(EXIT_GATE_FAILED)];
    let ends = failed.iter().filter(|failure| failure.exit_code.is_some()).count();
    let Some(mut newest) = failed.pop() else {
        return failure::of_job(job, &observed.hints);
    };
    if newest.exit_code.is_some() && !last.contains(&newest.exit_code) {
        newest.message = format!("{} (try {ends} of {})", newest.message, RETRIES + 1);
    }
    Some(newest)
}

fn ended<'a>(job: &'a Job, kind: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind && condition.status == "True")
}

fn seconds_since(condition: &JobCondition, now: &Time) -> i64 {
    condition
        .last_transition_time
        .as_ref()
        .map_or(i64::MAX, |then| now.0.duration_since(then.0).as_secs())
}

/// What failed for a reason outside the spec can be tried again without a new one.
fn mend(mut refusal: Refusal, job: &Job) -> Refusal {
    const OUTSIDE: [&str; 6] = [
        reason::SOURCE_NOT_FOUND,
        reason::SOURCE_AUTH_FAILED,
        reason::SOURCE_UNAVAILABLE,
        reason::STORE_UNAVAILABLE,
        reason::NO_SPACE,
        reason::FAILED,
    ];
    if OUTSIDE.contains(&refusal.reason.as_str()) {
        let again = format!("once that is mended, delete Job {} to try again", job.name_any());
        refusal.message = format!("{}; {again}", refusal.message);
    }
    refusal
}

/// A Job that failed without its own words: the cluster's words must do.
fn unexplained(condition: &JobCondition, newest: Option<PodFailure>) -> Refusal {
    let said = condition.reason.clone().unwrap_or_default();
    let message = condition.message.clone().unwrap_or_default();
    let (reason, message, field) = match (said.as_str(), newest) {
        ("DeadlineExceeded", _) => (
            reason::DEADLINE_EXCEEDED,
            format!("{message}; raise spec.compression.deadline or do less"),
            Some("spec.compression.deadline"),
        ),
        (_, Some(pod)) if pod.reason == reason::OOM_KILLED => {
            (pod.reason, pod.message, Some("spec.compression.resources.limits.memory"))
        }
        (_, Some(pod)) => (pod.reason, pod.message, None),
        (_, None) => (reason::FAILED, format!("{said}: {message}"), None),
    };
    Refusal { reason: reason.into(), message, field: field.map(str::to_owned), source: None }
}

fn belongs(pod: &Pod, job: &Job) -> bool {
    let uid = job.uid().unwrap_or_default();
    pod.owner_references().iter().any(|owner| owner.uid == uid)
}

/// The words of the compression container, when it ended and said something, and when it ended.
fn outcome(pod: &Pod) -> Option<(Outcome, Time)> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == CONTAINER_COMPRESS)?;
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    let when = ended.finished_at.clone().or_else(|| pod.metadata.creation_timestamp.clone())?;
    Some((Outcome::from_message(ended.message.as_deref()?)?, when))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> ModelDeploymentSpec {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn only_what_changes_the_artifact_changes_the_request() {
        let base = "model: {uri: pvc://m/a.onnx}\ncompression: {steps: [{optimize: {}}]}\n";
        let same = [
            format!("{base}scaling: {{minReplicas: 3}}\n"),
            base.replace("steps", "deadline: 2h, steps"),
            base.replace("steps", "resources: {limits: {memory: 1Gi}}, steps"),
            base.replace("{uri", "{credentialsSecret: s, uri"),
        ];
        let other = [
            base.replace("a.onnx", "b.onnx"),
            base.replace("steps", "target: Arm64, steps"),
            format!("{base}placement: {{nodeSelector: {{kubernetes.io/arch: arm64}}}}\n"),
            base.replace("steps", "seed: 7, steps"),
            base.replace("steps", "data: {uri: pvc://m/d.npz}, steps"),
        ];
        let request = |text: &str| super::request(&spec(text));
        for text in same {
            assert_eq!(request(base), request(&text), "{text}");
        }
        for text in other {
            assert_ne!(request(base), request(&text), "{text}");
        }
    }

    #[test]
    fn what_the_job_may_use_is_apart_from_what_it_is_asked() {
        let base = "model: {uri: pvc://m/a.onnx}\ncompression: {steps: [{optimize: {}}]}\n";
        let other = [
            base.replace("steps", "deadline: 2h, steps"),
            base.replace("steps", "resources: {limits: {memory: 1Gi}}, steps"),
            base.replace("{uri", "{credentialsSecret: s, uri"),
            format!("{base}placement: {{nodeSelector: {{a: b}}}}\n"),
        ];
        let same =
            [base.replace("a.onnx", "b.onnx"), format!("{base}scaling: {{minReplicas: 3}}\n")];
        let means = |text: &str| super::means(&spec(text));
        for text in other {
            assert_ne!(means(base), means(&text), "{text}");
        }
        for text in same {
            assert_eq!(means(base), means(&text), "{text}");
        }
    }
}
