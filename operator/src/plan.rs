//! What should be done about one ModelDeployment: pure, total, with `now` as an argument.

pub mod accept;
pub mod compress;
pub mod failure;
pub mod observation;
pub mod rollout;
pub mod scale;
pub mod scaling;
pub mod traffic;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use lithe::Digest;
use lithe::artifact::Made;
use lithe::names::{ANNOTATION_ARTIFACT, ANNOTATION_REQUEST};
use lithe::status::{ArtifactStatus, Failure};

use crate::config::Config;
use crate::observe::Observed;
use accept::Refused;
use compress::JobState;
use failure::PodFailure;
use rollout::Surge;
use scaling::Step;
use traffic::Traffic;

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
    /// The Job for the request that must go, so that another can be tried.
    pub discard: Option<String>,
    /// The artifact that pods serve, of the newest request or the last good one.
    pub artifact: Option<ArtifactStatus>,
    /// Whether `artifact` answers the newest request.
    pub current: bool,
    /// Whether the Deployment stays as it is: a spec that is not accepted must not touch what serves.
    pub leave: bool,
    /// How pods are replaced.
    pub surge: Surge,
    /// Pods that serve.
    pub replicas: i32,
    /// The change of the number of pods that `replicas` is, with its reason.
    pub step: Option<Step>,
    /// UIDs of pods that go since they are much slower than the others.
    pub replace: Vec<String>,
    /// How requests reach the pods.
    pub traffic: Traffic,
    /// What is wrong with a serving pod now.
    pub trouble: Option<PodFailure>,
    /// The newest failure of a pod or a Job, which may be over.
    pub failure: Option<Failure>,
}

impl Plan {
    /// Whether `job` works on the newest request and is not to be tried again.
    pub fn keeps(&self, job: &Job) -> bool {
        let request = job.annotations().get(ANNOTATION_REQUEST);
        request.is_some_and(|request| request == self.request.as_str())
            && self.discard.as_ref() != Some(&job.name_any())
    }
}

/// Decides.
///
/// | accepted | artifact of the newest request | Job for it | then |
/// |---|---|---|---|
/// | no | - | - | what serves goes on as it is; no Job |
/// | yes | served, or in the history | - | it is served; no Job |
/// | yes | no | made one | it is served |
/// | yes | no | works, or failed for good | the last good one is served |
/// | yes | no | result lost, or failed with other means | that Job goes, the next look starts another |
/// | yes | no | none | a Job starts; the last good one is served |
pub fn plan(observed: &Observed, config: &Config, now: &Time) -> Plan {
    let spec = &observed.model.spec;
    let refused = accept::refused(spec, config.gateway_service.is_some());
    let request = compress::request(spec);
    let job = compress::job_state(observed, &request, now);
    let known = last_good(observed);
    let artifact = if refused.is_empty() {
        answer(observed, &request, &job)
            .or_else(|| known.clone())
            .or_else(|| config.bench_skip_compression.then(|| pretended(&request, now)))
    } else {
        known.clone()
    };
    let current = artifact.as_ref().is_some_and(|artifact| artifact.request == request);
    let due = refused.is_empty() && !current;
    let leave = !refused.is_empty() && observed.deployment.is_some();
    let replicas = scaling::replicas(observed, artifact.as_ref(), config, leave);
    Plan {
        step: scaling::step(observed, replicas),
        replace: observed.scaled.as_ref().map(|s| s.replace.clone()).unwrap_or_default(),
        traffic: traffic::traffic(observed, config, now),
        start: (due && job == JobState::Absent).then(|| compress::why(observed, known.as_ref())),
        discard: job.lost().filter(|_| due).map(str::to_owned),
        surge: rollout::surge(observed, replicas),
        trouble: failure::serving(observed),
        failure: failure::newest(observed, now),
        refused,
        request,
        job,
        artifact,
        current,
        leave,
        replicas,
    }
}

/// The artifact of `request`: served already, served before, or just made.
fn answer(observed: &Observed, request: &Digest, job: &JobState) -> Option<ArtifactStatus> {
    let status = observed.model.status.as_ref();
    let earlier = status.map(|status| status.history.as_slice()).unwrap_or_default();
    last_good(observed)
        .into_iter()
        .chain(earlier.iter().map(|old| ArtifactStatus { rolled_out: None, ..old.clone() }))
        .find(|artifact| artifact.request == *request)
        .or_else(|| match job {
            JobState::Made(made, when) => {
                Some(ArtifactStatus::new(request.clone(), made, when.clone()))
            }
            _ => None,
        })
}

/// The artifact that is served or rolled out: from the status, or, when that was lost, from the
/// Deployment itself.
fn last_good(observed: &Observed) -> Option<ArtifactStatus> {
    let told = observed.model.status.as_ref().and_then(|status| status.artifact.clone());
    told.or_else(|| {
        let deployment = observed.deployment.as_ref()?;
        serde_json::from_str(deployment.annotations().get(ANNOTATION_ARTIFACT)?).ok()
    })
}

/// Where artifacts lie that are only pretended.
pub const PRETENDED: &str = "file:///bench/";

/// What stands in for an artifact while the operator alone is measured.
fn pretended(request: &Digest, now: &Time) -> ArtifactStatus {
    let made = Made {
        uri: format!("{PRETENDED}{}", request.short()),
        digest: request.clone(),
        manifest: request.clone(),
        key: request.clone(),
        source: request.clone(),
        size: 0,
        original_size: 0,
        reused: true,
        fallback: None,
        report: None,
        metric: None,
        original_value: None,
        value: None,
        agreement: None,
        cosine: None,
        speedup: None,
        samples: None,
        steps: Vec::new(),
        chosen: None,
    };
    ArtifactStatus::new(request.clone(), &made, now.clone())
}
