//! `lithe-worker`: `compress` in a Job, `serve` in a Pod. Nothing else happens here.

use std::io::IsTerminal as _;
use std::time::Instant;

use clap::{Parser, Subcommand};
use lithe_worker::{job, process, serve};
use tracing_subscriber::EnvFilter;

/// Compresses ONNX models and serves them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// What is logged, such as `info` or `lithe_worker=debug`.
    #[arg(long, global = true, env = "LITHE_LOG", default_value = "info")]
    log: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve a model until SIGTERM.
    Serve(Box<serve::Options>),
    /// Compress a model as a recipe says.
    Compress(Box<job::Options>),
}

fn main() {
    let born = Instant::now();
    let arguments = Arguments::parse();
    process::harden();
    log(&arguments.log);
    // An earlier provider would be as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let empty = process::leave_directory();
    if let Err(error) = &empty {
        tracing::warn!(%error, "no empty working directory");
    }
    let code = match arguments.verb {
        Verb::Serve(options) => serve::main(*options, born),
        Verb::Compress(options) => job::main(*options, compress),
    };
    drop(empty);
    std::process::exit(code);
}

// SEAM: replaced by the compressor when it is merged.
fn compress(_: &job::Work) -> Result<lithe::artifact::Manifest, job::JobError> {
    Err(job::JobError::Failed("this build has no compressor".into()))
}

/// Logs to stderr: for people on a terminal, as JSON elsewhere.
fn log(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|error| {
        eprintln!("lithe-worker: --log {filter}: {error}");
        EnvFilter::new("info")
    });
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.init();
    } else {
        builder.json().flatten_event(true).init();
    }
}
