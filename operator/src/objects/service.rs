//! The Services: the address that clients write down, and one that tells the gateway the pods.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use lithe::names::{
    self, LABEL_ROLE, PORT_ADMIN, PORT_GRPC, PORT_HTTP, ROLE_GATEWAY, ROLE_SERVE, ROLE_WORKERS,
};
use lithe::spec::ModelDeployment;

use crate::objects::{meta, selector, uid};

/// The port of the REST protocols in the Service.
pub const HTTP: i32 = 80;

/// The Service of `model`. While requests go `through` the gateway it selects a role that no pod
/// has: the addresses behind it are then those of [`crate::objects::slice`] alone. Without any
/// selector the cluster would leave its last addresses of pods there for ever.
pub fn service(model: &ModelDeployment, through: bool) -> Service {
    let role = if through { ROLE_GATEWAY } else { ROLE_SERVE };
    Service {
        metadata: meta(model, name(model)),
        spec: Some(ServiceSpec {
            selector: Some(selector(model, role)),
            ports: Some(vec![
                port("http", HTTP, "http"),
                port("grpc", i32::from(PORT_GRPC), "kubernetes.io/h2c"),
            ]),
            ..Default::default()
        }),
        status: None,
    }
}

/// The headless Service of the pods of `model`, by which the gateway finds them.
pub fn workers(model: &ModelDeployment) -> Service {
    let mut metadata = meta(model, names::workers(&model.name_any(), &uid(model)));
    // Slices take their Service's labels, and by this one the gateway picks them.
    metadata.labels.get_or_insert_default().insert(LABEL_ROLE.into(), ROLE_WORKERS.into());
    Service {
        metadata,
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            selector: Some(selector(model, ROLE_SERVE)),
            ports: Some(vec![
                port("http", i32::from(PORT_HTTP), "http"),
                port("grpc", i32::from(PORT_GRPC), "kubernetes.io/h2c"),
                port("admin", i32::from(PORT_ADMIN), "http"),
            ]),
            ..Default::default()
        }),
        status: None,
    }
}

/// Whether `service` is that one of `model`.
pub fn is_workers(service: &Service, model: &ModelDeployment) -> bool {
    service.name_any() == names::workers(&model.name_any(), &uid(model))
}

fn port(name: &str, port: i32, protocol: &str) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port,
        protocol: Some("TCP".into()),
        app_protocol: Some(protocol.into()),
        target_port: Some(IntOrString::String(name.into())),
        ..Default::default()
    }
}

/// The name of the first.
pub fn name(model: &ModelDeployment) -> String {
    names::service(&model.name_any(), &uid(model))
}
