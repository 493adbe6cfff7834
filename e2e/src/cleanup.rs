//! Undoes what the embedded cluster made on the machine: containers, mounts, rules, links.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::cluster::{BRIDGE, RUN};
use crate::command::capture;
use crate::components::{self, Components};
use crate::process::{Daemons, signal};

/// Kills every container of the cluster through containerd, when that still runs.
pub fn containers(_folder: &Path, daemons: &Daemons) -> Result<()> {
    if !daemons.runs("containerd") {
        return Ok(());
    }
    let ctr = components::build()?.path("ctr")?;
    let ctr = |arguments: &[&str]| {
        capture(
            Command::new(&ctr)
                .args(["-a", &format!("{RUN}/containerd.sock"), "-n", "k8s.io"])
                .args(arguments),
        )
    };
    for task in ctr(&["tasks", "ls", "-q"]).unwrap_or_default().lines() {
        // A task that ended meanwhile is what we want.
        let _ = ctr(&["tasks", "rm", "-f", task]);
    }
    Ok(())
}

/// Ends the shims that outlive containerd, found by the cluster's own socket in their arguments.
pub fn shims() -> Result<()> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        if arguments.contains("containerd-shim-runc-v2") && arguments.contains(RUN) {
            signal(pid, Signal::SIGKILL);
        }
    }
    Ok(())
}

/// Unmounts everything under the cluster's folders, innermost first.
pub fn mounts(folder: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let folder = folder.display().to_string();
    let points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|point| point.starts_with(&folder) || point.starts_with(RUN))
        .collect();
    for point in points.iter().rev() {
        let _ = capture(Command::new("umount").args(["-l", point]));
    }
    Ok(())
}

/// Removes kube-proxy's rules and those of the bridge plugin.
pub fn firewall(components: &Components) -> Result<()> {
    let _ = capture(Command::new(components.path("kube-proxy")?).arg("--cleanup"));
    let Ok(rules) = capture(Command::new("iptables-save").args(["-t", "nat"])) else {
        return Ok(());
    };
    let iptables = |arguments: &[&str]| {
        let _ = capture(Command::new("iptables").args(["-t", "nat"]).args(arguments));
    };
    let ours: Vec<&str> = rules
        .lines()
        .filter(|rule| rule.starts_with("-A POSTROUTING") && rule.contains("name: \\\"lithe\\\""))
        .collect();
    for rule in ours {
        let chain = rule.rsplit(' ').next().unwrap_or_default();
        let source = rule.split(" -s ").nth(1).and_then(|rest| rest.split(' ').next());
        let comment = rule.split("--comment \"").nth(1).and_then(|rest| rest.split("\" -j").next());
        if let (Some(source), Some(comment)) = (source, comment) {
            let comment = comment.replace("\\\"", "\"");
            iptables(&["-D", "POSTROUTING", "-s", source, "-m", "comment", "--comment", &comment, "-j", chain]);
        }
        iptables(&["-F", chain]);
        iptables(&["-X", chain]);
    }
    Ok(())
}

/// Removes the bridge and sets forwarding back.
pub fn network(folder: &Path) -> Result<()> {
    if Path::new("/sys/class/net").join(BRIDGE).exists() {
        let _ = capture(Command::new("ip").args(["link", "del", BRIDGE]));
    }
    let kept = folder.join("ip_forward");
    if let Ok(before) = std::fs::read_to_string(&kept) {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", before)?;
        std::fs::remove_file(kept)?;
    }
    Ok(())
}
