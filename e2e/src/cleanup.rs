//! Undoes what the embedded cluster left on the machine: containers, mounts, control groups.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::cluster::RUN;
use crate::command::capture;
use crate::components::Components;
use crate::process::{Daemons, signal};

/// Kills every container of the cluster through containerd, when that still runs.
pub fn containers(components: &Components, daemons: &Daemons) -> Result<()> {
    if !daemons.runs("containerd") {
        return Ok(());
    }
    let program = components.path("ctr")?;
    let ctr = |arguments: &[&str]| {
        capture(
            Command::new(&program)
                .args(["-a", &format!("{RUN}/containerd.sock"), "-n", "k8s.io"])
                .args(arguments),
        )
    };
    let tasks = ctr(&["tasks", "ls", "-q"]).unwrap_or_default();
    let tasks: Vec<&str> = tasks.lines().collect();
    if !tasks.is_empty() {
        // A task that ended meanwhile is what we want; `shims` ends what resists.
        let _ = ctr(&[&["tasks", "rm", "-f"], tasks.as_slice()].concat());
    }
    Ok(())
}

/// Ends the shims that outlive containerd, found by the cluster's own socket in their arguments,
/// and the containers below them.
pub fn shims() -> Result<()> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        if arguments.contains("containerd-shim-runc-v2") && arguments.contains(RUN) {
            for child in children(pid) {
                signal(child, Signal::SIGKILL);
            }
            signal(pid, Signal::SIGKILL);
        }
    }
    Ok(())
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| pid.parse().ok())
        .collect()
}

fn mounted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder) || point.starts_with(RUN)).collect())
}

/// Unmounts everything under the cluster's folders, innermost first; fails when something stays,
/// because the folders are removed next.
pub fn mounts(folder: &Path) -> Result<()> {
    for point in mounted(folder)?.iter().rev() {
        let _ = capture(Command::new("umount").arg("-l").arg(point));
    }
    if let Some(point) = mounted(folder)?.first() {
        bail!("{} cannot be unmounted: type `umount {0}`, then `cargo e2e down`", point.display());
    }
    Ok(())
}

/// Removes the control groups of the pods: one tree on version 2, one per controller on version 1.
pub fn control_groups() {
    let root = Path::new("/sys/fs/cgroup");
    let trees = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for tree in trees.chain([root.to_path_buf()]) {
        remove_tree(&tree.join("kubepods"));
    }
}

/// Control groups are removed by `rmdir` alone, innermost first; one with a process in it stays.
fn remove_tree(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// Removes the links to our logs and the bridge plugin's notes that stand outside our folders.
pub fn strays(folder: &Path) {
    for entry in std::fs::read_dir("/var/log/containers").into_iter().flatten().flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(folder)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    for entry in std::fs::read_dir("/var/lib/cni/results").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("lithe-") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
