//! `lithe-operator`: observe -> plan -> objects -> apply -> report.
//!
//! Read [`controller`] first: it is the table of contents. Only `controller`, `apply`, `lease` and
//! `client` talk to the API server; `plan`, `objects` and `report` are plain functions.

pub mod admin;
pub mod apply;
pub mod cache;
pub mod client;
pub mod config;
pub mod controller;
pub mod lease;
pub mod metrics;
pub mod objects;
pub mod observe;
pub mod plan;
pub mod queue;
pub mod report;
pub mod telemetry;
