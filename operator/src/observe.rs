//! The cluster as it concerns one ModelDeployment, read from the caches alone.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use lithe::names::{LABEL_ROLE, ROLE_COMPRESS, ROLE_SERVE};
use lithe::spec::ModelDeployment;

use crate::cache::{Cache, own_uid, owner_uid};

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
    /// All Services, foreign ones too: ours have plain names that may be taken.
    pub services: Arc<Cache<Service>>,
    /// All ServiceAccounts, foreign ones too.
    pub accounts: Arc<Cache<ServiceAccount>>,
    /// Disruption budgets.
    pub budgets: Arc<Cache<PodDisruptionBudget>>,
    /// Network policies.
    pub policies: Arc<Cache<NetworkPolicy>>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            models: Arc::new(Cache::new(own_uid)),
            deployments: Arc::new(Cache::new(owner_uid)),
            jobs: Arc::new(Cache::new(owner_uid)),
            pods: Arc::new(Cache::new(owner_uid)),
            services: Arc::new(Cache::new(owner_uid)),
            accounts: Arc::new(Cache::new(owner_uid)),
            budgets: Arc::new(Cache::new(owner_uid)),
            policies: Arc::new(Cache::new(owner_uid)),
        }
    }
}

impl Caches {
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
    }
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
    /// What the cluster said last about pods that wait for their volumes: (pod, message).
    pub mounts: Vec<(String, String)>,
}

/// Looks at `model` and its children.
pub fn observe(caches: &Caches, model: Arc<ModelDeployment>) -> Observed {
    let uid = model.uid().unwrap_or_default();
    let pods = caches.pods.of(&uid);
    let role = |wanted: &str| -> Vec<Arc<Pod>> {
        let has = |pod: &&Arc<Pod>| pod.labels().get(LABEL_ROLE).is_some_and(|role| role == wanted);
        pods.iter().filter(has).cloned().collect()
    };
    Observed {
        deployment: caches.deployments.of(&uid).into_iter().next(),
        jobs: caches.jobs.of(&uid),
        serving: role(ROLE_SERVE),
        compressing: role(ROLE_COMPRESS),
        mounts: Vec::new(),
        model,
    }
}
