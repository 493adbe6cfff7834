//! What the machine must have: Debian packages, installed where we may, else named.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command::{capture, run_logged};
use crate::progress;

/// (program that tells that the package is there, package)
const PACKAGES: [(&str, &str); 8] = [
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/buildah", "buildah"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/bin/mount", "mount"),
    ("/usr/bin/setsid", "util-linux"),
];

/// Fails unless we are root.
pub fn need_root() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!(
            "the embedded cluster runs containers itself and needs root: type `sudo -E env PATH=$PATH cargo e2e up`, or use a cluster of yours with --context NAME"
        );
    }
    Ok(())
}

/// Debian's PyTorch, a reference of the tests; it is no wheel because that brings CUDA along.
const TORCH: &str = "python3-torch";

/// Installs what is missing for the cluster, or says exactly what to type.
pub fn prepare() -> Result<()> {
    install(&missing())
}

/// Installs what only the reference tests need, or says exactly what to type.
pub fn prepare_references() -> Result<()> {
    let there = capture(Command::new("/usr/bin/python3").args(["-c", "import torch"])).is_ok();
    if there { Ok(()) } else { install(&[TORCH]) }
}

/// Installs what only the compression bench needs, or says exactly what to type.
pub fn prepare_bench() -> Result<()> {
    prepare_references()?;
    if Path::new("/usr/share/datasets/fashion-mnist").exists() {
        return Ok(());
    }
    install(&["dataset-fashion-mnist"])
}

fn install(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("install these programs with your package manager: {}", missing.join(" "));
    }
    let step = progress::step(&format!("install {}", missing.join(" ")));
    let advice = || format!("type `apt-get update && apt-get install {}`", missing.join(" "));
    run_logged(Command::new("apt-get").args(["update", "-qq"]), "apt-update")
        .with_context(advice)?;
    run_logged(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(missing),
        "apt-install",
    )
    .with_context(advice)?;
    step.done();
    Ok(())
}

fn missing() -> Vec<&'static str> {
    let there = |program: &str| {
        let other = program.replace("/usr/sbin/", "/sbin/").replace("/usr/bin/", "/bin/");
        Path::new(program).exists() || Path::new(&other).exists()
    };
    let mut missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| !there(program))
        .map(|(_, package)| *package)
        .collect();
    // Debian splits Python's own installer off, and a Python from elsewhere has it.
    if capture(Command::new("python3").args(["-c", "import pip, venv, ensurepip"])).is_err() {
        missing.extend(["python3", "python3-pip", "python3-venv"]);
    }
    missing
}
