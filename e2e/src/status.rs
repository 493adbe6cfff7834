//! `cargo e2e status`: a small table of what runs. It starts and builds nothing.

use std::io::Write as _;
use std::process::Command;

use anyhow::Result;

use crate::cluster::{self, Cluster, DAEMONS, NODE};
use crate::command::capture;
use crate::components::Components;

/// Prints what runs; `false` when the cluster is down.
pub fn status() -> Result<bool> {
    let folder = cluster::folder()?;
    let daemons = cluster::daemons()?;
    let Some(components) = Components::recorded(&folder).filter(|_| !daemons.names().is_empty())
    else {
        row("cluster", "down: start it with `cargo e2e up`");
        row("logs", &folder.join("logs").display().to_string());
        return Ok(false);
    };
    let cluster = Cluster { kubeconfig: cluster::kubeconfig()?, context: None, components };
    for name in DAEMONS {
        let state = match daemons.pid(name) {
            Some(pid) => format!("running  pid {pid:<8} {}", version(&cluster, name)),
            None => format!("STOPPED  read {}", daemons.log(name).display()),
        };
        row(name, &state);
    }
    row(
        "node",
        &node(&cluster).unwrap_or_else(|_| "unknown: the API server does not answer".into()),
    );
    let size = capture(Command::new("du").arg("-sh").arg(&folder)).unwrap_or_default();
    row("disk", size.split_whitespace().next().unwrap_or("unknown"));
    row("logs", &folder.join("logs").display().to_string());
    row("kubeconfig", &cluster.kubeconfig.display().to_string());
    let healthy = cluster::healthy(&cluster);
    row("cluster", if healthy { "ready" } else { "not ready: `cargo e2e up` starts it anew" });
    Ok(healthy)
}

fn row(name: &str, text: &str) {
    // A reader that has seen enough (`| head`) is no error.
    let _ = writeln!(std::io::stdout(), "{name:<24} {text}");
}

fn version(cluster: &Cluster, name: &str) -> String {
    let Ok(program) = cluster.components.path(name) else { return String::new() };
    // The group's folder carries the pins; the program itself carries its version, if it says it.
    let flag = if name == "coredns" { "-version" } else { "--version" };
    let text = capture(Command::new(program).arg(flag)).unwrap_or_default();
    let word = |word: &&str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    text.split([' ', '-', '\n']).find(word).unwrap_or_default().to_owned()
}

fn node(cluster: &Cluster) -> Result<String> {
    const COLUMNS: &str = "jsonpath={.metadata.name} {.status.nodeInfo.kubeletVersion} {.status.nodeInfo.containerRuntimeVersion} gpus={.status.allocatable.nvidia\\.com/gpu}";
    let get = ["get", "node", NODE, "-o", COLUMNS, "--request-timeout=2s"];
    capture(cluster.kubectl()?.args(get))
}
