//! What protects the pods: an identity without rights, a disruption budget, a network policy.

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lithe::names::{LABEL_UID, PORT_ADMIN, PORT_GRPC, PORT_HTTP, ROLE_SERVE};
use lithe::spec::ModelDeployment;

use crate::config::Config;
use crate::objects::{child_name, meta, selector, uid};

/// The identity of the pods. Nothing is bound to it and no token is mounted.
pub fn account(model: &ModelDeployment) -> ServiceAccount {
    ServiceAccount {
        metadata: meta(model, child_name(model, "")),
        automount_service_account_token: Some(false),
        ..Default::default()
    }
}

/// One pod at a time may be drained; pods that serve nothing may always go.
pub fn budget(model: &ModelDeployment) -> PodDisruptionBudget {
    PodDisruptionBudget {
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
    }
}

/// Requests and probes come in; names, the store and sources go out, but never to the address
/// where clouds keep their credentials.
pub fn policy(model: &ModelDeployment, _config: &Config) -> NetworkPolicy {
    let port = |port: u16, protocol: &str| NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some(protocol.into()),
        end_port: None,
    };
    let anywhere = |cidr: &str, except: &str| NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr: cidr.into(), except: Some(vec![except.into()]) }),
        ..Default::default()
    };
    NetworkPolicy {
        metadata: meta(model, child_name(model, "")),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some([(LABEL_UID.to_owned(), uid(model))].into()),
                ..Default::default()
            }),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress: Some(vec![NetworkPolicyIngressRule {
                from: None,
                ports: Some(vec![
                    port(PORT_HTTP, "TCP"),
                    port(PORT_GRPC, "TCP"),
                    port(PORT_ADMIN, "TCP"),
                ]),
            }]),
            egress: Some(vec![
                NetworkPolicyEgressRule {
                    to: None,
                    ports: Some(vec![port(53, "UDP"), port(53, "TCP")]),
                },
                NetworkPolicyEgressRule {
                    to: Some(vec![
                        anywhere("0.0.0.0/0", "169.254.0.0/16"),
                        anywhere("::/0", "fe80::/10"),
                    ]),
                    ports: None,
                },
            ]),
        }),
    }
}
