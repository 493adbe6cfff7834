//! What the cluster changes in the machine's network and kernel settings, and how it is undone.
//!
//! Every firewall rule carries [`COMMENT`]; kube-proxy's are removed by kube-proxy itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cluster::{BRIDGE, NODE_ADDRESS, POD_RANGE, PORTS};
use crate::command::capture;
use crate::components::Components;

/// Tells our firewall rules from those of others.
const COMMENT: &str = "lithe-e2e";

/// Settings that we, the kubelet or the CNI plugins write, and the value that we need, if we do.
///
/// Packets between two pods pass the bridge, where Services are only translated while the bridge
/// calls iptables.
const SETTINGS: [(&str, Option<&str>); 8] = [
    ("net/ipv4/ip_forward", Some("1")),
    ("net/bridge/bridge-nf-call-iptables", Some("1")),
    ("net/ipv4/conf/all/route_localnet", None),
    ("vm/overcommit_memory", None),
    ("kernel/panic", None),
    ("kernel/panic_on_oops", None),
    ("kernel/keys/root_maxkeys", None),
    ("kernel/keys/root_maxbytes", None),
];

/// The rules that let pods out: table, chain, match and target.
fn rules() -> [(&'static str, &'static str, Vec<&'static str>); 3] {
    [
        ("filter", "FORWARD", vec!["-i", BRIDGE, "-j", "ACCEPT"]),
        ("filter", "FORWARD", vec!["-o", BRIDGE, "-j", "ACCEPT"]),
        ("nat", "POSTROUTING", vec!["-s", POD_RANGE, "!", "-o", BRIDGE, "-j", "MASQUERADE"]),
    ]
}

fn iptables(action: &str, rule: &(&str, &str, Vec<&str>)) -> Result<String> {
    let (table, chain, rest) = rule;
    capture(
        Command::new("iptables")
            .args(["-w", "5", "-t", table, action, chain, "-m", "comment", "--comment", COMMENT])
            .args(rest),
    )
}

/// Fails with the name of the process when one of our ports is taken.
pub fn check_ports() -> Result<()> {
    for port in PORTS {
        // Any address: the bridge, and with it the node's address, does not exist yet.
        if let Err(error) = std::net::TcpListener::bind(("0.0.0.0", port)) {
            bail!("port {port} is taken by {} ({error}): stop it and try again", holder(port));
        }
    }
    Ok(())
}

/// Who listens on `port`, in the words of ss: `users:(("name",pid=1,fd=3))`.
fn holder(port: u16) -> String {
    let filter = format!("sport = :{port}");
    let text = capture(Command::new("ss").args(["-Hltnp", &filter])).unwrap_or_default();
    let named = text.split("((\"").nth(1).and_then(|rest| rest.split_once("\",pid="));
    match named.and_then(|(name, rest)| Some((name, rest.split(',').next()?))) {
        Some((name, pid)) => format!("{name} (pid {pid})"),
        None => "an unknown process".to_owned(),
    }
}

/// Makes the bridge of the pods with the node's address on it, and lets pods out.
pub fn set_up(folder: &Path) -> Result<()> {
    if !Path::new("/proc/sys/net/bridge").exists() {
        capture(Command::new("modprobe").arg("br_netfilter"))
            .context("the kernel needs its module br_netfilter for Services between pods")?;
    }
    keep_settings(folder)?;
    for (setting, value) in SETTINGS {
        if let Some(value) = value {
            std::fs::write(Path::new("/proc/sys").join(setting), value)
                .with_context(|| format!("set {setting} to {value}"))?;
        }
    }
    if !bridge_exists() {
        capture(Command::new("ip").args(["link", "add", BRIDGE, "type", "bridge"]))?;
        let address = format!("{NODE_ADDRESS}/24");
        capture(Command::new("ip").args(["addr", "add", &address, "dev", BRIDGE]))?;
    }
    capture(Command::new("ip").args(["link", "set", BRIDGE, "up"]))?;
    for rule in rules() {
        iptables("-I", &rule)?;
    }
    Ok(())
}

fn bridge_exists() -> bool {
    Path::new("/sys/class/net").join(BRIDGE).exists()
}

fn kept(folder: &Path) -> PathBuf {
    folder.join("settings-before")
}

fn keep_settings(folder: &Path) -> Result<()> {
    let mut text = String::new();
    for (setting, _) in SETTINGS {
        if let Ok(value) = std::fs::read_to_string(Path::new("/proc/sys").join(setting)) {
            text.push_str(&format!("{setting} {}\n", value.trim()));
        }
    }
    std::fs::write(kept(folder), text).context("write down the kernel's settings")
}

/// Removes rules and bridge and sets the settings back.
pub fn tear_down(folder: &Path, components: Option<&Components>) -> Result<()> {
    if let Some(proxy) = components.and_then(|components| components.path("kube-proxy").ok()) {
        // It also complains about kernels without IPVS; its rules are gone all the same.
        let _ = capture(Command::new(proxy).arg("--cleanup"));
    }
    for rule in rules() {
        // More than one where a run was killed before it could remove its own.
        while iptables("-D", &rule).is_ok() {}
    }
    if bridge_exists() {
        capture(Command::new("ip").args(["link", "del", BRIDGE]))?;
    }
    let kept = kept(folder);
    let Ok(text) = std::fs::read_to_string(&kept) else { return Ok(()) };
    for (setting, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        std::fs::write(Path::new("/proc/sys").join(setting), value)
            .with_context(|| format!("set {setting} back to {value}"))?;
    }
    std::fs::remove_file(kept).context("remove the settings that were set back")
}
