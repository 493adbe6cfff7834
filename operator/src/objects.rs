//! The children as they should be. Pure: a ModelDeployment and a plan in, objects out.

pub mod deployment;
pub mod guards;
pub mod job;
pub mod pod;
pub mod policy;
pub mod service;
pub mod slice;

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource as _, ResourceExt as _};
use lithe::names;
use lithe::spec::ModelDeployment;

use crate::config::Config;
use crate::observe::Observed;
use crate::plan::Plan;

/// Everything that should exist. `None` where the plan has nothing of the kind.
#[derive(Clone, Debug)]
pub struct Objects {
    /// The identity of the pods, without any right and without a token.
    pub account: ServiceAccount,
    /// What the pods may talk to, one for each role that has pods; none when policies are off.
    pub policies: Vec<NetworkPolicy>,
    /// The address that clients write down.
    pub service: Service,
    /// What tells the gateway the pods; absent while it needs not know them.
    pub workers: Option<Service>,
    /// The gateway's addresses behind `service`.
    pub slice: Option<EndpointSlice>,
    /// How many pods a drain may take at a time; absent where there is never a second pod.
    pub budget: Option<PodDisruptionBudget>,
    /// The pods that serve; absent until there is an artifact, and while it must stay as it is.
    pub deployment: Option<Deployment>,
    /// The Job to create; absent when none is due.
    pub job: Option<Job>,
    /// Labels and owner of the Job that is there or comes.
    pub job_meta: ObjectMeta,
}

/// The children as `plan` wants them.
pub fn objects(observed: &Observed, plan: &Plan, config: &Config) -> Objects {
    let model = observed.model.as_ref();
    let deployment = plan
        .artifact
        .as_ref()
        .filter(|_| !plan.leave)
        .map(|artifact| deployment::deployment(model, plan, artifact, config));
    Objects {
        account: guards::account(model),
        policies: if config.network_policy { policies(observed, plan, config) } else { Vec::new() },
        service: service::service(model, plan.traffic.through),
        workers: plan.traffic.uses_gateway().then(|| service::workers(model)),
        slice: plan
            .traffic
            .endpoints
            .as_deref()
            .zip(plan.traffic.ports)
            .map(|(endpoints, ports)| slice::slice(model, endpoints, ports)),
        budget: guards::budget(model),
        deployment,
        job: plan.start.as_ref().map(|why| job::job(model, &plan.request, why, config)),
        job_meta: meta(model, names::job(&model.name_any(), &uid(model), &plan.request)),
    }
}

fn policies(observed: &Observed, plan: &Plan, config: &Config) -> Vec<NetworkPolicy> {
    let model = observed.model.as_ref();
    let compresses = plan.start.is_some() || observed.jobs.iter().any(|job| plan.keeps(job));
    let compress = compresses.then(|| policy::compress(model, config));
    [Some(policy::serve(model, config)), compress].into_iter().flatten().collect()
}

/// The UID of `model`.
pub fn uid(model: &ModelDeployment) -> String {
    model.uid().unwrap_or_default()
}

/// The name of the child of `model` that ends with `suffix`.
pub fn child_name(model: &ModelDeployment, suffix: &str) -> String {
    names::child(&model.name_any(), &uid(model), suffix)
}

/// The labels of every child of `model`.
pub fn labels(model: &ModelDeployment) -> BTreeMap<String, String> {
    [
        (names::LABEL_MANAGED_BY, names::MANAGED_BY.to_owned()),
        (names::LABEL_MODEL, names::label_value(&model.name_any())),
        (names::LABEL_UID, uid(model)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

/// The labels by which the pods of `model` with `role` are selected.
pub fn selector(model: &ModelDeployment, role: &str) -> BTreeMap<String, String> {
    [(names::LABEL_UID.to_owned(), uid(model)), (names::LABEL_ROLE.to_owned(), role.to_owned())]
        .into()
}

/// The metadata of the child `name` of `model`.
pub fn meta(model: &ModelDeployment, name: String) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: model.namespace(),
        labels: Some(labels(model)),
        owner_references: Some(model.controller_owner_ref(&()).into_iter().collect()),
        ..Default::default()
    }
}
