//! Autoscaling beside its peers, on simulated pods. The program is an example of the operator's
//! package, since it runs the operator's own decision and this room may not import it.

use anyhow::Result;

use super::Options;
use crate::command::{cargo, run_visible};

/// Simulates and prints.
pub fn bench(options: &Options) -> Result<()> {
    let mut command = cargo();
    command.args([
        "run",
        "--release",
        "--quiet",
        "--locked",
        "--package",
        "lithe-operator",
        "--example",
        "autoscale",
        "--",
    ]);
    command.args(options.json.then_some("--json"));
    for trace in &options.trace {
        command.arg("--trace").arg(trace);
    }
    if let Some(plot) = &options.plot {
        command.arg("--plot").arg(plot);
    }
    run_visible(&mut command)
}
