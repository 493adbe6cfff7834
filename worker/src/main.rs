//! `lithe-worker`: `compress` in a Job, `serve` in a Pod. Nothing else happens here.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lithe_worker::compress;

/// Compresses and serves ONNX models.
#[derive(Parser)]
#[command(name = "lithe-worker", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Compress a model by a recipe.
    Compress(compress::cli::Args),
    /// Load a model once under limits; `compress` starts it.
    #[command(hide = true)]
    Trial(compress::trial::Args),
}

fn main() -> ExitCode {
    turn_telemetry_off();
    let code = match Cli::parse().verb {
        Verb::Compress(args) => compress::cli::run(&args),
        Verb::Trial(args) => compress::trial::child(&args),
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// The runtime's library reads this when it is loaded; the builder's switch comes too late for it.
#[allow(unsafe_code)]
fn turn_telemetry_off() {
    // SAFETY: this is the first thing the process does, and it has only this thread.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}
