//! What should be done about one ModelDeployment: pure, total, with `now` as an argument.

pub mod accept;
pub mod compress;
pub mod failure;
pub mod rollout;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lithe::Digest;
use lithe::artifact::Made;
use lithe::names::ANNOTATION_ARTIFACT;
use lithe::spec::ModelDeployment;
use lithe::status::{ArtifactStatus, Failure};

use crate::config::Config;
use crate::observe::Observed;
use accept::Refused;
use compress::JobState;
use rollout::Surge;

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Fields that the running version cannot honour; empty when all is well.
    pub refused: Vec<Refused>,
    /// The digest of what the newest spec asks to be made.
    pub request: Digest,
    /// Where the Job for the request stands.
    pub job: JobState,
    /// Whether a Job must be created now, and why.
    pub start: Option<String>,
    /// The artifact that pods serve, of the newest request or the last good one.
    pub artifact: Option<ArtifactStatus>,
    /// Whether `artifact` answers the newest request.
    pub current: bool,
    /// How pods are replaced.
    pub surge: Surge,
    /// Pods that serve.
    pub replicas: i32,
    /// The newest failure of a pod or a Job.
    pub failure: Option<Failure>,
}

/// Decides.
pub fn plan(observed: &Observed, config: &Config, now: &Time) -> Plan {
    let model = &observed.model;
    let refused = accept::refused(&model.spec);
    let request = compress::request(&model.spec);
    let known = last_good(observed);
    let job = compress::job_state(observed, &request);
    let mut artifact = known.clone();
    let answered = known.as_ref().is_some_and(|artifact| artifact.request == request);
    if refused.is_empty() && !answered {
        if let JobState::Made(made) = &job {
            artifact = Some(ArtifactStatus::new(request.clone(), made, now.clone()));
        } else if config.bench_skip_compression {
            artifact = Some(pretended(&request, now));
        }
    }
    let current = artifact.as_ref().is_some_and(|artifact| artifact.request == request);
    let start = (refused.is_empty() && !current && job == JobState::Absent)
        .then(|| compress::why(observed, known.as_ref()));
    let replicas = if config.bench_skip_compression { 0 } else { replicas(model) };
    Plan {
        surge: rollout::surge(observed, replicas),
        failure: failure::newest(observed, now),
        refused,
        request,
        job,
        start,
        artifact,
        current,
        replicas,
    }
}

fn replicas(model: &ModelDeployment) -> i32 {
    i32::try_from(model.spec.scaling.min_replicas).unwrap_or(i32::MAX)
}

/// The artifact that is served or rolled out: from the status, or, when that was lost, from the
/// Deployment itself.
fn last_good(observed: &Observed) -> Option<ArtifactStatus> {
    if let Some(artifact) =
        observed.model.status.as_ref().and_then(|status| status.artifact.clone())
    {
        return Some(artifact);
    }
    let deployment = observed.deployment.as_ref()?;
    serde_json::from_str(deployment.annotations().get(ANNOTATION_ARTIFACT)?).ok()
}

/// What stands in for an artifact while the operator alone is measured.
fn pretended(request: &Digest, now: &Time) -> ArtifactStatus {
    let made = Made {
        uri: format!("file:///bench/{}", request.short()),
        digest: request.clone(),
        manifest: request.clone(),
        key: request.clone(),
        source: request.clone(),
        size: 0,
        original_size: 0,
        reused: true,
        fallback: None,
        metric: None,
        original_value: None,
        value: None,
        agreement: None,
        cosine: None,
        speedup: None,
        samples: None,
        steps: Vec::new(),
    };
    ArtifactStatus::new(request.clone(), &made, now.clone())
}
