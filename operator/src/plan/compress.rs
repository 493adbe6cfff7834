//! Whether the newest spec needs a compression Job, and where that Job stands.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use lithe::Digest;
use lithe::artifact::{Made, Outcome, Refusal};
use lithe::names::{ANNOTATION_REQUEST, CONTAINER_COMPRESS, reason};
use lithe::spec::ModelDeploymentSpec;
use lithe::status::ArtifactStatus;

use crate::observe::Observed;
use crate::plan::failure;

/// Where the Job for a request stands.
#[derive(Clone, Debug, PartialEq)]
pub enum JobState {
    /// There is none.
    Absent,
    /// It has not ended; the text is what holds it up, when something does.
    Running(Option<(&'static str, String)>),
    /// It made an artifact.
    Made(Box<Made>),
    /// It ended without one, and will not be tried again for this request.
    Failed(Refusal),
    /// It ended well but its words are lost: it must be run again (the store makes that cheap).
    Unreadable(String),
}

/// The digest of what `spec` asks to be made. How much memory or time the Job may take is not
/// part of it: more of either does not make another artifact.
pub fn request(spec: &ModelDeploymentSpec) -> Digest {
    let made = spec.compression.as_ref().map(|compression| {
        serde_json::json!({
            "recipe": compression.recipe(),
            "data": compression.data.as_ref().map(|data| (&data.uri, &data.digest)),
        })
    });
    Digest::of_json(&serde_json::json!({
        "uri": spec.model.uri, "format": spec.model.format, "digest": spec.model.digest,
        "compression": made,
    }))
}

/// Why a Job is started, for people.
pub fn why(observed: &Observed, known: Option<&ArtifactStatus>) -> String {
    match known {
        None => "no artifact was made for this ModelDeployment yet".into(),
        Some(_) if observed.model.spec.compression.is_none() => "spec.model changed".into(),
        Some(_) => "spec.model or spec.compression changed".into(),
    }
}

/// Where the Job for `request` stands.
pub fn job_state(observed: &Observed, request: &Digest) -> JobState {
    let is_ours = |job: &&std::sync::Arc<Job>| {
        job.metadata.deletion_timestamp.is_none()
            && job.annotations().get(ANNOTATION_REQUEST).is_some_and(|r| r == request.as_str())
    };
    let Some(job) = observed.jobs.iter().find(is_ours) else { return JobState::Absent };
    let pods: Vec<&Pod> =
        observed.compressing.iter().map(AsRef::as_ref).filter(|pod| belongs(pod, job)).collect();
    let outcome = pods.iter().find_map(|pod| outcome(pod));
    let ended = |kind: &str| {
        let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().find(|c| c.type_ == kind && c.status == "True")
    };
    if ended("Complete").is_some() {
        return match outcome {
            Some(Outcome::Made(made)) => JobState::Made(made),
            _ => JobState::Unreadable(job.name_any()),
        };
    }
    if let Some(condition) = ended("Failed") {
        if let Some(Outcome::Refused(refusal)) = outcome {
            return JobState::Failed(refusal);
        }
        let newest =
            pods.iter().filter_map(|pod| failure::of_pod(pod, &observed.mounts)).next_back();
        return JobState::Failed(unexplained(condition, newest));
    }
    let held = pods.iter().find_map(|pod| failure::of_pod(pod, &observed.mounts));
    JobState::Running(held.map(|held| (held.reason, held.message)))
}

/// A Job that failed without its own words: the cluster's words must do.
fn unexplained(
    condition: &k8s_openapi::api::batch::v1::JobCondition,
    newest: Option<failure::PodFailure>,
) -> Refusal {
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

/// The words of the compression container, when it ended and said something.
fn outcome(pod: &Pod) -> Option<Outcome> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let status = statuses.iter().find(|status| status.name == CONTAINER_COMPRESS)?;
    let ended = status.state.as_ref()?.terminated.as_ref()?;
    Outcome::from_message(ended.message.as_deref()?)
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
}
