//! `cargo e2e`: the user's commands. Each is a module; nothing is decided here.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod cache;
mod cleanup;
mod cluster;
mod command;
mod components;
mod configuration;
mod host;
mod images;
mod pki;
mod process;
mod progress;
mod python;

/// Lithe on a real Kubernetes, on this machine.
#[derive(Parser)]
#[command(name = "cargo e2e", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the embedded cluster (built once, then seconds).
    Up,
    /// Stop the embedded cluster and leave the machine as it was.
    Down,
    /// Say what runs.
    Status,
    /// Print the path of the embedded cluster's kubeconfig.
    Kubeconfig,
    /// Print the path of the ONNX Runtime library, fetched when missing.
    RuntimeLibrary,
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up => {
            cluster::up()?;
            println!("The cluster is up. Look around with:\n  export KUBECONFIG={}\nStop it with `cargo e2e down`.", cluster::kubeconfig()?.display());
        }
        Verb::Down => cluster::down()?,
        Verb::Status => {
            return Ok(if cluster::status()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Kubeconfig => println!("{}", cluster::kubeconfig()?.display()),
        Verb::RuntimeLibrary => println!("{}", images::runtime_library()?.display()),
    }
    Ok(ExitCode::SUCCESS)
}
