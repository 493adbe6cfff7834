//! The Service: the address that clients write down.

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use lithe::names::{self, PORT_GRPC, ROLE_SERVE};
use lithe::spec::ModelDeployment;

use crate::objects::{meta, selector, uid};

/// The port of the REST protocols in the Service.
pub const HTTP: i32 = 80;

/// The Service of `model`.
pub fn service(model: &ModelDeployment) -> Service {
    let port = |name: &str, port: i32, protocol: &str| ServicePort {
        name: Some(name.into()),
        port,
        protocol: Some("TCP".into()),
        app_protocol: Some(protocol.into()),
        target_port: Some(IntOrString::String(name.into())),
        ..Default::default()
    };
    Service {
        metadata: meta(model, name(model)),
        spec: Some(ServiceSpec {
            selector: Some(selector(model, ROLE_SERVE)),
            ports: Some(vec![
                port("http", HTTP, "http"),
                port("grpc", i32::from(PORT_GRPC), "kubernetes.io/h2c"),
            ]),
            ..Default::default()
        }),
        status: None,
    }
}

/// Its name.
pub fn name(model: &ModelDeployment) -> String {
    names::service(&model.name_any(), &uid(model))
}
