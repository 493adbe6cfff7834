//! `cargo e2e`: the user's commands. Each is a module; nothing is decided here.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod cache;
mod cleanup;
mod clients;
mod cluster;
mod command;
mod components;
mod configuration;
mod demo;
mod fuzz;
mod host;
mod images;
mod interrupt;
mod loopback;
mod network;
mod pki;
mod process;
mod progress;
mod python;
mod status;
mod suite;
mod volumes;

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
    /// Show the whole story on it: two models compressed, gated, rolled out and asked.
    Demo(demo::Where),
    /// Stop the embedded cluster and leave the machine as it was.
    Down,
    /// Say what runs.
    Status,
    /// Print the path of the embedded cluster's kubeconfig.
    Kubeconfig,
    /// Let real clients of every protocol ask a worker on this machine, without a cluster.
    Clients(loopback::Which),
    /// Print the path of the ONNX Runtime library, fetched when missing.
    RuntimeLibrary,
    /// Measure and print figures.
    Bench {
        /// What is measured.
        name: bench::Bench,
        #[command(flatten)]
        options: bench::Options,
    },
    /// Fuzz what reads bytes from outside.
    Fuzz(fuzz::Fuzz),
    /// Run every test, those on the real cluster included.
    Test,
}

fn main() -> ExitCode {
    let verb = Arguments::parse().verb;
    match interrupt::watch().and_then(|()| run(verb)) {
        Ok(code) => code,
        // What a shell expects of a command that Ctrl-C ended.
        Err(_) if interrupt::interrupted() => ExitCode::from(130),
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up => {
            let cluster = cluster::up()?;
            println!(
                "The cluster is up. Look around with:\n  export KUBECONFIG={}\n  {} get pods -A\nStop it with `cargo e2e down`.",
                cluster.kubeconfig.display(),
                cluster.components.path("kubectl")?.display(),
            );
        }
        Verb::Demo(place) => demo::demo(&place)?,
        Verb::Down => cluster::down()?,
        Verb::Status => {
            return Ok(if status::status()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Verb::Kubeconfig => println!("{}", cluster::kubeconfig()?.display()),
        Verb::RuntimeLibrary => println!("{}", images::runtime_library()?.display()),
        Verb::Clients(which) => loopback::clients(&which)?,
        Verb::Bench { name, options } => bench::bench(name, &options)?,
        Verb::Fuzz(what) => fuzz::fuzz(&what)?,
        Verb::Test => suite::test()?,
    }
    Ok(ExitCode::SUCCESS)
}
