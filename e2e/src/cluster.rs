//! The embedded cluster: a whole Kubernetes on this machine, one node, a simulated GPU.
//!
//! Everything it makes on the machine (a bridge, mounts, firewall rules) is undone by [`down`].

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::components::{self, Components};
use crate::process::Daemons;
use crate::{
    cache, cleanup, command, configuration, host, interrupt, network, pki, progress, volumes,
};

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
/// Every port that the cluster listens on: some on the node's address, the others on 127.0.0.1.
pub const PORTS: [u16; 9] = [PORT, 12379, 12380, 16248, 16249, 16250, 16256, 16257, 16259];
/// Sockets live here: paths of sockets have at most 107 characters.
pub const RUN: &str = "/run/lithe-e2e";

/// In the order in which they start.
pub const DAEMONS: [&str; 8] = [
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
    Ok(Cluster { kubeconfig: kubeconfig()?, context: None, components: components::build()? })
}

/// A cluster of the user's: `context` in the kubeconfig that kubectl would read.
pub fn existing(context: &str) -> Result<Cluster> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".kube/config"));
    let kubeconfig = std::env::var_os("KUBECONFIG").map(PathBuf::from).or_else(home);
    let cluster = Cluster {
        kubeconfig: kubeconfig.context("neither KUBECONFIG nor HOME is set")?,
        context: Some(context.to_owned()),
        components: components::tools()?,
    };
    command::capture(cluster.kubectl()?.args([
        "get",
        "--raw",
        "/version",
        "--request-timeout=10s",
    ]))
    .with_context(|| format!("the cluster of --context {context} does not answer"))?;
    Ok(cluster)
}

/// Whether there is anything of an embedded cluster, running or left behind.
pub fn exists() -> Result<bool> {
    Ok(!daemons()?.names().is_empty() || folder()?.join("etcd").exists())
}

/// Starts the embedded cluster, or finds it running. What is not whole is started anew.
pub fn up() -> Result<Cluster> {
    host::need_root()?;
    let _lock = cache::lock()?;
    if exists()? {
        let cluster = embedded()?;
        let same = Components::recorded(&folder()?).as_ref() == Some(&cluster.components);
        if same && healthy(&cluster) {
            volumes::renew(&cluster)?;
            return Ok(cluster);
        }
        progress::headline("an earlier cluster is not whole or not of this version: starting anew");
        stop()?;
    }
    host::prepare()?;
    let cluster = embedded()?;
    network::check_ports()?;
    if let Err(error) = start(&cluster) {
        // Nothing stays half-started; the logs stay.
        if let Err(second) = stop() {
            eprintln!("stopping what was started failed too: {second:#}");
        }
        return Err(error);
    }
    Ok(cluster)
}

fn start(cluster: &Cluster) -> Result<()> {
    let folder = folder()?;
    let daemons = daemons()?;
    let step = progress::step("start the control plane");
    prepare(&folder, cluster)?;
    for name in ["etcd", "kube-apiserver"] {
        let mut command = Command::new(cluster.components.path(name)?);
        daemons.start(name, command.args(configuration::arguments(name, &folder)))?;
    }
    daemons.wait(&["etcd", "kube-apiserver"], "the API server", Duration::from_secs(60), || {
        api_ready(cluster)
    })?;
    step.done();

    let step = progress::step("start the node");
    let path = search_path(&cluster.components);
    for name in DAEMONS.iter().skip(2) {
        let mut command = Command::new(cluster.components.path(name)?);
        command.args(configuration::arguments(name, &folder)).env("PATH", &path);
        daemons.start(name, &mut command)?;
        if *name == "containerd" {
            // The kubelet ends when it finds no runtime.
            crate::images::load_pause(cluster)?;
        }
    }
    daemons.wait(&DAEMONS, "the node", Duration::from_secs(90), || node_ready(cluster))?;
    step.done();
    let step = progress::step("set up storage and the simulated GPUs");
    volumes::create(cluster)?;
    gpus(cluster)?;
    step.done();
    interrupt::check()
}

/// Everything that must be there before the first daemon.
fn prepare(folder: &Path, cluster: &Cluster) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    // The first thing on the disk is what tells a later run that there is something to undo.
    std::fs::create_dir_all(folder.join("etcd"))?;
    let pods = folder.join("logs/pods");
    if pods.exists() {
        std::fs::remove_dir_all(pods).context("remove the logs of the last cluster's pods")?;
    }
    for private in [Path::new(RUN), &folder.join("etcd")] {
        std::fs::create_dir_all(private)?;
        std::fs::set_permissions(private, std::fs::Permissions::from_mode(0o700))?;
    }
    cluster.components.record(folder)?;
    let server = format!("https://{NODE_ADDRESS}:{PORT}");
    pki::make(&folder.join("pki"), &server, NODE_ADDRESS, SERVICE_ADDRESS)?;
    configuration::write(folder)?;
    network::set_up(folder)
}

/// containerd finds its shim on the `PATH`, and the kubelet its tools.
fn search_path(components: &Components) -> String {
    let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let folders = components.folders().iter().map(|folder| folder.display().to_string());
    folders.chain([system.to_owned()]).collect::<Vec<_>>().join(":")
}

fn api_ready(cluster: &Cluster) -> bool {
    let get = |cluster: &Cluster| -> Result<String> {
        command::capture(cluster.kubectl()?.args([
            "get",
            "--raw",
            "/readyz",
            "--request-timeout=2s",
        ]))
    };
    get(cluster).is_ok_and(|text| text == "ok")
}

fn node_ready(cluster: &Cluster) -> bool {
    const READY: &str = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    let get = |cluster: &Cluster| -> Result<String> {
        command::capture(cluster.kubectl()?.args([
            "get",
            "node",
            NODE,
            "-o",
            READY,
            "--request-timeout=2s",
        ]))
    };
    get(cluster).is_ok_and(|text| text == "True")
}

/// Two GPUs that do not exist, with the labels that GPU feature discovery sets.
fn gpus(cluster: &Cluster) -> Result<()> {
    const PATCH: &str = r#"[
        {"op": "add", "path": "/status/capacity/nvidia.com~1gpu", "value": "2"},
        {"op": "add", "path": "/status/allocatable/nvidia.com~1gpu", "value": "2"}]"#;
    const LABELS: [&str; 7] = [
        "nvidia.com/gpu.present=true",
        "nvidia.com/gpu.count=2",
        "nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3",
        "nvidia.com/gpu.memory=81559",
        "nvidia.com/gpu.family=hopper",
        "nvidia.com/gpu.compute.major=9",
        "nvidia.com/gpu.compute.minor=0",
    ];
    let patch = ["patch", "node", NODE, "--subresource=status", "--type=json", "-p", PATCH];
    command::capture(cluster.kubectl()?.args(patch))?;
    command::capture(cluster.kubectl()?.args(["label", "node", NODE, "--overwrite"]).args(LABELS))?;
    Ok(())
}

/// Stops the embedded cluster and leaves the machine as it was found. Built programs, images and
/// the logs of the last run stay.
pub fn down() -> Result<()> {
    host::need_root()?;
    let _lock = cache::lock()?;
    stop()
}

fn stop() -> Result<()> {
    if !exists()? {
        return Ok(());
    }
    let folder = folder()?;
    let daemons = daemons()?;
    let components = Components::recorded(&folder);
    let step = progress::step("stop the cluster");
    // The kubelet first, so that it does not start anew what is stopped after it.
    daemons.stop(&["kubelet"])?;
    if let Some(components) = &components {
        cleanup::containers(components, &daemons)?;
    }
    daemons.stop(&DAEMONS)?;
    cleanup::shims()?;
    cleanup::mounts(&folder)?;
    cleanup::control_groups();
    cleanup::strays(&folder);
    network::tear_down(&folder, components.as_ref())?;
    // The records last: while they are there, a later run knows that there is something to undo.
    for name in ["kubelet", "containerd", "pki", "config", "volumes", "pids", "etcd"] {
        let path = folder.join(name);
        if path.exists() {
            std::fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    if Path::new(RUN).exists() {
        std::fs::remove_dir_all(RUN).with_context(|| format!("remove {RUN}"))?;
    }
    step.done();
    Ok(())
}
