//! Files and arguments of the embedded cluster's daemons. Pure text; nothing is started here.

use std::path::Path;

use anyhow::Result;

use crate::cluster::{BRIDGE, ETCD_PORTS, NODE, NODE_ADDRESS, POD_RANGE, PORT, RUN, SERVICE_RANGE};
use crate::images::PAUSE;

/// The arguments of the daemon `name` whose state lies under `folder`.
pub fn arguments(name: &str, folder: &Path) -> Vec<String> {
    let at = |path: &str| folder.join(path).display().to_string();
    let [client, peer] = ETCD_PORTS.map(|port| format!("https://127.0.0.1:{port}"));
    let kubeconfig =
        |identity: &str| format!("--kubeconfig={}", at(&format!("pki/{identity}.kubeconfig")));
    match name {
        "etcd" => vec![
            format!("--data-dir={}", at("etcd")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            format!("--cert-file={}", at("pki/etcd.crt")),
            format!("--key-file={}", at("pki/etcd.key")),
            format!("--trusted-ca-file={}", at("pki/ca.crt")),
            "--client-cert-auth".into(),
            format!("--peer-cert-file={}", at("pki/etcd.crt")),
            format!("--peer-key-file={}", at("pki/etcd.key")),
            format!("--peer-trusted-ca-file={}", at("pki/ca.crt")),
            "--peer-client-cert-auth".into(),
            // The data lives as long as the cluster: a crash of the machine ends both.
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ],
        "kube-apiserver" => vec![
            format!("--etcd-servers={client}"),
            format!("--etcd-cafile={}", at("pki/ca.crt")),
            format!("--etcd-certfile={}", at("pki/etcd.crt")),
            format!("--etcd-keyfile={}", at("pki/etcd.key")),
            format!("--bind-address={NODE_ADDRESS}"),
            format!("--secure-port={PORT}"),
            format!("--advertise-address={NODE_ADDRESS}"),
            format!("--tls-cert-file={}", at("pki/apiserver.crt")),
            format!("--tls-private-key-file={}", at("pki/apiserver.key")),
            format!("--client-ca-file={}", at("pki/ca.crt")),
            format!("--service-account-key-file={}", at("pki/accounts.pub")),
            format!("--service-account-signing-key-file={}", at("pki/accounts.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--service-cluster-ip-range={SERVICE_RANGE}"),
            "--authorization-mode=Node,RBAC".into(),
            "--allow-privileged=true".into(),
            format!("--kubelet-client-certificate={}", at("pki/kubelet-client.crt")),
            format!("--kubelet-client-key={}", at("pki/kubelet-client.key")),
            format!("--kubelet-certificate-authority={}", at("pki/ca.crt")),
            "--kubelet-preferred-address-types=InternalIP".into(),
        ],
        "kube-controller-manager" => vec![
            kubeconfig("controllers"),
            format!("--authentication-kubeconfig={}", at("pki/controllers.kubeconfig")),
            format!("--authorization-kubeconfig={}", at("pki/controllers.kubeconfig")),
            format!("--service-account-private-key-file={}", at("pki/accounts.key")),
            format!("--root-ca-file={}", at("pki/ca.crt")),
            "--use-service-account-credentials=true".into(),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
            "--secure-port=16257".into(),
        ],
        "kube-scheduler" => vec![
            kubeconfig("scheduler"),
            "--leader-elect=false".into(),
            "--bind-address=127.0.0.1".into(),
            "--secure-port=16259".into(),
        ],
        "kube-proxy" => vec![
            kubeconfig("proxy"),
            "--proxy-mode=iptables".into(),
            // The machine's connection tracking is the machine's.
            "--conntrack-max-per-core=0".into(),
            "--conntrack-tcp-timeout-established=0".into(),
            "--conntrack-tcp-timeout-close-wait=0".into(),
            "--iptables-localhost-nodeports=false".into(),
            format!("--nodeport-addresses={NODE_ADDRESS}/32"),
            format!("--cluster-cidr={POD_RANGE}"),
            format!("--hostname-override={NODE}"),
            "--healthz-bind-address=127.0.0.1:16256".into(),
            "--metrics-bind-address=127.0.0.1:16249".into(),
        ],
        "kubelet" => vec![
            kubeconfig("kubelet"),
            format!("--config={}", at("config/kubelet.yaml")),
            format!("--root-dir={}", at("kubelet")),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={NODE_ADDRESS}"),
        ],
        "containerd" => vec![format!("--config={}", at("config/containerd.toml"))],
        "coredns" => vec!["-conf".into(), at("config/Corefile")],
        _ => Vec::new(),
    }
}

/// Writes the configuration files under `folder`.
pub fn write(folder: &Path) -> Result<()> {
    let config = folder.join("config");
    let cni = config.join("cni");
    std::fs::create_dir_all(&cni)?;
    std::fs::write(config.join("containerd.toml"), containerd(folder, &cni))?;
    std::fs::write(config.join("kubelet.yaml"), kubelet(folder)?)?;
    std::fs::write(config.join("Corefile"), corefile(folder))?;
    std::fs::write(cni.join("10-lithe.conflist"), network().to_string())?;
    Ok(())
}

fn containerd(folder: &Path, cni: &Path) -> String {
    format!(
        r#"version = 3
root = "{root}"
state = "{RUN}/containerd"
[grpc]
  address = "{RUN}/containerd.sock"
[plugins."io.containerd.cri.v1.runtime"]
  # Container hosts without CAP_SYS_RESOURCE cannot lower the score below their own.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
    conf_dir = "{cni}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = "{RUN}/runc"
[plugins."io.containerd.cri.v1.images"]
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"#,
        root = folder.join("containerd").display(),
        cni = cni.display(),
    )
}

fn kubelet(folder: &Path) -> Result<String> {
    let at = |path: &str| folder.join(path).display().to_string();
    Ok(serde_yaml::to_string(&serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": at("pki/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": at("pki/kubelet.crt"),
        "tlsPrivateKeyFile": at("pki/kubelet.key"),
        "clusterDNS": [NODE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": resolver(),
        "containerRuntimeEndpoint": format!("unix://{RUN}/containerd.sock"),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "maxPods": 110,
        "address": NODE_ADDRESS,
        "port": 16250,
        "healthzPort": 16248,
        "readOnlyPort": 0,
        "podLogsDir": at("logs/pods"),
        // A developer's disk is fuller than a server's; nothing is evicted before it is really full.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "syncFrequency": "10s",
        // Its firewall rules would outlive it, and nothing removes them.
        "makeIPTablesUtilChains": false,
        "volumePluginDir": at("kubelet/plugins"),
    }))?)
}

/// The file with the machine's name servers; the usual one may name a stub that pods cannot reach.
fn resolver() -> &'static str {
    const SYSTEMD: &str = "/run/systemd/resolve/resolv.conf";
    if Path::new(SYSTEMD).exists() { SYSTEMD } else { "/etc/resolv.conf" }
}

fn corefile(folder: &Path) -> String {
    let kubeconfig = folder.join("pki/admin.kubeconfig");
    let servers = std::fs::read_to_string(resolver()).unwrap_or_default();
    // Without a name server to ask, CoreDNS would refuse to start.
    let forward = if servers.lines().any(|line| line.starts_with("nameserver")) {
        format!("  forward . {}\n", resolver())
    } else {
        String::new()
    };
    format!(
        ".:53 {{
  bind {NODE_ADDRESS}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {}
    ttl 5
    fallthrough in-addr.arpa
  }}
{forward}}}
",
        kubeconfig.display()
    )
}

fn network() -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "lithe",
        "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": format!("{RUN}/cni"),
                    "ranges": [[{"subnet": POD_RANGE, "gateway": NODE_ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
        ],
    })
}
