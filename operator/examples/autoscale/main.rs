//! `cargo e2e bench autoscale`: the operator's own `decide` beside its peers, an oracle and bounds,
//! in a simulation of pods request by request. It knows no cluster and no clock.

mod chance;
mod oracle;
mod ours;
mod peers;
mod plot;
mod pods;
mod scenario;
mod score;
mod trace;
mod twin;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use clap::Parser;
use serde_json::json;

use crate::pods::profiles;
use crate::scenario::{Outcome, Scenario, Standing};
use crate::trace::Trace;
use crate::twin::Exact;

/// Autoscalers beside each other, on simulated pods.
#[derive(Parser)]
struct Arguments {
    /// A file with one number of requests per second and line; may be given again.
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Print JSON lines.
    #[arg(long)]
    json: bool,
    /// Write demand and pods over time to this file, as HTML that needs nothing else.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut traces = trace::built_in();
    for path in &arguments.trace {
        traces.push(Trace::read(path)?);
    }
    let profiles = profiles().map(|profile| (Exact::measure(&profile), profile));
    let scenarios: Vec<Scenario<'_>> = traces
        .iter()
        .flat_map(|trace| {
            profiles.iter().map(move |(exact, profile)| Scenario { trace, profile, exact })
        })
        .collect();
    let outcomes = run(&scenarios);
    for (scenario, outcome) in scenarios.iter().zip(&outcomes) {
        if arguments.json { lines(scenario, outcome) } else { table(scenario, outcome) }
    }
    if !arguments.json {
        summary(&outcomes);
    }
    if let Some(path) = &arguments.plot {
        std::fs::write(path, plot::html(&scenarios, &outcomes))
            .with_context(|| format!("write the plot {}", path.display()))?;
    }
    Ok(())
}

/// Runs all, as many at once as there are cores.
fn run(scenarios: &[Scenario<'_>]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(scenario) = scenarios.get(index) else { break };
                    let outcome = scenario.run();
                    if let Ok(mut done) = done.lock() {
                        done.push((index, outcome));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

fn lines(scenario: &Scenario<'_>, outcome: &Outcome) {
    for row in &outcome.rows {
        let line = json!({
            "trace": scenario.trace.name,
            "profile": scenario.profile.name,
            "controller": row.controller,
            "late_percent": row.score.late_percent(),
            "cost_ratio": row.score.pod_seconds / outcome.oracle,
            "actions": row.score.actions,
            "reversals": row.score.reversals,
        });
        println!("{line}");
    }
}

fn table(scenario: &Scenario<'_>, outcome: &Outcome) {
    println!("\n{} / {}", scenario.trace.name, scenario.profile.name);
    println!("{:<26} {:>8} {:>8} {:>8} {:>9}", "", "late %", "cost", "actions", "reversals");
    for row in &outcome.rows {
        println!(
            "{:<26} {:>8.2} {:>7.2}x {:>8} {:>9}",
            row.controller,
            row.score.late_percent(),
            row.score.pod_seconds / outcome.oracle,
            row.score.actions,
            row.score.reversals,
        );
    }
}

/// Over all scenarios: what `lithe` costs, and how it stands beside peers tuned with hindsight.
fn summary(outcomes: &[Outcome]) {
    let costs = outcomes.iter().filter_map(Outcome::cost);
    let count = costs.clone().count().max(1) as f64;
    let mean = (costs.map(f64::ln).sum::<f64>() / count).exp();
    let standings: Vec<Standing> = outcomes.iter().map(Outcome::standing).collect();
    let of = |holds: fn(&Standing) -> bool| standings.iter().filter(|one| holds(one)).count();
    println!(
        "\nlithe: {mean:.3}x the oracle (geometric mean of {}). Beside every peer, tuned with hindsight: \
         by none beaten on both late and cost in {}; cheaper than all in {}; late x cost less than all in {}",
        outcomes.len(),
        of(|one| one.undominated),
        of(|one| one.cheapest),
        of(|one| one.least_product),
    );
}
