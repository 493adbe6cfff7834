//! The gateway: takes the requests of many models, each on ports of its own, holds them while a
//! first worker starts, and gives each to the less loaded of two workers.
//!
//! Read in this order: [`apply`] turns a configuration into ports and workers, `listen` accepts
//! connections, `proxy` carries one request, `model` and `worker` are what it knows. It only reads
//! from the cluster ([`watch`]), and shares no state with other gateways.

pub mod admin;
mod answer;
pub mod apply;
pub mod balance;
mod call;
pub mod deadline;
mod forward;
mod hold;
mod listen;
mod metrics;
mod model;
pub mod options;
pub mod outlier;
mod pool;
mod probe;
mod proxy;
pub mod refuse;
pub mod retry;
mod served;
mod tally;
mod upload;
pub mod watch;
mod worker;
