//! What is wrong with a pod, in the cluster's own words, with the field to look at.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lithe::artifact::Outcome;
use lithe::names::{CONTAINER_COMPRESS, reason};
use lithe::status::Failure;

use crate::observe::{Hint, Observed};

/// What is wrong with one pod, or with a Job that gets none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFailure {
    /// Such as `pod/magika-5f6d-x2x9l`.
    pub object: String,
    /// One of [`reason`].
    pub reason: &'static str,
    /// The cluster's words, and what to do where that is known.
    pub message: String,
    /// The exit code, when a container ended.
    pub exit_code: Option<i32>,
}

impl PodFailure {
    fn new(pod: &Pod, reason: &'static str, message: impl Into<String>) -> Self {
        let object = format!("pod/{}", pod.name_any());
        Self { object, reason, message: message.into(), exit_code: None }
    }
}

/// What is wrong with a serving pod now.
pub fn serving(observed: &Observed) -> Option<PodFailure> {
    let found = observed.serving.iter().find_map(|pod| of_pod(pod, &observed.hints))?;
    Some(steady(found, observed))
}

/// The newest failure among the pods and Jobs of `observed`; the first time it was seen is kept.
pub fn newest(observed: &Observed, now: &Time) -> Option<Failure> {
    let before = observed.model.status.as_ref().and_then(|status| status.last_failure.clone());
    let pods = observed.serving.iter().chain(&observed.compressing);
    let pods = pods.filter_map(|pod| {
        Some((pod.metadata.creation_timestamp.clone(), of_pod(pod, &observed.hints)?))
    });
    let jobs = observed.jobs.iter().filter_map(|job| {
        Some((job.metadata.creation_timestamp.clone(), of_job(job, &observed.hints)?))
    });
    let found = pods.chain(jobs).max_by(|(one, _), (other, _)| one.cmp(other));
    let Some((_, failure)) = found else { return before };
    let failure = steady(failure, observed);
    let same = |old: &Failure| {
        old.object == failure.object
            && old.reason == failure.reason
            && old.exit_code == failure.exit_code
    };
    let time = before.filter(same).map_or_else(|| now.clone(), |old| old.time);
    let PodFailure { object, reason, message, exit_code } = failure;
    Some(Failure { time, object, reason: reason.into(), message, exit_code })
}

/// The kubelet alternates between an error and "back-off" while it pulls an image: the first words
/// hold, so that the status does not flap with it.
fn steady(failure: PodFailure, observed: &Observed) -> PodFailure {
    let before = observed.model.status.as_ref().and_then(|status| status.last_failure.as_ref());
    match before {
        Some(before)
            if failure.reason == reason::IMAGE_PULL_FAILED
                && before.object == failure.object
                && before.reason == failure.reason =>
        {
            PodFailure { message: before.message.clone(), ..failure }
        }
        _ => failure,
    }
}

/// What is wrong with a Job that gets no pod.
pub fn of_job(job: &Job, hints: &[Hint]) -> Option<PodFailure> {
    let object = format!("job/{}", job.name_any());
    let hint = hints.iter().find(|hint| hint.object == object)?;
    let reason = if hint.message.contains("exceeded quota") {
        reason::QUOTA_EXCEEDED
    } else {
        reason::FAILED
    };
    Some(PodFailure { object, reason, message: hint.message.clone(), exit_code: None })
}

/// What is wrong with `pod`; `hints` are the cluster's words about pods that do not start.
pub fn of_pod(pod: &Pod, hints: &[Hint]) -> Option<PodFailure> {
    let status = pod.status.as_ref().filter(|_| pod.metadata.deletion_timestamp.is_none())?;
    if let Some(failure) = unscheduled(pod) {
        return Some(failure);
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    if let Some(failure) = containers.iter().find_map(|container| of_container(pod, container)) {
        return Some(failure);
    }
    let object = format!("pod/{}", pod.name_any());
    if let Some(hint) = hints.iter().find(|hint| hint.object == object) {
        let words = hint.message.as_str();
        let kind = if words.contains("secret") {
            reason::SECRET_MISSING
        } else if words.contains("olume") {
            reason::VOLUME_MISSING
        } else {
            reason::CONFIG_ERROR
        };
        return Some(PodFailure::new(pod, kind, words));
    }
    // Evicted pods, and those their node refused, have a reason of their own.
    let evicted = status.phase.as_deref() == Some("Failed");
    let said = status.reason.clone().filter(|_| evicted)?;
    let message = status.message.clone().unwrap_or_default();
    Some(PodFailure::new(pod, reason::FAILED, format!("{said}: {message}")))
}

fn unscheduled(pod: &Pod) -> Option<PodFailure> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let words = condition.message.clone().unwrap_or_default();
    let lacks = |resource: &String| words.contains(&format!("Insufficient {resource}"));
    Some(if words.contains("persistentvolumeclaim") {
        let mend = "create or bind the claim named in the pvc:// address";
        PodFailure::new(pod, reason::VOLUME_MISSING, format!("{words}; {mend}"))
    } else if extended(pod).iter().any(lacks) {
        PodFailure::new(pod, reason::INSUFFICIENT_ACCELERATORS, words)
    } else {
        let mend = "look at spec.placement and the requested resources";
        PodFailure::new(pod, reason::UNSCHEDULABLE, format!("{words}; {mend}"))
    })
}

/// The extended resources (with a slash in their name) that `pod` asks for.
fn extended(pod: &Pod) -> Vec<String> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let limits = containers.filter_map(|container| container.resources.as_ref()?.limits.as_ref());
    limits.flat_map(|limits| limits.keys()).filter(|name| name.contains('/')).cloned().collect()
}

fn of_container(pod: &Pod, status: &ContainerStatus) -> Option<PodFailure> {
    let state = status.state.as_ref()?;
    let last = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
    let failed = |ended: &&ContainerStateTerminated| ended.exit_code != 0;
    if let Some(waiting) = &state.waiting {
        let words = waiting.message.clone().unwrap_or_default();
        match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                let words = format!("image {}: {words}", status.image);
                return Some(PodFailure::new(pod, reason::IMAGE_PULL_FAILED, words));
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                let secret = words.contains("secret");
                let kind = if secret { reason::SECRET_MISSING } else { reason::CONFIG_ERROR };
                return Some(PodFailure::new(pod, kind, words));
            }
            _ => {}
        }
    }
    // Between two crashes a container runs or waits for a while: it is in trouble all the same.
    let ended = match &state.terminated {
        Some(ended) => Some(ended).filter(failed)?,
        None if status.ready || status.restart_count == 0 => return None,
        None => last.filter(failed)?,
    };
    Some(of_end(pod, status, ended))
}

/// What a worker said, with the field to look at, which only we know.
fn advised(reason: &str, container: &str, said: String) -> String {
    match (reason, container) {
        (reason::DIGEST_MISMATCH, CONTAINER_COMPRESS) => {
            format!("{said}; if the new bytes are right, say so in spec.model.digest")
        }
        _ => said,
    }
}

fn of_end(pod: &Pod, status: &ContainerStatus, ended: &ContainerStateTerminated) -> PodFailure {
    let said = ended.message.as_deref().unwrap_or_default().trim();
    let (reason, message) = if ended.reason.as_deref() == Some("OOMKilled") {
        let limit = memory_limit(pod, &status.name).unwrap_or_else(|| "none".into());
        let words = format!("container {} was killed for its memory (limit {limit})", status.name);
        let of = if status.name == CONTAINER_COMPRESS { "compression" } else { "runtime" };
        (reason::OOM_KILLED, format!("{words}; raise spec.{of}.resources.limits.memory"))
    } else if let Some(Outcome::Refused(refusal)) = Outcome::from_message(said) {
        let reason = reason::known(&refusal.reason).unwrap_or(reason::FAILED);
        (reason, advised(reason, &status.name, refusal.message))
    } else {
        let again = status.restart_count > 0;
        let reason = if again { reason::CRASH_LOOP } else { reason::FAILED };
        let times = if again { " again and again" } else { "" };
        let words = said.lines().last().unwrap_or_default();
        (
            reason,
            format!(
                "container {} ended with code {}{times}: {words}",
                status.name, ended.exit_code
            ),
        )
    };
    PodFailure { exit_code: Some(ended.exit_code), ..PodFailure::new(pod, reason, message) }
}

fn memory_limit(pod: &Pod, container: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let container = spec.containers.iter().find(|known| known.name == container)?;
    Some(container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}
