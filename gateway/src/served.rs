//! What the gateway reads of a ModelDeployment: its ports, its target, its shares, and no more.
//!
//! A newer operator may write what this gateway does not know; that must not close a model's ports,
//! so nothing else of the object is looked at.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::core::DeserializeGuard;
use lithe::gateway::{Model, RevisionWeight};
use lithe::spec::ModelDeployment;
use lithe::units::Duration;
use serde::Deserialize;

/// A ModelDeployment as the gateway sees it.
#[derive(kube::Resource, Clone, Debug, Deserialize)]
#[resource(inherit = ModelDeployment)]
pub struct Served {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    scaling: Scaling,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Scaling {
    latency: Option<Latency>,
}

#[derive(Clone, Debug, Deserialize)]
struct Latency {
    target: Duration,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Status {
    traffic: Option<Traffic>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Traffic {
    http_port: Option<u16>,
    grpc_port: Option<u16>,
    #[serde(default)]
    weights: Vec<RevisionWeight>,
}

/// What the gateway needs of a ModelDeployment; nothing when it gives it no ports. One that leaves
/// the gateway keeps its ports until its status says so.
pub fn model(object: &DeserializeGuard<Served>) -> Option<Model> {
    let object = match &object.0 {
        Ok(object) => object,
        Err(error) => {
            let (namespace, name) = (&error.metadata.namespace, &error.metadata.name);
            tracing::warn!(?namespace, ?name, %error, "unreadable ModelDeployment");
            return None;
        }
    };
    let traffic = object.status.traffic.as_ref()?;
    let latency = object.spec.scaling.latency.as_ref();
    Some(Model {
        uid: object.uid()?,
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        generation: object.metadata.generation.unwrap_or_default(),
        resource_version: object.resource_version().unwrap_or_default(),
        http_port: traffic.http_port?,
        grpc_port: traffic.grpc_port?,
        target: latency.map(|latency| latency.target.clone()),
        weights: traffic.weights.clone(),
        workers: Vec::new(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(status: Value) -> Option<Model> {
        let object = json!({
            "apiVersion": "lithe.dev/v1alpha1", "kind": "ModelDeployment",
            "metadata": {"name": "m", "namespace": "n", "uid": "u", "generation": 2, "resourceVersion": "7"},
            "spec": {"model": {"uri": "pvc://models/m.onnx"}, "scaling": {
                "maxReplicas": 2, "latency": {"target": "50ms"}}},
            "status": status,
        });
        model(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_model_counts_once_its_status_gives_it_ports() {
        assert_eq!(read(json!({})), None);
        assert_eq!(read(json!({"traffic": {"mode": "Direct"}})), None);
        let told =
            read(json!({"traffic": {"mode": "Gateway", "httpPort": 20000, "grpcPort": 20001}}));
        let told = told.unwrap();
        assert_eq!((told.generation, told.resource_version.as_str()), (2, "7"));
        assert_eq!((told.http_port, told.grpc_port), (20000, 20001));
        assert_eq!(told.target, Some("50ms".into()));
    }

    #[test]
    fn what_a_newer_operator_writes_closes_no_port() {
        let told = read(json!({
            "phase": "APhaseOfTheFuture",
            "traffic": {"mode": "Mesh", "httpPort": 20000, "grpcPort": 20001, "more": {}},
        }));
        assert!(told.is_some());
    }
}
