//! `cargo e2e bench NAME`: figures beside a limit or a peer, printed for people or as JSON lines.

pub mod compression;
pub mod gateway;
pub mod operator;
pub mod worker;

use anyhow::Result;
use clap::ValueEnum;

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Bench {
    /// Time, processor, memory and requests of the operator for many ModelDeployments.
    Operator,
    /// Size, likeness, speed, time and memory of compression, beside its peers.
    Compression,
    /// What the gateway adds to a request, requests for a core, memory; beside nginx.
    Gateway,
    /// Time from start to ready, and the size of the image, of the worker.
    Worker,
}

/// Measures `what`.
pub fn bench(what: Bench, json: bool) -> Result<()> {
    match what {
        Bench::Operator => operator::bench(json),
        Bench::Compression => compression::bench(json),
        Bench::Gateway => gateway::bench(json),
        Bench::Worker => worker::bench(json),
    }
}
