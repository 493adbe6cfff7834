//! The embedded cluster: a whole Kubernetes on this machine, one node, a simulated GPU.
//!
//! Everything it makes on the machine (a bridge, mounts, firewall rules) is undone by [`down`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::components::{self, Components};
use crate::process::Daemons;
use crate::{cache, command, configuration, host, pki, progress};

/// The node's name.
pub const NODE: &str = "lithe-node";
/// The node's address, on the bridge of the pods.
pub const NODE_ADDRESS: &str = "10.77.1.1";
/// The address of the API server's Service.
pub const SERVICE_ADDRESS: &str = "10.77.128.1";
/// The addresses of Services.
pub const SERVICE_RANGE: &str = "10.77.128.0/20";
/// The addresses of pods.
pub const POD_RANGE: &str = "10.77.1.0/24";
/// The bridge of the pods.
pub const BRIDGE: &str = "lithe0";
/// The API server's port.
pub const PORT: u16 = 16443;
/// etcd's ports: clients, peers.
pub const ETCD_PORTS: [u16; 2] = [12379, 12380];
/// Sockets live here: paths of sockets have at most 107 characters.
pub const RUN: &str = "/run/lithe-e2e";

/// In the order in which they start.
const DAEMONS: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "coredns",
    "kubelet",
    "kube-proxy",
];

/// A cluster that can be used: the embedded one, or one of the user's.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The kubeconfig of an administrator.
    pub kubeconfig: PathBuf,
    /// The context in it; the current one by default.
    pub context: Option<String>,
    /// The built programs.
    pub components: Components,
    /// Whether it is the embedded one, into which images can be loaded.
    pub embedded: bool,
}

impl Cluster {
    /// kubectl, ready to take arguments.
    pub fn kubectl(&self) -> Result<Command> {
        self.tool("kubectl", "--context")
    }

    /// Helm, ready to take arguments.
    pub fn helm(&self) -> Result<Command> {
        self.tool("helm", "--kube-context")
    }

    fn tool(&self, program: &str, context: &str) -> Result<Command> {
        let mut command = Command::new(self.components.path(program)?);
        command.env("KUBECONFIG", &self.kubeconfig);
        if let Some(name) = &self.context {
            command.args([context, name]);
        }
        Ok(command)
    }

    /// Applies `manifest` (YAML) with kubectl.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        use std::io::Write as _;
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(manifest.as_bytes())?;
        command::capture(self.kubectl()?.args(["apply", "-f"]).arg(file.path()))?;
        Ok(())
    }
}

/// The folder of the embedded cluster's state.
pub fn folder() -> Result<PathBuf> {
    Ok(cache::directory()?.join("cluster"))
}

/// The kubeconfig of the embedded cluster.
pub fn kubeconfig() -> Result<PathBuf> {
    Ok(pki::kubeconfig_path(&folder()?.join("pki"), "admin"))
}

/// The daemons of the embedded cluster.
pub fn daemons() -> Result<Daemons> {
    Ok(Daemons::new(&folder()?))
}

/// Whether every daemon runs and the API server and the node are ready.
pub fn healthy(cluster: &Cluster) -> bool {
    let Ok(daemons) = daemons() else { return false };
    DAEMONS.iter().all(|name| daemons.runs(name)) && api_ready(cluster) && node_ready(cluster)
}

/// The embedded cluster as it would be used; it may be down.
pub fn embedded() -> Result<Cluster> {
    Ok(Cluster {
        kubeconfig: kubeconfig()?,
        context: None,
        components: components::build()?,
        embedded: true,
    })
}

/// Starts the embedded cluster, or finds it running.
pub fn up() -> Result<Cluster> {
    host::prepare()?;
    let cluster = embedded()?;
    if healthy(&cluster) {
        return Ok(cluster);
    }
    if !daemons()?.names().is_empty() {
        progress::headline("an earlier cluster is not whole: starting anew");
        down()?;
    }
    check_ports()?;
    let started = start(&cluster);
    if started.is_err() {
        // Nothing stays half-started; the logs stay.
        down().context("stop what was started")?;
    }
    started?;
    Ok(cluster)
}

fn check_ports() -> Result<()> {
    for port in [PORT, ETCD_PORTS[0], ETCD_PORTS[1]] {
        if let Err(error) = std::net::TcpListener::bind(("127.0.0.1", port)) {
            bail!("port {port} on 127.0.0.1 is taken ({error}): stop what uses it (`ss -ltnp sport = :{port}` tells)");
        }
    }
    Ok(())
}

fn start(cluster: &Cluster) -> Result<()> {
    let folder = folder()?;
    let step = progress::step("start the control plane");
    std::fs::create_dir_all(&folder)?;
    std::fs::create_dir_all(RUN)?;
    let server = format!("https://127.0.0.1:{PORT}");
    pki::make(&folder.join("pki"), &server, NODE_ADDRESS, SERVICE_ADDRESS)?;
    configuration::write(&folder)?;
    network()?;
    let daemons = daemons()?;
    let program = |name: &str| cluster.components.path(name);
    for name in ["etcd", "kube-apiserver"] {
        daemons.start(name, Command::new(program(name)?).args(arguments(name, &folder)))?;
    }
    daemons.wait(&["etcd", "kube-apiserver"], "the API server", Duration::from_secs(60), || {
        api_ready(cluster)
    })?;
    step.done();

    let step = progress::step("start the node");
    let path = cluster
        .components
        .folders()
        .iter()
        .map(|folder| folder.display().to_string())
        .chain(["/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()])
        .collect::<Vec<_>>()
        .join(":");
    for name in DAEMONS.iter().skip(2) {
        let mut command = Command::new(program(name)?);
        daemons.start(name, command.args(arguments(name, &folder)).env("PATH", &path))?;
        if *name == "containerd" {
            // The kubelet ends when it finds no runtime.
            crate::images::load_pause(cluster)?;
        }
    }
    daemons.wait(&DAEMONS, "the node", Duration::from_secs(90), || node_ready(cluster))?;
    step.done();
    let step = progress::step("set up storage and the simulated GPUs");
    cluster.apply(&configuration::storage(&folder)?)?;
    gpus(cluster)?;
    step.done();
    Ok(())
}

fn api_ready(cluster: &Cluster) -> bool {
    let get = |cluster: &Cluster| -> Result<String> {
        command::capture(cluster.kubectl()?.args(["get", "--raw", "/readyz", "--request-timeout=2s"]))
    };
    get(cluster).is_ok_and(|text| text == "ok")
}

fn node_ready(cluster: &Cluster) -> bool {
    const READY: &str = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    let get = |cluster: &Cluster| -> Result<String> {
        command::capture(cluster.kubectl()?.args(["get", "node", NODE, "-o", READY, "--request-timeout=2s"]))
    };
    get(cluster).is_ok_and(|text| text == "True")
}

/// Two GPUs that do not exist, with the labels that GPU feature discovery sets.
fn gpus(cluster: &Cluster) -> Result<()> {
    let patch = r#"[{"op":"add","path":"/status/capacity/nvidia.com~1gpu","value":"2"},{"op":"add","path":"/status/allocatable/nvidia.com~1gpu","value":"2"}]"#;
    command::capture(cluster.kubectl()?.args([
        "patch", "node", NODE, "--subresource=status", "--type=json", "-p", patch,
    ]))?;
    command::capture(cluster.kubectl()?.args([
        "label", "node", NODE, "--overwrite", "nvidia.com/gpu.present=true",
        "nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.count=2",
    ]))?;
    Ok(())
}

/// The bridge of the pods, with the node's address on it, and forwarding.
fn network() -> Result<()> {
    if !Path::new("/sys/class/net").join(BRIDGE).exists() {
        command::capture(Command::new("ip").args(["link", "add", BRIDGE, "type", "bridge"]))?;
        let address = format!("{NODE_ADDRESS}/24");
        command::capture(Command::new("ip").args(["addr", "add", &address, "dev", BRIDGE]))?;
    }
    command::capture(Command::new("ip").args(["link", "set", BRIDGE, "up"]))?;
    let forward = "/proc/sys/net/ipv4/ip_forward";
    let before = std::fs::read_to_string(forward)?;
    if before.trim() != "1" {
        std::fs::write(folder()?.join("ip_forward"), &before)?;
        std::fs::write(forward, "1")?;
    }
    Ok(())
}

fn arguments(name: &str, folder: &Path) -> Vec<String> {
    configuration::arguments(name, folder)
}

/// Stops the embedded cluster and leaves the machine as it was found. Built programs stay.
pub fn down() -> Result<()> {
    let folder = folder()?;
    let daemons = daemons()?;
    if daemons.names().is_empty() && !folder.join("etcd").exists() {
        return Ok(());
    }
    let step = progress::step("stop the cluster");
    // The kubelet first, so that it does not start anew what is stopped after it.
    for name in ["kubelet", "kube-proxy", "kube-scheduler", "kube-controller-manager"] {
        daemons.stop(name)?;
    }
    crate::cleanup::containers(&folder, &daemons)?;
    for name in DAEMONS.iter().rev() {
        daemons.stop(name)?;
    }
    crate::cleanup::shims()?;
    crate::cleanup::mounts(&folder)?;
    if let Ok(components) = components::build() {
        crate::cleanup::firewall(&components)?;
    }
    crate::cleanup::network(&folder)?;
    for name in ["etcd", "kubelet", "containerd", "pki", "pids", "config", "volumes"] {
        let path = folder.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("remove {}", path.display()))?;
        }
    }
    let _ = std::fs::remove_dir_all(RUN);
    step.done();
    Ok(())
}

/// Prints what runs; `false` when the cluster is down.
pub fn status() -> Result<bool> {
    let daemons = daemons()?;
    for name in DAEMONS {
        match daemons.pid(name) {
            Some(pid) => println!("{name:<26} running  pid {pid}"),
            None => println!("{name:<26} stopped"),
        }
    }
    println!("logs        {}/logs", folder()?.display());
    println!("kubeconfig  {}", kubeconfig()?.display());
    let cluster = embedded()?;
    let healthy = healthy(&cluster);
    println!("cluster     {}", if healthy { "ready" } else { "not ready: `cargo e2e up`" });
    Ok(healthy)
}
