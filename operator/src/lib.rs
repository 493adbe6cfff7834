//! `lithe-operator`: observe -> plan -> objects -> apply -> report.
//!
//! Read [`controller`] first: it is the table of contents. Only `watch`, `inquire`, `apply`,
//! `publish`, `controller` and `lease` talk to the API server, by way of `client`; only `scrape`
//! talks to pods; `plan`, `objects`, `drift` and `report` are plain functions.

pub mod admin;
pub mod apply;
pub mod cache;
pub mod client;
pub mod config;
pub mod controller;
pub mod drift;
pub mod gateways;
pub mod inquire;
pub mod lease;
pub mod measured;
pub mod metrics;
pub mod objects;
pub mod observe;
pub mod plan;
pub mod publish;
pub mod pulse;
pub mod queue;
pub mod report;
pub mod scrape;
pub mod telemetry;
pub mod watch;
