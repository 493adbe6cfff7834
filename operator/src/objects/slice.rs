//! The addresses of the gateway's pods behind a model's Service, with the ports that are the model's.

use k8s_openapi::api::discovery::v1::{
    Endpoint as Address, EndpointConditions, EndpointPort, EndpointSlice,
};
use lithe::names::{LABEL_SERVICE, LABEL_SLICE_KEEPER, SLICE_KEEPER};
use lithe::spec::ModelDeployment;

use crate::objects::{child_name, meta, service};
use crate::plan::traffic::{Endpoint, Ports};

/// The slice of `model` with `endpoints`. Of IPv4, as the gateway's addresses are.
pub fn slice(model: &ModelDeployment, endpoints: &[Endpoint], ports: Ports) -> EndpointSlice {
    let mut metadata = meta(model, child_name(model, "-gateway"));
    metadata.labels.get_or_insert_default().extend(
        [(LABEL_SERVICE, service::name(model)), (LABEL_SLICE_KEEPER, SLICE_KEEPER.to_owned())]
            .map(|(name, value)| (name.to_owned(), value)),
    );
    let port = |name: &str, port: u16, protocol: &str| EndpointPort {
        name: Some(name.into()),
        port: Some(i32::from(port)),
        protocol: Some("TCP".into()),
        app_protocol: Some(protocol.into()),
    };
    let address = |endpoint: &Endpoint| Address {
        addresses: vec![endpoint.address.clone()],
        node_name: endpoint.node.clone(),
        conditions: Some(EndpointConditions { ready: Some(true), ..Default::default() }),
        ..Default::default()
    };
    EndpointSlice {
        metadata,
        address_type: "IPv4".into(),
        endpoints: Some(endpoints.iter().map(address).collect()),
        ports: Some(vec![
            port("http", ports.http, "http"),
            port("grpc", ports.grpc, "kubernetes.io/h2c"),
        ]),
    }
}
