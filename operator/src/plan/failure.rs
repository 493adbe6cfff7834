//! What is wrong with a pod, in the cluster's own words, with the field to look at.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lithe::names::reason;
use lithe::status::Failure;

use crate::observe::Observed;

/// What is wrong with one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFailure {
    /// One of [`reason`].
    pub reason: &'static str,
    /// The cluster's words, and what to do where that is known.
    pub message: String,
    /// The exit code, when a container ended.
    pub exit_code: Option<i32>,
}

impl PodFailure {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), exit_code: None }
    }
}

/// The newest failure among the pods of `observed`; the first time it was seen is kept.
pub fn newest(observed: &Observed, now: &Time) -> Option<Failure> {
    let before = observed.model.status.as_ref().and_then(|status| status.last_failure.clone());
    let pods = observed.serving.iter().chain(&observed.compressing);
    let mut found: Vec<_> = pods
        .filter_map(|pod| of_pod(pod, &observed.mounts).map(|failure| (pod, failure)))
        .collect();
    found.sort_by_key(|(pod, _)| pod.metadata.creation_timestamp.clone());
    let Some((pod, failure)) = found.pop() else { return before };
    let object = format!("pod/{}", pod.name_any());
    let same = |old: &Failure| {
        old.object == object && old.reason == failure.reason && old.exit_code == failure.exit_code
    };
    let time = before.filter(same).map_or_else(|| now.clone(), |old| old.time);
    Some(Failure {
        time,
        object,
        reason: failure.reason.into(),
        message: failure.message,
        exit_code: failure.exit_code,
    })
}

/// What is wrong with `pod`; `mounts` are the cluster's words about volumes by pod name.
pub fn of_pod(pod: &Pod, mounts: &[(String, String)]) -> Option<PodFailure> {
    let status = pod.status.as_ref()?;
    if let Some(failure) = unscheduled(pod) {
        return Some(failure);
    }
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    if let Some(failure) = containers.iter().find_map(|container| of_container(pod, container)) {
        return Some(failure);
    }
    if let Some((_, words)) = mounts.iter().find(|(name, _)| *name == pod.name_any()) {
        let kind =
            if words.contains("secret") { reason::SECRET_MISSING } else { reason::VOLUME_MISSING };
        return Some(PodFailure::new(kind, words.clone()));
    }
    // Evicted pods, and those their node refused, have a reason of their own.
    let evicted = status.phase.as_deref() == Some("Failed");
    let said = status.reason.clone().filter(|_| evicted)?;
    let message = status.message.clone().unwrap_or_default();
    Some(PodFailure::new(reason::FAILED, format!("{said}: {message}")))
}

fn unscheduled(pod: &Pod) -> Option<PodFailure> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let condition = conditions.iter().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    let words = condition.message.clone().unwrap_or_default();
    Some(if words.contains("persistentvolumeclaim") {
        PodFailure::new(
            reason::VOLUME_MISSING,
            format!("{words}; create or bind the claim named in the pvc:// address"),
        )
    } else if extended(pod)
        .iter()
        .any(|resource| words.contains(&format!("Insufficient {resource}")))
    {
        PodFailure::new(reason::INSUFFICIENT_ACCELERATORS, words)
    } else {
        PodFailure::new(
            reason::UNSCHEDULABLE,
            format!("{words}; look at spec.placement and the requested resources"),
        )
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
    if let Some(waiting) = &state.waiting {
        let words = waiting.message.clone().unwrap_or_default();
        match waiting.reason.as_deref().unwrap_or_default() {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
                return Some(PodFailure::new(
                    reason::IMAGE_PULL_FAILED,
                    format!("image {}: {words}", status.image),
                ));
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                return Some(PodFailure::new(reason::CONFIG_ERROR, words));
            }
            "CrashLoopBackOff" => {
                let ended = status.last_state.as_ref().and_then(|last| last.terminated.as_ref());
                return ended.map(|ended| of_end(pod, status, ended, status.restart_count));
            }
            _ => {}
        }
    }
    let ended = state.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    Some(of_end(pod, status, ended, status.restart_count))
}

fn of_end(
    pod: &Pod,
    status: &ContainerStatus,
    ended: &k8s_openapi::api::core::v1::ContainerStateTerminated,
    restarts: i32,
) -> PodFailure {
    let said = ended.message.as_deref().unwrap_or_default().trim();
    let last = said.lines().last().unwrap_or_default();
    let (reason, message) = if ended.reason.as_deref() == Some("OOMKilled") {
        let limit = memory_limit(pod, &status.name).unwrap_or_else(|| "none".into());
        (
            reason::OOM_KILLED,
            format!(
                "container {} was killed for its memory (limit {limit}); raise the memory limit",
                status.name
            ),
        )
    } else {
        let reason = if restarts > 0 { reason::CRASH_LOOP } else { reason::FAILED };
        let times =
            if restarts > 0 { format!(" for the {}. time", restarts + 1) } else { String::new() };
        (
            reason,
            format!("container {} ended with code {}{times}: {last}", status.name, ended.exit_code),
        )
    };
    PodFailure { reason, message, exit_code: Some(ended.exit_code) }
}

fn memory_limit(pod: &Pod, container: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let container = spec.containers.iter().find(|known| known.name == container)?;
    Some(container.resources.as_ref()?.limits.as_ref()?.get("memory")?.0.clone())
}
