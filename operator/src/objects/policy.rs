//! What the pods may talk to. A serving pod takes requests and fetches its artifact; a compressing
//! pod takes nothing and reads sources, but never the address where clouds keep credentials.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
    NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use lithe::names::{PORT_ADMIN, PORT_GRPC, PORT_HTTP, ROLE_COMPRESS, ROLE_SERVE};
use lithe::spec::ModelDeployment;

use crate::config::Config;
use crate::objects::{child_name, meta, selector};

/// The policy of serving pods.
pub fn serve(model: &ModelDeployment, config: &Config) -> NetworkPolicy {
    let ingress = NetworkPolicyIngressRule {
        from: None,
        ports: Some([PORT_HTTP, PORT_GRPC, PORT_ADMIN].map(|p| port(p, "TCP")).into()),
    };
    let store = NetworkPolicyEgressRule {
        to: Some(anywhere()),
        ports: Some(vec![port(store_port(&config.store), "TCP")]),
    };
    policy(model, "", ROLE_SERVE, Some(vec![ingress]), vec![names(), store])
}

/// The policy of compressing pods.
pub fn compress(model: &ModelDeployment, _config: &Config) -> NetworkPolicy {
    // Sources and stores listen on ports that only their addresses tell.
    let sources = NetworkPolicyEgressRule { to: Some(anywhere()), ports: None };
    policy(model, "-compress", ROLE_COMPRESS, None, vec![names(), sources])
}

fn policy(
    model: &ModelDeployment,
    suffix: &str,
    role: &str,
    ingress: Option<Vec<NetworkPolicyIngressRule>>,
    egress: Vec<NetworkPolicyEgressRule>,
) -> NetworkPolicy {
    NetworkPolicy {
        metadata: meta(model, child_name(model, suffix)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(selector(model, role)),
                ..Default::default()
            }),
            policy_types: Some(vec!["Ingress".into(), "Egress".into()]),
            ingress,
            egress: Some(egress),
        }),
    }
}

/// The resolver of names.
fn names() -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule { to: None, ports: Some(vec![port(53, "UDP"), port(53, "TCP")]) }
}

fn port(port: u16, protocol: &str) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(i32::from(port))),
        protocol: Some(protocol.into()),
        end_port: None,
    }
}

fn anywhere() -> Vec<NetworkPolicyPeer> {
    [("0.0.0.0/0", "169.254.0.0/16"), ("::/0", "fe80::/10")]
        .map(|(cidr, except)| NetworkPolicyPeer {
            ip_block: Some(IPBlock { cidr: cidr.into(), except: Some(vec![except.into()]) }),
            ..Default::default()
        })
        .into()
}

/// The port in a store's address; that of TLS where it names none.
fn store_port(store: &str) -> u16 {
    let authority = store.split("://").nth(1).and_then(|rest| rest.split('/').next());
    let port = authority.and_then(|authority| authority.rsplit_once(':'));
    port.and_then(|(_, port)| port.parse().ok()).unwrap_or(443)
}

#[cfg(test)]
mod tests {
    use super::store_port;

    #[test]
    fn the_port_of_a_store_is_the_one_it_names_or_that_of_tls() {
        for (store, port) in [
            ("oci://host:5000/lithe", 5000),
            ("oci://host/lithe", 443),
            ("s3://bucket/prefix", 443),
        ] {
            assert_eq!(store_port(store), port, "{store}");
        }
    }
}
