//! The cluster as it concerns one ModelDeployment, read from the caches alone.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Resource as _, ResourceExt as _};
use lithe::names::{self, LABEL_ROLE, ROLE_COMPRESS, ROLE_SERVE};
use lithe::spec::ModelDeployment;

use crate::cache::{Cache, light, own_uid, owner_uid};
use crate::plan::scaling::Scaled;
use crate::plan::traffic::Gateways;

/// A pod or Job that makes no progress for this long deserves a look at its events.
const PATIENCE: i64 = 4;

/// Everything that the watches tell.
pub struct Caches {
    /// The users' objects, also by their own UID.
    pub models: Arc<Cache<ModelDeployment>>,
    /// Serving Deployments.
    pub deployments: Arc<Cache<Deployment>>,
    /// Compression Jobs.
    pub jobs: Arc<Cache<Job>>,
    /// Pods of both.
    pub pods: Arc<Cache<Pod>>,
    /// Addresses.
    pub services: Arc<Cache<Service>>,
    /// Identities of pods.
    pub accounts: Arc<Cache<ServiceAccount>>,
    /// Disruption budgets.
    pub budgets: Arc<Cache<PodDisruptionBudget>>,
    /// Network policies.
    pub policies: Arc<Cache<NetworkPolicy>>,
    /// Addresses behind the models' Services, the cluster's own and ours.
    pub slices: Arc<Cache<EndpointSlice>>,
    /// Addresses of the gateway's pods; nobody keeps it where there is no gateway.
    pub gateways: Arc<Cache<EndpointSlice>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            models: Arc::new(Cache::new(own_uid, light)),
            deployments: Arc::new(Cache::new(owner_uid, light)),
            jobs: Arc::new(Cache::new(owner_uid, light)),
            pods: Arc::new(Cache::new(owner_uid, light_pod)),
            services: Arc::new(Cache::new(owner_uid, light)),
            accounts: Arc::new(Cache::new(owner_uid, light)),
            budgets: Arc::new(Cache::new(owner_uid, light)),
            policies: Arc::new(Cache::new(owner_uid, light)),
            slices: Arc::new(Cache::new(owner_uid, light)),
            gateways: Arc::new(Cache::new(own_uid, light)),
        }
    }
}

impl Caches {
    /// Says how many watches will keep each cache, and how many the gateway's.
    pub fn expect(&self, watches: usize, gateway: usize) {
        self.gateways.expect(gateway);
        self.slices.expect(watches);
        self.models.expect(watches);
        self.deployments.expect(watches);
        self.jobs.expect(watches);
        self.pods.expect(watches);
        self.services.expect(watches);
        self.accounts.expect(watches);
        self.budgets.expect(watches);
        self.policies.expect(watches);
    }

    /// Whether every first list is complete.
    pub fn ready(&self) -> bool {
        self.models.ready()
            && self.deployments.ready()
            && self.jobs.ready()
            && self.pods.ready()
            && self.services.ready()
            && self.accounts.ready()
            && self.budgets.ready()
            && self.policies.ready()
            && self.slices.ready()
            && self.gateways.ready()
    }
}

/// Of a pod's spec only what its containers may use is read; the rest would be most of the memory.
fn light_pod(pod: &mut Pod) {
    light(pod);
    let Some(spec) = &mut pod.spec else { return };
    let containers = std::mem::take(&mut spec.containers);
    *spec = PodSpec::default();
    spec.containers = containers
        .into_iter()
        .map(|container| Container {
            name: container.name,
            resources: container.resources,
            ..Default::default()
        })
        .collect();
}

/// What the cluster said last about an object that makes no progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Such as `pod/magika-5f6d-x2x9l`.
    pub object: String,
    /// The words of the event.
    pub message: String,
}

/// An object whose trouble is told by nothing but its events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Such as `pod/magika-5f6d-x2x9l`.
    pub object: String,
    /// The object's UID.
    pub uid: String,
    /// For how many seconds it has made no progress.
    pub age: i64,
}

/// What one ModelDeployment and its children look like.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The object itself.
    pub model: Arc<ModelDeployment>,
    /// Its Deployment.
    pub deployment: Option<Arc<Deployment>>,
    /// Its Jobs, of earlier requests too.
    pub jobs: Vec<Arc<Job>>,
    /// Pods that serve.
    pub serving: Vec<Arc<Pod>>,
    /// Pods that compress.
    pub compressing: Vec<Arc<Pod>>,
    /// Its Service.
    pub service: Option<Arc<Service>>,
    /// Addresses behind its Services.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Answers to [`questions`].
    pub hints: Vec<Hint>,
    /// The gateway as far as it concerns this model.
    pub gateways: Gateways,
    /// What the measurements say about the number of pods.
    pub scaled: Option<Arc<Scaled>>,
}

/// Looks at `model` and its children.
pub fn observe(caches: &Caches, model: Arc<ModelDeployment>) -> Observed {
    let uid = model.uid().unwrap_or_default();
    let pods = caches.pods.of(&uid);
    let role = |wanted: &str| -> Vec<Arc<Pod>> {
        let has = |pod: &&Arc<Pod>| pod.labels().get(LABEL_ROLE).is_some_and(|role| role == wanted);
        pods.iter().filter(has).cloned().collect()
    };
    let namespace = model.namespace().unwrap_or_default();
    let service = (namespace, names::service(&model.name_any(), &uid));
    let alive = |deployment: &Arc<Deployment>| deployment.metadata.deletion_timestamp.is_none();
    Observed {
        deployment: caches.deployments.of(&uid).into_iter().find(alive),
        jobs: caches.jobs.of(&uid),
        serving: role(ROLE_SERVE),
        compressing: role(ROLE_COMPRESS),
        service: caches
            .services
            .get(&service)
            .filter(|service| owner_uid(service.as_ref()).is_some_and(|owner| owner == uid)),
        slices: caches.slices.of(&uid),
        hints: Vec::new(),
        gateways: Gateways::default(),
        scaled: None,
        model,
    }
}

/// The objects that wait, ripe or not: pods that are scheduled and do not start their containers
/// (a Secret or volume is missing), and Jobs that get no pod (a quota).
pub fn questions(observed: &Observed, now: &Time) -> Vec<Question> {
    let pods = observed.serving.iter().chain(&observed.compressing);
    let pods = pods.filter(|pod| waits_to_start(pod)).map(|pod| ("pod", pod.as_ref().meta()));
    let podless = |job: &&Arc<Job>| {
        let uid = job.uid().unwrap_or_default();
        let owned = |pod: &Arc<Pod>| pod.owner_references().iter().any(|owner| owner.uid == uid);
        let ended = job.status.as_ref().is_some_and(|status| status.conditions.is_some());
        !ended && !observed.compressing.iter().any(owned)
    };
    let jobs = observed.jobs.iter().filter(podless).map(|job| ("job", job.as_ref().meta()));
    pods.chain(jobs)
        .map(|(kind, meta)| Question {
            object: format!("{kind}/{}", meta.name.clone().unwrap_or_default()),
            uid: meta.uid.clone().unwrap_or_default(),
            age: meta
                .creation_timestamp
                .as_ref()
                .map_or(0, |born| now.0.duration_since(born.0).as_secs()),
        })
        .collect()
}

impl Question {
    /// Whether it has waited for long enough to be asked.
    pub fn ripe(&self) -> bool {
        self.age >= PATIENCE
    }
}

fn waits_to_start(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    status.container_statuses.iter().flatten().any(|container| {
        let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("ContainerCreating"))
    })
}
