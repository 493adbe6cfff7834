//! How long a pod takes until it serves, measured on the pods that there are. Pure.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::SignedDuration;
use kube::ResourceExt as _;
use lithe::names::ANNOTATION_DIGEST;
use lithe::status::ColdStart;

use crate::observe::Observed;

/// The cold start of the newest artifact that has a ready pod; while it has none, as it was told.
///
/// The longest time counts: it is the one that requests would wait for.
pub fn cold_start(observed: &Observed, before: Option<ColdStart>) -> Option<ColdStart> {
    let measured = observed.serving.iter().filter_map(|pod| Some((digest(pod)?, start(pod)?, pod)));
    let newest = measured.clone().max_by_key(|(_, _, pod)| pod.metadata.creation_timestamp.clone());
    let Some((artifact, ..)) = newest else { return before };
    let of_artifact = measured.filter(|(digest, ..)| *digest == artifact).map(|(_, time, _)| time);
    let (pods, longest) = of_artifact
        .fold((0, SignedDuration::ZERO), |(pods, longest), time| (pods + 1, longest.max(time)));
    let known = before.filter(|known| known.artifact == artifact && known.pods >= pods);
    known.or_else(|| Some(ColdStart { artifact, longest: format!("{}s", longest.as_secs()), pods }))
}

fn digest(pod: &Pod) -> Option<String> {
    let digest: lithe::Digest = pod.annotations().get(ANNOTATION_DIGEST)?.parse().ok()?;
    Some(digest.short().to_owned())
}

/// From the creation of `pod` until it was ready; `None` while it is not.
pub fn start(pod: &Pod) -> Option<SignedDuration> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|c| c.type_ == "Ready" && c.status == "True")?;
    let born = pod.metadata.creation_timestamp.as_ref()?;
    // A container that ended and came back is ready anew, long after its pod was created.
    let restarted = pod.status.as_ref()?.container_statuses.iter().flatten();
    if restarted.clone().any(|container| container.restart_count > 0) {
        return None;
    }
    Some(ready.last_transition_time.as_ref()?.0.duration_since(born.0))
}
