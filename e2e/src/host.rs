//! What the machine must have: Debian packages, installed where we may, else named.

use std::process::Command;

use anyhow::{Result, bail};

use crate::command::run_logged;
use crate::progress;

/// (program that tells that the package is there, package)
const PACKAGES: [(&str, &str); 9] = [
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/buildah", "buildah"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/bin/mount", "mount"),
    ("/usr/bin/python3", "python3"),
];

/// Installs what is missing, or says exactly what to type.
pub fn prepare() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("the embedded cluster runs containers itself and needs root: type `sudo -E cargo e2e up`, or use a cluster of yours with --context NAME");
    }
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(program, _)| {
            let other = program.replace("/usr/sbin/", "/sbin/").replace("/usr/bin/", "/bin/");
            !std::path::Path::new(program).exists() && !std::path::Path::new(&other).exists()
        })
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !std::path::Path::new("/usr/bin/apt-get").exists() {
        bail!("install these programs with your package manager: {}", missing.join(" "));
    }
    let step = progress::step(&format!("install {}", missing.join(" ")));
    run_logged(Command::new("apt-get").args(["update", "-qq"]), "apt-update")?;
    run_logged(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing),
        "apt-install",
    )?;
    step.done();
    Ok(())
}
