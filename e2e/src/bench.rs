//! `cargo e2e bench NAME`: figures beside a limit or a peer, printed for people or as JSON lines.

pub mod autoscale;
pub mod compression;
pub mod gateway;
pub mod operator;
pub mod serve;
pub mod worker;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Bench {
    /// Time, processor, memory and requests of the operator for many ModelDeployments.
    Operator,
    /// Size, likeness, speed, time and memory of compression, beside its peers.
    Compression,
    /// What the gateway adds to a request, requests for a core, memory; beside nginx.
    Gateway,
    /// What serving adds to bare ONNX Runtime, requests per second, memory, and overload.
    Serve,
    /// Time from start to ready, and the size of the image, of the worker.
    Worker,
    /// Late requests and pods of the operator's autoscaling, beside its peers and an oracle, simulated.
    Autoscale,
}

/// How it is measured and shown.
#[derive(Args, Debug)]
pub struct Options {
    /// Print JSON lines.
    #[arg(long)]
    pub json: bool,
    /// For autoscale: a file with one number of requests per second and line; may be given again.
    #[arg(long, value_name = "FILE")]
    pub trace: Vec<PathBuf>,
    /// For autoscale: write demand and pods over time to this file, as HTML.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// Measures `what`.
pub fn bench(what: Bench, options: &Options) -> Result<()> {
    let json = options.json;
    let simulates = matches!(what, Bench::Autoscale);
    if !simulates && (!options.trace.is_empty() || options.plot.is_some()) {
        bail!("--trace and --plot belong to `cargo e2e bench autoscale`");
    }
    match what {
        Bench::Operator => operator::bench(json),
        Bench::Compression => compression::bench(json),
        Bench::Gateway => gateway::bench(json),
        Bench::Serve => serve::bench(json),
        Bench::Worker => worker::bench(json),
        Bench::Autoscale => autoscale::bench(options),
    }
}
