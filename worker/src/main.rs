//! `lithe-worker`: `compress` in a Job, `serve` in a Pod. Nothing else happens here.

use std::io::IsTerminal as _;
use std::time::Instant;

use clap::{Parser, Subcommand};
use lithe_worker::{compress, job, process, serve};
use tracing_subscriber::EnvFilter;

/// Compresses ONNX models and serves them.
#[derive(Parser)]
#[command(name = "lithe-worker", version)]
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
    /// Compress a model by a recipe: into a folder, or into the artifact store.
    Compress(Box<job::Options>),
    /// Load a model once under limits; `compress` starts it.
    #[command(hide = true)]
    Trial(compress::trial::Args),
    /// Show what each pass of `optimize` makes of many models; for tests.
    #[command(hide = true)]
    Passes(compress::passes::Args),
}

fn main() {
    let born = Instant::now();
    let arguments = Arguments::parse();
    process::harden();
    log(&arguments.log);
    // An earlier provider would be as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let code = match arguments.verb {
        Verb::Trial(limits) => compress::trial::child(&limits),
        Verb::Passes(arguments) => compress::passes::run(&arguments),
        Verb::Serve(options) => confined(|| serve::main(*options, born)),
        Verb::Compress(options) => match options.laptop() {
            Some(arguments) => compress::cli::run(&arguments),
            None => confined(|| job::main(*options, job::compress)),
        },
    };
    process::end(code)
}

/// Runs `verb` in an empty working directory.
fn confined(verb: impl FnOnce() -> i32) -> i32 {
    let empty = compress::confine::enter_empty_directory();
    if let Err(error) = &empty {
        tracing::warn!(%error, "no empty working directory");
    }
    verb()
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
