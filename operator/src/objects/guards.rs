//! What protects the pods: an identity without rights, and a disruption budget.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lithe::names::ROLE_SERVE;
use lithe::spec::ModelDeployment;

use crate::objects::{child_name, meta, selector};

/// The identity of the pods. Nothing is bound to it and no token is mounted.
pub fn account(model: &ModelDeployment) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(model, child_name(model, "")),
        automount_service_account_token: Some(false),
        ..Default::default()
    }
}

/// One pod at a time may be drained; pods that serve nothing may always go. None for a model that
/// never has a second pod: a budget would either allow what is allowed anyway or block every drain.
pub fn budget(model: &ModelDeployment) -> Option<PodDisruptionBudget> {
    (model.spec.scaling.most() > 1).then(|| PodDisruptionBudget {
        metadata: meta(model, child_name(model, "")),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(LabelSelector {
                match_labels: Some(selector(model, ROLE_SERVE)),
                ..Default::default()
            }),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".into()),
            ..Default::default()
        }),
        status: None,
    })
}
