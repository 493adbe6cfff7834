//! What the gateway is told and what it tells: its configuration, the acknowledgement of it, the
//! demand for a first worker, and the figures the autoscaler reads.
//!
//! In a cluster the configuration is never a file: the gateway reads it from ModelDeployments
//! (`status.traffic`) and from the EndpointSlices labelled [`LABEL_UID`](crate::names::LABEL_UID)
//! and [`LABEL_ROLE`](crate::names::LABEL_ROLE)` = `[`ROLE_WORKERS`](crate::names::ROLE_WORKERS).
//! `lithe-gateway --static FILE` reads the same as JSON.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::latency::Signals;
use crate::units::Duration;

/// Where the gateway acknowledges: `GET` answers an [`Acknowledgement`].
pub const PATH_CONFIGURATION: &str = "/configuration";
/// Where the gateway tells of waiting requests: `GET ?after=N` answers a [`Demand`].
pub const PATH_DEMAND: &str = "/demand";

/// Where the gateway tells what the autoscaler needs: `GET` answers a list of [`ModelSignals`].
pub const PATH_SIGNALS: &str = "/signals";

/// Everything one gateway serves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Configuration {
    /// The models, each with ports of its own.
    pub models: Vec<Model>,
}

/// One model behind the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Model {
    /// The ModelDeployment's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its `metadata.generation`.
    #[serde(default)]
    pub generation: i64,
    /// Its `metadata.resourceVersion`: which status was read.
    #[serde(default)]
    pub resource_version: String,
    /// The port on which the gateway takes the REST protocols.
    pub http_port: u16,
    /// The port on which the gateway takes the gRPC protocols.
    pub grpc_port: u16,
    /// `spec.scaling.latency.target`: an answer after this counts as missed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Duration>,
    /// The shares of the revisions; without any, all workers are alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<RevisionWeight>,
    /// The workers that exist.
    #[serde(default)]
    pub workers: Vec<Worker>,
}

/// A revision's share of the requests, in proportion to the sum of all weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "crd", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RevisionWeight {
    /// The value of [`LABEL_REVISION`](crate::names::LABEL_REVISION) on the workers' EndpointSlices.
    pub revision: String,
    /// Its weight; 0 sends nothing there.
    pub weight: u32,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Worker {
    /// Its address.
    pub address: IpAddr,
    /// Its port of the REST protocols.
    pub http_port: u16,
    /// Its port of the gRPC protocols.
    pub grpc_port: u16,
    /// Its port of the probes.
    pub admin_port: u16,
    /// What it serves; empty while nobody distinguishes revisions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Where it stands.
    #[serde(default)]
    pub state: WorkerState,
}

/// Where a worker stands, as its EndpointSlice says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// It takes requests.
    #[default]
    Ready,
    /// It is there and not ready; the gateway asks it itself while requests wait.
    Starting,
    /// It is about to end and still serves: taken only when nobody else is there.
    Draining,
}

/// What the gateway applies: a weight or a port is live once it stands here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Acknowledgement {
    /// Whether the gateway will end soon; it still serves.
    pub draining: bool,
    /// The models it applies. One that was deleted is gone from here.
    pub models: Vec<Applied>,
}

/// How far one model is applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The ModelDeployment's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The `metadata.generation` that is applied.
    pub generation: i64,
    /// The `metadata.resourceVersion` that is applied.
    pub resource_version: String,
    /// The port of the REST protocols.
    pub http_port: u16,
    /// The port of the gRPC protocols.
    pub grpc_port: u16,
    /// Whether both ports take connections.
    pub listening: bool,
    /// Why they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The shares in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<RevisionWeight>,
    /// Workers that take requests.
    pub ready_workers: u32,
}

/// Which models have requests but no worker.
///
/// `GET /demand?after=N` answers as soon as `sequence` differs from `N` (a gateway that restarted
/// counts anew), or after 20 s.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Demand {
    /// Grows whenever a model without a worker gets its first held request.
    pub sequence: u64,
    /// The models whose requests are held now.
    pub waiting: Vec<Waiting>,
}

/// A model whose requests are held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// The ModelDeployment's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The requests that are held.
    pub requests: u64,
}

/// What one gateway counted for one model: all that came, those without a worker included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelSignals {
    /// The ModelDeployment's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The figures. `queued` are the requests that are held, `queue_time` the times they were, and
    /// `cold_start` how long the last first request waited for the first worker.
    pub signals: Signals,
}
