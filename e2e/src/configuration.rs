//! Files and arguments of the embedded cluster's daemons. Pure text; nothing is started here.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use crate::cluster::{
    BRIDGE, ETCD_PORTS, NODE, NODE_ADDRESS, POD_RANGE, PORT, RUN, SERVICE_RANGE,
};
use crate::images::PAUSE;

/// PersistentVolumes of the embedded cluster: name, size, access mode.
const VOLUMES: [(&str, &str, &str); 4] = [
    ("registry", "20Gi", "ReadWriteOnce"),
    ("spare-1", "10Gi", "ReadWriteOnce"),
    ("spare-2", "10Gi", "ReadWriteOnce"),
    ("spare-3", "10Gi", "ReadWriteOnce"),
];

/// The arguments of the daemon `name` whose state lies under `folder`.
pub fn arguments(name: &str, folder: &Path) -> Vec<String> {
    let at = |path: &str| folder.join(path).display().to_string();
    let [client, peer] = ETCD_PORTS.map(|port| format!("http://127.0.0.1:{port}"));
    let kubeconfig = |identity: &str| format!("--kubeconfig={}", at(&format!("pki/{identity}.kubeconfig")));
    match name {
        "etcd" => vec![
            format!("--data-dir={}", at("etcd")),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".into(),
            "--log-level=warn".into(),
        ],
        "kube-apiserver" => vec![
            format!("--etcd-servers={client}"),
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
        ],
        "kube-scheduler" => vec![kubeconfig("scheduler"), "--leader-elect=false".into()],
        "kube-proxy" => vec![
            kubeconfig("proxy"),
            "--proxy-mode=iptables".into(),
            "--conntrack-max-per-core=0".into(),
            format!("--cluster-cidr={POD_RANGE}"),
            format!("--hostname-override={NODE}"),
            "--healthz-bind-address=127.0.0.1:16456".into(),
            "--metrics-bind-address=127.0.0.1:16449".into(),
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
[plugins."io.containerd.cri.v1.images"]
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{PAUSE}"
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
        "containerRuntimeEndpoint": format!("unix://{RUN}/containerd.sock"),
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": false,
        "failSwapOn": false,
        "maxPods": 110,
        "port": 16250,
        "healthzPort": 16248,
        "readOnlyPort": 0,
        "podLogsDir": at("logs/pods"),
        // A developer's disk is fuller than a server's; nothing is evicted before it is really full.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "syncFrequency": "10s",
        "volumePluginDir": at("kubelet/plugins"),
    }))?)
}

fn corefile(folder: &Path) -> String {
    format!(
        ".:53 {{\n  bind {NODE_ADDRESS}\n  errors\n  kubernetes cluster.local in-addr.arpa {{\n    kubeconfig {}\n    ttl 5\n  }}\n}}\n",
        folder.join("pki/admin.kubeconfig").display()
    )
}

fn network() -> serde_json::Value {
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": "lithe",
        "plugins": [
            {
                "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": format!("{RUN}/cni"),
                    "ranges": [[{"subnet": POD_RANGE, "gateway": NODE_ADDRESS}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// The storage class and the volumes, whose folders are made writable for pods that are not root.
pub fn storage(folder: &Path) -> Result<String> {
    let mut text = String::from(
        "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: lithe-local
  annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: Immediate
",
    );
    for (name, size, mode) in VOLUMES {
        let path = volume(folder, name)?;
        let _ = write!(
            text,
            "---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: lithe-{name}, labels: {{lithe.dev/volume: {name}}}}}
spec:
  capacity: {{storage: {size}}}
  accessModes: [{mode}]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: lithe-local
  hostPath: {{path: {path}}}
"
        );
    }
    Ok(text)
}

/// The folder of the volume `name`, made when missing.
pub fn volume(folder: &Path, name: &str) -> Result<String> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join("volumes").join(name);
    std::fs::create_dir_all(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    Ok(path.display().to_string())
}
